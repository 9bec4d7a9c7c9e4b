/** What a receiver tells its sender: gathered for one turn of the event loop, so that one message goes instead of hundreds. */
import { PARTS_CHUNKS_MAX, SEQ_RUNS_MAX } from '../core/limits.ts'
import type { ChunkParts, DiskMessageBody, SourceName } from '../wire/disk.ts'
import { runsOfApplied, seqRuns } from './task.ts'

export class Reports {
  readonly #send: (message: DiskMessageBody) => void
  readonly #overZeroes: boolean
  #wants: number[] = []
  #asks: number[] = []
  #details: number[] = []
  #parts: ChunkParts[] = []
  #applied: { seq: number; source: SourceName }[] = []
  #soon = false
  #closed = false

  /** @param overZeroes whether an APPLIED run may go over zeroes */
  constructor(send: (message: DiskMessageBody) => void, overZeroes: boolean) {
    this.#send = send
    this.#overZeroes = overZeroes
  }

  detail(seq: number): void {
    this.#details.push(seq)
    this.#later()
  }

  want(seq: number): void {
    this.#wants.push(seq)
    this.#later()
  }

  ask(seq: number): void {
    this.#asks.push(seq)
    this.#later()
  }

  parts(parts: ChunkParts): void {
    this.#parts.push(parts)
    this.#later()
  }

  applied(seq: number, source: SourceName): void {
    this.#applied.push({ seq, source })
    this.#later()
  }

  #later(): void {
    if (this.#soon) return
    this.#soon = true
    setImmediate(() => this.now())
  }

  now(): void {
    this.#soon = false
    if (this.#closed) return
    for (const [type, seqs] of [
      ['want', this.#wants],
      ['ask', this.#asks],
      ['detail', this.#details],
    ] as const) {
      const sorted = seqs.splice(0).sort((a, b) => a - b)
      for (const runs of slices(seqRuns(sorted), SEQ_RUNS_MAX)) this.#send({ type, runs })
    }
    for (const chunks of slices(this.#parts.splice(0), PARTS_CHUNKS_MAX))
      this.#send({ type: 'parts', chunks })
    const applied = this.#applied.splice(0).sort((a, b) => a.seq - b.seq)
    for (const runs of slices(runsOfApplied(applied, this.#overZeroes), SEQ_RUNS_MAX))
      this.#send({ type: 'applied', runs })
  }

  /** What is not told by now never is. */
  close(): void {
    this.#closed = true
  }
}

function slices<T>(items: readonly T[], most: number): T[][] {
  const some: T[][] = []
  for (let at = 0; at < items.length; at += most) some.push(items.slice(at, at + most))
  return some
}
