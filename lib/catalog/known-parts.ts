/**
 * What of an image need not be read because another one, of which there is a map, reads the same there: of a qcow2 what it has from
 * the image that it stands on. A chunk ends where its content says so, and the next one begins anew: so from the first place
 * on at which a chunk has ended in both, all chunks are the same, as far as the part goes. They and the blocks are taken from the
 * map, and a scan with them reports just what it would have reported without.
 * It deliberately finds no such parts (shared-parts.ts) and holds no more of the map than one section of chunks and one of blocks.
 */
import { alignDown, alignUp, BLOCK_BYTES, HINT_BYTES, MIB } from '../core/units.ts'
import type { DataExtent } from './data-extents.ts'
import { blocksOf, chunkAt, type ImageMap } from './image-map.ts'
import { BLOCKS, CHUNK_ENTRY_BYTES, CHUNKS } from './image-map-format.ts'

/** Less than this is read: a scan has read ahead, and reads what lies around once more. */
const GAIN_BYTES_MIN = MIB
/** Chunks that are taken between two turns of the event loop. */
const TURN_CHUNKS = 4096

/** Where a scan stands: the next chunk begins at one place or behind it, and all blocks before the other are reported. */
export interface ScanPlace {
  readonly chunksEnd: number
  readonly blocksEnd: number
}

export interface FoundSink {
  readonly onChunk: (offset: number, length: number, digests: Uint8Array, digestOffset: number) => void
  readonly onBlock?: (offset: number, hint: Buffer) => void
  readonly signal?: AbortSignal
}

export class KnownParts {
  readonly #parts: readonly DataExtent[]
  readonly #chunks: ChunkCursor
  readonly #blocks: BlockCursor
  /** The first part that does not end before what was asked for last. */
  #part = 0
  #taken = 0

  /**
   * @param map proven, and of the other image as it is; open until the scan is over
   * @param parts in order, apart, at the same place in both images
   */
  constructor(map: ImageMap, parts: readonly DataExtent[]) {
    // What lies in a block with something else is not known; nor how the last chunk of the other image went on.
    this.#parts = parts
      .map(({ offset, end }) => ({
        offset: alignUp(offset, BLOCK_BYTES),
        end: alignDown(Math.min(end, map.disk.bytes), BLOCK_BYTES),
      }))
      .filter(({ offset, end }) => offset < end)
    this.#chunks = new ChunkCursor(map)
    this.#blocks = new BlockCursor(map)
  }

  /**
   * Asked where a chunk has ended, ever further on: up to where `take` may go; undefined: it is to be read.
   * @param readTo how far the image is read already
   * @param end of the extent: what follows is a hole, at which chunks end
   */
  until({ chunksEnd, blocksEnd: readTo }: ScanPlace, end: number): number | undefined {
    if (chunksEnd < this.#taken) return undefined
    while (this.#part < this.#parts.length && this.#parts[this.#part]!.end <= chunksEnd) this.#part++
    const part = this.#parts[this.#part]
    if (part === undefined || chunksEnd < part.offset) return undefined
    // One may end because zeroes follow, so what follows it must be known too.
    const limit = Math.min(part.end - BLOCK_BYTES, end)
    if (limit - readTo < GAIN_BYTES_MIN) return undefined
    return this.#chunks.crosses(chunksEnd) ? undefined : limit
  }

  /** All chunks up to `limit`, as `until` gave it, and the blocks that they lie in. */
  async take(from: ScanPlace, limit: number, sink: FoundSink): Promise<ScanPlace & { zeroBytes: number }> {
    let { chunksEnd, blocksEnd } = from
    let dataBytes = 0
    for (let count = 1; ; count++) {
      const chunk = this.#chunks.current
      if (chunk === undefined || chunk.offset + chunk.length > limit) break
      chunksEnd = chunk.offset + chunk.length
      dataBytes += chunk.length
      // Blocks first, as in a scan: a map that is cut short can then be gone on with.
      const whole = alignUp(chunksEnd, BLOCK_BYTES)
      if (sink.onBlock !== undefined) this.#blocks.take(blocksEnd, whole, sink.onBlock)
      blocksEnd = Math.max(blocksEnd, whole)
      sink.onChunk(chunk.offset, chunk.length, chunk.entries, chunk.at)
      this.#chunks.next()
      if (count % TURN_CHUNKS > 0) continue
      await new Promise((resolve) => setImmediate(resolve))
      sink.signal?.throwIfAborted()
    }
    this.#taken = limit
    return { chunksEnd, blocksEnd, zeroBytes: chunksEnd - from.chunksEnd - dataBytes }
  }
}

interface ChunkEntry {
  readonly offset: number
  readonly length: number
  /** Its digest's first bytes are at `at`. */
  readonly entries: Buffer
  readonly at: number
}

class ChunkCursor {
  readonly #sections: Iterator<Buffer>
  #entries: Buffer | undefined
  #index = 0
  current: ChunkEntry | undefined

  constructor(map: ImageMap) {
    this.#sections = sectionsOf(map, CHUNKS)
    this.next()
  }

  next(): void {
    this.#index++
    if (this.#entries === undefined || this.#index * CHUNK_ENTRY_BYTES >= this.#entries.length) {
      const { value, done } = this.#sections.next()
      this.#entries = done === true ? undefined : value
      this.#index = 0
    }
    const entries = this.#entries
    if (entries === undefined) this.current = undefined
    else this.current = { ...chunkAt(entries, this.#index), entries, at: this.#index * CHUNK_ENTRY_BYTES }
  }

  /** Goes on to the first chunk that ends behind `at`: whether it begins before. */
  crosses(at: number): boolean {
    while (this.current !== undefined && this.current.offset + this.current.length <= at) this.next()
    return this.current !== undefined && this.current.offset < at
  }
}

class BlockCursor {
  readonly #sections: Iterator<Buffer>
  #offset = 0
  #hints: Buffer = Buffer.alloc(0)

  constructor(map: ImageMap) {
    this.#sections = sectionsOf(map, BLOCKS)
  }

  /** Those that begin in [from, to), further on than those before. */
  take(from: number, to: number, onBlock: NonNullable<FoundSink['onBlock']>): void {
    for (;;) {
      const end = this.#offset + (this.#hints.length / HINT_BYTES) * BLOCK_BYTES
      for (let offset = Math.max(from, this.#offset); offset < Math.min(to, end); offset += BLOCK_BYTES) {
        const at = ((offset - this.#offset) / BLOCK_BYTES) * HINT_BYTES
        onBlock(offset, this.#hints.subarray(at, at + HINT_BYTES))
      }
      if (end >= to) return
      const { value, done } = this.#sections.next()
      if (done === true) return
      const run = blocksOf(value)
      this.#offset = run.offset
      this.#hints = run.hints
    }
  }
}

/** Each is good until the next one is asked for. */
function* sectionsOf(map: ImageMap, kind: typeof CHUNKS | typeof BLOCKS): Generator<Buffer, undefined> {
  for (const section of map.entries()) if (section.kind === kind) yield section.entries
  return undefined
}
