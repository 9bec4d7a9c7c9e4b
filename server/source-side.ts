/**
 * This host as a source: answers what peers ask on the control bundles that they dialed, and keeps the outgoing
 * migrations. A peer may announce only a guest that runs here, arm only its own migration, and only ports of the
 * migration range. The redirect catches what the armed migrations want; the daemon refreshes it.
 */
import type { DescribedRun } from '../lib/chunk/describer.ts'
import type { SlabPool } from '../lib/chunk/slab.ts'
import { errorText, RefusedError } from '../lib/core/errors.ts'
import {
  BEGUN_GUESTS_MAX,
  FAR_ASK_MS,
  LOCATED_MS,
  MIGRATION_CAUGHT_PORTS_MAX,
  MIGRATION_DRAIN_MS,
  MIGRATIONS_MAX,
  PEER_CONTROL_BUNDLES_MAX,
  PEER_MIGRATIONS_MAX,
  REDIRECT_TTL_MS,
} from '../lib/core/limits.ts'
import { MIB } from '../lib/core/units.ts'
import { SendWindow } from '../lib/engine/send-window.ts'
import { VersionMemory } from '../lib/engine/sent-versions.ts'
import { type RunningDomain, targetOfExport } from '../lib/host/libvirt.ts'
import type { Redirect, RedirectEntry } from '../lib/host/redirect.ts'
import type { Bundle } from '../lib/peer/bundle.ts'
import { Abouts } from './about.ts'
import type { EstimateAnswers } from './estimate/answers.ts'
import { OutgoingMigration } from './migration/outgoing.ts'
import { MigrationProofs, type ProofMeans } from './migration/proofs.ts'
import { Params } from './params.ts'
import { answerPeer } from './peers.ts'
import type { Site } from './site.ts'

export interface SourceOptions {
  /** Undefined: redirect = "off". */
  readonly redirect: Redirect | undefined
  /** Users whose connections are caught. */
  readonly uids: readonly number[]
  readonly slabs: SlabPool
  readonly describe: (bytes: Uint8Array) => Promise<DescribedRun[]>
  /** Whether that start of the peer's daemon is still there. */
  readonly farLives: (peer: string, instance: string) => Promise<'yes' | 'no' | 'unknown'>
  readonly estimates: Pick<EstimateAnswers, 'handlers'>
  /** None where verify is "off". */
  readonly proofs?: ProofMeans
}

export class SourceSide {
  readonly #site: Site
  readonly #options: SourceOptions
  readonly #outgoing = new Map<string, OutgoingMigration>()
  /** What was armed for a migration, by its id, until it ends. */
  readonly #armed = new Map<string, readonly RedirectEntry[]>()
  readonly #controls = new Set<Bundle>()
  /** Guests that a peer asked for, by uuid. */
  readonly #located = new Map<string, { domain: RunningDomain; at: number }>()
  /** What the guests of all migrations were told is written, and is not yet at the far side. */
  readonly #window: SendWindow
  readonly #versions = new VersionMemory()
  readonly #abouts: Abouts
  #listenPort = 0

  constructor(site: Site, options: SourceOptions) {
    this.#site = site
    this.#window = new SendWindow({ bytesMax: site.config.limits.windowMiB * MIB })
    this.#options = options
    this.#abouts = new Abouts(site)
  }

