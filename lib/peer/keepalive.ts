/**
 * Whether the far end is still there, and how long a round trip takes: a PING when nothing else was asked for a while,
 * more often under load so that the least round trip stays known, and a verdict after too long a silence. It owns the
 * timer and sends through what it was given; it does not know of channels.
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
  readonly #timer: NodeJS.Timeout
  readonly #tickMs: number
  #heardAt = performance.now()
  #tickAt = performance.now()
  #pingedAt = Number.NEGATIVE_INFINITY
  #token = 0
  #pending = false

  constructor(options: KeepaliveOptions) {
    this.#options = options
    this.#tickMs = Math.min(TICK_MS, options.pingIntervalMs, options.silenceMs / 4)
    this.#timer = setInterval(() => this.#tick(), this.#tickMs)
    this.#timer.unref()
  }

  heard(): void {
    this.#heardAt = performance.now()
  }

  ping(): void {
    this.#token += 1
    this.#pending = true
    this.#pingedAt = performance.now()
    this.#options.ping(this.#token)
  }

  pong(token: number): void {
    if (token !== this.#token || !this.#pending) return
    this.#pending = false
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
    if (now - this.#heardAt >= silenceMs && !late) {
      this.#options.silent(now - this.#heardAt)
      return
    }
    if ((this.#options.busy() && !this.#pending) || now - this.#pingedAt >= pingIntervalMs) this.ping()
  }
}
