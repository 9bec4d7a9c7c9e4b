/**
 * Time, injected: whatever waits or measures takes a Clock, so that a test moves time itself instead of waiting.
 * `nowMs` is monotonic and has no meaning between processes; `wallMs` is for people (startedAt) and may jump.
 * It does no scheduling of its own; timers of the system clock do not keep the process alive.
 */
export interface Clock {
  nowMs(): number
  wallMs(): number
  /** Calls `callback` once after `delayMs`; the returned function cancels it (idempotent). */
  after(delayMs: number, callback: () => void): () => void
}

export const systemClock: Clock = {
  nowMs: () => performance.now(),
  wallMs: () => Date.now(),
  after: (delayMs, callback) => {
    const timer = setTimeout(callback, delayMs)
    timer.unref()
    return () => clearTimeout(timer)
  },
}

interface PendingTimer {
  readonly dueMs: number
  readonly callback: () => void
}

/** A clock that stands still until `advance` is called; timers then fire in the order in which they are due. */
export class ManualClock implements Clock {
  #nowMs = 0
  readonly #wallStartMs: number
  readonly #pending: Set<PendingTimer> = new Set()

  constructor(wallStartMs = 0) {
    this.#wallStartMs = wallStartMs
  }

  nowMs(): number {
    return this.#nowMs
  }

  wallMs(): number {
    return this.#wallStartMs + this.#nowMs
  }

  after(delayMs: number, callback: () => void): () => void {
    const timer = { dueMs: this.#nowMs + delayMs, callback }
    this.#pending.add(timer)
    return () => this.#pending.delete(timer)
  }

  advance(byMs: number): void {
    const endMs = this.#nowMs + byMs
    for (;;) {
      let next: PendingTimer | undefined
      for (const timer of this.#pending) {
        if (timer.dueMs <= endMs && (next === undefined || timer.dueMs < next.dueMs)) next = timer
      }
      if (next === undefined) break
      this.#pending.delete(next)
      this.#nowMs = Math.max(this.#nowMs, next.dueMs)
      next.callback()
    }
    this.#nowMs = endMs
  }
}
