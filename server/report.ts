/**
 * What the daemon answers to `status` and `history`, as `--json` prints it. The keys are promised to users' scripts:
 * adding one is free, changing one is not. Sizes are bytes, times are milliseconds (`startedAt`: since 1970), unknown
 * is null. Every object that stands by itself carries `version: 1`.
 */

import type { LoopReport } from '../lib/core/loop-watch.ts'
import type { DiskWait } from '../lib/engine/account.ts'

/** Where the bytes of a disk (or of memory) came from; their sum is `appliedBytes`. */
export const SOURCE_NAMES = [
  'zero',
  'inPlace',
  'chunk',
  'block',
  'session',
  'neighbour',
  'delta',
  'literal',
  'digest',
] as const

export type SourceName = (typeof SOURCE_NAMES)[number]

export type BySource = Readonly<Record<SourceName, number>>

export type MigrationPhase =
  /** Announced by the hook; nothing has connected yet. */
  | 'announced'
  /** The bulk of the disks. */
  | 'copying'
  /** The mirror is READY; memory is moving. */
  | 'ready'
  /** The guest is paused. */
  | 'switching'
  | 'done'
  | 'failed'

export interface DiskReport {
  /** `vda`. */
  readonly target: string
  readonly size: number
  /** What QEMU asked to be written, each byte as often as it was written. */
  readonly askedBytes: number
  readonly appliedBytes: number
  readonly bySource: BySource
  /** When the last FLUSH of QEMU was answered, at the source; null at the far side, and before the first. */
  readonly flushedAt?: number | null
  /** The last times at which QEMU waited for this disk, at the source: for the far side, or for room. */
  readonly waits?: readonly DiskWait[]
  /** Of the disk at the last FLUSH that was proved, 64 hex digits: the same at both ends. Null without a proof. */
  readonly root?: string | null
  readonly proof?: ProofReport | null
}

/** How far that root speaks for the disk, in pieces of 64 KiB. */
export interface ProofReport {
  readonly at: number
  readonly leaves: number
  readonly provedLeaves: number
  /** Written and not read back; null where only maps were compared (verify = "map"). */
  readonly unreadLeaves: number | null
}

/** How the source catches up with its guest, once the disks are copied. Bytes a second. */
export interface ConvergenceReport {
  /** What QEMU writes: each 64 KiB in which the guest wrote something. */
  readonly dirtyBytesPerSecond: number
  readonly linkBytesPerSecond: number
  /** False while writes wait for the link all the time. */
  readonly converges: boolean
}

export interface RamReport {
  readonly askedBytes: number
  readonly wireBytes: number
  readonly bySource: BySource
}

/** A TCP connection that carries bytes of this migration over the link, as `ss` shows it at this host. */
export interface ConnectionReport {
  readonly kind: 'disk' | 'ram' | 'control'
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
}

export interface MigrationReport {
  readonly version: 1
  readonly id: string
  readonly guest: string
  readonly uuid: string
  readonly peer: string
  readonly direction: 'out' | 'in'
  readonly phase: MigrationPhase
  readonly accelerated: boolean
  /** Why it was not accelerated, or null. */
  readonly reason: string | null
  readonly startedAt: number
  readonly elapsedMs: number
  readonly downtimeMs: number | null
  readonly disks: readonly DiskReport[]
  readonly ram: RamReport
  readonly wireBytes: number
  readonly etaMs: number | null
  /** Both ends had one root of every disk when the guest went on; false: they had not, and it stayed. Null: nobody looked. */
  readonly verified: boolean | null
  /** Why it is null, once that is known. */
  readonly unverified?: string | null
  readonly error: string | null
  readonly connections: readonly ConnectionReport[]
  /** How often the link under it broke and was resumed, and whether it is broken now. */
  readonly breaks: number
  readonly linkBroken: boolean
  /** At the source; null while disks are being copied. */
  readonly convergence?: ConvergenceReport | null
}

export interface RedirectReport {
  readonly mode: 'nft' | 'off'
  /** False while the table is missing or cannot be made. */
  readonly ok: boolean
  readonly armed: number
  /** How often somebody else took the table or a part of it away, and what was repaired last. */
  readonly repairs: number
  readonly lastRepair: string | null
  readonly error: string | null
}

export interface PeerReport {
  readonly name: string
  readonly site: string
  readonly address: string
  readonly up: boolean
  readonly rttMs: number | null
  readonly error: string | null
}

export interface DaemonReport {
  readonly pid: number
  readonly release: string
  readonly startedAt: number
}

/** The daemon's own process. */
export interface ProcessReport {
  readonly rssBytes: number
  /** Of these: JavaScript objects, and buffers outside of their heap. */
  readonly heapBytes: number
  readonly externalBytes: number
  readonly openDescriptors: number | null
  /** How late the event loop ran: since the start, and in the last minute. */
  readonly eventLoop: LoopReport
}

export interface StatusReport {
  readonly version: 1
  readonly daemon: DaemonReport
  readonly process: ProcessReport
  readonly redirect: RedirectReport
  readonly peers: readonly PeerReport[]
  readonly migrations: readonly MigrationReport[]
}

export interface HistoryReport {
  readonly version: 1
  readonly migrations: readonly MigrationReport[]
}

export function emptyBySource(): Record<SourceName, number> {
  return {
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
}

type Check = (value: unknown) => boolean

const isText: Check = (value) => typeof value === 'string'
/** 1e999 in a file is Infinity, which JSON cannot say again. */
const isNumber: Check = (value) => Number.isFinite(value)
const isFlag: Check = (value) => typeof value === 'boolean'
const orNull =
  (check: Check): Check =>
  (value) =>
    value === null || check(value)
const listOf =
  (check: Check): Check =>
  (value) =>
    Array.isArray(value) && value.every(check)
/** An object that has at least these keys, each as its check says. */
const shape =
  (checks: Readonly<Record<string, Check>>): Check =>
  (value) =>
    typeof value === 'object' &&
    value !== null &&
    Object.entries(checks).every(([key, check]) => check((value as Record<string, unknown>)[key]))

const BY_SOURCE = shape(Object.fromEntries(SOURCE_NAMES.map((name) => [name, isNumber])))
const BYTES = { askedBytes: isNumber, bySource: BY_SOURCE }
const REPORT = shape({
  id: isText,
  guest: isText,
  uuid: isText,
  peer: isText,
  direction: isText,
  phase: isText,
  accelerated: isFlag,
  reason: orNull(isText),
  startedAt: isNumber,
  elapsedMs: isNumber,
  downtimeMs: orNull(isNumber),
  disks: listOf(shape({ ...BYTES, target: isText, size: isNumber, appliedBytes: isNumber })),
  ram: shape({ ...BYTES, wireBytes: isNumber }),
  wireBytes: isNumber,
  error: orNull(isText),
})

/** Whether what a file says is a report: everything that is read of one later is there. */
export function isReport(value: unknown): value is MigrationReport {
  return REPORT(value)
}
