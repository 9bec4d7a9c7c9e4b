/**
 * Takes the last of a guest's memory slowly. QEMU pauses a guest when what is left would take 300 ms (its downtime-limit) at the rate
 * that it saw last; so that much is always left, and it takes longer than that where what comes last packs worse than what came
 * before, or where what a connection swallowed at once was taken for its rate. At half of the link's rate it leaves half, which then
 * goes at full rate. It costs a few seconds of the whole time.
 *
 * Slow is what is behind the last page of the first pass when that is little, and a later pass that is short. It ends for good when
 * the guest is paused (a FLUSH of a disk says so, or the stream), and after RAM_HELD_MS in all: a guest that writes faster than
 * that would else never be moved. Where it costs nothing (`drainsIn`) that FLUSH is let past first. It holds up bytes, and changes none.
 */
import type { Clock } from '../core/clock.ts'
import { RAM_HELD_MS } from '../core/limits.ts'
import { MIB } from '../core/units.ts'
import { RamProgress } from './progress.ts'

/** Of the link's rate: for the first half of the time that is allowed, and then. */
const SHARE = 1 / 2
const LATER_SHARE = 3 / 4
/** At full rate QEMU stops when 300 ms are left. Before that it must see the lower one: sockets hold some, and it looks every 100 ms. */
const NEAR_SECONDS = 0.6
/** The same at the lower rate: much of a guest's memory may be zeroes, which go by in no time. */
const HELD_SECONDS = 4
/** A rate is measured over that much. */
const MEASURED_SECONDS = 0.2
/** What QEMU has sent and sockets still hold when it pauses the guest. */
const SOCKETS_BYTES = 4 * MIB
/** Not slower than that, whatever is known of the link. */
const RATE_MIN = 2 * MIB
/** How long a later pass is, is guessed from this part of it on. */
const GUESSED_PART = 1 / 16

export interface RamPaceOptions {
  readonly clock: Clock
  /** Bytes a second that the link takes; 0 while that is not known. */
  readonly linkRate: () => number
  /** Told once, if anything was held up: for how long in all, and what ended it. */
  readonly onReleased?: (heldMs: number, until: ReleasedBy) => void
}

/** A FLUSH of a disk, the stream (the guest is paused, or it is not known any more), or RAM_HELD_MS. */
export type ReleasedBy = 'flush' | 'stream' | 'time'

export class RamPace {
  readonly #options: RamPaceOptions
  readonly #progress = new RamProgress()
  readonly #released = Promise.withResolvers<void>()
  #over = false
  #holding = false
  #heldMs = 0
  #lastMs: number
  /** When what was taken has gone, at the lower rate. */
  #freeMs = 0
  /** Bytes a second that were taken while nothing was held up. */
  #fullRate = 0
  #measured: { readonly sinceMs: number; bytes: number }

  constructor(options: RamPaceOptions) {
    this.#options = options
    this.#lastMs = options.clock.nowMs()
    this.#measured = { sinceMs: this.#lastMs, bytes: 0 }
  }

  get isHolding(): boolean {
    return this.#holding
  }

  /** For how long it held up in all, in milliseconds. */
  get heldMs(): number {
    return this.#heldMs
  }

  /** Resolves when nothing is held up any more. */
  get released(): Promise<void> {
    return this.#released.promise
  }

  /** Whether what is under way when the guest is paused is gone in so long also at the lower rate. */
  drainsIn(ms: number): boolean {
    return this.#options.linkRate() * SHARE * ms >= SOCKETS_BYTES * 1000
  }

  release(by: ReleasedBy): void {
    if (this.#over) return
    this.#over = true
    this.#holding = false
    this.#released.resolve()
    if (this.#heldMs > 0) this.#options.onReleased?.(Math.round(this.#heldMs), by)
  }

  /** These bytes were taken from QEMU. @returns how many milliseconds to wait before more are */
  took(bytes: Uint8Array): number {
    if (this.#over) return 0
    this.#progress.push(bytes)
    const now = this.#options.clock.nowMs()
    if (this.#holding) this.#heldMs += now - this.#lastMs
    else this.#measure(bytes.length, now)
    this.#lastMs = now
    if (this.#heldMs >= RAM_HELD_MS) this.release('time')
    else if (this.#holding && !this.#progress.known) this.release('stream')
    const linkRate = this.#options.linkRate()
    const near = !this.#over && this.#isNear(linkRate)
    if (near && !this.#holding) this.#freeMs = now
    this.#holding = near
    if (!near) return 0
    const share = this.#heldMs < RAM_HELD_MS / 2 ? SHARE : LATER_SHARE
    this.#freeMs = Math.max(now, this.#freeMs) + (bytes.length * 1000) / Math.max(RATE_MIN, linkRate * share)
    return this.#freeMs - now
  }

  #isNear(linkRate: number): boolean {
    const { known, pass, at, totalBytes, passedBytes } = this.#progress
    if (!known || linkRate === 0) return false
    const near = Math.max(this.#fullRate * NEAR_SECONDS, linkRate * SHARE * HELD_SECONDS)
    if (pass === 1) return totalBytes - at <= near
    const part = at / totalBytes
    return passedBytes / Math.max(part, GUESSED_PART) <= near || (part < GUESSED_PART && passedBytes <= near)
  }

  #measure(bytes: number, now: number): void {
    this.#measured.bytes += bytes
    const seconds = (now - this.#measured.sinceMs) / 1000
    if (seconds < MEASURED_SECONDS) return
    this.#fullRate = this.#measured.bytes / seconds
    this.#measured = { sinceMs: now, bytes: 0 }
  }
}
