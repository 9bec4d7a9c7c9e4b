/**
 * The account of one disk's transfer: what QEMU asked for and where every byte came from. Sizes in bytes. The account
 * is what the user sees at the end, so both ends keep it from the same APPLIED messages.
 */
import { DISK_WAITS_MAX } from '../core/limits.ts'
import type { SourceName } from '../wire/disk.ts'

export type BySource = Record<SourceName | 'digest', number>

/** A time during which an answer that QEMU waited for was not there. */
export interface DiskWait {
  /** When it began, wall clock, milliseconds. */
  readonly at: number
  readonly ms: number
}

export class DiskAccount {
  readonly target: string
  readonly size: number
  /** Logical bytes of WRITE and WRITE_ZEROES that were asked for. */
  askedBytes = 0
  /** Logical bytes that are applied at the destination. */
  appliedBytes = 0
  /** Logical bytes by source; `digest` is the wire bytes of descriptions. */
  readonly bySource: BySource = {
    zero: 0,
    inPlace: 0,
    chunk: 0,
    block: 0,
    session: 0,
    neighbour: 0,
    delta: 0,
    literal: 0,
    digest: 0,
  }
  /** When the last FLUSH was answered to QEMU, which while a guest is paused ends its wait for this disk; wall clock, milliseconds. */
  flushedAt: number | undefined
  /** The last times at which QEMU waited for the far side or for room, oldest first; they do not overlap. */
  readonly waits: DiskWait[] = []
  /** Payload bytes of literals on the wire, compressed. */
  literalWireBytes = 0

  constructor(target: string, size: number) {
    this.target = target
    this.size = size
  }

  /** QEMU waited until now for so many milliseconds. */
  waited(ms: number): void {
    this.waits.push({ at: Date.now() - ms, ms })
    if (this.waits.length > DISK_WAITS_MAX) this.waits.shift()
  }

  /**
   * @param literalBytes those of `bytes` that were sent, where the source is `block`
   * @param deltaBytes and those that older versions of its blocks had in place
   */
  applied(source: SourceName, bytes: number, literalBytes = 0, deltaBytes = 0): void {
    this.appliedBytes += bytes
    this.bySource[source] += bytes - literalBytes - deltaBytes
    this.bySource.literal += literalBytes
    this.bySource.delta += deltaBytes
  }
}
