/**
 * From the stage to the wire: how a run is described, and what of it goes along unasked. One SURVEY of what was written together;
 * a DESCRIBE, with hints or bytes, of what is small or most likely in place in an older version; what changed (CHANGED) of what
 * this session has written there before.
 */
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab } from '../chunk/slab.ts'
import { EAGER_RUN_BYTES_MAX } from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { type DiskMessageBody, FEATURE_SURVEY } from '../wire/disk.ts'
import type { Hinter } from './hinter.ts'
import type { LiteralSender } from './literals.ts'
import type { Room } from './room.ts'
import type { SentChunks } from './sent-chunks.ts'
import { type Change, changesOf, type SentVersions } from './sent-versions.ts'
import { surveyOf } from './survey.ts'
import { asChanged, inUnits, type Unasked } from './unasked.ts'

export interface DescribingOptions {
  readonly features: ReadonlySet<string>
  readonly sent: SentChunks
  readonly room: Room
  readonly literals: LiteralSender
  readonly hinter: Hinter
  readonly unasked: Unasked
  /** Undefined where the far side does not take what changed. */
  readonly versions: SentVersions | undefined
  /** Nothing goes unasked. */
  readonly bulkOnly: boolean
  /** Whether a FLUSH waits; whether the session is lost. */
  readonly flushing: () => boolean
  readonly lost: () => boolean
  /** In the class of what a FLUSH waits for; counts the bytes. */
  readonly tell: (message: DiskMessageBody) => Promise<void>
  readonly fail: (error: unknown) => void
}

/** Offsets and lengths in bytes; each call resolves when its messages have passed pacing, and rejects with what `tell` rejects with. */
export class Describing {
  readonly #options: DescribingOptions

  constructor(options: DescribingOptions) {
    this.#options = options
  }

  /** In the order in which they left the stage. */
  async data(offset: number, slab: Slab, runs: readonly DescribedRun[]): Promise<void> {
    const length = runs.reduce((sum, run) => sum + run.length, 0)
    const known = (run: DescribedRun): boolean =>
      this.#options.versions?.knows(offset + run.offset, run.length) === true
    // What is small, and what the far side has most of, may go unasked.
    const small = length <= EAGER_RUN_BYTES_MAX
    const inParts = small || runs.every((run) => run.zero || known(run))
    const hinted =
      !inParts && this.#options.sent.wereSent(offset, length) && this.#whatUnasked(offset, length) === 'hints'
    if (!inParts && !hinted && this.#options.features.has(FEATURE_SURVEY)) {
      await this.#sendSurvey(offset, slab, runs)
      return
    }
    for (const run of runs) {
      if (run.zero) await this.zeroes(offset + run.offset, run.length)
      else if (known(run)) await this.#sendRewritten(offset, slab, run)
      else {
        const hints = hinted || this.#whatUnasked(offset + run.offset, run.length) === 'hints'
        for (const piece of hints ? inUnits(offset, slab, run) : [run])
          await this.#sendDescription(offset, slab, piece, hints)
      }
    }
  }

  /** It is known what the far side has there: what changed goes along with the description. */
  async #sendRewritten(base: number, slab: Slab, run: DescribedRun): Promise<void> {
    for (const piece of inUnits(base, slab, run)) {
      if (loopTurn.over) await loopTurn.next()
      if (this.#options.lost()) return
      const changes = changesOf(this.#options.versions!, base, slab, piece)
      const bodyBytes = changes?.reduce((sum, { differences }) => sum + differences.bodyBytes, 0)
      const how =
        bodyBytes === undefined ? 'run' : asChanged(piece.length, bodyBytes, this.#options.sent.earlyBytes)
      if (how === 'changed') await this.#sendChanged(base, slab, piece, changes!)
      else await this.#sendDescription(base, slab, piece, how === 'hints')
    }
  }

  async #sendChanged(base: number, slab: Slab, run: DescribedRun, changes: readonly Change[]): Promise<void> {
    const firstSeq = this.#options.sent.nextSeq
    const { lengths, digests } = run
    this.#options.sent.addRun(base, slab, run)
    const missing = changes.map((change) => change.missing)
    const sent = this.#options.tell({
      type: 'changed',
      firstSeq,
      offset: base + run.offset,
      lengths,
      digests,
      missing,
    })
    // At once, or the far side could ask for blocks of it.
    this.#options.sent.sendChanged(firstSeq, changes)
    await sent
    this.#options.literals.pump()
  }

  async #sendSurvey(offset: number, slab: Slab, runs: readonly DescribedRun[]): Promise<void> {
    if (this.#options.lost()) return
    const { nextSeq } = this.#options.sent
    // A root that does not fit costs a round trip, which while a FLUSH waits is downtime.
    const waits = this.#options.flushing() && !this.#options.bulkOnly
    const roots = this.#options.room.isInPlace && !waits
    for (const run of runs) {
      if (run.zero) this.#options.sent.addZeroes(offset + run.offset, run.length)
      else this.#options.sent.addRun(offset, slab, run, roots)
    }
    await this.#options.tell(surveyOf(nextSeq, offset, runs, roots))
  }

  /** Of chunks that are to be looked for block by block most likely: their hints go unasked, which is a round trip less. */
  #hintEarly(first: number, end: number): void {
    this.#options.sent.hintEarly(first, end)
    void this.#options.hinter.pump().catch((error: unknown) => this.#options.fail(error))
  }

  async #sendDescription(base: number, slab: Slab, run: DescribedRun, hinted: boolean): Promise<void> {
    // What is recorded after a loss nobody would ever give back.
    if (this.#options.lost()) return
    const firstSeq = this.#options.sent.nextSeq
    const unasked = this.#whatUnasked(base + run.offset, run.length, hinted)
    this.#options.sent.addRun(base, slab, run)
    const { lengths, digests } = run
    const sent = this.#options.tell({
      type: 'describe',
      firstSeq,
      offset: base + run.offset,
      lengths,
      digests,
    })
    const end = firstSeq + run.lengths.length
    // Right behind it, or the far side asks.
    if (unasked === 'hints') this.#hintEarly(firstSeq, end)
    await sent
    if (unasked === 'bytes') {
      this.#options.sent.sendEarly(firstSeq, end)
      this.#options.literals.pump()
    }
  }

  #whatUnasked(offset: number, length: number, hinted?: boolean): ReturnType<Unasked['of']> {
    if (this.#options.bulkOnly) return 'nothing'
    const { earlyBytes, bytes } = this.#options.sent
    const flushing = this.#options.flushing()
    const rewritten = this.#options.sent.wereSent(offset, length)
    return this.#options.unasked.of(length, {
      flushing,
      earlyBytes,
      bytes,
      rewritten,
      held: this.#options.room.holds,
      hinted,
    })
  }

  async zeroes(offset: number, length: number): Promise<void> {
    if (this.#options.lost()) return
    const seq = this.#options.sent.addZeroes(offset, length)
    await this.#options.tell({ type: 'zero', seq, offset, length })
  }
}
