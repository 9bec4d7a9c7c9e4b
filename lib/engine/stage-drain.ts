/**
 * From the stage to the wire: when runs leave it, and in which order they are delivered. What is full, has waited for
 * STAGE_IDLE_MS, or is waited for, leaves; what the guest rewrites again and again (heat.ts) is held back until it rests, somebody waits
 * for it, or more is held than the caller allows: the versions in between never leave.
 *
 * Runs are described by workers but delivered in the order in which they left the stage; the first failure ends the session.
 */
import { type Clock, systemClock } from '../core/clock.ts'
import {
  DESCRIBING_RUNS_MAX,
  EMITTED_RUNS_MAX,
  HOT_REST_MS,
  HURRIED_RUN_BYTES_MAX,
  RUN_BYTES_MAX,
  STAGE_BYTES_MAX,
  STAGE_IDLE_MS,
  STAGE_PIECES_MAX,
} from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import type { DescribedSlab } from './describe-run.ts'
import { Heat } from './heat.ts'
import { Stage, type StagedRun } from './stage.ts'

export interface StageDrainOptions {
  /** A run of data is at most so long. */
  readonly runBytesMax: number
  readonly describe: (run: StagedRun) => Promise<DescribedSlab>
  /** Nothing leaves because it waited, and nothing is held. */
  readonly bulkOnly: boolean
  readonly clock?: Clock | undefined
  /** How much may be held back now. */
  readonly heldBytesMax: () => number
  /** The slab is the callee's until it returns, unless it retains it. */
  readonly deliver: (offset: number, length: number, described: DescribedSlab) => Promise<void>
  readonly deliverZeroes: (offset: number, length: number) => Promise<void>
  /** Called for every failure; `end` is expected. */
  readonly onError: (error: unknown) => void
}

export class StageDrain {
  readonly #options: StageDrainOptions
  readonly #clock: Clock
  readonly #stage = new Stage()
  readonly #heat = new Heat()
  #describing = 0
  #describingBytes = 0
  #chain: Promise<void> = Promise.resolve()
  /** Everything that arrived before this number leaves the stage now, held or not. */
  #forceBefore = 0
  /** Before this one, in short runs. */
  #hurryBefore = 0
  /** So does what is not held, because it has waited. */
  #idleBefore = 0
  #stopIdle: (() => void) | undefined
  #soon: NodeJS.Immediate | undefined
  #ended = false

  constructor(options: StageDrainOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  /** Bytes of data that are staged or with the workers. */
  get bytes(): number {
    return this.#stage.dataBytes + this.#describingBytes
  }

  put(offset: number, data: Buffer): void {
    const nowMs = this.#clock.nowMs()
    const hot = !this.#options.bulkOnly && this.#heat.wrote(offset, data.length, nowMs)
    this.#stage.put(offset, data, hot ? nowMs : undefined)
    if (hot) this.#stage.letGoOver(this.#options.heldBytesMax())
    this.#pump()
  }

  putZeroes(offset: number, length: number): void {
    this.#stage.putZeroes(offset, length)
    this.#pump()
  }

  /**
   * Resolves when everything staged now is described and delivered. @param hurried a guest waits for it
   * @throws what `check` throws
   */
  async drain(check: () => void, hurried = false): Promise<void> {
    this.#forceBefore = this.#stage.nextOrder
    const before = this.#forceBefore
    if (hurried) this.#hurryBefore = before
    this.#pump()
    for (;;) {
      await this.#chain
      check()
      const oldest = this.#stage.oldestOrder
      if (oldest === undefined || oldest >= before) break
      await new Promise((resolve) => setImmediate(resolve))
      this.#pump()
    }
    // The last pump may have put more on the chain.
    await this.#chain
    check()
  }

  /** Nothing leaves any more. */
  end(): void {
    this.#ended = true
    this.#stopIdle?.()
    this.#stage.clear()
  }

  #pump(): void {
    let emitted = 0
    while (this.#describing < DESCRIBING_RUNS_MAX && !this.#ended) {
      const held = this.#whatLeaves()
      if (held === undefined) break
      // Zeroes cost the workers nothing: thousands of small runs of them would be one long turn of the event loop.
      if (++emitted > EMITTED_RUNS_MAX) {
        this.#pumpSoon()
        break
      }
      this.#emit(this.#stage.takeOldest(this.#runBytesMax(), held)!)
    }
    if (!this.#options.bulkOnly) this.#watchIdle()
  }

  #runBytesMax(): number {
    const { bulkOnly, runBytesMax } = this.#options
    const oldest = this.#stage.oldestOrder
    const hurried = !bulkOnly && oldest !== undefined && oldest < this.#hurryBefore
    return Math.min(hurried ? HURRIED_RUN_BYTES_MAX : RUN_BYTES_MAX, runBytesMax)
  }

  /** Whether the next run may take what is held; undefined if none leaves now. */
  #whatLeaves(): boolean | undefined {
    const stage = this.#stage
    const oldest = stage.oldestOrder
    if (oldest !== undefined && oldest < this.#forceBefore) return true
    const free = stage.oldestFreeOrder
    if (free === undefined) return undefined
    const full = stage.dataBytes > STAGE_BYTES_MAX || stage.count > STAGE_PIECES_MAX
    return full || free < this.#idleBefore ? false : undefined
  }

  #watchIdle(): void {
    if (this.#stage.empty || this.#stopIdle !== undefined || this.#ended) return
    this.#stopIdle = this.#clock.after(STAGE_IDLE_MS, () => {
      this.#stopIdle = undefined
      this.#idleBefore = this.#stage.nextOrder
      this.#stage.letGo(this.#clock.nowMs() - HOT_REST_MS)
      this.#pump()
    })
  }

  #pumpSoon(): void {
    this.#soon ??= setImmediate(() => {
      this.#soon = undefined
      this.#pump()
    })
  }

  #emit(run: StagedRun): void {
    if (run.zero) {
      this.inTurn(() => this.#options.deliverZeroes(run.offset, run.length))
      return
    }
    this.#describing++
    this.#describingBytes += run.length
    const described = this.#options.describe(run)
    described.catch(() => undefined)
    this.inTurn(async () => {
      try {
        await this.#deliver(run, await described)
      } finally {
        this.#describing--
        this.#describingBytes -= run.length
      }
      this.#pump()
    })
  }

  async #deliver({ offset, length }: StagedRun, described: DescribedSlab): Promise<void> {
    try {
      // Descriptions of many runs may come at once.
      if (loopTurn.over) await loopTurn.next()
      await this.#options.deliver(offset, length, described)
    } finally {
      described.slab.release()
    }
  }

  /** Runs a step when all that left before is delivered, and before what leaves after; also after a loss (it may hold memory). */
  inTurn(step: () => Promise<void>): void {
    this.#chain = this.#chain.then(async () => {
      try {
        await step()
      } catch (error) {
        this.#options.onError(error)
      }
    })
  }
}
