/** What a DiskReceiver is given. */
import type { BlockDevice } from '../block/device.ts'
import type { ByteBudget } from '../core/byte-budget.ts'
import type { Clock } from '../core/clock.ts'
import type { DiskAccount } from './account.ts'
import type { Arrivals } from './arrivals.ts'
import type { BlockPlaces } from './block-finder.ts'
import type { DiskLink } from './link.ts'
import type { ReceiverProof } from './receiver-proof.ts'
import type { ChunkSource } from './sources.ts'
import type { ReceiverBudget } from './task.ts'

export interface ReceiverOptions {
  readonly link: DiskLink
  readonly disk: number
  readonly epoch: number
  readonly device: BlockDevice
  readonly account: DiskAccount
  /** Bytes that all receivers of the daemon may hold together. */
  readonly memory: ByteBudget
  /** Beyond the target itself: catalog, neighbours. */
  readonly sources: readonly ChunkSource[]
  /** The same for blocks of chunks that no source has. */
  readonly blockPlaces?: readonly BlockPlaces[]
  readonly sessionEntriesMax: number
  /** Shared by the disks of one migration. */
  readonly budget?: ReceiverBudget
  readonly clock?: Clock
  /** Shared by all receivers of the daemon. */
  readonly arrivals?: Arrivals
  /** `device` is then its own; used where FEATURE_PROOF is agreed on. */
  readonly proof?: ReceiverProof
  readonly onEnd?: (error: Error | undefined) => void
}
