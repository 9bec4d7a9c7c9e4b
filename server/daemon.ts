/**
 * swamd: the one composition root. It joins the sockets, the redirect, the peers, the image stock and the two sides of
 * a host (target-side.ts, source-side.ts), and holds no logic of their work.
 *
 * The redirect catches exactly what the armed outgoing migrations want, refreshed by one timer: without a living
 * daemon its elements expire by themselves.
 */
import { randomBytes } from 'node:crypto'
import { realpathSync } from 'node:fs'
import { access, mkdir, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import type { Config, PeerConfig } from '../config/schema.ts'
import { ImageStock } from '../lib/catalog/stock.ts'
import { indexBudgets } from '../lib/catalog/stock-choice.ts'
import { Describer } from '../lib/chunk/describer.ts'
import { SlabPool } from '../lib/chunk/slab.ts'
import { ConfigError, errorText, SwamError } from '../lib/core/errors.ts'
import {
  BUNDLES_IN_FLIGHT_BYTES_MAX,
  CONTROL_REQUEST_BYTES_MAX,
  GUEST_NAME_BYTES_MAX,
  HOOK_REQUEST_BYTES_MAX,
  PROOF_ASSEMBLED_BYTES_MAX,
  REDIRECT_REFRESH_MS,
  SHARED_IMAGES_MAX,
} from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import { MIB } from '../lib/core/units.ts'
import { LeafSlots } from '../lib/engine/leaf-assembly.ts'
import { NatAnchor } from '../lib/host/nat-anchor.ts'
import { Redirect, type RedirectEntry } from '../lib/host/redirect.ts'
import { userIds } from '../lib/host/users.ts'
import { WATCHDOG_MARK, Watchdog } from '../lib/host/watchdog.ts'
import { PeerListener } from '../lib/peer/accept.ts'
import { RateLimit } from '../lib/peer/rate-limit.ts'
import { sshCrypto } from '../lib/peer/ssh.ts'
import { WindowPool } from '../lib/peer/windows.ts'
import { ProofFolder } from '../lib/proof/proof-folder.ts'
import { FEATURE_RESUME, FEATURE_WIDE_STREAM } from '../lib/wire/hello.ts'
import { Abouts } from './about.ts'
import { CatalogTender } from './catalog-tender.ts'
import { type ControlServer, JsonText, removeStale, serveControl } from './control.ts'
import { EstimateAnswers } from './estimate/answers.ts'
import { type EstimateReport, Estimates } from './estimate/estimate.ts'
import { History } from './history.ts'
import { ImageList } from './image-list.ts'
import { mapLimits } from './map-limits.ts'
import type { ProofMeans } from './migration/proofs.ts'
import type { MigrationRecord } from './migration/record.ts'
import { Params } from './params.ts'
import { type PeerChanges, PeerList } from './peer-list.ts'
import { bundleTuning, diskFeatures, type OwnEnd, Peer } from './peers.ts'
import { release } from './release.ts'
import type { RedirectReport, StatusReport } from './report.ts'
import { Site } from './site.ts'
import { SourceSide } from './source-side.ts'
import { TargetSide } from './target-side.ts'
import { type GuestRecords, recordsOf } from './verify/records.ts'
import { Vitals } from './vitals.ts'

const SOCKETS = ['peer.sock', 'hook.sock', 'control.sock']
const MBIT_BYTES = 125_000
/** What SSH, TCP and IP leave of the link's bytes. */
const PAYLOAD_SHARE = 0.94

export class Daemon {
  readonly #config: Config
  readonly #log: Log
  readonly #site: Site
  readonly #startedAt = Date.now()
  readonly #release = release()
  readonly #notifySocket: string | undefined
  readonly #describer = new Describer({ workers: 1 })
  /** Of what arrives: it shall not wait for what leaves. None where verify is "off". */
  readonly #digester: Describer | undefined
  readonly #proofRecords: ProofFolder
  readonly #proofs: ProofMeans | undefined
  readonly #vitals: Vitals
  readonly #stock: ImageStock
  readonly #images: ImageList
  readonly #catalog: CatalogTender
  readonly #anchor: NatAnchor
  readonly #own: OwnEnd
  readonly #peers: PeerList
  readonly #readPeers: () => Promise<readonly PeerConfig[]>
  readonly #target: TargetSide
  readonly #estimates: Estimates
  readonly #estimateAnswers: EstimateAnswers
  readonly #repairs: { count: number; last: string | null; error: string | null } = {
    count: 0,
    last: null,
    error: null,
  }
  #watchdog: Watchdog | undefined
  #source: SourceSide | undefined
  #redirect: Redirect | undefined
  #listener: PeerListener | undefined
  #sockets: ControlServer[] = []
  #timer: NodeJS.Timeout | undefined
  #refreshing = false
  /** When libvirt's hook was here last. */
  #hookAt: number | null = null
  #closed = false

  /** `readPeers`: what the config file says of them now. `notifySocket` is systemd's, for the watchdog of a unit. */
  constructor(
    config: Config,
    log: Log,
    options: {
      readonly readPeers: () => Promise<readonly PeerConfig[]>
      readonly notifySocket?: string | undefined
    },
  ) {
    this.#config = config
    this.#readPeers = options.readPeers
    this.#log = log
    this.#notifySocket = options.notifySocket
    this.#vitals = new Vitals(log)
    this.#site = new Site(config, log, new History(config.stateDir))
    this.#stock = new ImageStock({
      ...indexBudgets(config.limits.indexMiB * MIB),
      imagesMax: SHARED_IMAGES_MAX,
      directories: realDirectories(config.images),
      catalog: join(config.stateDir, 'catalog'),
      retention: mapLimits(config),
      onForgotten: (map) => log.info({ ...map }, 'what is known of an image of this host is not kept'),
      onProblem: (text) => log.warn({}, text),
      onIndexed: ({ path, mapped, stale, progress }) =>
        log.info({ path, mapped, stale, chunks: progress.chunks }, 'an image of this host is known'),
    })
    this.#anchor = new NatAnchor({
      table: `swam_hold_${process.pid}`,
      onProblem: (text) =>
        log.warn({ text }, 'a flush of all nft rules would break migrations that are under way'),
    })
    this.#own = {
      instance: randomBytes(16).toString('hex'),
      resumeMs: config.linkDeadlineMs,
      rateLimit: rateLimitOf(config.limits.wanMbit),
      windows: new WindowPool({ bytesMax: BUNDLES_IN_FLIGHT_BYTES_MAX }),
      linkTests: this.#site.linkTests,
      proofs: config.verify !== 'off',
    }
    this.#peers = new PeerList(config.peers, {
      make: (peer) => new Peer(peer, log, this.#own),
      busy: (name) => this.#records().some((record) => record.report().peer === name),
      dropped: (name) => this.#source?.dropPeer(name),
    })
    this.#proofRecords = new ProofFolder({ path: join(config.stateDir, 'proof') })
    this.#digester = config.verify === 'off' ? undefined : new Describer({ workers: 1 })
    this.#images = new ImageList({
      images: config.images,
      qcow2: config.qcow2,
      formats: () => this.#site.libvirt.imageFormats(),
      log,
    })
    this.#estimates = new Estimates({ config, libvirt: this.#site.libvirt, images: this.#images })
    this.#estimateAnswers = new EstimateAnswers({
      config,
      stock: this.#stock,
      images: () => this.#images.list(),
      receiving: () => this.#target.receiving,
      onProblem: (error) => log.warn({ error }, 'an image could not be closed'),
    })
    this.#proofs = this.#proofMeans()
    const needed = (): boolean => this.#estimateAnswers.busy
    const target = new TargetSide(
      this.#site,
      this.#peers.peers,
      this.#stock,
      this.#images,
      needed,
      this.#proofs,
    )
    this.#target = target
    this.#catalog = new CatalogTender({
      stock: this.#stock,
      images: this.#images,
      scanMiBps: config.limits.scanMiBps,
      busy: () => target.receiving,
      log,
    })
  }

  #proofMeans(): ProofMeans | undefined {
    if (this.#digester === undefined) return undefined
    return {
      folder: this.#proofRecords,
      read: this.#config.verify === 'read',
      describer: this.#describer,
      digester: this.#digester,
      slots: new LeafSlots({ bytesMax: PROOF_ASSEMBLED_BYTES_MAX }),
    }
  }

  async start(): Promise<void> {
    this.#vitals.start()
    if (sshCrypto() !== 'native') this.#log.warn({}, 'ssh2 fell back to its slow JavaScript ciphers')
    await this.#claimDirectories()
    this.#watchdog = new Watchdog({
      directory: this.#config.runDir,
      notifySocket: this.#notifySocket,
      onProblem: (text) => this.#log.warn({ text }, 'the watchdog of swamd: started again'),
    })
    await this.#recover()
    await this.#proofRecords.start()
    const uids = await this.#caughtUids()
    if (this.#config.redirect === 'nft') {
      this.#redirect = new Redirect({ uids, ownUid: process.getuid?.() ?? 0, run: this.#site.commands.run })
      this.#anchor.keep()
      await this.#redirect.start()
    }
    const source = new SourceSide(this.#site, {
      redirect: this.#redirect,
      uids,
      slabs: new SlabPool({ bytesMax: this.#config.limits.windowMiB * MIB }),
      describe: (bytes) => this.#describer.describe(bytes),
      farLives: async (name, instance) => (await this.#peerNamed(name)?.lives(instance)) ?? 'unknown',
      estimates: this.#estimateAnswers,
      ...(this.#proofs === undefined ? {} : { proofs: this.#proofs }),
    })
    this.#source = source
    await this.#listen(source)
    this.#timer = setInterval(() => {
      void this.#refresh()
      for (const record of this.#records()) {
        void record.measure()
        if (record.fellBehind())
          this.#log.warn(
            { guest: record.guest, peer: record.peer, ...record.report().convergence },
            'the guest writes faster than the link takes: its migration does not converge',
          )
      }
      this.#changed(this.#peers.settle())
      void this.#site
        .saveRunning()
        .catch((error: unknown) => this.#log.error({ error }, 'the history cannot be written'))
    }, REDIRECT_REFRESH_MS)
    for (const peer of this.#peers.peers) peer.start()
    void this.#images.ask()
    this.#catalog.start()
    const peers = this.#peers.peers.length
    this.#log.info({ release: this.#release, pid: process.pid, peers }, 'swamd is ready')
  }

  /** Reads the peers of the config anew, and nothing else of it. What the file then says wrong changes nothing. */
  async reload(): Promise<PeerChanges & { version: 1 }> {
    const changes = this.#peers.change(await this.#readPeers())
    this.#changed(changes)
    return { version: 1, ...changes }
  }

  #changed(changes: PeerChanges | undefined): void {
    if (changes === undefined) return
    this.#site.peers = this.#peers.configs
    this.#log.info({ ...changes }, 'the peers of the config were read anew')
  }

  #peerNamed(name: string): Peer | undefined {
    return this.#peers.peers.find((peer) => peer.config.name === name)
  }

  /** For the doctor: what each peer says of itself and of this host. */
  async #peersAbout(): Promise<object> {
    const name = await new Abouts(this.#site).ownName()
    const peers = await Promise.all(this.#peers.peers.map((peer) => peer.about(name)))
    return { version: 1, name, wallMs: Date.now(), hookAt: this.#hookAt, peers }
  }

  #peerOf(params: Params): Peer {
    const name = params.text('peer', 64)
    const peer = this.#peerNamed(name)
    if (peer === undefined)
      throw new SwamError('SWAM_NOT_FOUND', `no peer is called ${name}: see swam peer list`)
    return peer
  }

  async #peerTest(params: unknown): Promise<object> {
    return await this.#peerOf(new Params('peerTest', params)).test(this.#release)
  }

  async #estimate(params: unknown, signal: AbortSignal): Promise<EstimateReport> {
    const given = new Params('estimate', params)
    const peer = this.#peerOf(given)
    return await this.#estimates.run(
      given.text('guest', GUEST_NAME_BYTES_MAX),
      {
        name: peer.config.name,
        ask: (method, asked, timeoutMs) => peer.call(method, asked, timeoutMs),
        test: () => peer.test(this.#release),
      },
      signal,
    )
  }

  async #proofRecordsOf(params: unknown): Promise<GuestRecords> {
    return await recordsOf(new Params('proofRecords', params).text('guest', GUEST_NAME_BYTES_MAX), {
      folder: this.#proofRecords,
      libvirt: this.#site.libvirt,
      images: this.#config.images,
    })
  }

  /** One daemon a runDir: a second one must leave before it takes the first one's table and marks away. */
  async #claimDirectories(): Promise<void> {
    const { runDir, stateDir } = this.#config
    await mkdir(runDir, { recursive: true })
    // Names of guests and where they went: not for every user of the host.
    await mkdir(stateDir, { recursive: true, mode: 0o700 })
    for (const name of SOCKETS) await removeStale(join(runDir, name))
  }

  /** What a daemon before this one left when it ended without a word. */
  async #recover(): Promise<void> {
    const { runDir } = this.#config
    await mkdir(join(runDir, 'incoming'), { recursive: true, mode: 0o700 })
    // Guests that it was receiving are nobody's: but of their end root's hook still wants to know (salvage).
    await this.#target.recover()
    const mark = join(runDir, WATCHDOG_MARK)
    const hung = await access(mark).then(
      () => true,
      () => false,
    )
    await rm(mark, { force: true })
    const why = hung ? 'swamd here hung and its watchdog killed it' : 'swamd here was killed or crashed'
    const left = await this.#site.history.recover(`${why} before the migration was over`)
    if (hung || left > 0) this.#log.warn({ migrations: left }, why)
  }

  /** libvirtd connects for the RAM stream, QEMU for the disks. */
  async #caughtUids(): Promise<number[]> {
    const qemu = await userIds(this.#config.qemuUser)
    if (qemu !== undefined) return [0, qemu.uid]
    this.#log.warn(
      { qemuUser: this.#config.qemuUser },
      'there is no such user: connections of QEMU are not caught',
    )
    return [0]
  }

  /** control.sock comes last: whoever waits for it finds the rest ready. */
  async #listen(source: SourceSide): Promise<void> {
    const { runDir } = this.#config
    this.#listener = await PeerListener.listen({
      path: join(runDir, 'peer.sock'),
      localName: 'swamd',
      onBundle: (bundle) => source.takeBundle(bundle),
      features: [
        ...(this.#own.resumeMs === 0 ? [] : [FEATURE_RESUME]),
        FEATURE_WIDE_STREAM,
        ...diskFeatures(this.#own),
      ],
      instance: this.#own.instance,
      ...bundleTuning(this.#own),
      onRefused: (peer, error) => this.#log.warn({ peer, error }, 'refused a channel'),
    })
    const target = this.#target
    this.#sockets.push(
      await serveControl({
        path: join(runDir, 'hook.sock'),
        mode: 0o600,
        handlers: {
          hook: (params, signal) => {
            this.#hookAt = Date.now()
            return target.hook(params, signal)
          },
          hookReport: (params) => target.hookReport(params),
          // Not for people, but for root.
          reload: () => this.reload(),
          peerTest: (params) => this.#peerTest(params),
          estimate: (params, signal) => this.#estimate(params, signal),
          peersAbout: () => this.#peersAbout(),
          proofRecords: (params) => this.#proofRecordsOf(params),
        },
        requestBytesMax: HOOK_REQUEST_BYTES_MAX,
        onError: (error) => this.#log.debug({ error }, 'hook socket'),
      }),
    )
    this.#sockets.push(
      await serveControl({
        path: join(runDir, 'control.sock'),
        making: new Map(),
        mode: 0o660,
        handlers: { status: () => this.status(), history: () => this.history() },
        requestBytesMax: CONTROL_REQUEST_BYTES_MAX,
        onError: (error) => this.#log.debug({ error }, 'control socket'),
      }),
    )
  }

  // ---- what the user sees ------------------------------------------------------------------------------------

  #records(): MigrationRecord[] {
    return [...this.#target.migrations, ...(this.#source?.migrations ?? [])].map(({ record }) => record)
  }

  async status(): Promise<StatusReport> {
    const records = this.#records()
    await Promise.all(records.map((record) => record.measure()))
    return {
      version: 1,
      daemon: { pid: process.pid, release: this.#release, startedAt: this.#startedAt },
      process: await this.#vitals.report(),
      redirect: this.#redirectReport(),
      peers: this.#peers.peers.map((peer) => peer.report()),
      migrations: records.map((record) => record.report()),
    }
  }

  /** A HistoryReport. */
  async history(): Promise<JsonText> {
    await this.#site.settled()
    return new JsonText(`{"version":1,"migrations":[${(await this.#site.history.lines()).join(',')}]}`)
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

  // ---- the redirect ------------------------------------------------------------------------------------------

  /** Catches what the outgoing migrations want, for the next seconds; notices when somebody took the table away. */
  async #refresh(): Promise<void> {
    if (this.#redirect === undefined || this.#refreshing || this.#closed) return
    this.#refreshing = true
    try {
      this.#anchor.keep()
      for (const repair of await this.#redirect.check()) {
        this.#repairs.count++
        this.#repairs.last = repair.detail
        this.#log.warn({ repair }, 'somebody changed the nft table of SWAM: repaired')
      }
      const entries = (): readonly RedirectEntry[] => this.#source?.entries ?? []
      if (entries().length > 0) await this.#redirect.arm(entries)
      this.#repairs.error = null
    } catch (error) {
      this.#repairs.error = errorText(error)
      this.#log.error({ error }, 'the redirect cannot be kept up: migrations go direct')
    } finally {
      this.#refreshing = false
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearInterval(this.#timer)
    this.#vitals.stop()
    this.#catalog.close()
    const problem = (error: unknown): void => this.#log.warn({ error }, 'the nft table is not removed')
    await this.#redirect?.disarm(this.#source?.entries ?? []).catch(problem)
    for (const socket of this.#sockets) await socket.close()
    const reason = 'swamd was stopped'
    const migrations = [...this.#target.migrations, ...(this.#source?.migrations ?? [])]
    await Promise.allSettled(migrations.map((migration) => migration.abort(reason)))
    // Last: with the table goes the translation of what is connected, and QEMU would never hear that its peer is gone.
    await this.#redirect?.close().catch(problem)
    await this.#anchor.close()
    await this.#listener?.close()
    await Promise.allSettled(this.#peers.peers.map((peer) => peer.close()))
    await this.#site.history.settled()
    await this.#site.commands.close()
    await this.#proofRecords.settled()
    await this.#describer.close()
    await this.#digester?.close()
    await this.#stock.close()
    // Last: whatever hangs in here is ended by it too.
    this.#watchdog?.close()
    this.#log.info({}, reason)
  }
}

/** Without links; of what is not there yet as it is. */
function realDirectories(directories: readonly string[]): string[] {
  return directories.map((directory) => {
    try {
      return realpathSync(directory)
    } catch {
      return directory
    }
  })
}

function rateLimitOf(wanMbit: number): RateLimit | undefined {
  if (wanMbit === 0) return undefined
  const bytesPerSecond = wanMbit * MBIT_BYTES * PAYLOAD_SHARE
  return new RateLimit({ bytesPerSecond, clock: () => performance.now() })
}

/** A directory that cannot be one is said before anything starts. @throws ConfigError */
export async function checkDirectories(config: Config): Promise<void> {
  for (const directory of [config.stateDir, config.runDir]) {
    const found = await stat(directory).catch(() => undefined)
    if (found !== undefined && !found.isDirectory())
      throw new ConfigError(`${directory}: expected a directory`)
  }
}
