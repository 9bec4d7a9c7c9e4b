/**
 * What of the target reads as zero, and what of it shall. Zeroes that were sent are pending: they are applied when a FLUSH
 * settles them, so that a zeroing pass over the whole disk does not erase the old version lying in place, the best source there
 * is. Where the device reads as zero already nothing is written.
 */
import type { BlockDevice } from '../block/device.ts'
import { IntervalMap } from '../block/extents.ts'
import {
  KNOWN_ZEROES_MAX,
  PENDING_ZEROES_MAX,
  SCANNED_EXTENTS_MAX,
  SETTLING_ZEROES_MAX,
} from '../core/limits.ts'
import { alignDown, alignUp, BLOCK_BYTES, GIB } from '../core/units.ts'
import { unlessRefused } from './sources.ts'

export interface TargetZeroesOptions {
  readonly device: BlockDevice
  readonly ended: () => boolean
  /** Nothing was said of [start, end) yet, so that it is what the device says. */
  readonly untouched: (start: number, end: number) => boolean
  /** Runs when everything older on [start, end) is applied; what is newer waits for it. */
  readonly inTurn: (start: number, end: number, work: () => Promise<void>) => Promise<void>
}

export class TargetZeroes {
  readonly #options: TargetZeroesOptions
  /** Ranges that must read as zero and are not yet zeroed on the device. */
  readonly #pending = new IntervalMap<true>()
  /** Ranges that are known to read as zero on the device. */
  readonly #known = new IntervalMap<true>()

  constructor(options: TargetZeroesOptions) {
    this.#options = options
  }

  /**
   * Learns which ranges of the target read as zero already; of what it cannot learn nothing is assumed. Gives how many bytes do
   * not, unless the device does not say.
   */
  async scan(): Promise<number | undefined> {
    const { device, ended, untouched } = this.#options
    if (!device.features.blockStatus) return undefined
    let at = 0
    let seen = 0
    let held = 0
    while (at < device.size && !ended()) {
      const extents = await unlessRefused(device.blockStatus(at, Math.min(GIB, device.size - at)))
      if (extents === undefined) return undefined
      for (const extent of extents) {
        const end = Math.min(device.size, at + extent.length)
        if (!extent.zero) held += end - at
        const full = this.#known.count >= KNOWN_ZEROES_MAX
        if (extent.zero && at < end && !full && untouched(at, end)) this.#known.set(at, end, true)
        at = end
        // A fragmented image has a hundred thousand of them in one answer.
        if (++seen % SCANNED_EXTENTS_MAX === 0) await new Promise((resolve) => setImmediate(resolve))
      }
      if (extents.length === 0) return undefined
    }
    return held
  }

  /** The device reads as zero there. */
  isKnown(start: number, end: number): boolean {
    return this.#known.covers(start, end)
  }

  /** Something else is being written there. What is pending stays so: a FLUSH must not be answered before one of them is there. */
  writing(start: number, end: number): void {
    this.#known.delete(start, end)
  }

  /** It is there, and nothing newer can have come: that would have waited for it. */
  written(start: number, end: number): void {
    this.#pending.delete(start, end)
  }

  /** True when so many are pending that they must be settled. */
  add(start: number, end: number): boolean {
    this.#pending.set(start, end, true)
    return this.#pending.count > PENDING_ZEROES_MAX
  }

  /** Makes what was read of the device at `offset` what it shall be. */
  applyTo(data: Buffer, offset: number): void {
    const end = offset + data.length
    for (const zero of this.#pending.overlapping(offset, end))
      data.fill(0, Math.max(zero.start, offset) - offset, Math.min(zero.end, end) - offset)
  }

  /** Makes pending zeroes real, where the device does not read as zero already. Newer data wins: it waits its turn. */
  async settle(): Promise<void> {
    const { device, inTurn, ended } = this.#options
    const ranges = [...this.#pending.entries()]
    const unit = Math.max(device.blockSizes.minimum, BLOCK_BYTES)
    for (let at = 0; at < ranges.length; at += SETTLING_ZEROES_MAX) {
      // A fragmented disk has tens of thousands: other work goes on in between.
      if (at > 0) await new Promise((resolve) => setImmediate(resolve))
      const some = ranges.slice(at, at + SETTLING_ZEROES_MAX)
      await Promise.all(
        some.map(async (range) => {
          // Where chunks took the rest of them, they begin at any byte. Newer ones that come meanwhile and go on beyond must not
          // be there in half a sector (nobody flushed them, but no disk tears one): so it is a turn for whole blocks.
          const start = alignDown(range.start, unit)
          const end = Math.min(device.size, alignUp(range.end, unit))
          await inTurn(start, end, () => this.#settleRange(start, end))
        }),
      )
      if (ended()) return
    }
  }

  async #settleRange(start: number, end: number): Promise<void> {
    const { device, ended } = this.#options
    if (ended()) return
    const unit = device.blockSizes.minimum
    for (const pending of this.#pending.overlapping(start, end)) {
      // What begins elsewhere within a block of the device has time: whoever writes the rest of it waits for its turn.
      const from = alignUp(Math.max(pending.start, start), unit)
      const to = Math.min(pending.end, end)
      if (from >= to) continue
      const gaps = this.#known.gaps(from, to)
      for (const gap of gaps) {
        if (ended()) return
        const first = alignDown(gap.start, unit)
        await device.writeZeroes(first, Math.min(to, alignUp(gap.end, unit)) - first)
      }
      if (this.#known.count >= KNOWN_ZEROES_MAX) this.#known.clear()
      if (gaps.length > 0) this.#known.set(from, to, true)
      this.#pending.delete(from, to)
    }
  }
}
