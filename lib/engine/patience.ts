/**
 * How long requests of QEMU may wait on a broken link. QEMU's main loop may stand behind a WRITE or a FLUSH, and with it the
 * guest and its monitor: so a break is ridden out only while none has waited longer than the deadline. A slow link is no
 * break: waiting ends in an error only where nothing is heard from the far end.
 */
import { FLUSH_WATCH_MS } from '../core/limits.ts'

export interface PatienceOptions {
  readonly deadlineMs: number
  /** For how long the far end has given no sign although it was asked for one. */
  readonly silentMs: () => number
  /** Called once; its owner then calls `end`. */
  readonly onExpired: (waitedMs: number, silentMs: number) => void
  /** Nothing waits any more, for the first time in so many milliseconds. */
  readonly onWaited?: (ms: number) => void
}

interface Wait {
  readonly since: number
  readonly reject: (error: Error) => void
}

export class Patience {
  readonly #options: PatienceOptions
  /** Oldest first. */
  readonly #waits = new Set<Wait>()
  #timer: NodeJS.Timeout | undefined
  /** When the first of those that overlap began. */
  #since = 0

  constructor(options: PatienceOptions) {
    this.#options = options
  }

  /** Gives what the work gives, or the error of `end` if that comes first. */
  async run(work: Promise<void>): Promise<void> {
    let wait: Wait | undefined
    try {
      await new Promise<void>((resolve, reject) => {
        wait = { since: performance.now(), reject }
        if (this.#waits.size === 0) this.#since = wait.since
        this.#waits.add(wait)
        this.#timer ??= setInterval(() => this.#watch(), FLUSH_WATCH_MS)
        work.then(resolve, reject)
      })
    } finally {
      this.#waits.delete(wait!)
      if (this.#waits.size === 0) {
        clearInterval(this.#timer)
        this.#timer = undefined
        this.#options.onWaited?.(performance.now() - this.#since)
      }
    }
  }

  /** All that waits now fails with this. */
  end(error: Error): void {
    for (const wait of this.#waits) wait.reject(error)
  }

  #watch(): void {
    const [oldest] = this.#waits
    if (oldest === undefined) return
    const { deadlineMs, silentMs, onExpired } = this.#options
    const waitedMs = performance.now() - oldest.since
    const silence = silentMs()
    if (waitedMs >= deadlineMs && silence >= deadlineMs) onExpired(waitedMs, silence)
  }
}
