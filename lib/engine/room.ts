/**
 * Whether a disk's window has room for another write: bounded by bytes, by how much the far side has not judged yet, and
 * by how long all of it would take to drain. `virsh suspend` and a shutdown drain and flush in QEMU's main loop, so what
 * drains slowly freezes guest and monitor. How much of it has to be sent is not known before; what came of the bytes
 * before tells.
 */
import {
  LITERAL_SHARE_BYTES,
  THROTTLE_BYTES_MIN,
  THROTTLE_MS,
  UNDETERMINED_BYTES_MAX,
  UNDETERMINED_BYTES_MIN,
} from '../core/limits.ts'
import { MIB } from '../core/units.ts'
import type { SenderLimits } from './sender-parts.ts'

/** Always admitted, however slow the link is. */
const DRAINABLE_BYTES_MIN = 2 * MIB

/** Above it, one root for many chunks costs fewer bytes than their digests, those of the chunks that changed included. */
const IN_PLACE_SHARE_MIN = 0.95
/** Less is no older version of a disk. */
const HELD_BYTES_MIN = 16 * MIB
/** So many applied bytes tell, by weight, what of the next ones lies in place. */
const IN_PLACE_BYTES = 4 * MIB

export class Room {
  readonly #windowBytes: number
  readonly #drainMs: number
  /** Compressed to plain bytes of what was sent. */
  #literalRatio = 0.7
  /** The part of what was applied lately that had to be sent. */
  #literalShare = 1

  /** The part of it that lay in place. */
  #inPlaceShare = 0
  #held = 0
  readonly #olderBytesMin: number

  constructor(limits: Pick<SenderLimits, 'windowBytes' | 'drainMs' | 'olderBytesMin'>) {
    this.#windowBytes = limits.windowBytes
    this.#drainMs = limits.drainMs
    this.#olderBytesMin = limits.olderBytesMin ?? HELD_BYTES_MIN
  }

  sent(plainBytes: number, packedBytes: number): void {
    this.#literalRatio += (packedBytes / plainBytes - this.#literalRatio) * 0.1
  }

  applied(bytes: number, literalBytes: number, inPlace: boolean): void {
    this.#literalShare +=
      (literalBytes / bytes - this.#literalShare) * Math.min(1, bytes / LITERAL_SHARE_BYTES)
    this.#inPlaceShare += ((inPlace ? 1 : 0) - this.#inPlaceShare) * Math.min(1, bytes / IN_PLACE_BYTES)
  }

  /** The far side has so much at the place of this disk: an older version of it, until its answers tell otherwise. */
  held(bytes: number): void {
    this.#held = bytes
    if (bytes >= this.#olderBytesMin) this.#inPlaceShare = 1
  }

  /** Whether it has anything there. */
  get holds(): boolean {
    return this.#held > 0
  }

  /** Whether the far side most likely has in place what comes next. */
  get isInPlace(): boolean {
    return this.#inPlaceShare >= IN_PLACE_SHARE_MIN
  }

  /**
   * @param wanted those of the unsettled bytes that the far side has asked for
   * @param throttled as little as keeps the link busy: who writes waits for it
   */
  allows(unsettled: number, wanted: number, rateBytesPerSecond: number, throttled = false): boolean {
    const undetermined = unsettled - wanted
    if (throttled) return unsettled <= Math.max(THROTTLE_BYTES_MIN, (rateBytesPerSecond * THROTTLE_MS) / 1000)
    const drainable = Math.max(DRAINABLE_BYTES_MIN, (rateBytesPerSecond * this.#drainMs) / 1000)
    if ((wanted + undetermined * this.#literalShare) * this.#literalRatio > drainable) return false
    const undeterminedMax = Math.max(UNDETERMINED_BYTES_MIN, drainable * 2)
    return undetermined <= Math.min(UNDETERMINED_BYTES_MAX, undeterminedMax) && unsettled <= this.#windowBytes
  }
}
