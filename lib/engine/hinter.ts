/** Answers ASK: digests the blocks of chunks that the far side lacks, a few milliseconds of the event loop at a time. */
import { HINTS_TURN_CHUNKS_MAX } from '../core/limits.ts'
import type { ChunkHints } from '../wire/disk.ts'
import { hintsOf } from './chunk-blocks.ts'
import type { ChunkRecord } from './sender-parts.ts'

export interface HinterOptions {
  /** Whether the far side still lacks it: else its memory is gone. */
  readonly isNeeded: (record: ChunkRecord) => boolean
  /** Resolves when the message has passed pacing. */
  readonly send: (chunks: readonly ChunkHints[]) => Promise<void>
}

export class Hinter {
  readonly #options: HinterOptions
  #queue: ChunkRecord[] = []
  #working = false

  constructor(options: HinterOptions) {
    this.#options = options
  }

  queue(record: ChunkRecord): void {
    this.#queue.push(record)
  }

  /** Rejects with what `send` rejects with. */
  async pump(): Promise<void> {
    if (this.#working) return
    this.#working = true
    while (this.#queue.length > 0) {
      const some = this.#queue.splice(0, HINTS_TURN_CHUNKS_MAX).filter(this.#options.isNeeded)
      if (some.length === 0) continue
      await this.#options.send(some.map(hintsOfRecord))
      await new Promise((resolve) => setImmediate(resolve))
    }
    this.#working = false
  }

  close(): void {
    this.#queue = []
  }
}

function hintsOfRecord({ seq, offset, length, slab, slabOffset, runStart, runEnd }: ChunkRecord): ChunkHints {
  const at = slabOffset - (offset - runStart)
  const run = slab!.bytes.subarray(at, at + (runEnd - runStart))
  return { seq, hints: hintsOf(run, runStart, offset, offset + length) }
}
