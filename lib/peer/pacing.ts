/**
 * How much may be on its way: pure arithmetic over a clock that is passed in.
 *
 * In flight stays within rate × (minRtt + 50 ms). The rate is the largest delivery rate of the last few round trips,
 * each sampled as delivered bytes over the longer of the time they took to send and the time they took to be
 * acknowledged (so that neither a burst of acks nor idle time makes a sample too high or too low). A sample taken
 * while the sender had nothing to send counts only when it raises the estimate. While the rate still grows by a
 * quarter each round trip, the limit is twice the delay's worth, so that a long path fills in about a second. The
 * least round trip is believed for ten seconds; then in flight is lowered for one round trip, the queue at the
 * bottleneck drains, and it is measured again: else our own queue would come to be taken for the path.
 *
 * It does not spread frames over time, and it does not retransmit: TCP below does.
 */
import { KIB, MIB } from '../core/units.ts'

export interface PacingOptions {
  /** Milliseconds, monotonic. */
  readonly clock: () => number
  readonly queueMs?: number
  readonly floorBytes?: number
  readonly ceilingBytes?: number
  readonly startBytes?: number
  readonly minRttWindowMs?: number
}

interface Sent {
  readonly bytes: number
  readonly tag: number
  readonly sentAt: number
  /** What was delivered, and when, at the time of sending. */
  readonly delivered: number
  readonly deliveredAt: number
  /** When the first frame of the flight that this one belongs to was sent. */
  readonly firstSentAt: number
  readonly appLimited: boolean
}

const ROUNDS = 8
const GROWTH = 1.25
const ROUNDS_WITHOUT_GROWTH = 3
const PROBE_GAIN = 0.75
const PROBE_FLOOR_BYTES = 64 * KIB
const PROBE_MS_MIN = 20

export class Pacing {
  readonly #clock: () => number
  readonly #queueMs: number
  readonly #floorBytes: number
  readonly #ceilingBytes: number
  readonly #startBytes: number
  readonly #minRttWindowMs: number

  #flight: Sent[] = []
  #flightHead = 0
  #inFlightBytes = 0
  #deliveredBytes = 0
  #deliveredAt: number
  #firstSentAt: number
  /** Frames sent before this many bytes were delivered belong to a time when the sender had too little to send. */
  #appLimitedUntil = -1

  #roundEnd = 0
  #round = 0
  readonly #roundRates = new Float64Array(ROUNDS)
  #rate = 0
  #startup = true
  #growthBase = 0
  #roundsWithoutGrowth = 0

  #minRttMs: number | undefined
  #minRttAt = 0
  #smoothedRttMs: number | undefined
  #probeUntil: number | undefined
  #probeRttMs = Number.POSITIVE_INFINITY

  constructor(options: PacingOptions) {
    this.#clock = options.clock
    this.#queueMs = options.queueMs ?? 50
    this.#floorBytes = options.floorBytes ?? 256 * KIB
    this.#ceilingBytes = options.ceilingBytes ?? 32 * MIB
    this.#startBytes = options.startBytes ?? 512 * KIB
    this.#minRttWindowMs = options.minRttWindowMs ?? 10_000
    const now = this.#clock()
    this.#deliveredAt = now
    this.#firstSentAt = now
  }

  get inFlightBytes(): number {
    return this.#inFlightBytes
  }

  get inFlightFrames(): number {
    return this.#flight.length - this.#flightHead
  }

  get deliveredBytes(): number {
    return this.#deliveredBytes
  }

  get rateBytesPerSecond(): number {
    return this.#rate * 1000
  }

  get minRttMs(): number | undefined {
    return this.#minRttMs
  }

  get smoothedRttMs(): number | undefined {
    return this.#smoothedRttMs
  }

  get ceilingBytes(): number {
    return this.#ceilingBytes
  }

