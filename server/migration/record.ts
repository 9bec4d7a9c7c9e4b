/**
 * What one migration is and was: the numbers behind `swam status` and `swam history`, kept by the same code on both
 * sides. It reads counters where they are kept (bundles, accounts, streams) instead of copying them around.
 * Wire bytes are IP bytes, as the kernel counts them for each SSH connection (lib/host/tcp-info.ts).
 */
import type { DiskAccount } from '../../lib/engine/account.ts'
import type { DiskProof } from '../../lib/engine/disk-proof.ts'
import type { DiskSender } from '../../lib/engine/sender.ts'
import { type TcpCounts, type TcpName, tcpCounts } from '../../lib/host/tcp-info.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import type { Counts } from '../../lib/ram/passthrough.ts'
import {
  type ConnectionReport,
  emptyBySource,
  type MigrationPhase,
  type MigrationReport,
  type ProofReport,
} from '../report.ts'
import { Convergence } from './convergence.ts'

export class MigrationRecord {
  readonly id: string
  readonly guest: string
  readonly uuid: string
  readonly peer: string
  readonly direction: 'out' | 'in'
  readonly startedAt: number = Date.now()
  #outcome: 'done' | 'failed' | undefined
  accelerated = false
  reason: string | null = null
  /** What is most likely the reason, should no disk come through SWAM. */
  note: string | null = null
  error: string | null = null
  /** An end of a disk was another one than the other end's, or than what was written. */
  disproved = false
  /** Why nothing is proved, where that is known from the beginning. */
  unproved: string | null = null
  downtimeMs: number | null = null
  #endedAt: number | undefined
  /** Since when nothing of QEMU is connected any more. */
  #goneAt: number | undefined
  readonly #disks: DiskAccount[] = []
  readonly #proofs = new Map<DiskAccount, DiskProof>()
  readonly #senders: DiskSender[] = []
  readonly #bundles: Bundle[] = []
  readonly #streams: Counts[] = []
  readonly #convergence = new Convergence()
  #wire = new Map<string, TcpCounts>()
  #measuredAt = 0
  #told = false
  /** Asks the kernel; the daemon sets one that does not hold up its event loop. */
  countTcp: (names: readonly TcpName[]) => Promise<Map<string, TcpCounts>> = tcpCounts

  constructor(options: { id: string; guest: string; uuid: string; peer: string; direction: 'out' | 'in' }) {
    this.id = options.id
    this.guest = options.guest
    this.uuid = options.uuid
    this.peer = options.peer
    this.direction = options.direction
  }

  /** QEMU connects for one disk before another as it happens; they are told in the order of their names. */
  addDisk(account: DiskAccount, proof?: DiskProof): void {
    this.#disks.push(account)
    this.#disks.sort((one, other) => compareNames(one.target, other.target))
    if (proof !== undefined) this.#proofs.set(account, proof)
  }

  addSender(sender: DiskSender): void {
    this.#senders.push(sender)
  }

  addBundle(bundle: Bundle): void {
    this.#bundles.push(bundle)
  }

  addStream(counts: Counts): void {
    this.#streams.push(counts)
  }

