/** Answers ASK: digests the blocks of chunks that the far side lacks, a few milliseconds of the event loop at a time. */
import { HINTS_TURN_CHUNKS_MAX } from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { BRIEF_HINT_BYTES, HINT_BYTES } from '../core/units.ts'
import type { ChunkHints } from '../wire/disk-blocks.ts'
import { hintsOf } from './chunk-blocks.ts'
import type { ChunkRecord } from './sender-parts.ts'

export interface HinterOptions {
  /** Whether the far side still lacks it: else its memory is gone. */
  readonly isNeeded: (record: ChunkRecord) => boolean
  /** Resolves when the message has passed pacing. */
  readonly send: (type: 'hints' | 'brief', chunks: readonly ChunkHints[]) => Promise<void>
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
      // Those that nobody asked for are of what most likely lies in place.
      for (const [type, bytes] of [
        ['hints', HINT_BYTES],
        ['brief', BRIEF_HINT_BYTES],
      ] as const) {
        const chunks = some.filter(({ hinted }) => hinted === (type === 'brief'))
        if (chunks.length > 0)
          await this.#options.send(
            type,
            chunks.filter(this.#options.isNeeded).map((one) => hintsOfRecord(one, bytes)),
          )
      }
      if (loopTurn.over) await loopTurn.next()
    }
    this.#working = false
  }

  close(): void {
    this.#queue = []
  }
}

function hintsOfRecord(record: ChunkRecord, bytes: number): ChunkHints {
  const { seq, offset, length, slab, slabOffset, runStart, runEnd } = record
  const at = slabOffset - (offset - runStart)
  const run = slab!.bytes.subarray(at, at + (runEnd - runStart))
  return { seq, hints: hintsOf(run, runStart, offset, offset + length, bytes) }
}