  get limitBytes(): number {
    const minRttMs = this.#minRttMs
    if (this.#rate === 0 || minRttMs === undefined) return Math.min(this.#startBytes, this.#ceilingBytes)
    if (this.#probeUntil !== undefined) {
      return Math.max(Math.min(PROBE_FLOOR_BYTES, this.#ceilingBytes), this.#rate * minRttMs * PROBE_GAIN)
    }
    const delayMs = minRttMs + this.#queueMs
    const limit = this.#rate * (this.#startup ? Math.max(delayMs, 2 * minRttMs) : delayMs)
    return Math.min(Math.max(limit, this.#startup ? this.#startBytes : this.#floorBytes), this.#ceilingBytes)
  }

  /** One frame may pass when this is true; it may exceed the limit by its own length. */
  get open(): boolean {
    return this.#inFlightBytes < this.limitBytes
  }

  /** Frames must be acknowledged in the order of these calls. `tag` comes back from `acknowledged`. */
  sent(bytes: number, tag: number): void {
    const now = this.#clock()
    if (this.#inFlightBytes === 0) {
      // Idle time is no time of delivery: both clocks start with this flight.
      this.#firstSentAt = now
      this.#deliveredAt = now
    }
    this.#inFlightBytes += bytes
    this.#flight.push({
      bytes,
      tag,
      sentAt: now,
      delivered: this.#deliveredBytes,
      deliveredAt: this.#deliveredAt,
      firstSentAt: this.#firstSentAt,
      appLimited: this.#appLimitedUntil >= this.#deliveredBytes,
    })
  }

  /** Nothing is on its way any more: the link broke. What is known of the path is kept. */
  restart(): void {
    this.#flight = []
    this.#flightHead = 0
    this.#inFlightBytes = 0
    this.#probeUntil = undefined
    this.#roundEnd = this.#deliveredBytes
  }

  /** The sender has nothing more to send although it might. */
  idle(): void {
    if (this.open) this.#appLimitedUntil = this.#deliveredBytes + this.#inFlightBytes
  }

  /** `delivered` is cumulative. False when it is not the end of a frame that was sent. */
  acknowledged(delivered: number, each?: (bytes: number, tag: number) => void): boolean {
    const now = this.#clock()
    let last: Sent | undefined
    while (this.#deliveredBytes < delivered && this.#flightHead < this.#flight.length) {
      const sent = this.#flight[this.#flightHead++]!
      this.#deliveredBytes += sent.bytes
      this.#inFlightBytes -= sent.bytes
      last = sent
      each?.(sent.bytes, sent.tag)
    }
    if (this.#flightHead > 1024 && this.#flightHead * 2 > this.#flight.length) {
      this.#flight = this.#flight.slice(this.#flightHead)
      this.#flightHead = 0
    }
    if (this.#deliveredBytes !== delivered) return false
    if (last === undefined) return true
    this.#deliveredAt = now
    this.#firstSentAt = last.sentAt
    this.roundTrip(now - last.sentAt)
    this.#sampleRate(last, now)
    return true
  }

  /** A measured round trip, of an acknowledged frame or of a PING. */
  roundTrip(ms: number): void {
    const now = this.#clock()
    const rtt = Math.max(ms, 0.01)
    this.#smoothedRttMs =
      this.#smoothedRttMs === undefined ? rtt : this.#smoothedRttMs + (rtt - this.#smoothedRttMs) / 8
    if (this.#minRttMs === undefined || rtt <= this.#minRttMs) {
      this.#minRttMs = rtt
      this.#minRttAt = now
      this.#probeUntil = undefined
      return
    }
    if (this.#probeUntil !== undefined) {
      this.#probeRttMs = Math.min(this.#probeRttMs, rtt)
      // What comes back in the first round trip of the probe was sent before it and has seen the full queue.
      if (now >= this.#probeUntil) {
        this.#minRttMs = this.#probeRttMs
        this.#minRttAt = now
        this.#probeUntil = undefined
      }
    } else if (now - this.#minRttAt > this.#minRttWindowMs) {
      this.#probeRttMs = Number.POSITIVE_INFINITY
      this.#probeUntil = now + Math.max(this.#smoothedRttMs, PROBE_MS_MIN) * 2
    }
  }

  #sampleRate(last: Sent, now: number): void {
    if (last.delivered >= this.#roundEnd) {
      this.#roundEnd = this.#deliveredBytes
      if (!last.appLimited) this.#nextRound()
    }
    const interval = Math.max(last.sentAt - last.firstSentAt, now - last.deliveredAt)
    // An interval below the least round trip is an accident of timers and says nothing.
    if (interval <= 0 || interval < (this.#minRttMs ?? 0)) return
    const rate = (this.#deliveredBytes - last.delivered) / interval
    if (last.appLimited && rate <= this.#rate) return
    const slot = this.#round % ROUNDS
    if (rate > this.#roundRates[slot]!) this.#roundRates[slot] = rate
    this.#rate = Math.max(...this.#roundRates)
  }

  #nextRound(): void {
    this.#round += 1
    // The estimate is kept until the new round has a sample of its own, so that it never falls to nothing.
    this.#roundRates[this.#round % ROUNDS] = 0
    if (!this.#startup) return
    if (this.#rate >= this.#growthBase * GROWTH) {
      this.#growthBase = this.#rate
      this.#roundsWithoutGrowth = 0
    } else if (++this.#roundsWithoutGrowth >= ROUNDS_WITHOUT_GROWTH) {
      this.#startup = false
    }
  }
}
