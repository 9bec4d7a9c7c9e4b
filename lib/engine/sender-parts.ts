/** What a DiskSender is given, and the small things that it keeps. */
import type { BlockSizes } from '../block/device.ts'
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab, SlabPool } from '../chunk/slab.ts'
import type { DiskAccount } from './account.ts'
import type { DiskLink } from './link.ts'
import type { SendWindow } from './send-window.ts'

export interface SenderLimits {
  /** What all disks of the daemon share; none in tests of one disk. */
  readonly window?: SendWindow
  /** Bytes of data of one disk that are acknowledged and not yet applied. */
  readonly windowBytes: number
  /** How long what is not yet applied may take to drain, by the link's measured rate. */
  readonly drainMs: number
  /** How long a WRITE or FLUSH may wait on a link that gives no sign, until it is an EIO. */
  readonly flushDeadlineMs: number
}

export interface SenderOptions {
  readonly link: DiskLink
  readonly disk: number
  readonly epoch: number
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly account: DiskAccount
  readonly slabs: SlabPool
  readonly describe: (bytes: Uint8Array) => Promise<DescribedRun[]>
  readonly limits: SenderLimits
  /**
   * Nobody waits for what is written (an image is read, no guest writes): it leaves the stage when that is full or a FLUSH
   * comes, and nothing is sent unasked. What is described and wanted then depends on the bytes, not on the time. Of the
   * limits `windowBytes` counts, which must be more than the stage holds.
   */
  readonly bulkOnly?: boolean
  /** Told once, with the reason, when the session is lost. */
  readonly onLost?: (error: Error) => void
}

/** A chunk that is described and not applied. */
export interface ChunkRecord {
  readonly seq: number
  readonly length: number
  /** Undefined for zeroes. */
  readonly slab: Slab | undefined
  readonly slabOffset: number
  wanted: boolean
  /** Sent before it was asked for: a want that crosses it is no breach. */
  eager: boolean
}

export interface Waiter {
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}
