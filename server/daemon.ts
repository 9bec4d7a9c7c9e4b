/**
 * swamd: the one composition root. It joins the sockets, the redirect, the peers, the image stock and the migrations,
 * and holds no logic of the data path. What each part may be told stands in its own file.
 *
 * A hook event of this host makes an IncomingMigration; a peer's announcement makes an OutgoingMigration. The redirect
 * catches exactly what the armed outgoing migrations want, refreshed by one timer: without it elements expire.
 */
import { randomUUID } from 'node:crypto'
import { access, mkdir, readFile, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import type { Config } from '../config/schema.ts'
import { ImageStock } from '../lib/catalog/stock.ts'
import { Describer } from '../lib/chunk/describer.ts'
import { SlabPool } from '../lib/chunk/slab.ts'
import { ConfigError, errorText, RefusedError } from '../lib/core/errors.ts'
import { CONTROL_REQUEST_BYTES_MAX, HOOK_REQUEST_BYTES_MAX, REDIRECT_REFRESH_MS } from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import { MIB } from '../lib/core/units.ts'
import { type Domain, parseDomain } from '../lib/host/domain-xml.ts'
import { Libvirt, type RunningDomain } from '../lib/host/libvirt.ts'
import { Redirect } from '../lib/host/redirect.ts'
import { PeerListener } from '../lib/peer/accept.ts'
import type { Bundle } from '../lib/peer/bundle.ts'
import { sshCrypto } from '../lib/peer/ssh.ts'
import { type ControlServer, serveControl } from './control.ts'
import { History } from './history.ts'
import { IncomingMigration } from './migration/incoming.ts'
import { OutgoingMigration } from './migration/outgoing.ts'
import { Params } from './params.ts'
import { answerPeer, Peer } from './peers.ts'
import { emptyBySource, type MigrationReport, type RedirectReport, type StatusReport } from './report.ts'

export const RELEASE: string = '0.1.0'

/** What the hook is told: create these images (root does it), or refuse the migration with this message. */
export interface HookAnswer {
  readonly action: 'none' | 'create' | 'refuse'
  readonly create: readonly {
    readonly path: string
    readonly format: 'raw' | 'qcow2'
    readonly size: number
  }[]
  readonly message: string
}

const NOTHING: HookAnswer = { action: 'none', create: [], message: '' }
const LOCATE_MS = 6000
const MIGRATIONS_MAX = 64
const IMAGES_MAX = 256
const DRAIN_MS = 1000

export class Daemon {
  readonly #config: Config
  readonly #log: Log
  readonly #startedAt = Date.now()
  readonly #libvirt = new Libvirt()
  readonly #history: History
  readonly #describer = new Describer({ workers: 1 })
  readonly #slabs: SlabPool
  readonly #stock: ImageStock
  readonly #peers: Peer[]
  readonly #incoming = new Map<string, IncomingMigration>()
  readonly #outgoing = new Map<string, OutgoingMigration>()
  readonly #repairs: { count: number; last: string | null; error: string | null } = {
    count: 0,
    last: null,
    error: null,
  }
  #redirect: Redirect | undefined
  #uids: number[] = []
  #listener: PeerListener | undefined
  #sockets: ControlServer[] = []
  #timer: NodeJS.Timeout | undefined
  #refreshing = false
  #listenPort = 0
  #closed = false

  constructor(config: Config, log: Log) {
    this.#config = config
    this.#log = log
    this.#history = new History(config.stateDir)
    this.#slabs = new SlabPool({ bytesMax: config.limits.windowMiB * MIB })
    this.#stock = new ImageStock({
      indexBytesMax: config.limits.indexMiB * MIB,
      imagesMax: IMAGES_MAX,
      onProblem: (text) => log.warn({}, text),
    })
    this.#peers = config.peers.map((peer) => new Peer(peer, log))
  }

  async start(): Promise<void> {
    const { runDir, stateDir, qemuUser } = this.#config
    if (sshCrypto() !== 'native') this.#log.warn({}, 'ssh2 fell back to its slow JavaScript ciphers')
    await mkdir(runDir, { recursive: true })
    await mkdir(stateDir, { recursive: true })
    await rm(join(runDir, 'incoming'), { recursive: true, force: true })
    await mkdir(join(runDir, 'incoming'))
    const qemuUid = await uidOf(qemuUser)
    this.#uids = [0, ...(qemuUid === undefined ? [] : [qemuUid])]
    if (qemuUid === undefined)
      this.#log.warn({ qemuUser }, 'there is no such user: connections of QEMU are not caught')
    if (this.#config.redirect === 'nft') {
      this.#redirect = new Redirect({ uids: this.#uids, ownUid: process.getuid?.() ?? 0 })
      await this.#redirect.start()
    }
    this.#listener = await PeerListener.listen({
      path: join(runDir, 'peer.sock'),
      localName: 'swamd',
      onBundle: (bundle) => this.#takeBundle(bundle),
      onRefused: (peer, error) => this.#log.warn({ peer, error }, 'refused a channel'),
    })
    this.#sockets = [
      await serveControl({
        path: join(runDir, 'hook.sock'),
        mode: 0o600,
        handlers: { hook: (params) => this.#hook(params), hookReport: (params) => this.#hookReport(params) },
        requestBytesMax: HOOK_REQUEST_BYTES_MAX,
        onError: (error) => this.#log.debug({ error }, 'hook socket'),
      }),
      await serveControl({
        path: join(runDir, 'control.sock'),
        mode: 0o660,
        handlers: { status: () => this.status(), history: () => this.history() },
        requestBytesMax: CONTROL_REQUEST_BYTES_MAX,
        onError: (error) => this.#log.debug({ error }, 'control socket'),
      }),
    ]
    this.#timer = setInterval(() => {
      void this.#refresh()
      for (const { record } of [...this.#incoming.values(), ...this.#outgoing.values()]) void record.measure()
    }, REDIRECT_REFRESH_MS)
    for (const peer of this.#peers) peer.start()
    this.#log.info({ release: RELEASE, pid: process.pid, peers: this.#peers.length }, 'swamd is ready')
  }

  // ---- what the user sees ------------------------------------------------------------------------------------

  async status(): Promise<StatusReport> {
    const records = [...this.#incoming.values(), ...this.#outgoing.values()].map(({ record }) => record)
    await Promise.all(records.map((record) => record.measure()))
    return {
      version: 1,
      daemon: { pid: process.pid, release: RELEASE, startedAt: this.#startedAt },
      redirect: this.#redirectReport(),
      peers: this.#peers.map((peer) => peer.report()),
      migrations: records.map((record) => record.report()),
    }
  }

  async history(): Promise<{ version: 1; migrations: MigrationReport[] }> {
    return { version: 1, migrations: await this.#history.read() }
  }

  #redirectReport(): RedirectReport {
    return {
      mode: this.#config.redirect,
      ok: this.#redirect !== undefined && this.#repairs.error === null,
      armed: this.#redirect?.armed ?? 0,
      repairs: this.#repairs.count,
      lastRepair: this.#repairs.last,
      error: this.#repairs.error,
    }
  }

  #ended(migration: IncomingMigration | OutgoingMigration): void {
    const report = migration.record.report()
    this.#log.info(
      {
        id: report.id,
        guest: report.guest,
        peer: report.peer,
        direction: report.direction,
        phase: report.phase,
        accelerated: report.accelerated,
        wireBytes: report.wireBytes,
        error: report.error,
      },
      'a migration ended',
    )
    void this.#history
      .append(report)
      .catch((error: unknown) => this.#log.error({ error }, 'the history is not written'))
  }

  // ---- the redirect ------------------------------------------------------------------------------------------

  /** Catches what the outgoing migrations want, for the next seconds; notices when somebody took the table away. */
  async #refresh(): Promise<void> {
    if (this.#redirect === undefined || this.#refreshing || this.#closed) return
    this.#refreshing = true
    try {
      const repairs = await this.#redirect.check()
      for (const repair of repairs) {
        this.#repairs.count++
        this.#repairs.last = repair.detail
        this.#log.warn({ repair }, 'somebody changed the nft table of SWAM: repaired')
      }
      const entries = [...this.#outgoing.values()].flatMap((migration) => migration.entries)
      if (entries.length > 0) await this.#redirect.arm(entries)
      this.#repairs.error = null
    } catch (error) {
      this.#repairs.error = errorText(error)
      this.#log.error({ error }, 'the redirect cannot be kept up: migrations go direct')
    } finally {
      this.#refreshing = false
    }
  }

  /** Ports for listeners: below the migration range, one after the other; a taken one is skipped by the caller. */
  #pickListenPort(): number {
    const [low, high] = this.#config.migrationPorts
    for (;;) {
      const port = 20_000 + (this.#listenPort++ % 10_000)
      if (port < low || port > high) return port
    }
  }

  // ---- the destination's part --------------------------------------------------------------------------------

  async #hook(params: unknown): Promise<HookAnswer> {
    const event = new Params('hook', params)
    const op = `${event.text('op', 32)} ${event.text('sub', 32)}`
    const guest = event.text('guest')
    const started = performance.now()
    try {
      switch (op) {
        case 'migrate begin':
          return await this.#migrateBegin(parseDomain(event.text('xml', HOOK_REQUEST_BYTES_MAX)))
        case 'started begin':
          return await this.#started(guest, event.has('ports') ? event.list('ports', 256) : [])
        case 'stopped end':
        case 'release end':
          await this.#incoming.get(guest)?.stopped()
          return NOTHING
        default:
          return NOTHING
      }
    } catch (error) {
      this.#log.warn({ error, op, guest }, 'a hook event failed')
      return this.#refuseOr(errorText(error))
    } finally {
      this.#log.debug({ op, guest, ms: Math.round(performance.now() - started) }, 'hook event')
    }
  }

  /** What root's hook made of the images that it was asked to create. */
  async #hookReport(params: unknown): Promise<object> {
    const report = new Params('hookReport', params)
    for (const item of report.list('images', 256)) {
      const image = new Params('hookReport: images', item)
      const path = image.text('path', 4096)
      this.#log.info(
        { guest: report.text('guest'), path, created: image.flag('created') },
        'image at this host',
      )
    }
    return {}
  }

  #refuseOr(message: string): HookAnswer {
    return this.#config.strict ? { action: 'refuse', create: [], message } : { ...NOTHING, message }
  }

  async #migrateBegin(domain: Domain): Promise<HookAnswer> {
    if (this.#incoming.size >= MIGRATIONS_MAX) throw new RefusedError('too many migrations are under way')
    const located = await this.#locate(domain.uuid)
    if (located === undefined) {
      const asked = this.#peers.map((peer) => peer.config.name).join(', ') || 'none'
      const reason = `no peer runs this guest with a swamd that answers (asked: ${asked})`
      await this.#direct(domain, reason)
      return this.#refuseOr(`SWAM: ${reason}`)
    }
    await this.#incoming.get(domain.name)?.abort('the guest is announced anew')
    const { peer, source } = located
    const id = randomUUID()
    const since = Date.now()
    const targets = domain.disks.flatMap((disk) => (disk.source === undefined ? [] : [disk.source]))
    const migration = new IncomingMigration({
      id,
      uuid: domain.uuid,
      guest: domain.name,
      peer: peer.config.name,
      log: this.#log.child({ migration: id, guest: domain.name }),
      stock: this.#stock,
      targets,
      dial: async (kind) => await peer.dial(kind, id),
      call: (method, params) => peer.call(method, params),
      outcome: () => this.#outcome(domain.uuid, 'in', since),
      downtimeMs: async () =>
        (await this.#libvirt.jobInfo(domain.name, { completed: true }))?.figures.get('Total downtime') ??
        null,
      onEnd: (ended) => {
        if (this.#incoming.get(ended.guest) === ended) {
          this.#incoming.delete(ended.guest)
          void rm(this.#marker(ended.guest), { force: true })
        }
        this.#ended(ended)
      },
    })
    this.#incoming.set(domain.name, migration)
    await writeFile(this.#marker(domain.name), `${id}\n`)
    // Nobody waits for the index: what is not in it yet is asked as a literal.
    void this.#stock
      .refresh(this.#sharedDirectories(), new Set(targets))
      .catch((error: unknown) => this.#log.warn({ error }, 'the images here could not be listed'))
    const { create, problem } = await this.#missingImages(domain, source)
    if (problem !== undefined) {
      this.#log.warn({ guest: domain.name }, problem)
      if (this.#config.strict) return { action: 'refuse', create: [], message: problem }
    }
    return { action: create.length > 0 ? 'create' : 'none', create, message: problem ?? '' }
  }

  #marker(guest: string): string {
    if (guest.includes('/') || guest.startsWith('.'))
      throw new RefusedError(`guest name ${JSON.stringify(guest)}`)
    return join(this.#config.runDir, 'incoming', guest)
  }

  #sharedDirectories(): readonly string[] {
    const { share, images } = this.#config
    return share === 'images' ? images : share === 'none' ? [] : share
  }

  async #locate(uuid: string): Promise<{ peer: Peer; source: RunningDomain } | undefined> {
    const asked = this.#peers.map(async (peer) => {
      const answer = new Params('locate', await peer.call('locate', { uuid }, LOCATE_MS))
      return { peer, source: locatedDomain(answer, uuid) }
    })
    const found = await Promise.any(
      asked.map(async (one) => {
        const { peer, source } = await one
        if (source === undefined) throw new RefusedError(`${peer.config.name} does not run it`)
        return { peer, source }
      }),
    ).catch(() => undefined)
    return found
  }

  /** What has to be made so that libvirt finds its disks, with the size that the source's disk has. */
  async #missingImages(
    domain: Domain,
    source: RunningDomain,
  ): Promise<{ create: HookAnswer['create']; problem: string | undefined }> {
    const create: { path: string; format: 'raw' | 'qcow2'; size: number }[] = []
    let problem: string | undefined
    for (const disk of domain.disks) {
      if (disk.source === undefined || disk.readOnly || disk.shareable) continue
      const there = await access(disk.source).then(
        () => true,
        () => false,
      )
      if (there) continue
      const size = source.disks.find((one) => one.target === disk.target)?.capacity
      const format = disk.format === 'raw' || disk.format === 'qcow2' ? disk.format : undefined
      if (disk.type !== 'file')
        problem = `SWAM cannot create ${disk.source} (${disk.type}) for ${disk.target}: create it first`
      else if (size === undefined || format === undefined) {
        problem = `SWAM cannot create ${disk.source} for ${disk.target}: format ${disk.format}, size ${size ?? 'unknown'}`
      } else create.push({ path: disk.source, format, size })
    }
    return { create, problem }
  }

  async #started(guest: string, reported: readonly unknown[]): Promise<HookAnswer> {
    const migration = this.#incoming.get(guest)
    if (migration === undefined) return NOTHING
    const [low, high] = this.#config.migrationPorts
    const ports = reported
      .map((item) => {
        const port = new Params('port', item)
        return { address: port.text('address', 64), port: port.port('port') }
      })
      .filter(({ port }) => port >= low && port <= high)
    try {
      await migration.started(ports)
    } catch (error) {
      migration.record.reason ??= errorText(error)
      await migration.abort(`not armed: ${errorText(error)}`)
      throw error
    }
    return NOTHING
  }

  /** A migration that goes direct is not silent. */
  async #direct(domain: Domain, reason: string): Promise<void> {
    const now = Date.now()
    this.#log.warn({ guest: domain.name, reason }, 'a migration goes direct')
    await this.#history
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
      })
      .catch((error: unknown) => this.#log.error({ error }, 'the history is not written'))
  }

  // ---- the source's part -------------------------------------------------------------------------------------

  #takeBundle(bundle: Bundle): void {
    const known = this.#config.peers.some((peer) => peer.name === bundle.peer)
    const refuse = (reason: string): void => {
      this.#log.warn({ peer: bundle.peer, kind: bundle.kind }, `refused a bundle: ${reason}`)
      void bundle.close(new RefusedError(reason))
    }
    if (!known) {
      refuse(`${bundle.peer} is not a peer of this host`)
      return
    }
    if (bundle.kind === 'control') {
      answerPeer(bundle, {
        locate: (params) => this.#answerLocate(params),
        announce: (params, peer) => this.#answerAnnounce(params, peer),
        arm: (params, peer) => this.#answerArm(params, peer),
        classify: async (params, peer) => {
          const given = new Params('classify', params)
          this.#outgoingOf(given, peer).classify(given.port('port'), given.exports('exports'))
          return {}
        },
        stop: async (params, peer) => {
          const given = new Params('stop', params)
          await this.#outgoing.get(given.uuid('migrationId'))?.stop(given.text('reason', 1000))
          return { peer }
        },
      })
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

  #outgoingOf(params: Params, peer: string): OutgoingMigration {
    const id = params.uuid('migrationId')
    const migration = this.#outgoing.get(id)
    if (migration === undefined || migration.peer !== peer) {
      throw new RefusedError(`migration ${id} is not known here`)
    }
    return migration
  }

  async #answerLocate(params: unknown): Promise<object> {
    const domain = await this.#libvirt.runningDomain(new Params('locate', params).uuid('uuid'))
    if (domain === undefined) return { found: false }
    return {
      found: true,
      name: domain.name,
      disks: domain.disks.map(({ target, format, capacity }) => ({
        target,
        format,
        capacity: capacity ?? null,
      })),
    }
  }

  async #answerAnnounce(params: unknown, peer: string): Promise<object> {
    const given = new Params('announce', params)
    const id = given.uuid('migrationId')
    const uuid = given.uuid('uuid')
    if (this.#outgoing.size >= MIGRATIONS_MAX) throw new RefusedError('too many migrations are under way')
    if (this.#outgoing.has(id)) throw new RefusedError(`migration ${id} is known already`)
    const domain = await this.#libvirt.runningDomain(uuid)
    if (domain === undefined) throw new RefusedError(`guest ${uuid} does not run here`)
    for (const other of [...this.#outgoing.values()]) {
      if (other.record.uuid === uuid) await other.abort('the guest is announced anew')
    }
    const config = this.#config.peers.find((one) => one.name === peer)!
    const since = Date.now()
    const migration = new OutgoingMigration({
      id,
      uuid,
      guest: domain.name,
      peer,
      peerAddresses: config.addresses,
      log: this.#log.child({ migration: id, guest: domain.name }),
      uids: this.#uids,
      slabs: this.#slabs,
      describe: (bytes) => this.#describer.describe(bytes),
      limits: { windowBytes: (this.#config.limits.windowMiB * MIB) / 2, drainMs: DRAIN_MS },
      pickListenPort: () => this.#pickListenPort(),
      outcome: () => this.#outcome(uuid, 'out', since),
      onEnd: (ended) => {
        this.#outgoing.delete(ended.id)
        this.#ended(ended)
      },
    })
    this.#outgoing.set(id, migration)
    return {}
  }

  async #answerArm(params: unknown, peer: string): Promise<object> {
    const given = new Params('arm', params)
    const migration = this.#outgoingOf(given, peer)
    const [low, high] = this.#config.migrationPorts
    const ports = given.ports('ports', 8)
    const outside = ports.find((port) => port < low || port > high)
    if (outside !== undefined) throw new RefusedError(`port ${outside} is outside of ${low} to ${high}`)
    if (this.#redirect === undefined) throw new RefusedError('redirect = "off" at the source')
    await migration.arm(ports)
    await this.#redirect.arm(migration.entries)
    return {}
  }

  // ---- where the guest is ------------------------------------------------------------------------------------

  /**
   * Asks libvirt until it has decided: a paused guest is on its way, for some seconds. A migration the other way that
   * was announced since says it too, because a peer saw the guest run: and what libvirt shows then is that one's.
   */
  async #outcome(uuid: string, direction: 'in' | 'out', since: number): Promise<'here' | 'gone' | 'unknown'> {
    const others = direction === 'out' ? this.#incoming : this.#outgoing
    for (let attempt = 0; attempt < 20; attempt++) {
      for (const { record } of others.values()) {
        if (record.uuid === uuid && record.startedAt > since) return direction === 'out' ? 'gone' : 'here'
      }
      const domain = await this.#libvirt.runningDomain(uuid)
      if (domain === undefined) return 'gone'
      if (domain.state === 'running') return 'here'
      // `--suspend` leaves it paused at the destination.
      if (direction === 'in' && attempt >= 8) return 'here'
      await new Promise((resolve) => setTimeout(resolve, 500))
    }
    return 'unknown'
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#timer)
    await this.#redirect
      ?.close()
      .catch((error: unknown) => this.#log.warn({ error }, 'the nft table is not removed'))
    for (const socket of this.#sockets) await socket.close()
    const reason = 'swamd was stopped'
    await Promise.allSettled(
      [...this.#incoming.values(), ...this.#outgoing.values()].map((one) => one.abort(reason)),
    )
    await this.#listener?.close()
    await Promise.allSettled(this.#peers.map((peer) => peer.close()))
    await this.#describer.close()
    await this.#stock.close()
    this.#log.info({}, reason)
  }
}

function locatedDomain(answer: Params, uuid: string): RunningDomain | undefined {
  if (answer.flag('found') === false) return undefined
  const disks = answer.list('disks', 256).map((item) => {
    const disk = new Params('locate: disks', item)
    return {
      target: disk.text('target'),
      type: 'file',
      source: undefined,
      format: disk.text('format', 32),
      readOnly: false,
      shareable: false,
      capacity: disk.optionalInteger('capacity', 0, 2 ** 53 - 1),
    }
  })
  return { name: answer.text('name'), uuid, state: 'running', disks }
}

/** Numeric id of a local user, from /etc/passwd. */
async function uidOf(user: string): Promise<number | undefined> {
  for (const line of (await readFile('/etc/passwd', 'utf8')).split('\n')) {
    const [name, , uid] = line.split(':')
    if (name === user) return Number(uid)
  }
  return undefined
}

/** A directory that swamd may not write is said before anything starts. @throws ConfigError */
export async function checkDirectories(config: Config): Promise<void> {
  for (const directory of [config.stateDir, config.runDir]) {
    const found = await stat(directory).catch(() => undefined)
    if (found !== undefined && !found.isDirectory())
      throw new ConfigError(`${directory}: expected a directory`)
  }
}