  get migrations(): OutgoingMigration[] {
    return [...this.#outgoing.values()]
  }

  /** What has to be caught now. */
  get entries(): RedirectEntry[] {
    return this.migrations.flatMap((migration) => migration.entries)
  }

  /** A bundle that a peer dialed. */
  takeBundle(bundle: Bundle): void {
    const known = this.#site.peers.some((peer) => peer.name === bundle.peer)
    const refuse = (reason: string): void => {
      this.#site.log.warn({ peer: bundle.peer, kind: bundle.kind }, `refused a bundle: ${reason}`)
      void bundle.close(new RefusedError(reason))
    }
    if (!known) {
      refuse(`${bundle.peer} is not a peer of this host`)
      return
    }
    if (bundle.kind === 'control') {
      this.#oneControl(bundle)
      answerPeer(
        bundle,
        {
          ...this.#options.estimates.handlers(bundle),
          locate: (params) => this.#answerLocate(params),
          about: (params, peer) => this.#answerAbout(params, peer),
          announce: (params, peer) => this.#answerAnnounce(params, peer),
          arm: (params, peer) => this.#answerArm(params, peer),
          classify: async (params, peer) => {
            const given = new Params('classify', params)
            this.#outgoingOf(given, peer).classify(given.port('port'), given.exports('exports'))
            return {}
          },
          opaque: async (params, peer) => {
            const given = new Params('opaque', params)
            this.#outgoingOf(given, peer).opaque(given.port('port'), given.text('reason', 1000))
            return {}
          },
          direct: async (params, peer) => {
            const given = new Params('direct', params)
            const migration = this.#outgoingOf(given, peer)
            await migration.goDirect(given.text('reason', 1000))
            return {}
          },
          stop: async (params, peer) => {
            const given = new Params('stop', params)
            this.#known(given, peer)?.stop(given.text('reason', 1000))
            return { peer }
          },
          arrived: async (params, peer) => {
            this.#known(new Params('arrived', params), peer)?.arrived()
            return {}
          },
        },
        this.#site.linkTests,
      )
      return
    }
    const migration = this.#outgoing.get(bundle.migrationId)
    if (migration === undefined || migration.peer !== bundle.peer) {
      refuse('it belongs to no announced migration')
      return
    }
    try {
      migration.attach(bundle)
    } catch (error) {
      refuse(errorText(error))
    }
  }

  /** A peer that was gone for a while comes back before its old bundle is known to be dead: the oldest makes room. */
  #oneControl(bundle: Bundle): void {
    this.#controls.add(bundle)
    void bundle.closed.then(async () => {
      this.#controls.delete(bundle)
      await this.#orphaned(bundle)
    })
    const own = [...this.#controls].filter((known) => known.peer === bundle.peer)
    for (const old of own.slice(0, -PEER_CONTROL_BUNDLES_MAX)) {
      void old.close(new RefusedError(`${bundle.peer} has newer control bundles`))
    }
  }

  /**
   * A far daemon that died after it announced a migration opens no channels for it, whose loss would tell. The migration goes
   * direct, and so does what the source knows of it.
   */
  async #orphaned({ peer, peerInstance }: Bundle): Promise<void> {
    const waiting = (): OutgoingMigration[] =>
      this.migrations.filter((migration) => migration.peer === peer && migration.waitsForChannels)
    const isBack = (): boolean =>
      [...this.#controls].some((other) => other.peer === peer && other.peerInstance === peerInstance)
    while (waiting().length > 0 && !isBack()) {
      // A "yes" may only mean that our own connection to it has not been found dead yet.
      if ((await this.#options.farLives(peer, peerInstance)) === 'no') {
        for (const migration of waiting()) void migration.goDirect(`the swamd of ${peer} is gone`)
        return
      }
      await new Promise((resolve) => setTimeout(resolve, FAR_ASK_MS))
    }
  }

  /** It is no peer any more, or another host under its name. */
  dropPeer(name: string): void {
    for (const bundle of this.#controls) {
      if (bundle.peer === name) void bundle.close(new RefusedError(`${name} was removed or changed`))
    }
  }

  /** A migration of that peer's. One that ended by itself is no fault; another peer's is not to be touched. */
  #known(params: Params, peer: string): OutgoingMigration | undefined {
    const migration = this.#outgoing.get(params.uuid('migrationId'))
    return migration?.peer === peer ? migration : undefined
  }

  #outgoingOf(params: Params, peer: string): OutgoingMigration {
    const migration = this.#known(params, peer)
    if (migration === undefined) {
      throw new RefusedError(`migration ${params.uuid('migrationId')} is not known here`)
    }
    return migration
  }

  async #answerLocate(params: unknown): Promise<object> {
    const uuid = new Params('locate', params).uuid('uuid')
    const domain = await this.#site.libvirt.runningDomain(uuid)
    if (domain === undefined) return { found: false }
    if (this.#located.size >= BEGUN_GUESTS_MAX) this.#located.clear()
    this.#located.set(uuid, { domain, at: this.#site.clock.wallMs() })
    return {
      found: true,
      name: domain.name,
      disks: domain.disks.map(({ target, format, capacity, alias, backed }) => ({
        target,
        format,
        capacity: capacity ?? null,
        alias: alias?.slice(0, 255) ?? null,
        backed,
      })),
    }
  }

