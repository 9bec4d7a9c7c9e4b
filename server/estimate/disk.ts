/**
 * What one disk of a guest would cost: its chunks, as its map has them, are held against what the far side knows; of those that it
 * lacks a part, spread over the disk, is looked at block by block, and of the blocks that it lacks too a part is read and packed
 * as literals are. All in one walk over the map, with little memory, whatever the size of the disk.
 *
 * It asks a daemon that may lie: whatever that says only changes the figures.
 */
import type { ImageFormat } from '../../lib/catalog/image-files.ts'
import type { ImageRef } from '../../lib/catalog/open-image.ts'
import {
  ESTIMATE_CALL_BLOCKS_MAX,
  ESTIMATE_CALL_MS,
  ESTIMATE_CALLS_AT_ONCE_MAX,
  RPC_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { alignDown, BLOCK_BYTES, blockCount, HINT_BYTES } from '../../lib/core/units.ts'
import { blockBits, hasBlock, partOf, partsOf, setBlock } from '../../lib/engine/chunk-blocks.ts'
import { LiteralPacker } from '../../lib/engine/literal-stream.ts'
import { LITERAL_TARGET_BYTES } from '../../lib/engine/literals.ts'
import { ENGINE_FEATURES } from '../../lib/wire/disk.ts'
import { Params } from '../params.ts'
import { CHUNK_ELSEWHERE, decodeBits, decodeStates, encodeBlocks, encodeChunks } from './batch.ts'
import { mapOfDisk } from './disk-map.ts'
import { chunkOf, type DiskPiece } from './disk-piece.ts'
import { LiveImage } from './live-image.ts'
import { GROUP_CHUNKS, Spread, someGroups, type Thinning } from './spread.ts'
import { type DiskFigures, fateOf, figuresOf, type Sampled, Tally } from './tally.ts'

export type AskPeer = (method: string, params: object, timeoutMs: number) => Promise<unknown>

export interface DiskContext {
  readonly ask: AskPeer
  /** Where maps of this host's images lie. */
  readonly catalog: string
  /** Which groups of chunks are asked about, over all disks. */
  readonly thinning: Thinning
  /** Chunks that are looked at block by block, and bytes that are compressed; at least GROUP_CHUNKS, and 1. */
  readonly sample: { readonly chunks: number; readonly bytes: number }
  /** The far side has blocks that could be found. */
  readonly blocksThere: boolean
  readonly signal: AbortSignal
}

export interface DiskToEstimate {
  /** What the far side calls it. */
  readonly number: number
  /** Resolved and allowed. */
  readonly image: ImageRef
  readonly there: HeldImage | undefined
}

/** What the far side has at a disk's place. */
export interface HeldImage {
  /** How it is known there; undefined: it does not say. */
  readonly format: ImageFormat | undefined
  /** What of it is no hole, at most the disk's size. */
  readonly bytes: number
}

export interface EstimatedDisk extends DiskFigures {
  /** Of the disk. */
  readonly size: number
  /** In 4 KiB blocks that are not zero. */
  readonly dataBytes: number
  /** When the map was made, in milliseconds since 1970; null: the image was scanned for this. */
  readonly mapAt: number | null
}

interface LackingChunk {
  readonly start: number
  readonly end: number
  readonly hints: Buffer
}

interface MissingParts {
  readonly chunk: LackingChunk
  /** A bit for each block that the far side lacks. */
  readonly missing: Buffer
  readonly missingBytes: number
}

/** What lies at a disk's place as something else has its bytes elsewhere than the disk has them. */
export function isKnownOtherwise({ image, there }: DiskToEstimate): boolean {
  return there?.format !== undefined && there.format !== image.format
}

/** @throws UnreadableDisk, what the peer's calls throw, the signal's reason */
export async function estimateDisk(disk: DiskToEstimate, context: DiskContext): Promise<EstimatedDisk> {
  const map = await mapOfDisk(disk.image, context.catalog, context.signal)
  try {
    const { size } = map
    const tally = new Tally(Math.min(size, disk.there?.bytes ?? 0))
    const lacking = new Spread<LackingChunk>(context.sample.chunks)
    const calls = new Calls()
    let dataBytes = 0
    for await (const piece of map.pieces()) {
      for (const length of piece.lengths) dataBytes += length
      const groups = groupsOf(piece, context.thinning)
      if (groups.length > 0)
        await calls.add(statesOf(disk, context, piece, groups), (states) =>
          tallyGroups(piece, groups, states, tally, lacking),
        )
    }
    await calls.end()
    context.signal.throwIfAborted()
    const sampled = await sample(disk, context, lacking.groups)
    return { ...figuresOf(tally, sampled, dataBytes), size, dataBytes, mapAt: map.madeAt }
  } finally {
    await map.close()
  }
}

/** So many calls are under way; what they answer is used in the order in which they were made. */
class Calls {
  readonly #waiting: (() => Promise<void>)[] = []

  async add<T>(answer: Promise<T>, use: (answer: T) => void): Promise<void> {
    // It is waited for later, and may fail before.
    answer.catch(() => undefined)
    this.#waiting.push(async () => use(await answer))
    if (this.#waiting.length >= ESTIMATE_CALLS_AT_ONCE_MAX) await this.#waiting.shift()!()
  }

  async end(): Promise<void> {
    for (const next of this.#waiting.splice(0)) await next()
  }
}

interface Group {
  readonly first: number
  readonly end: number
  readonly weight: number
}

function groupsOf({ count }: DiskPiece, thinning: Thinning): Group[] {
  const groups: Group[] = []
  for (let first = 0; first < count; first += GROUP_CHUNKS) {
    const end = Math.min(count, first + GROUP_CHUNKS)
    const weight = thinning.take(end - first)
    if (weight > 0) groups.push({ first, end, weight })
  }
  return groups
}

function indexesOf({ first, end }: Group): number[] {
  return Array.from({ length: end - first }, (_, at) => first + at)
}

async function statesOf(
  disk: DiskToEstimate,
  { ask }: DiskContext,
  piece: DiskPiece,
  groups: readonly Group[],
): Promise<Uint8Array> {
  const chunks = groups.flatMap(indexesOf).map((index) => chunkOf(piece, index))
  const params = { disk: disk.number, chunks: encodeChunks(chunks) }
  const answer = new Params('estimateChunks', await ask('estimateChunks', params, ESTIMATE_CALL_MS))
  const states = decodeStates(answer.text('states', RPC_BYTES_MAX), chunks.length)
  return isKnownOtherwise(disk) ? states.map((state) => Math.min(state, CHUNK_ELSEWHERE)) : states
}

function tallyGroups(
  piece: DiskPiece,
  groups: readonly Group[],
  states: Uint8Array,
  tally: Tally,
  lacking: Spread<LackingChunk>,
): void {
  let at = 0
  for (const group of groups) {
    const chunks = indexesOf(group).map((index) => ({ ...chunkOf(piece, index), state: states[at++]! }))
    tally.add(chunks, group.weight)
    for (const chunk of chunks) {
      if (fateOf(chunk) !== 'lacking') continue
      const { offset, length } = chunk
      // A copy: the piece is much larger.
      lacking.add({ start: offset, end: offset + length, hints: Buffer.from(chunk.hints) })
    }
  }
}

// ---- what the far side lacks ---------------------------------------------------------------------------------------

async function sample(
  disk: DiskToEstimate,
  context: DiskContext,
  groups: readonly LackingChunk[][],
): Promise<Sampled> {
  const hinted = context.blocksThere || (disk.there?.bytes ?? 0) > 0
  const parts: MissingParts[][] = []
  const calls = new Calls()
  for (const some of batchesOf(groups)) {
    context.signal.throwIfAborted()
    const known = hinted
      ? knownOf(disk, context, some.flat())
      : Promise.resolve(blockBits(blocksOf(some.flat())))
    await calls.add(known, (bits) => parts.push(...missingParts(some, bits)))
  }
  await calls.end()
  const all = parts.flat()
  const bytes = all.reduce((sum, { chunk }) => sum + chunk.end - chunk.start, 0)
  const missing = all.reduce((sum, { missingBytes }) => sum + missingBytes, 0)
  const ratio = await packedRatio(disk.image, parts, context)
  return { knownShare: bytes === 0 ? 0 : 1 - missing / bytes, ratio, hinted }
}

function blocksOf(chunks: readonly LackingChunk[]): number {
  return chunks.reduce((sum, { start, end }) => sum + blockCount(start, end), 0)
}

/** Groups that fit into one call: the largest one has 2080 blocks. */
function batchesOf(groups: readonly LackingChunk[][]): LackingChunk[][][] {
  const batches: LackingChunk[][][] = []
  let blocks = Number.POSITIVE_INFINITY
  for (const group of groups) {
    const own = blocksOf(group)
    if (blocks + own > ESTIMATE_CALL_BLOCKS_MAX) {
      batches.push([])
      blocks = 0
    }
    batches.at(-1)!.push(group)
    blocks += own
  }
  return batches
}

async function knownOf(
  { number }: DiskToEstimate,
  { ask }: DiskContext,
  chunks: readonly LackingChunk[],
): Promise<Buffer> {
  const blocks = encodeBlocks(
    chunks.map(({ start, hints }) => ({ offset: alignDown(start, BLOCK_BYTES), hints })),
  )
  const answer = new Params(
    'estimateBlocks',
    await ask('estimateBlocks', { disk: number, blocks }, ESTIMATE_CALL_MS),
  )
  return decodeBits(answer.text('known', RPC_BYTES_MAX), blocksOf(chunks))
}

function missingParts(groups: readonly LackingChunk[][], known: Buffer): MissingParts[][] {
  let at = 0
  return groups.map((group) =>
    group.map((chunk) => {
      const count = chunk.hints.length / HINT_BYTES
      const missing = blockBits(count)
      let missingBytes = 0
      for (let block = 0; block < count; block++, at++) {
        if (hasBlock(known, at)) continue
        setBlock(missing, block)
        const { from, to } = partOf(chunk.start, chunk.end, block)
        missingBytes += to - from
      }
      return { chunk, missing, missingBytes }
    }),
  )
}

/** How much of the plain bytes is left when they are packed as literals: a stream, flushed after each. 1: nothing was packed. */
async function packedRatio(
  image: ImageRef,
  groups: readonly MissingParts[][],
  { sample: { bytes }, signal }: DiskContext,
): Promise<number> {
  const some = someGroups(groups, ({ missingBytes }) => missingBytes, bytes)
  if (!some.some((group) => group.some(({ missingBytes }) => missingBytes > 0))) return 1
  await using source = await LiveImage.open(image, signal)
  const packer = new LiteralPacker(new Set(ENGINE_FEATURES))
  let plain = 0
  let packed = 0
  let gathered: Buffer[] = []
  let gatheredBytes = 0
  const pack = async (): Promise<void> => {
    if (gatheredBytes === 0) return
    packed += (await packer.pack(Buffer.concat(gathered))).length
    plain += gatheredBytes
    gathered = []
    gatheredBytes = 0
  }
  try {
    for (const { chunk, missing } of some.flat()) {
      signal.throwIfAborted()
      for (const { from, to } of partsOf(chunk.start, chunk.end, missing)) {
        // The map may be of a time when the disk was longer.
        if (chunk.start + to > source.size) continue
        gathered.push(await source.read(chunk.start + from, to - from))
        gatheredBytes += to - from
      }
      if (gatheredBytes >= LITERAL_TARGET_BYTES) await pack()
    }
    await pack()
  } finally {
    packer.close()
  }
  return plain === 0 ? 1 : packed / plain
}
