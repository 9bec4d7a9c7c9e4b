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
import { BLOCK_BYTES, PIECE_BYTES, PIECE_HASH_BYTES, SKETCH_BYTES } from '../core/units.ts'
import { blockCount, hasBlock, partOf } from './chunk-blocks.ts'

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

export interface ChunkBody {
  readonly body: Buffer
  /** Bytes of the chunk that are in it. */
  readonly literalBytes: number
  /** Bytes of sketched blocks that need not be sent. */
  readonly deltaBytes: number
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
 * @param chunk the chunk's bytes
 * @param blockAt the whole block of the disk with that index, of which only a part may lie in the chunk
 */
export function bodyOf(
  blocks: MissingBlocks,
  sketches: Buffer,
  chunk: Uint8Array,
  blockAt: (index: number) => Uint8Array,
): ChunkBody {
  const pieces: Uint8Array[] = []
  let literalBytes = 0
  let deltaBytes = 0
  let sketchAt = 0
  for (const { index, from, to, chunkAt } of partsOfBlocks(blocks)) {
    if (!hasBlock(blocks.old, index)) {
      pieces.push(chunk.subarray(chunkAt, chunkAt + to - from))
      literalBytes += to - from
      continue
    }
    const block = blockAt(index)
    const map = Buffer.alloc(MAP_BYTES)
    pieces.push(map)
    let named = 0
    for (let piece = 0; piece < PIECES; piece++) {
      const same = sketches.readUInt16BE(sketchAt + piece * PIECE_HASH_BYTES) === hashOf(block, piece)
      const { first, end } = pieceWithin(piece, from, to)
      if (same || first >= end) continue
      named += 2 ** piece
      pieces.push(block.subarray(first, end))
      literalBytes += end - first
      deltaBytes -= end - first
    }
    map.writeUInt32BE(named)
    deltaBytes += to - from
    sketchAt += SKETCH_BYTES
  }
  return { body: Buffer.concat(pieces), literalBytes, deltaBytes }
}

/**
 * Puts a body where it belongs. @param chunk the chunk's bytes, which has the parts of older blocks in their places
 * @returns undefined for a body that does not fit
 */
export function applyBody(
  blocks: MissingBlocks,
  body: Buffer,
  chunk: Buffer,
): Omit<ChunkBody, 'body'> | undefined {
  let at = 0
  let literalBytes = 0
  let deltaBytes = 0
  for (const { index, from, to, chunkAt } of partsOfBlocks(blocks)) {
    const take = (first: number, end: number): boolean => {
      if (at + end - first > body.length) return false
      body.copy(chunk, chunkAt + first - from, at, at + end - first)
      at += end - first
      literalBytes += end - first
      return true
    }
    if (!hasBlock(blocks.old, index)) {
      if (!take(from, to)) return undefined
      continue
    }
    if (at + MAP_BYTES > body.length) return undefined
    const named = body.readUInt32BE(at)
    at += MAP_BYTES
    deltaBytes += to - from
    for (let piece = 0; piece < PIECES; piece++) {
      if ((named & (1 << piece)) === 0) continue
      const { first, end } = pieceWithin(piece, from, to)
      if (first >= end || !take(first, end)) return undefined
      deltaBytes -= end - first
    }
  }
  return at === body.length ? { literalBytes, deltaBytes } : undefined
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
