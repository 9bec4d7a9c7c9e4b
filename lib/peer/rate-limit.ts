/**
 * RateLimit: a token bucket that all bundles of a daemon share, so that SWAM as a whole stays below what the
 * administrator gave it (`limits.wanMbit`). Control frames are counted and never held back: a FLUSH must not wait for a
 * cap, and they are small. Pure math over an injected clock; whoever waits has its own timer.
 */
export interface RateLimitOptions {
  readonly bytesPerSecond: number
  /** Milliseconds, monotonic. */
  readonly clock: () => number
}

/** What may be sent at once after a pause. */
const BURST_MS = 20
/** A frame may be longer than the burst: it goes when the bucket is full, and the bucket is in debt after it. */
const WAIT_MS_MIN = 1

export class RateLimit {
  readonly #bytesPerMs: number
  readonly #clock: () => number
  readonly #burstBytes: number
  #tokens: number
  #at: number

  constructor(options: RateLimitOptions) {
    if (!(options.bytesPerSecond > 0))
      throw new RangeError(`rate limit: ${options.bytesPerSecond} bytes a second`)
    this.#bytesPerMs = options.bytesPerSecond / 1000
    this.#clock = options.clock
    this.#burstBytes = this.#bytesPerMs * BURST_MS
    this.#tokens = this.#burstBytes
    this.#at = options.clock()
  }

  /** Milliseconds until another frame may go; 0: now. */
  waitMs(): number {
    const now = this.#clock()
    this.#tokens = Math.min(this.#burstBytes, this.#tokens + (now - this.#at) * this.#bytesPerMs)
    this.#at = now
    return this.#tokens > 0 ? 0 : Math.max(WAIT_MS_MIN, -this.#tokens / this.#bytesPerMs)
  }

  sent(bytes: number): void {
    this.#tokens -= bytes
  }
}
