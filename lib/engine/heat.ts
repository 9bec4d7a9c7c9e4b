/**
 * Which parts of a disk a guest rewrites again and again: a write is hot when it is the third of its place, each within
 * HOT_REST_MS of the one before. QEMU mirrors a dirty 64 KiB every 100 ms, so a log that grows or a page that is rewritten all the time
 * comes as often; what is held back until it rests crosses the link once. It knows the parts of 64 KiB that were written lately, no others.
 */
import { HOT_REST_MS, HOT_UNITS_MAX } from '../core/limits.ts'
import { KIB, MIB } from '../core/units.ts'

/** The granularity of a mirror job. */
const UNIT_BYTES = 64 * KIB
const HOT_TIMES = 3
/** Longer writes are of a disk that is being copied. */
const LONG_BYTES = MIB

interface Unit {
  readonly atMs: number
  readonly times: number
  /** Of the last write. */
  readonly start: number
  readonly end: number
}

export class Heat {
  /** By their numbers on the disk, the one that was written last at the end. */
  readonly #units = new Map<number, Unit>()

  /** Units that are known. */
  get count(): number {
    return this.#units.size
  }

  /** Something was written. @returns whether all of it is hot */
  wrote(offset: number, length: number, nowMs: number): boolean {
    if (length > LONG_BYTES) return false
    let hot = true
    const end = offset + length
    for (let unit = Math.floor(offset / UNIT_BYTES); unit * UNIT_BYTES < end; unit++) {
      const old = this.#units.get(unit)
      // Guests' own writes are smaller: side by side they are no rewrites.
      const again =
        old !== undefined && nowMs - old.atMs <= HOT_REST_MS && old.start < end && offset < old.end
      const times = again ? old.times + 1 : 1
      this.#units.delete(unit)
      this.#units.set(unit, { atMs: nowMs, times, start: offset, end })
      if (times < HOT_TIMES) hot = false
    }
    this.#forget(nowMs)
    return hot
  }

  #forget(nowMs: number): void {
    for (const [unit, { atMs }] of this.#units) {
      if (this.#units.size <= HOT_UNITS_MAX && nowMs - atMs <= HOT_REST_MS) return
      this.#units.delete(unit)
    }
  }
}
