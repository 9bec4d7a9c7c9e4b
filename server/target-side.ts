/**
 * This host as a destination: libvirt's hook events in, incoming migrations out. At `migrate begin` it finds the peer that
 * runs the guest, says which images root's hook has to create, and starts an IncomingMigration; at `started begin` it
 * hands it the new QEMU's ports. A migration that cannot be accelerated goes direct, and is never silent.
 */
import { randomUUID } from 'node:crypto'
import { readdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { HookAnswer } from '../hooks/decision.ts'
import { lieIn } from '../lib/catalog/image-files.ts'
import type { ImageStock } from '../lib/catalog/stock.ts'
import { ByteBudget } from '../lib/core/byte-budget.ts'
import { errorText, RefusedError } from '../lib/core/errors.ts'
import {
  FAILED_MARK_MS,
  GUEST_DISKS_MAX,
  GUEST_PORTS_MAX,
  HOOK_REQUEST_BYTES_MAX,
  LOCATE_ABSENT_MS,
  LOCATE_MS,
  MIGRATIONS_MAX,
  STARTED_MARK_MS,
} from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import { MIB } from '../lib/core/units.ts'
import { Arrivals } from '../lib/engine/arrivals.ts'
import { type Domain, parseDomain } from '../lib/host/domain-xml.ts'
import { type RunningDomain, targetOfExport } from '../lib/host/libvirt.ts'
import { unwrittenDisks } from '../lib/host/unwritten.ts'
import type { ImageList } from './image-list.ts'
import { markPath, writeMark } from './incoming-mark.ts'
import { IncomingMigration } from './migration/incoming.ts'
import { MigrationProofs, type ProofMeans } from './migration/proofs.ts'
import { Params } from './params.ts'
import type { Peer } from './peers.ts'
import { emptyBySource } from './report.ts'
import type { Site } from './site.ts'

const NOTHING: HookAnswer = { action: 'none', create: [], message: '' }

export class TargetSide {
  readonly #site: Site
  readonly #peers: readonly Peer[]
  readonly #stock: ImageStock
  readonly #images: ImageList
  readonly #needed: () => boolean
  readonly #proofs: ProofMeans | undefined
  readonly #incoming = new Map<string, IncomingMigration>()
  /** Which peers said that they run the guest, by its migration. */
  readonly #claims = new WeakMap<IncomingMigration, readonly string[]>()
  /** Files that were missing when it was announced, and were not made by the hook: libvirt makes them, or nobody. */
  readonly #missing = new WeakMap<IncomingMigration, Set<string>>()
  /** Chunks that are received: asked for, or being written to a disk. */
  readonly #memory: ByteBudget
  /** Guests that arrive are sources for each other. */
  readonly #arrivals: Arrivals

  /**
   * @param needed whether somebody else needs the images of the stock open
   * @param proofs none where verify is "off"
   */
  constructor(
    site: Site,
    peers: readonly Peer[],
    stock: ImageStock,
    images: ImageList,
    needed: () => boolean = () => false,
    proofs?: ProofMeans,
  ) {
    this.#site = site
    this.#proofs = proofs
    this.#images = images
    this.#peers = peers
    this.#stock = stock
    this.#needed = needed
    this.#memory = new ByteBudget({ bytesMax: (site.config.limits.windowMiB * MIB) / 2 })
    this.#arrivals = new Arrivals(site.clock)
  }

  get migrations(): IncomingMigration[] {
    return [...this.#incoming.values()]
  }

  /** Images that are being received. */
  get receiving(): ReadonlySet<string> {
    return new Set(this.migrations.flatMap(({ targets }) => [...targets]))
  }

  /** @param signal aborted when the hook does not wait any more */
  async hook(params: unknown, signal?: AbortSignal): Promise<HookAnswer> {
    const event = new Params('hook', params)
    const op = `${event.text('op', 32)} ${event.text('sub', 32)}`
    const guest = event.text('guest')
    const started = performance.now()
    try {
      switch (op) {
        case 'migrate begin':
          return await this.#migrateBegin(parseDomain(event.text('xml', HOOK_REQUEST_BYTES_MAX)))
        case 'started begin':
          return await this.#started(
            guest,
            event.text('xml', HOOK_REQUEST_BYTES_MAX),
            event.has('ports') ? event.list('ports', GUEST_PORTS_MAX) : [],
            signal,
          )
        case 'stopped end':
        case 'release end':
          if (event.has('kept')) {
            const kept = event.list('kept', GUEST_DISKS_MAX).map((path) => String(path).slice(0, 4096))
            this.#site.log.info(
              { guest, kept },
              'what came of images that libvirt made is kept (swam salvage)',
            )
          }
          await this.#stopped(guest)
          return NOTHING
        default:
          return NOTHING
      }
    } catch (error) {
      this.#site.log.warn({ error, op, guest }, 'a hook event failed')
      return this.#refuseOr(errorText(error))
    } finally {
      this.#site.log.debug({ op, guest, ms: Math.round(performance.now() - started) }, 'hook event')
    }
  }

  /** libvirt waits for this hook: it is answered at once, and the next one finds no marker and asks nothing. */
  async #stopped(guest: string): Promise<void> {
    await rm(this.#marker(guest), { force: true })
    void this.#incoming.get(guest)?.stopped()
  }

  /** Marks that a daemon before this one has left: libvirt may be about to end these guests, and the hook to read why. */
  async recover(): Promise<void> {
    for (const guest of await readdir(join(this.#site.config.runDir, 'incoming')).catch(() => []))
      if (!guest.startsWith('.')) this.#unmark(guest, STARTED_MARK_MS)
  }

  /** What root's hook made of the images that it was asked to create. */
  async hookReport(params: unknown): Promise<object> {
    const report = new Params('hookReport', params)
    const guest = report.text('guest')
    const migration = this.#incoming.get(guest)
    const missing = migration === undefined ? undefined : this.#missing.get(migration)
    migration?.preparing()
    for (const item of report.list('images', GUEST_DISKS_MAX)) {
      const image = new Params('hookReport: images', item)
      const path = image.text('path', 4096)
      const error = image.optionalText('error', 1000)
      if (error === undefined) {
        this.#site.log.info({ guest, path, created: image.flag('created') }, 'image at this host')
        missing?.delete(path)
      } else {
        this.#site.log.warn({ guest, path, error }, 'an image cannot be created at this host')
        migration?.problem(error)
      }
    }
    if (migration !== undefined && missing !== undefined)
      await writeMark(this.#marker(guest), migration.id, missing)
    return {}
  }

  #refuseOr(message: string): HookAnswer {
    return this.#site.config.strict ? { action: 'refuse', create: [], message } : { ...NOTHING, message }
  }

  #requireRoom(): void {
    if (this.#incoming.size >= MIGRATIONS_MAX) throw new RefusedError('too many migrations are under way')
  }

  async #migrateBegin(domain: Domain): Promise<HookAnswer> {
    this.#requireRoom()
    const located = await this.#locate(domain.uuid)
    if (typeof located === 'string') {
      const asked = located.slice(0, 1000) || 'none'
      const reason = `no peer runs this guest with a swamd that answers (asked: ${asked})`
      await this.#direct(domain, reason)
      return this.#refuseOr(`SWAM: ${reason}`)
    }
    const arrivals = (await this.#isShared(domain)) ? this.#arrivals : new Arrivals(this.#site.clock)
    await this.#incoming.get(domain.name)?.abort('the guest is announced anew')
    // Others may have begun meanwhile.
    this.#requireRoom()
    const { peer, source, claims } = located
    const id = randomUUID()
    const since = Date.now()
    const targets = domain.disks.flatMap((disk) => (disk.source === undefined ? [] : [disk.source]))
    const log = this.#site.log.child({ migration: id, guest: domain.name })
    const migration = new IncomingMigration({
      id,
      uuid: domain.uuid,
      guest: domain.name,
      peer: peer.config.name,
      log,
      ...this.#proofsOf(domain, peer.config.name, log),
      stock: this.#stock,
      memory: this.#memory,
      arrivals,
      targets,
      dial: async (kind) => await peer.dial(kind, id),
      call: (method, params, timeoutMs) => peer.call(method, params, timeoutMs),
      armMs: this.#site.config.hookDeadlineMs,
      state: () => this.#site.libvirt.state(domain.uuid),
      outcome: () => this.#site.outcome(domain.uuid, 'in', since),
      directOutcome: () => this.#site.directOutcome(domain.name, domain.uuid, 'in', since),
      targetOf: (exportName) => targetOfExport(exportName, source.disks),
      emptyDisks: () => unwrittenDisks(domain.disks),
      downtimeMs: async () =>
        (await this.#site.libvirt.jobInfo(domain.name, { completed: true }))?.figures.get('Total downtime') ??
        null,
      onEnd: (ended) => {
        if (this.#incoming.get(ended.guest) === ended) {
          this.#incoming.delete(ended.guest)
          const markMs = ended.wasStarted ? STARTED_MARK_MS : FAILED_MARK_MS
          this.#unmark(ended.guest, ended.record.phase === 'failed' ? markMs : 0)
        }
        this.#site.ended(ended.record)
        void this.#stock
          .rest(() => this.#incoming.size === 0 && !this.#needed())
          .catch((error: unknown) => this.#site.log.warn({ error }, 'an image could not be closed'))
      },
    })
    this.#incoming.set(domain.name, migration)
    this.#claims.set(migration, claims)
    this.#site.begun(migration.record)
    await writeMark(this.#marker(domain.name), id, [])
    // Nobody waits for the index: what is not in it yet is asked as a literal.
    void this.#stock
      .refresh(() => this.#images.list(), this.receiving)
      .catch((error: unknown) => this.#site.log.warn({ error }, 'the images here could not be listed'))
    const { create, missing, problem } = await this.#missingImages(domain, source)
    if (missing.size > 0) {
      this.#missing.set(migration, missing)
      await writeMark(this.#marker(domain.name), id, missing)
    }
    if (problem !== undefined) {
      this.#site.log.warn({ guest: domain.name }, problem)
      migration.problem(problem)
      if (this.#site.config.strict) return { action: 'refuse', create: [], message: problem }
    }
    migration.preparing()
    return { action: create.length > 0 ? 'create' : 'none', create, message: problem ?? '' }
  }

  #proofsOf({ name: guest, uuid, disks }: Domain, peer: string, log: Log): { proofs?: MigrationProofs } {
    if (this.#proofs === undefined) return {}
    const imageOf = (target: string): Domain['disks'][number] | undefined =>
      disks.find((disk) => disk.target === target)
    return {
      proofs: new MigrationProofs(this.#proofs, { guest, uuid, peer, direction: 'in', imageOf, log }),
    }
  }

  /** As with images that lie here: what is not in `images` is for nobody else. */
  async #isShared({ disks }: Domain): Promise<boolean> {
    const written = disks.flatMap(({ source, readOnly, shareable }) =>
      source === undefined || readOnly || shareable ? [] : [source],
    )
    return await lieIn(this.#site.config.images, written).catch(() => false)
  }

  /** Later: unless the guest is coming again by then. */
  #unmark(guest: string, afterMs: number): void {
    this.#site.clock.after(afterMs, () => {
      if (!this.#incoming.has(guest)) void rm(this.#marker(guest), { force: true })
    })
  }

  #marker(guest: string): string {
    return markPath(this.#site.config.runDir, guest)
  }

  /** The first peer that runs it, or what all of them said instead. */
  async #locate(
    uuid: string,
  ): Promise<{ peer: Peer; source: RunningDomain; claims: readonly string[] } | string> {
    const claims: string[] = []
    const asked = this.#peers.map(async (peer) => {
      const { name } = peer.config
      const answer = await peer
        .call('locate', { uuid }, peer.connected === false ? LOCATE_ABSENT_MS : LOCATE_MS)
        .catch((error: unknown) => {
          throw new RefusedError(`${name}: ${errorText(error)}`, { cause: error })
        })
      const source = locatedDomain(new Params('locate', answer), uuid)
      if (source === undefined) throw new RefusedError(`${name} does not run it`)
      claims.push(peer.config.name)
      return { peer, source, claims }
    })
    return await Promise.any(asked).catch((refusals: AggregateError) =>
      refusals.errors.map(errorText).join('; '),
    )
  }

  /** What has to be made so that libvirt finds its disks, with the size that the source's disk has. */
  async #missingImages(
    domain: Domain,
    source: RunningDomain,
  ): Promise<{ create: HookAnswer['create']; missing: Set<string>; problem: string | undefined }> {
    const missing = new Set<string>()
    const create: { path: string; format: 'raw' | 'qcow2'; size: number }[] = []
    let problem: string | undefined
    for (const disk of domain.disks) {
      if (disk.source === undefined || disk.readOnly || disk.shareable) continue
      const known = source.disks.find((one) => one.target === disk.target)
      const size = known?.capacity
      const there = await stat(disk.source).catch(() => undefined)
      if (there !== undefined) {
        if (disk.format === 'raw' && there.isFile() && size !== undefined && there.size !== size) {
          problem = `${disk.target}: ${disk.source} has ${there.size} bytes, the guest's disk has ${size}`
        }
        continue
      }
      if (disk.type === 'file') missing.add(disk.source)
      const format = disk.format === 'raw' || disk.format === 'qcow2' ? disk.format : undefined
      if (disk.type !== 'file')
        problem = `SWAM cannot create ${disk.source} (${disk.type}) for ${disk.target}: create it first`
      else if (known?.backed === true) {
        // With --copy-storage-inc only the top is copied: an image without the backing file would have holes in it.
        problem = `SWAM does not create ${disk.source} for ${disk.target}, which lies on a backing file: create it first`
      } else if (size === undefined || format === undefined) {
        problem = `SWAM cannot create ${disk.source} for ${disk.target}: format ${disk.format}, size ${size ?? 'unknown'}`
      } else create.push({ path: disk.source, format, size })
    }
    return { create, missing, problem }
  }

  async #started(
    guest: string,
    xml: string,
    reported: readonly unknown[],
    signal: AbortSignal | undefined,
  ): Promise<HookAnswer> {
    const migration = this.#incoming.get(guest)
    if (migration === undefined) return NOTHING
    const [low, high] = this.#site.config.migrationPorts
    const listening = reported.map((item) => {
      const port = new Params('port', item)
      return { address: port.text('address', 64), port: port.port('port') }
    })
    const ports = listening.filter(({ port }) => port >= low && port <= high)
    const range = `migrationPorts ${low} to ${high}`
    const others = listening.filter((port) => !ports.includes(port)).map(({ port }) => port)
    const elsewhere =
      others.length === 0
        ? 'no other TCP port is open (--disks-uri unix:, or the disks are not copied)'
        : `it listens on ${[...new Set(others)].join(', ')} (--disks-port, --disks-uri or --migrateuri)`
    try {
      if (ports.length === 0) throw new RefusedError(`the new QEMU uses no port of ${range}: ${elsewhere}`)
      // A guest runs once. A peer that lies would get at the new QEMU's ports: none of them is believed.
      const claims = this.#claims.get(migration) ?? []
      if (claims.length > 1)
        throw new RefusedError(`${claims.join(' and ')} all say that they run this guest`)
      await migration.started(ports, `the disks do not come to a port of ${range}: ${elsewhere}`)
      // What libvirt began meanwhile was not caught.
      if (signal?.aborted === true) migration.record.note = 'the hook waited in vain: this host was too busy'
      return NOTHING
    } catch (error) {
      const reason = errorText(error)
      const direct = migration.goDirect(reason)
      // What is not caught cannot be watched either; without SWAM libvirt would have missed the image at the beginning.
      // The hook has a deadline and lets go what it does not hear of in time: a peer that is slow must not cost that.
      const empty = await unwrittenDisks(parseDomain(xml).disks)
      if (empty.length === 0) {
        await direct
        return { ...NOTHING, message: reason }
      }
      const paths = empty.map(({ path }) => path).join(', ')
      return { ...NOTHING, action: 'stop', message: `${paths}: missing here, create it first (${reason})` }
    }
  }

  /** A migration that goes direct is not silent. */
  async #direct(domain: Domain, reason: string): Promise<void> {
    const now = Date.now()
    this.#site.log.warn({ guest: domain.name, reason }, 'a migration goes direct')
    await this.#site.history
      .append({
        version: 1,
        id: randomUUID(),
        guest: domain.name,
        uuid: domain.uuid,
        peer: '',
        direction: 'in',
        phase: 'done',
        accelerated: false,
        reason,
        startedAt: now,
        elapsedMs: 0,
        downtimeMs: null,
        disks: [],
        ram: { askedBytes: 0, wireBytes: 0, bySource: emptyBySource() },
        wireBytes: 0,
        etaMs: null,
        verified: null,
        error: null,
        connections: [],
        breaks: 0,
        linkBroken: false,
      })
      .catch((error: unknown) => this.#site.log.error({ error }, 'the history is not written'))
  }
}

function locatedDomain(answer: Params, uuid: string): RunningDomain | undefined {
  if (answer.flag('found') === false) return undefined
  const disks = answer.list('disks', GUEST_DISKS_MAX).map((item) => {
    const disk = new Params('locate: disks', item)
    return {
      target: disk.text('target'),
      type: 'file',
      source: undefined,
      format: disk.text('format', 32),
      readOnly: false,
      shareable: false,
      encrypted: false,
      alias: disk.optionalText('alias', 255),
      backed: disk.flag('backed'),
      capacity: disk.optionalInteger('capacity', 0, 2 ** 53 - 1),
    }
  })
  return { name: answer.text('name'), uuid, state: 'running', disks }
}
