/**
 * Whether the far end is still there, and how long a round trip takes: a PING when nothing else was asked for a while,
 * more often under load so that the least round trip stays known, and a verdict when one has gone unanswered, and nothing
 * else was heard, for too long. It owns the timer and sends through what it was given; it does not know of channels.
 */
const TICK_MS = 500

export interface KeepaliveOptions {
  readonly pingIntervalMs: number
  readonly silenceMs: number
  /** True while there are frames on their way. */
  readonly busy: () => boolean
  readonly ping: (token: number) => void
  readonly roundTrip: (ms: number) => void
  /** Nothing was heard for this long. */
  readonly silent: (ms: number) => void
}

export class Keepalive {
  readonly #options: KeepaliveOptions
  #timer: NodeJS.Timeout
  readonly #tickMs: number
  #heardAt = performance.now()
  #tickAt = performance.now()
  #pingedAt = Number.NEGATIVE_INFINITY
  #token = 0
  /** When the first PING went that nothing answered yet. */
  #askedAt: number | undefined

  constructor(options: KeepaliveOptions) {
    this.#options = options
    this.#tickMs = Math.min(TICK_MS, options.pingIntervalMs, options.silenceMs / 4)
    this.#timer = this.#ticking()
  }

  #ticking(): NodeJS.Timeout {
    return setInterval(() => this.#tick(), this.#tickMs).unref()
  }

  /** Milliseconds that a PING has gone unanswered while nothing else was heard either; 0 while all is well. */
  get silentMs(): number {
    return this.#askedAt === undefined ? 0 : performance.now() - Math.max(this.#askedAt, this.#heardAt)
  }

  /** After `stop`, over a new link. */
  restart(): void {
    clearInterval(this.#timer)
    this.#heardAt = performance.now()
    this.#tickAt = this.#heardAt
    this.#askedAt = undefined
    this.#timer = this.#ticking()
    this.ping()
  }

  heard(): void {
    this.#heardAt = performance.now()
  }

  ping(): void {
    this.#token += 1
    this.#pingedAt = performance.now()
    this.#askedAt ??= this.#pingedAt
    this.#options.ping(this.#token)
  }

  pong(token: number): void {
    if (token !== this.#token || this.#askedAt === undefined) return
    this.#askedAt = undefined
    this.#options.roundTrip(performance.now() - this.#pingedAt)
  }

  stop(): void {
    clearInterval(this.#timer)
  }

  #tick(): void {
    const { pingIntervalMs, silenceMs } = this.#options
    const now = performance.now()
    // When we ourselves were stopped, the far end's bytes may still wait in the sockets: give them one turn.
    const late = now - this.#tickAt > this.#tickMs + silenceMs / 2
    this.#tickAt = now
    if (this.silentMs >= silenceMs && !late) {
      this.#options.silent(this.silentMs)
      return
    }
    const idle = this.#askedAt === undefined
    if ((this.#options.busy() && idle) || now - this.#pingedAt >= pingIntervalMs) this.ping()
  }
}
