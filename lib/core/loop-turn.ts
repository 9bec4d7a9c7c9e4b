/**
 * LoopTurn: how long this turn of the thread's event loop has been at work, for work that can stop between two pieces: frames
 * of a bundle, requests of an NBD client, reads of a socket. A loop that was held up finds every socket full, and libuv
 * reads up to 2 MiB of each before a timer has its turn: with eight migrations that was seen to be 160 ms.
 *
 *     while (there is a piece) {
 *       if (loopTurn.over) return loopTurn.later(goOn)
 *       …
 *     }
 *
 * It counts time, not processor time: a turn that others hold up should end early too. It interrupts nothing.
 */
import { LOOP_TURN_MS } from './limits.ts'

export class LoopTurn {
  readonly #clock: () => number
  #startedAt: number | undefined
  #waiting: (() => void)[] = []
  #scheduled = false

  /** @param clock milliseconds, monotonic */
  constructor(clock: () => number = () => performance.now()) {
    this.#clock = clock
  }

  /** Whether this turn has had its time. The first to ask begins it. */
  get over(): boolean {
    if (this.#startedAt !== undefined) return this.#clock() - this.#startedAt >= LOOP_TURN_MS
    this.#startedAt = this.#clock()
    this.#schedule()
    return false
  }

  /** Goes on in a later turn, in the order of the calls, one step a turn: a step may itself use up its turn. */
  later(step: () => void): void {
    this.#waiting.push(step)
    this.#schedule()
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#startedAt = undefined
      const step = this.#waiting.shift()
      if (this.#waiting.length > 0) this.#schedule()
      step?.()
    })
  }
}

/** Of this thread. */
export const loopTurn: LoopTurn = new LoopTurn()
