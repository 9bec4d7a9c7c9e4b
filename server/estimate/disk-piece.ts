/**
 * Some neighbouring chunks of a disk, flat, as they cross from the thread that reads the disk's map: keys (the first 8 bytes of
 * each digest), places, and the hints of the blocks that each chunk lies in, block 0 being the one in which it begins.
 */
import { CHUNK_BLOCKS_MAX, ESTIMATE_CALL_CHUNKS_MAX } from '../../lib/core/limits.ts'
import { alignDown, BLOCK_BYTES, blockCount, HINT_BYTES } from '../../lib/core/units.ts'

export interface DiskPiece {
  readonly count: number
  /** HINT_BYTES each. */
  readonly keys: Uint8Array
  readonly offsets: Float64Array
  readonly lengths: Uint32Array
  /** 1: the same chunk lies before it on this disk. */
  readonly repeated: Uint8Array
  /** Of all chunks, one after another; zeroes where a block has none. */
  readonly hints: Uint8Array
  /** Where those of each chunk end. */
  readonly hintEnds: Uint32Array
}

export class PieceBuilder {
  count = 0
  readonly #keys = new Uint8Array(ESTIMATE_CALL_CHUNKS_MAX * HINT_BYTES)
  readonly #offsets = new Float64Array(ESTIMATE_CALL_CHUNKS_MAX)
  readonly #lengths = new Uint32Array(ESTIMATE_CALL_CHUNKS_MAX)
  readonly #repeated = new Uint8Array(ESTIMATE_CALL_CHUNKS_MAX)
  readonly #hintEnds = new Uint32Array(ESTIMATE_CALL_CHUNKS_MAX)
  #hints = new Uint8Array(32 * ESTIMATE_CALL_CHUNKS_MAX * HINT_BYTES)
  #hintsEnd = 0

  get full(): boolean {
    return this.count === ESTIMATE_CALL_CHUNKS_MAX
  }

  /** @param hint that of the block at an offset, if it has one */
  add(
    key: Uint8Array,
    offset: number,
    length: number,
    repeated: boolean,
    hint: (at: number) => Uint8Array | undefined,
  ): void {
    const index = this.count++
    this.#keys.set(key, index * HINT_BYTES)
    this.#offsets[index] = offset
    this.#lengths[index] = length
    this.#repeated[index] = repeated ? 1 : 0
    const blocks = blockCount(offset, offset + length)
    if (this.#hintsEnd + CHUNK_BLOCKS_MAX * HINT_BYTES > this.#hints.length) {
      const larger = new Uint8Array(2 * this.#hints.length)
      larger.set(this.#hints)
      this.#hints = larger
    }
    for (let block = 0; block < blocks; block++) {
      const known = hint(alignDown(offset, BLOCK_BYTES) + block * BLOCK_BYTES)
      if (known !== undefined) this.#hints.set(known, this.#hintsEnd)
      this.#hintsEnd += HINT_BYTES
    }
    this.#hintEnds[index] = this.#hintsEnd
  }

  piece(): DiskPiece {
    const { count } = this
    return {
      count,
      keys: this.#keys.slice(0, count * HINT_BYTES),
      offsets: this.#offsets.slice(0, count),
      lengths: this.#lengths.slice(0, count),
      repeated: this.#repeated.slice(0, count),
      hints: this.#hints.slice(0, this.#hintsEnd),
      hintEnds: this.#hintEnds.slice(0, count),
    }
  }
}

/** One chunk of a piece. */
export interface DiskChunk {
  readonly key: Uint8Array
  readonly offset: number
  readonly length: number
  readonly repeated: boolean
  readonly hints: Uint8Array
}

export function chunkOf(piece: DiskPiece, index: number): DiskChunk {
  return {
    key: piece.keys.subarray(index * HINT_BYTES, (index + 1) * HINT_BYTES),
    offset: piece.offsets[index]!,
    length: piece.lengths[index]!,
    repeated: piece.repeated[index] === 1,
    hints: piece.hints.subarray(index === 0 ? 0 : piece.hintEnds[index - 1]!, piece.hintEnds[index]!),
  }
}
