/**
 * What changed inside a block that lies in place in an older version: the receiver sketches what it has, 16 bits for each 128
 * bytes, and the sender answers with the pieces that differ. A row of a database, or a counter in a header, costs some 200
 * bytes instead of 4 KiB. Collisions are no danger: the whole chunk is held against its SHA-256 (I3). Pure.
 *
 * What is sent of such a chunk (its body), block by block of those that are missing: the bytes of a block that was not
 * sketched; of one that was, a u32 (big-endian, bit i for piece i), then the pieces that it names. All as far as they lie in
 * the chunk. A body is never as long as the chunk, so that one can be told from the other.
 */
import { crc32 } from 'node:zlib'
import { BLOCK_BYTES, blockCount, PIECE_BYTES, PIECE_HASH_BYTES, SKETCH_BYTES } from '../core/units.ts'
import { hasBlock, partOf } from './chunk-blocks.ts'

const PIECES = BLOCK_BYTES / PIECE_BYTES
const MAP_BYTES = 4

/** Which blocks of a chunk are missing, and of which of them older versions lie in place; a bit each. */
export interface MissingBlocks {
  readonly start: number
  readonly end: number
  readonly missing: Uint8Array
  /** Of those. */
  readonly old: Uint8Array
}

/** Of a chunk's bytes: those in its body, and those of sketched blocks that need not be. */
export interface BodyBytes {
  readonly literalBytes: number
  readonly deltaBytes: number
}

/** What of sketched blocks goes. The body itself is made when it is sent: a far end may have many chunks sketched. */
export interface Differences extends BodyBytes {
  /** Of each block in `old`, in order, which pieces differ: bit i for piece i. */
  readonly maps: readonly number[]
  readonly bodyBytes: number
}

/** 16 bits for each piece of a whole block. */
export function sketchOf(block: Uint8Array): Buffer {
  const sketch = Buffer.allocUnsafe(SKETCH_BYTES)
  for (let piece = 0; piece < PIECES; piece++)
    sketch.writeUInt16BE(hashOf(block, piece), piece * PIECE_HASH_BYTES)
  return sketch
}

function hashOf(block: Uint8Array, piece: number): number {
  const crc = crc32(block.subarray(piece * PIECE_BYTES, (piece + 1) * PIECE_BYTES))
  return (crc >>> 16) ^ (crc & 0xffff)
}

/**
 * @param sketches of the blocks in `old`, one after another
 * @param blockAt the whole block of the disk with that index, of which only a part may lie in the chunk
 */
export function differencesOf(
  blocks: MissingBlocks,
  sketches: Buffer,
  blockAt: (index: number) => Uint8Array,
): Differences {
  const maps: number[] = []
  for (const { index, from, to } of partsOfBlocks(blocks)) {
    if (!hasBlock(blocks.old, index)) continue
    const block = blockAt(index)
    const sketchAt = maps.length * SKETCH_BYTES
    let map = 0
    for (let piece = 0; piece < PIECES; piece++) {
      const same = sketches.readUInt16BE(sketchAt + piece * PIECE_HASH_BYTES) === hashOf(block, piece)
      const { first, end } = pieceWithin(piece, from, to)
      if (!same && first < end) map += 2 ** piece
    }
    maps.push(map)
  }
  let at = 0
  const bytes = walk(
    blocks,
    () => maps[at++],
    () => true,
  )!
  return { ...bytes, maps, bodyBytes: bytes.literalBytes + maps.length * MAP_BYTES }
}

/** Which pieces of two versions of a block differ: bit i for piece i. */
export function differencesBetween(old: Buffer, now: Uint8Array): number {
  if (old.equals(now)) return 0
  let map = 0
  for (let piece = 0; piece < PIECES; piece++) {
    const from = piece * PIECE_BYTES
    const to = from + PIECE_BYTES
    if (old.compare(now, from, to, from, to) !== 0) map += 2 ** piece
  }
  return map
}

/** Writes the body to `into` from `at` on. @param chunk the chunk's bytes @returns behind it */
export function writeBody(
  blocks: MissingBlocks,
  maps: readonly number[],
  chunk: Uint8Array,
  into: Buffer,
  at: number,
): number {
  let end = at
  let old = 0
  const nextMap = (): number => {
    const map = maps[old++]!
    end = into.writeUInt32BE(map, end)
    return map
  }
  walk(blocks, nextMap, (from, to) => {
    into.set(chunk.subarray(from, to), end)
    end += to - from
    return true
  })
  return end
}

/**
 * Puts a body where it belongs. @param chunk the chunk's bytes, which has the parts of older blocks in their places
 * @returns undefined for a body that does not fit
 */
export function applyBody(blocks: MissingBlocks, body: Buffer, chunk: Buffer): BodyBytes | undefined {
  let at = 0
  const nextMap = (): number | undefined => {
    at += MAP_BYTES
    return at <= body.length ? body.readUInt32BE(at - MAP_BYTES) : undefined
  }
  const bytes = walk(blocks, nextMap, (from, to) => {
    if (at + to - from > body.length) return false
    body.copy(chunk, from, at, at + to - from)
    at += to - from
    return true
  })
  return at === body.length ? bytes : undefined
}

/**
 * A body in its order. @param nextMap of the next block in `old` @param take a range of the chunk that is in the body
 * @returns undefined when either says that there is no such thing
 */
function walk(
  blocks: MissingBlocks,
  nextMap: () => number | undefined,
  take: (from: number, to: number) => boolean,
): BodyBytes | undefined {
  let literalBytes = 0
  let deltaBytes = 0
  for (const { index, from, to, chunkAt } of partsOfBlocks(blocks)) {
    const part = (first: number, end: number): boolean => {
      literalBytes += end - first
      return first < end && take(chunkAt + first - from, chunkAt + end - from)
    }
    if (!hasBlock(blocks.old, index)) {
      if (!part(from, to)) return undefined
      continue
    }
    const map = nextMap()
    if (map === undefined) return undefined
    const before = literalBytes
    for (let piece = 0; piece < PIECES; piece++) {
      if ((map & (1 << piece)) === 0) continue
      const { first, end } = pieceWithin(piece, from, to)
      if (!part(first, end)) return undefined
    }
    deltaBytes += to - from - (literalBytes - before)
  }
  return { literalBytes, deltaBytes }
}

/** The longest body that may come. */
export function bodyBytesMax(blocks: MissingBlocks): number {
  let bytes = 0
  for (const { index, from, to } of partsOfBlocks(blocks))
    bytes += to - from + (hasBlock(blocks.old, index) ? MAP_BYTES : 0)
  return bytes
}

function pieceWithin(piece: number, from: number, to: number): { first: number; end: number } {
  return { first: Math.max(from, piece * PIECE_BYTES), end: Math.min(to, (piece + 1) * PIECE_BYTES) }
}

/** Of each missing block the part that lies in the chunk: [from, to) in the block, `chunkAt` in the chunk. */
function* partsOfBlocks({ start, end, missing }: MissingBlocks): Generator<{
  readonly index: number
  readonly from: number
  readonly to: number
  readonly chunkAt: number
}> {
  const count = blockCount(start, end)
  const skip = start % BLOCK_BYTES
  for (let index = 0; index < count; index++) {
    if (!hasBlock(missing, index)) continue
    const part = partOf(start, end, index)
    const from = index === 0 ? skip : 0
    yield { index, from, to: from + part.to - part.from, chunkAt: part.from }
  }
}
