/** What an outgoing migration is given: what it is, and what it may ask of the host. */
import type { BlockSizes } from '../../lib/block/device.ts'
import type { DescribedRun } from '../../lib/chunk/describer.ts'
import type { SlabPool } from '../../lib/chunk/slab.ts'
import type { Clock } from '../../lib/core/clock.ts'
import type { Log } from '../../lib/core/log.ts'
import type { SenderLimits } from '../../lib/engine/sender-parts.ts'
import type { VersionMemory } from '../../lib/engine/sent-versions.ts'
import type { OutgoingMigration } from './outgoing.ts'
import type { MigrationProofs } from './proofs.ts'

export interface ExportInfo {
  readonly name: string
  readonly size: number
  readonly blockSizes: BlockSizes
}

export interface OutgoingOptions {
  readonly id: string
  readonly uuid: string
  readonly guest: string
  readonly peer: string
  readonly peerAddresses: readonly string[]
  readonly log: Log
  /** Users whose connections are taken. */
  readonly uids: readonly number[]
  readonly slabs: SlabPool
  readonly describe: (bytes: Uint8Array) => Promise<DescribedRun[]>
  readonly limits: SenderLimits
  /** Of what guests rewrite, for all of them. */
  readonly versions: VersionMemory
  /** None where verify is "off". */
  readonly proofs?: MigrationProofs
  readonly pickListenPort: () => number
  /** Whether passed-through streams may be compressed. */
  readonly compress: boolean
  /** Whether the guest stayed at this host or left; waits while libvirt has not decided. */
  readonly outcome: () => Promise<'here' | 'gone' | 'unknown'>
  /** The same for a migration that goes past SWAM, however long it takes. */
  readonly directOutcome: () => Promise<'here' | 'gone' | 'unknown'>
  /** Whether libvirt still works on the migration. */
  readonly migrating: () => Promise<boolean>
  /** The disk's name, `vda`, for the name of its export. */
  readonly targetOf: (exportName: string) => string
  /** Whether that start of the far daemon is still there. */
  readonly farLives: (instance: string) => Promise<'yes' | 'no' | 'unknown'>
  /** Whether libvirt has paused the guest to switch over. */
  readonly paused: () => Promise<boolean>
  /** Catches nothing more for this migration, at the latest when it resolves. */
  readonly disarm: () => Promise<void>
  readonly onEnd: (migration: OutgoingMigration) => void
  /** Measures how long is waited for what may never come. */
  readonly clock?: Clock
}
