/**
 * Describes a buffer: zero blocks are taken out, each maximal run of other blocks is cut by Rabin fingerprint, each
 * chunk gets its SHA-256. Synchronous, made for worker threads (describe-worker.ts, catalog/image-index-worker.ts).
 * The result is flat, so that it crosses threads as three buffers however many runs there are.
 */
import { CHUNK_BYTES_MIN } from '../core/limits.ts'
import { DIGEST_BYTES, sha256 } from './digest.ts'
import { RabinCutter } from './rabin.ts'
import { type ZeroRun, zeroRuns } from './zero.ts'

/** One run of a described buffer; offsets are relative to the buffer. A zero run has no chunks. */
export interface DescribedRun {
  readonly offset: number
  readonly length: number
  readonly zero: boolean
  /** Lengths of the chunks, contiguous from `offset`. */
  readonly lengths: Uint32Array
  /** 32 bytes for each chunk. */
  readonly digests: Uint8Array
}

/** `runs` holds RUN_WORDS words a run: offset, length, 1 if zero, number of chunks. */
export interface FlatDescription {
  readonly runs: Uint32Array<ArrayBuffer>
  readonly lengths: Uint32Array<ArrayBuffer>
  readonly digests: Uint8Array<ArrayBuffer>
}

export const RUN_WORDS: number = 4

export class Chunker {
  readonly #cutter: RabinCutter = new RabinCutter()

  /**
   * `skip` bytes at the start belong to a chunk that was described before: the first run begins after them, in the
   * middle of a block if need be. They must lie within the first block, and this block must not be zero.
   */
  describe(bytes: Uint8Array, skip = 0): FlatDescription {
    const runs = zeroRuns(bytes)
    const flatRuns = new Uint32Array(runs.length * RUN_WORDS)
    const chunkCountMax = countChunksMax(runs)
    const lengths = new Uint32Array(chunkCountMax)
    const digests = new Uint8Array(chunkCountMax * DIGEST_BYTES)
    let chunkCount = 0

    runs.forEach((run, index) => {
      const offset = index === 0 ? skip : run.offset
      const end = run.offset + run.length
      const before = chunkCount
      if (!run.zero) {
        this.#cutter.cut(bytes.subarray(offset, end), (_offset, length, chunk) => {
          lengths[chunkCount] = length
          digests.set(sha256(chunk), chunkCount * DIGEST_BYTES)
          chunkCount++
        })
      }
      flatRuns.set([offset, end - offset, run.zero ? 1 : 0, chunkCount - before], index * RUN_WORDS)
    })
    return {
      runs: flatRuns,
      lengths: lengths.slice(0, chunkCount),
      digests: digests.slice(0, chunkCount * DIGEST_BYTES),
    }
  }
}

/** All chunks but the last of a run are at least CHUNK_BYTES_MIN long. */
function countChunksMax(runs: readonly ZeroRun[]): number {
  let count = 0
  for (const run of runs) if (!run.zero) count += Math.ceil(run.length / CHUNK_BYTES_MIN)
  return count
}

/** The runs of a flat description, as views of it. */
export function unflatten(flat: FlatDescription): DescribedRun[] {
  const described: DescribedRun[] = []
  let chunk = 0
  for (let at = 0; at < flat.runs.length; at += RUN_WORDS) {
    const chunkCount = flat.runs[at + 3]!
    described.push({
      offset: flat.runs[at]!,
      length: flat.runs[at + 1]!,
      zero: flat.runs[at + 2] === 1,
      lengths: flat.lengths.subarray(chunk, chunk + chunkCount),
      digests: flat.digests.subarray(chunk * DIGEST_BYTES, (chunk + chunkCount) * DIGEST_BYTES),
    })
    chunk += chunkCount
  }
  return described
}
