/**
 * LoopTurn: how long this turn of the thread's event loop has computed, for work that can stop between two pieces: frames
 * of a bundle, requests of an NBD client, reads of a socket. A loop that waited for a processor finds every socket full, and
 * libuv reads up to 2 MiB of each before a timer has its turn: with eight migrations that was seen to be 160 ms.
 *
 *     while (there is a piece) {
 *       if (loopTurn.over) return loopTurn.later(goOn)
 *       …
 *     }
 *
 * It counts processor time: on a machine that is starved a turn of 4 ms by the clock would do next to nothing, and who waits for a
 * later one would wait for seconds. It interrupts nothing.
 *
 * One round of libuv's loop may have two turns: one that began with what a socket had, and the next one, which begins behind it.
 */
import { LOOP_TURN_MS } from './limits.ts'

export class LoopTurn {
  readonly #clock: () => number
  readonly #cpu: () => number
  #startedAt: number | undefined
  #cpuAt = 0
  readonly #waiting = new Set<() => void>()
  #scheduled = false

  /** Both in milliseconds: a monotonic clock, and what this thread has computed. */
  constructor(clock: () => number = () => performance.now(), cpu: () => number = threadMs) {
    this.#clock = clock
    this.#cpu = cpu
  }

  /** Whether this turn has had its time. The first to ask begins it. */
  get over(): boolean {
    if (this.#startedAt === undefined) {
      this.#startedAt = this.#clock()
      this.#cpuAt = this.#cpu()
      this.#schedule()
      return false
    }
    // The clock is cheap to ask, and nobody computes for longer than it says.
    return this.#clock() - this.#startedAt >= LOOP_TURN_MS && this.#cpu() - this.#cpuAt >= LOOP_TURN_MS
  }

  /** Goes on in a later turn, in the order of the calls, as many in a turn as find time. A step that waits already waits once. */
  later(step: () => void): void {
    this.#waiting.add(step)
    this.#schedule()
  }

  /** The same for what awaits: `if (loopTurn.over) await loopTurn.next()`. */
  next(): Promise<void> {
    return new Promise((resolve) => this.later(resolve))
  }

  #schedule(): void {
    if (this.#scheduled) return
    this.#scheduled = true
    setImmediate(() => {
      this.#scheduled = false
      this.#startedAt = undefined
      // It begins with the first of them.
      if (this.#waiting.size > 0 && !this.over) this.#goOn()
    })
  }

  /** What awaits goes on in a microtask, so only in one behind it is known what it took. */
  #goOn(): void {
    const step = this.#waiting.values().next().value
    if (step === undefined) return
    this.#waiting.delete(step)
    try {
      step()
    } finally {
      queueMicrotask(() => {
        if (!this.over) this.#goOn()
        else if (this.#waiting.size > 0) this.#schedule()
      })
    }
  }
}

function threadMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

/** Of this thread. */
export const loopTurn: LoopTurn = new LoopTurn()
