/** What a DiskSender is given, and the small things that it keeps. */
import type { BlockSizes } from '../block/device.ts'
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab, SlabPool } from '../chunk/slab.ts'
import type { Clock } from '../core/clock.ts'
import { ProtocolError } from '../core/errors.ts'
import { type DiskMessage, FEATURE_BLOCKS, FEATURE_DELTA, FEATURE_SURVEY } from '../wire/disk.ts'
import { FEATURE_PROOF } from '../wire/disk-proof.ts'
import type { DiskAccount } from './account.ts'
import type { DiskLink } from './link.ts'
import type { SendWindow } from './send-window.ts'
import type { SenderGroup } from './sender-group.ts'
import type { SenderProof } from './sender-proof.ts'
import type { VersionMemory } from './sent-versions.ts'

/** What the far side may say only if both ends know it. */
const FEATURES: Partial<Record<DiskMessage['type'], string>> = {
  ask: FEATURE_BLOCKS,
  parts: FEATURE_BLOCKS,
  sketches: FEATURE_DELTA,
  detail: FEATURE_SURVEY,
  held: FEATURE_SURVEY,
  proved: FEATURE_PROOF,
}

/** @throws ProtocolError */
export function checkAgreed(message: DiskMessage, features: ReadonlySet<string>): void {
  const feature = FEATURES[message.type]
  if (feature !== undefined && !features.has(feature))
    throw new ProtocolError(`disk ${message.disk}: ${message.type} was not agreed on`)
}

export interface SenderLimits {
  /** What all disks of the daemon share; none in tests of one disk. */
  readonly window?: SendWindow
  /** Bytes of data of one disk that are acknowledged and not yet applied. */
  readonly windowBytes: number
  /** How long what is not yet applied may take to drain, by the link's measured rate. */
  readonly drainMs: number
  /** From so many bytes on what lies at the far side is taken for an older version of the disk; less in tests of small disks. */
  readonly olderBytesMin?: number
  /** Once the disk is copied, writes are acknowledged only as fast as they arrive. */
  readonly throttle?: boolean
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
  readonly clock?: Clock
  /** Of the guest's disks. */
  readonly group?: SenderGroup
  /** Used where FEATURE_PROOF is agreed on. */
  readonly proof?: SenderProof
  /** The daemon's; used where FEATURE_CHANGED is agreed on. */
  readonly versions?: VersionMemory
  /**
   * Nobody waits for what is written (an image is read, no guest writes): it leaves the stage when that is full or a FLUSH
   * comes, and nothing is sent unasked. What is described and wanted then depends on the bytes, not on the time. Of the
   * limits `windowBytes` counts, which must be more than the stage holds.
   */
  readonly bulkOnly?: boolean
  /** Told once, with the reason, when the session is lost. */
  readonly onLost?: (error: Error) => void
}

/** A chunk, or a range of zeroes, that is described and not applied. */
export interface ChunkRecord {
  readonly seq: number
  /** On the disk. */
  readonly offset: number
  readonly length: number
  /** Undefined for zeroes. */
  readonly slab: Slab | undefined
  readonly slabOffset: number
  /** The run that it was cut from, on the disk; in the slab it lies around the chunk. */
  readonly runStart: number
  readonly runEnd: number
  /** Bytes of it that the far side asked for, or that were sent unasked. */
  wantedBytes: number
  /** Wanted as a whole. */
  wanted: boolean
  /** Sent before it was asked for: a want that crosses it is no breach. */
  eager: boolean
  /** Bytes of it that were sent unasked. */
  earlyBytes: number
  /** Asked for block by block. */
  asked: boolean
  /** The blocks of it that are wanted (PARTS), until it is wanted as a whole. */
  missing: Buffer | undefined
  /** What went out of it as missing blocks, and what need not, because older versions of them lie at the far side. */
  partsBytes: number
  deltaBytes: number
  /** Which of the missing blocks go in pieces, and in which (pieces.ts). */
  differences: { readonly old: Buffer; readonly maps: readonly number[] } | undefined
  /** Its hints went unasked. */
  hinted: boolean
  /** While the far side knows only a root that it is part of. */
  digest: Uint8Array | undefined
}

export function newRecord(
  seq: number,
  offset: number,
  length: number,
  at?: {
    readonly slab: Slab
    readonly slabOffset: number
    readonly base: number
    readonly run: DescribedRun
  },
): ChunkRecord {
  const runStart = at === undefined ? offset : at.base + at.run.offset
  return {
    seq,
    offset,
    length,
    slab: at?.slab,
    slabOffset: at?.slabOffset ?? 0,
    runStart,
    runEnd: runStart + (at?.run.length ?? length),
    wantedBytes: 0,
    wanted: false,
    eager: false,
    earlyBytes: 0,
    asked: false,
    missing: undefined,
    partsBytes: 0,
    deltaBytes: 0,
    differences: undefined,
    hinted: false,
    digest: undefined,
  }
}

export interface Waiter {
  readonly resolve: () => void
  readonly reject: (error: Error) => void
}