  async #answerAbout(params: unknown, peer: string): Promise<object> {
    const config = this.#site.peers.find((one) => one.name === peer)
    if (config === undefined) throw new RefusedError(`${peer} is not a peer of this host`)
    return await this.#abouts.answer(params, config)
  }

  /** Asked again only what can have changed since a peer located it: with eight guests at once that is 24 virsh less. */
  async #running(uuid: string): Promise<RunningDomain | undefined> {
    const located = this.#located.get(uuid)
    if (located === undefined || this.#site.clock.wallMs() - located.at > LOCATED_MS) {
      return await this.#site.libvirt.runningDomain(uuid)
    }
    return (await this.#site.libvirt.state(uuid)) === undefined ? undefined : located.domain
  }

  async #answerAnnounce(params: unknown, peer: string): Promise<object> {
    const given = new Params('announce', params)
    const id = given.uuid('migrationId')
    const uuid = given.uuid('uuid')
    const domain = await this.#running(uuid)
    if (domain === undefined) throw new RefusedError(`guest ${uuid} does not run here`)
    // A peer replaces its own announcement only: one that knows a uuid must not end another peer's migration.
    for (const other of [...this.#outgoing.values()]) {
      if (other.record.uuid === uuid && other.peer === peer) await other.abort('the guest is announced anew')
    }
    if (this.#outgoing.has(id)) throw new RefusedError(`migration ${id} is known already`)
    if (this.#outgoing.size >= MIGRATIONS_MAX) throw new RefusedError('too many migrations are under way')
    const own = [...this.#outgoing.values()].filter((other) => other.peer === peer).length
    if (own >= PEER_MIGRATIONS_MAX) throw new RefusedError(`${own} migrations of ${peer} are under way`)
    const config = this.#site.peers.find((one) => one.name === peer)!
    const since = Date.now()
    const log = this.#site.log.child({ migration: id, guest: domain.name })
    const { proofs } = this.#options
    const imageOf = (target: string): RunningDomain['disks'][number] | undefined =>
      domain.disks.find((disk) => disk.target === target)
    const proved = { guest: domain.name, uuid, peer, direction: 'out', imageOf, log } as const
    const migration = new OutgoingMigration({
      id,
      uuid,
      guest: domain.name,
      peer,
      peerAddresses: config.addresses,
      log,
      ...(proofs === undefined ? {} : { proofs: new MigrationProofs(proofs, proved) }),
      uids: this.#options.uids,
      slabs: this.#options.slabs,
      describe: this.#options.describe,
      versions: this.#versions,
      limits: {
        window: this.#window,
        windowBytes: (this.#site.config.limits.windowMiB * MIB) / 2,
        drainMs: MIGRATION_DRAIN_MS,
        throttle: this.#site.config.throttle,
        flushDeadlineMs: this.#site.config.flushDeadlineMs,
      },
      farLives: (instance) => this.#options.farLives(peer, instance),
      // One that the administrator had paused before loses nothing by waiting.
      paused: async () => domain.state !== 'paused' && (await this.#site.libvirt.state(uuid)) === 'paused',
      compress: this.#site.config.ram === 'on',
      pickListenPort: () => this.#pickListenPort(),
      outcome: () => this.#site.outcome(uuid, 'out', since),
      directOutcome: () => this.#site.directOutcome(domain.name, uuid, 'out', since),
      migrating: () => this.#site.migrating(domain.name),
      targetOf: (exportName) => targetOfExport(exportName, domain.disks),
      disarm: () => this.#disarm(id),
      onEnd: (ended) => {
        this.#outgoing.delete(ended.id)
        void this.#disarm(ended.id)
        this.#site.ended(ended.record)
      },
    })
    this.#outgoing.set(id, migration)
    this.#site.begun(migration.record)
    return {}
  }

  async #answerArm(params: unknown, peer: string): Promise<object> {
    const given = new Params('arm', params)
    const migration = this.#outgoingOf(given, peer)
    const [low, high] = this.#site.config.migrationPorts
    const ports = given.ports('ports', MIGRATION_CAUGHT_PORTS_MAX)
    const outside = ports.find((port) => port < low || port > high)
    if (outside !== undefined) throw new RefusedError(`port ${outside} is outside of ${low} to ${high}`)
    if (this.#options.redirect === undefined) throw new RefusedError('redirect = "off" at the source')
    await migration.arm(ports, given.optionalText('note', 1000) ?? null)
    this.#armed.set(migration.id, migration.entries)
    await this.#options.redirect.arm(() => migration.entries)
    if (migration.entries.length === 0) throw new RefusedError(`migration ${migration.id} has ended`)
    this.#site.log.info(
      { guest: migration.record.guest, peer, ports },
      'connections to these ports are caught',
    )
    return {}
  }

  /** Resolves when nothing is caught any more: the listeners stay until then, else what came meanwhile would be refused. */
  async #disarm(id: string): Promise<void> {
    const kept = new Set(this.entries.map(({ address, port }) => `${address} ${port}`))
    const gone = this.#armed.get(id)?.filter(({ address, port }) => !kept.has(`${address} ${port}`)) ?? []
    this.#armed.delete(id)
    if (gone.length === 0) return
    try {
      await this.#options.redirect?.disarm(gone)
    } catch (error) {
      this.#site.log.debug({ error }, 'not disarmed: what is caught expires by itself')
      await new Promise<void>((resolve) => void this.#site.clock.after(REDIRECT_TTL_MS, resolve))
    }
  }

  /** Ports for listeners: below the migration range, one after the other; a taken one is skipped by the caller. */
  #pickListenPort(): number {
    const [low, high] = this.#site.config.migrationPorts
    for (;;) {
      const port = 20_000 + (this.#listenPort++ % 10_000)
      if (port < low || port > high) return port
    }
  }
}
