/** What a receiver tells its sender: gathered for one turn of the event loop, so that one message goes instead of hundreds. */
import { PARTS_CHUNKS_MAX, SEQ_RUNS_MAX, SKETCHES_CHUNKS_MAX } from '../core/limits.ts'
import type { DiskMessageBody, SourceName } from '../wire/disk.ts'
import type { ChunkParts, ChunkSketches } from '../wire/disk-blocks.ts'
import { runsOfApplied, seqRuns } from './task.ts'

export class Reports {
  readonly #send: (message: DiskMessageBody) => void
  readonly #overZeroes: boolean
  #wants: number[] = []
  /** Those of this turn wait for the next one: hints that nobody asked for may be right behind what they are of. */
  #freshAsks = new Set<number>()
  #asks = new Set<number>()
  #details: number[] = []
  #parts: ChunkParts[] = []
  #sketches: ChunkSketches[] = []
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
    this.unask(seq)
    this.#wants.push(seq)
    this.#later()
  }

  ask(seq: number): void {
    this.#freshAsks.add(seq)
    this.#later()
  }

  /** It has its answer, or needs none any more. */
  unask(seq: number): void {
    this.#freshAsks.delete(seq)
    this.#asks.delete(seq)
  }

  parts(parts: ChunkParts): void {
    this.#parts.push(parts)
    this.#later()
  }

  sketches(sketches: ChunkSketches): void {
    this.#sketches.push(sketches)
    this.#later()
  }

  applied(seq: number, source: SourceName): void {
    this.unask(seq)
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
    const asks = [...this.#asks]
    this.#asks = this.#freshAsks
    this.#freshAsks = new Set()
    if (this.#asks.size > 0) this.#later()
    // What was asked for before its hints came unasked may be wanted by now: in this order.
    for (const [type, seqs] of [
      ['detail', this.#details.splice(0)],
      ['ask', asks],
      ['want', this.#wants.splice(0)],
    ] as const) {
      const sorted = seqs.sort((a, b) => a - b)
      for (const runs of slices(seqRuns(sorted), SEQ_RUNS_MAX)) this.#send({ type, runs })
    }
    for (const chunks of slices(this.#parts.splice(0), PARTS_CHUNKS_MAX))
      this.#send({ type: 'parts', chunks })
    for (const chunks of slices(this.#sketches.splice(0), SKETCHES_CHUNKS_MAX))
      this.#send({ type: 'sketches', chunks })
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
