/**
 * Whether a migration catches up with its guest: once each disk was copied, what QEMU goes on writing is what the guest dirties, and
 * a write that waits for room is one for which the link is too slow. It does not converge while one has waited at every look for
 * some time: then no disk gets ready, or the guest will be paused for as long as the rest takes. Rates are of the last looks.
 */
import { DIRTY_RATE_MS, DIVERGES_MS } from '../../lib/core/limits.ts'
import type { ConvergenceReport } from '../report.ts'

/** What is looked at of a disk that is sent. */
export interface WatchedDisk {
  readonly size: number
  readonly askedBytes: number
  /** A write of QEMU waits for room. */
  readonly waits: boolean
}

/** At fewer looks nothing is said of it. */
const WAITING_LOOKS = 4

interface Look {
  readonly atMs: number
  readonly askedBytes: number
  readonly waits: boolean
}

export class Convergence {
  #looks: Look[] = []
  #linkBytesPerSecond = 0

  /** @param linkBytesPerSecond as the link is measured now */
  look(disks: readonly WatchedDisk[], linkBytesPerSecond: number, nowMs: number): void {
    this.#linkBytesPerSecond = linkBytesPerSecond
    const copied = disks.length > 0 && disks.every(({ size, askedBytes }) => askedBytes >= size)
    if (!copied) {
      // Another disk has come.
      this.#looks = []
      return
    }
    const askedBytes = disks.reduce((sum, disk) => sum + disk.askedBytes, 0)
    this.#looks.push({ atMs: nowMs, askedBytes, waits: disks.some(({ waits }) => waits) })
    this.#looks = this.#looks.filter(({ atMs }) => nowMs - atMs <= DIRTY_RATE_MS)
  }

  /** Null while disks are being copied. */
  report(): ConvergenceReport | null {
    const [first] = this.#looks
    const last = this.#looks.at(-1)
    if (first === undefined || last === undefined || last.atMs <= first.atMs) return null
    const dirtyBytesPerSecond = Math.round(
      ((last.askedBytes - first.askedBytes) * 1000) / (last.atMs - first.atMs),
    )
    const lately = this.#looks.filter(({ atMs }) => last.atMs - atMs <= DIVERGES_MS)
    const long = last.atMs - first.atMs >= DIVERGES_MS && lately.length >= WAITING_LOOKS
    const stuck = long && lately.every(({ waits }) => waits)
    return {
      dirtyBytesPerSecond,
      linkBytesPerSecond: Math.round(this.#linkBytesPerSecond),
      converges: !stuck,
    }
  }
}