  get connections(): ConnectionReport[] {
    return this.#bundles.flatMap((bundle) =>
      bundle.connections.map((name) => ({ kind: bundle.kind, ...name })),
    )
  }

  /** Asks the kernel for the bytes of each connection; the last known figures stay when one is gone. */
  async measure(): Promise<void> {
    if (Date.now() - this.#measuredAt < 300) return
    this.#measuredAt = Date.now()
    this.#catchUp()
    for (const [name, counts] of await this.countTcp(this.connections)) this.#wire.set(name, counts)
  }

  #catchUp(): void {
    const disks = this.#senders.map(({ size, account, waits }) => ({
      size,
      askedBytes: account.askedBytes,
      waits,
    }))
    const disk = this.#bundles.find(({ kind }) => kind === 'disk')
    if (disk !== undefined) this.#convergence.look(disks, disk.rateBytesPerSecond, performance.now())
  }

  /** Told once each time that it begins: the guest writes faster than the link takes. */
  fellBehind(): boolean {
    const stuck = !this.ended && this.#convergence.report()?.converges === false
    const told = this.#told
    this.#told = stuck
    return stuck && !told
  }

  /** QEMU's connections to this daemon (or of this daemon to QEMU), whenever their number changes. */
  connected(count: number): void {
    this.#goneAt = count > 0 ? undefined : Date.now()
  }

  /** Most likely over, and it is being found out how it ended. */
  get settling(): boolean {
    return this.#goneAt !== undefined && this.#endedAt === undefined
  }

  finish(phase: 'done' | 'failed'): void {
    if (this.#endedAt !== undefined) return
    this.#outcome = phase
    // What became of the guest is known some seconds later, which are not the migration's.
    this.#endedAt = this.#goneAt ?? Date.now()
    if (!this.accelerated) this.reason ??= this.error ?? this.note ?? 'no disk connection came through SWAM'
  }

  /** QEMU sends memory only once every disk's mirror is READY: the first byte of a stream tells. */
  get phase(): MigrationPhase {
    if (this.#outcome !== undefined) return this.#outcome
    if (!this.accelerated) return 'announced'
    const streaming = this.#streams.some(({ toStream, fromStream }) => toStream + fromStream > 0)
    return streaming ? 'ready' : 'copying'
  }

  get ended(): boolean {
    return this.#endedAt !== undefined
  }

  /** As last measured, and at least what the bundle itself counted: the last segments may come after the measure. */
  #wireBytes(kind: 'disk' | 'ram'): number {
    let sum = 0
    for (const bundle of this.#bundles) {
      if (bundle.kind !== kind) continue
      let measured = 0
      for (const name of bundle.connections) measured += this.#wire.get(wireKey(name))?.ipBytes ?? 0
      sum += Math.max(measured, bundle.bytesSent + bundle.bytesReceived)
    }
    return sum
  }

  report(): MigrationReport {
    const elapsedMs = (this.#endedAt ?? Date.now()) - this.startedAt
    const disks = this.#disks.map((account) => ({
      target: account.target,
      size: account.size,
      askedBytes: account.askedBytes,
      appliedBytes: account.appliedBytes,
      bySource: { ...account.bySource },
      flushedAt: account.flushedAt ?? null,
      waits: account.waits.map(({ at, ms }) => ({ at: Math.round(at), ms: Math.round(ms) })),
      ...proofOf(this.#proofs.get(account)),
    }))
    const asked = this.#streams.reduce((sum, counts) => sum + counts.toStream + counts.fromStream, 0)
    const ramWire = this.#wireBytes('ram')
    return {
      version: 1,
      id: this.id,
      guest: this.guest,
      uuid: this.uuid,
      peer: this.peer,
      direction: this.direction,
      phase: this.phase,
      accelerated: this.accelerated,
      reason: this.accelerated ? null : this.reason,
      startedAt: this.startedAt,
      elapsedMs,
      downtimeMs: this.downtimeMs,
      disks,
      ram: { askedBytes: asked, wireBytes: ramWire, bySource: { ...emptyBySource(), literal: asked } },
      wireBytes: this.#wireBytes('disk') + ramWire,
      etaMs: this.#etaMs(elapsedMs),
      ...this.#verdict(),
      error: this.error,
      connections: this.connections,
      breaks: this.#bundles.reduce((sum, bundle) => sum + bundle.resumes, 0),
      linkBroken: !this.ended && this.#bundles.some((bundle) => bundle.broken),
      convergence: this.ended || this.#senders.length === 0 ? null : this.#convergence.report(),
    }
  }

  /** A proof speaks for the guest only when it went on with it. */
  #verdict(): { verified: boolean | null; unverified: string | null } {
    if (this.disproved) return { verified: false, unverified: null }
    if (this.#outcome !== 'done' || this.#disks.length === 0) return { verified: null, unverified: null }
    for (const account of this.#disks) {
      const proof = this.#proofs.get(account)
      const why = proof === undefined ? this.unproved : (proof.reason ?? 'no FLUSH was proved')
      if (proof?.cutOver === undefined)
        return { verified: null, unverified: `${account.target}: ${why ?? 'there is no map of it'}` }
    }
    return { verified: true, unverified: null }
  }

  /** By what was applied so far; the mirror copies each disk once, so its size is the whole. */
  #etaMs(elapsedMs: number): number | null {
    if (this.ended || this.#disks.length === 0) return null
    let total = 0
    let applied = 0
    for (const account of this.#disks) {
      total += account.size
      applied += Math.min(account.size, account.appliedBytes)
    }
    return applied === 0 ? null : Math.round((elapsedMs * (total - applied)) / applied)
  }
}

function proofOf(proof: DiskProof | undefined): { root: string | null; proof: ProofReport | null } {
  const cutOver = proof?.cutOver
  if (cutOver === undefined) return { root: null, proof: null }
  const { root, at, leaves, proved, unread } = cutOver
  return { root, proof: { at, leaves, provedLeaves: proved, unreadLeaves: unread } }
}

export function wireKey(name: { localAddress: string; localPort: number; remotePort: number }): string {
  return `${name.localAddress}:${name.localPort}-${name.remotePort}`
}

/** vdb before vdaa, as they are counted. */
function compareNames(one: string, other: string): number {
  if (one.length !== other.length) return one.length - other.length
  return one < other ? -1 : Number(one > other)
}
