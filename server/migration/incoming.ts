/**
 * An incoming migration: what the destination's daemon does for one guest, from libvirt's `migrate begin` hook on. It
 * dials the disk and RAM bundles to the source while libvirt starts its QEMU, and reports the new QEMU's ports at
 * `started begin`. Streams that the source opens go to those ports on loopback, and nowhere else.
 *
 * A port whose listener greets as an NBD server becomes disks: each export gets a DiskReceiver that writes through its
 * own NBD connection. Everything else (RAM, TLS, what we do not know) is passed through.
 */
import { realpathSync } from 'node:fs'
import { connect, type Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { isSalvageOf } from '../../lib/catalog/salvage.ts'
import type { ImageStock } from '../../lib/catalog/stock.ts'
import type { ByteBudget } from '../../lib/core/byte-budget.ts'
import { type Clock, systemClock } from '../../lib/core/clock.ts'
import { errorText, LostError, ProtocolError, RefusedError, TimeoutError } from '../../lib/core/errors.ts'
import {
  MIGRATION_DISKS_MAX,
  NBD_HANDSHAKE_MS,
  QEMU_CONNECT_MS,
  SESSION_ENTRIES_MAX,
  START_ABSENT_ASKS_MAX,
  START_ASK_MS,
  START_MS,
  TARGET_SCAN_WAIT_MS,
} from '../../lib/core/limits.ts'
import type { Log } from '../../lib/core/log.ts'
import { KIB } from '../../lib/core/units.ts'
import { DiskAccount } from '../../lib/engine/account.ts'
import type { Arrivals } from '../../lib/engine/arrivals.ts'
import { CLASS_CONTROL, type DiskEndpoint, DiskLink } from '../../lib/engine/link.ts'
import { DiskReceiver } from '../../lib/engine/receiver.ts'
import { isDisproof } from '../../lib/engine/sender-proof.ts'
import { StockBlocks, StockSource } from '../../lib/engine/stock-source.ts'
import type { ReceiverBudget } from '../../lib/engine/task.ts'
import { negotiateNbd } from '../../lib/nbd/client.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import type { StreamMeta } from '../../lib/peer/stream.ts'
import { StreamMux } from '../../lib/peer/stream.ts'
import { type Counts, passThrough, slowLink } from '../../lib/ram/passthrough.ts'
import type { DiskMessage } from '../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../lib/wire/disk-proof.ts'
import type { ExportInfo } from './outgoing-options.ts'
import type { MigrationProofs } from './proofs.ts'
import { MigrationRecord } from './record.ts'

/** A port of the new QEMU, as the hook saw it. */
export interface GuestPort {
  readonly address: string
  readonly port: number
}

export interface EmptyDisk {
  readonly target: string
  readonly path: string
}

export interface IncomingOptions {
  readonly id: string
  readonly uuid: string
  readonly guest: string
  readonly peer: string
  readonly log: Log
  readonly stock: ImageStock
  /** What all receivers of the daemon may hold together. */
  readonly memory: ByteBudget
  /** What all receivers of the daemon have from each other. */
  readonly arrivals: Arrivals
  /** None where verify is "off". */
  readonly proofs?: MigrationProofs
  /** Files that this migration writes. */
  readonly targets: readonly string[]
  readonly dial: (kind: 'disk' | 'ram') => Promise<Bundle>
  /** Calls the source's daemon. */
  readonly call: (method: string, params: object, timeoutMs?: number) => Promise<unknown>
  /** How long it may take to catch connections: as long as the hook waits for it. */
  readonly armMs: number
  /** The guest's state at this host, in libvirt's words; undefined when it is not active here. */
  readonly state: () => Promise<string | undefined>
  /** Whether the guest arrived; waits while libvirt has not decided. */
  readonly outcome: () => Promise<'here' | 'gone' | 'unknown'>
  /** The same for a migration that goes past SWAM, however long it takes. */
  readonly directOutcome: () => Promise<'here' | 'gone' | 'unknown'>
  /** The disk's name, `vda`, for the name of its export. */
  readonly targetOf: (exportName: string) => string
  /** Disks whose images were made for this migration and hold nothing yet. */
  readonly emptyDisks: () => Promise<readonly EmptyDisk[]>
  readonly downtimeMs: () => Promise<number | null>
  readonly onEnd: (migration: IncomingMigration) => void
  /** Measures how long is waited for what may never come. */
  readonly clock?: Clock
}

const GREETING = Buffer.from('NBDMAGIC')
const EIO = 5

export class IncomingMigration {
  readonly record: MigrationRecord
  readonly #options: IncomingOptions
  readonly #log: Log
  readonly #clock: Clock
  readonly #ports = new Map<number, GuestPort>()
  readonly #nbdPorts = new Map<number, Promise<boolean>>()
  readonly #sockets = new Set<Socket>()
  readonly #opening = new Set<number>()
  readonly #budget: ReceiverBudget = { tasks: 0, eagerBytes: 0 }
  readonly #ready: Promise<void>
  #bundles: Bundle[] = []
  #disk: DiskLink | undefined
  #ram: Bundle | undefined
  /** Targets of the disks that the new QEMU exports: libvirt copies these. */
  readonly #exported = new Set<string>()
  #ended = false
  #finishing: Promise<void> | undefined
  #watching = false
  #direct = false
  #announcedAt: number
  #armed = false
  #problem: string | undefined

  constructor(options: IncomingOptions) {
    this.#options = options
    this.#log = options.log
    this.#clock = options.clock ?? systemClock
    this.#announcedAt = this.#clock.nowMs()
    this.record = new MigrationRecord({
      id: options.id,
      guest: options.guest,
      uuid: options.uuid,
      peer: options.peer,
      direction: 'in',
    })
    // The hook does not wait for it; arming does.
    this.#ready = this.#dialAll()
    this.#ready.catch((error: unknown) => void this.goDirect(errorText(error)))
    void this.#watchStart()
  }

  get id(): string {
    return this.#options.id
  }

  get guest(): string {
    return this.#options.guest
  }

  /** Its QEMU ran here. */
  get wasStarted(): boolean {
    return this.#armed
  }

  /** Who else may have what it receives, and it from them. */
  get arrivals(): Arrivals {
    return this.#options.arrivals
  }

  /** Images that it writes, without links. */
  get targets(): ReadonlySet<string> {
    return new Set(this.#options.targets.map(resolved))
  }

  async #dialAll(): Promise<void> {
    const { call, dial, id, uuid, guest } = this.#options
    await call('announce', { migrationId: id, uuid, guest })
    const dials = [dial('disk'), dial('ram')] as const
    const settled = await Promise.allSettled(dials)
    for (const result of settled) {
      if (result.status === 'fulfilled') this.#bundles.push(result.value)
    }
    if (this.#ended || settled.some((result) => result.status === 'rejected')) {
      await Promise.allSettled(
        this.#bundles.map((bundle) => bundle.close(new LostError('not needed any more'))),
      )
    }
    const [disk, ram] = [await dials[0], await dials[1]]
    for (const bundle of [disk, ram]) {
      this.record.addBundle(bundle)
      void bundle.closed.then((error) => {
        if (error !== undefined && !this.#ended) {
          if (this.#ports.size === 0) {
            // Nothing is caught yet: libvirt does not notice.
            void this.goDirect(`the ${bundle.kind} channel was lost before it was used: ${error.message}`)
            return
          }
          this.record.error ??= `the ${bundle.kind} channel to ${this.#options.peer} was lost: ${error.message}`
        }
        void this.#finish()
      })
    }
    this.#disk = new DiskLink(disk, (message) => this.#opened(message))
    this.#ram = ram
    new StreamMux(ram, (meta, stream) => this.#stream(meta, stream))
  }

  /** What was found wrong with the guest's disks here: the likely reason when libvirt gives up. */
  problem(text: string): void {
    this.#problem = text
  }

  /** The hook is still at work: libvirt starts nothing before it is done. */
  preparing(): void {
    this.#announcedAt = this.#clock.nowMs()
  }

  /**
   * Where libvirt fails before its QEMU runs, no hook may tell. Until the new QEMU listens libvirt is asked: a guest
   * that was there and is gone, or that never came, does not come any more.
   */
  async #watchStart(): Promise<void> {
    let seen = false
    let absent = 0
    for (;;) {
      await new Promise<void>((resolve) => void this.#clock.after(START_ASK_MS, resolve))
      if (this.#ended || this.#armed) return
      const state = await this.#options.state().catch(() => 'unknown')
      if (this.#ended || this.#armed) return
      absent = state === undefined ? absent + 1 : 0
      if (state !== undefined && state !== 'unknown') seen = true
      const waited = this.#clock.nowMs() - this.#announcedAt
      if (seen ? absent >= START_ABSENT_ASKS_MAX : absent > 0 && waited > START_MS) {
        await this.stopped('libvirt did not start the guest here')
        return
      }
    }
  }

  /**
   * The new QEMU listens: the source may catch connections to these ports from now on.
   * @param note why no disk may come, should none come
   */
  async started(ports: readonly GuestPort[], note: string): Promise<void> {
    await this.#ready
    if (this.#ended) throw new RefusedError(this.record.error ?? 'the migration has ended')
    this.#armed = true
    for (const port of ports) this.#ports.set(port.port, port)
    this.record.note = note
    const { call, armMs } = this.#options
    await call('arm', { migrationId: this.id, ports: ports.map(({ port }) => port), note }, armMs)
  }

  /** Nothing is caught: the migration goes on without us, and only its end is watched. */
  async goDirect(reason: string): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    this.#watching = true
    this.#direct = true
    this.record.reason ??= reason
    this.#log.warn({ reason }, 'a migration goes direct')
    await this.#options.call('direct', { migrationId: this.id, reason }).catch(() => undefined)
    for (const bundle of this.#bundles) void bundle.close().catch(() => undefined)
    void this.#options
      .directOutcome()
      .catch(() => 'unknown' as const)
      .then((state) => this.#watched(state))
  }

  #watched(state: 'here' | 'gone' | 'unknown'): void {
    if (!this.#watching) return
    this.#watching = false
    void this.#close(state)
  }

  /**
   * An image that was made here for this migration must be filled by it: else (`--migrate-disks` without it, no
   * `--copy-storage-…` at all) the guest would go on with an empty disk, where libvirt alone would have refused.
   */
  async #mustBeFilled(): Promise<void> {
    const empty = (await this.#options.emptyDisks()).filter(({ target }) => !this.#exported.has(target))
    if (empty.length === 0) return
    const names = empty.map(({ target, path }) => `${path} (${target})`).join(', ')
    const reason = `libvirt does not copy ${names}: missing here, and only made empty by SWAM; put it there first`
    // First: the source closes its channels as soon as it hears of it, and that end must not look like one without a reason.
    this.record.error ??= reason
    await this.#options.call('stop', { migrationId: this.id, reason }).catch(() => undefined)
    await this.abort(reason)
    throw new RefusedError(reason)
  }

  /** libvirt says that the guest's QEMU is gone here. */
  async stopped(what = 'libvirt stopped the guest here before the migration was over'): Promise<void> {
    this.#watched('gone')
    if (this.#ended) return
    this.record.error ??= this.#withProblem(what)
    await this.#tellStopped(this.record.error)
    await this.#finish()
  }

  #withProblem(what: string): string {
    return this.#problem === undefined ? what : `${what}: ${this.#problem}`
  }

  async #tellStopped(error: string): Promise<void> {
    const reason = `the far side: ${error}`.slice(0, 1000)
    await this.#options.call('stop', { migrationId: this.id, reason }).catch(() => undefined)
  }

  // ---- streams -----------------------------------------------------------------------------------------------

  #stream(meta: StreamMeta, stream: Duplex): void {
    stream.on('error', () => undefined)
    void this.#carry(meta.port, stream).catch((error: unknown) => {
      this.#log.warn({ error, port: meta.port }, 'a stream from the source was refused')
      stream.destroy(error instanceof Error ? error : new Error(errorText(error)))
    })
  }

  async #carry(port: number, stream: Duplex): Promise<void> {
    // In the order in which streams come: connect() is called before anything is awaited.
    const socket = this.#connect(port)
    await connected(socket, port, this.#clock)
    const speaker = await whoSpeaksFirst(socket, stream)
    if (speaker === 'server' && this.#greets(socket)) {
      const seen = this.#nbdPorts.get(port) ?? this.#nbd(port, socket)
      this.#nbdPorts.set(port, seen)
      if (await seen) {
        socket.destroy()
        stream.destroy()
        return
      }
      // An NBD server that does not speak to us (TLS): a fresh connection, passed through as it is.
      socket.destroy()
      const again = this.#connect(port)
      await connected(again, port, this.#clock)
      this.#pass(again, stream)
      return
    }
    await this.#mustBeFilled()
    this.#pass(socket, stream)
  }

  #connect(port: number): Socket {
    const known = this.#ports.get(port)
    if (known === undefined) throw new RefusedError(`port ${port} is not one of this migration's ports`)
    const wildcard = known.address === '0.0.0.0' || known.address === '::' || known.address === '*'
    const host = wildcard ? (known.address === '0.0.0.0' ? '127.0.0.1' : '::1') : known.address
    const socket = connect({ host, port, allowHalfOpen: true, noDelay: true })
    socket.on('error', () => undefined)
    this.#sockets.add(socket)
    this.record.connected(this.#sockets.size)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      this.record.connected(this.#sockets.size)
    })
    return socket
  }

  #greets(socket: Socket): boolean {
    const bytes = socket.read() as Buffer | null
    if (bytes === null) return false
    socket.unshift(bytes)
    return bytes.length >= GREETING.length && bytes.subarray(0, GREETING.length).equals(GREETING)
  }

  /** Asks the new QEMU for its exports and tells the source. False when it does not speak plain NBD with us. */
  async #nbd(port: number, socket: Socket): Promise<boolean> {
    let exports: ExportInfo[]
    try {
      exports = await inTime(socket, this.#clock, () => exportsOf(socket))
    } catch (error) {
      const text = errorText(error)
      const reason = /TLS/i.test(text)
        ? `QEMU encrypts the disk connection itself (--tls): passed through as it is`
        : `the disk connection is opaque: ${text}`
      this.record.reason ??= reason
      this.#log.warn({ error, port }, 'an NBD server that does not speak with us: passed through')
      await this.#options.call('opaque', { migrationId: this.id, port, reason }).catch(() => undefined)
      return false
    }
    for (const { name } of exports) this.#exported.add(this.#options.targetOf(name))
    await this.#mustBeFilled()
    this.record.accelerated = true
    await this.#options.call('classify', { migrationId: this.id, port, exports })
    return true
  }

  #pass(socket: Socket, stream: Duplex): void {
    const counts: Counts = { toStream: 0, fromStream: 0 }
    this.record.addStream(counts)
    void passThrough(socket, stream, counts, slowLink(this.#ram!))
  }

  // ---- disks -------------------------------------------------------------------------------------------------

  #opened(message: DiskMessage): DiskEndpoint | undefined {
    if (message.type !== 'open') return undefined
    if (this.#opening.has(message.disk) || this.#opening.size >= MIGRATION_DISKS_MAX) {
      throw new ProtocolError(`OPEN of disk ${message.disk}: it was opened before, or there are too many`)
    }
    this.#opening.add(message.disk)
    const { disk, epoch, port, exportName } = message
    void this.#open(disk, epoch, port, exportName).then(
      () => this.#answer(disk, epoch, 0, ''),
      (error: unknown) => {
        this.#log.warn({ error, export: exportName }, 'a disk could not be opened')
        this.#answer(disk, epoch, EIO, errorText(error))
      },
    )
    return { onMessage: () => undefined, onLost: () => undefined }
  }

  #answer(disk: number, epoch: number, errno: number, text: string): void {
    void this.#disk?.send({ type: 'opened', disk, epoch, errno, text }, CLASS_CONTROL).catch(() => undefined)
  }

  async #open(disk: number, epoch: number, port: number, exportName: string): Promise<void> {
    const socket = this.#connect(port)
    await connected(socket, port, this.#clock)
    const device = await inTime(socket, this.#clock, async () => {
      const negotiation = await negotiateNbd(socket)
      return await negotiation.go(exportName)
    })
    const account = new DiskAccount(this.#options.targetOf(exportName), device.size)
    const own = this.targets
    const { uuid } = this.#options
    const isSalvage = (path: string): boolean => isSalvageOf(path, uuid, account.target)
    const link = this.#disk!
    const { proofs } = this.#options
    this.record.unproved = proofs === undefined ? 'verify is "off" here' : 'the far side proves nothing'
    const agreed = link.features.has(FEATURE_PROOF)
    const proof = agreed ? await proofs?.receiver(account.target, device) : undefined
    const receiver = new DiskReceiver({
      link,
      disk,
      epoch,
      device: proof?.device ?? device,
      ...(proof === undefined ? {} : { proof }),
      account,
      sources: [new StockSource(this.#options.stock, own, isSalvage)],
      blockPlaces: [new StockBlocks(this.#options.stock, (path) => own.has(path) || isSalvage(path))],
      memory: this.#options.memory,
      // Twice what a disk of average chunks has.
      sessionEntriesMax: Math.min(SESSION_ENTRIES_MAX, Math.ceil(device.size / (32 * KIB))),
      budget: this.#budget,
      arrivals: this.#options.arrivals,
      onEnd: (error) => {
        if (error !== undefined) {
          this.record.error ??= errorText(error)
          this.record.disproved ||= isDisproof(error)
          this.#log.warn({ error, export: exportName }, 'the disk session ended with an error')
        }
      },
    })
    this.record.addDisk(account, proof)
    // A large fragmented image takes longer: what is not known by then is read and compared.
    await Promise.race([
      receiver.scanTarget(),
      new Promise<void>((resolve) => void this.#clock.after(TARGET_SCAN_WAIT_MS, resolve)),
    ])
  }

  // ---- the end -----------------------------------------------------------------------------------------------

  /** Once; who asks again waits for the same end. */
  async #finish(): Promise<void> {
    if (this.#ended) return await this.#finishing
    this.#ended = true
    this.#finishing = this.#end()
    await this.#finishing
  }

  async #end(): Promise<void> {
    await this.record.measure()
    for (const bundle of this.#bundles) void bundle.close().catch(() => undefined)
    for (const socket of this.#sockets) socket.destroy()
    const state =
      this.record.error === null ? await this.#options.outcome().catch(() => 'unknown' as const) : 'gone'
    await this.#close(state)
  }

  async #close(state: 'here' | 'gone' | 'unknown'): Promise<void> {
    if (state !== 'gone') this.record.downtimeMs = await this.#options.downtimeMs().catch(() => null)
    this.record.finish(state === 'here' ? 'done' : 'failed')
    if (this.record.phase === 'failed') this.record.error ??= this.#withProblem('the guest did not arrive')
    void this.#options.proofs?.end(this.record.phase === 'done')
    this.#options.onEnd(this)
    // The source knows that its guest is gone, and not whether it left or died. Past SWAM it judges by itself.
    if (this.#direct) return
    if (state === 'here') await this.#options.call('arrived', { migrationId: this.id }).catch(() => undefined)
    else await this.#tellStopped(this.record.error ?? 'the guest did not arrive')
  }

  /** Everything is dropped now. One whose end is being looked into stays what it was: the guest may have left already. */
  async abort(reason: string): Promise<void> {
    if (this.#ended && !this.#watching) return
    this.record.error ??= reason
    this.#watched('unknown')
    await Promise.allSettled(this.#bundles.map((bundle) => bundle.close(new LostError(reason))))
    await this.#finish()
  }
}

function resolved(path: string): string {
  try {
    return realpathSync(path)
  } catch {
    return path
  }
}

async function exportsOf(socket: Socket): Promise<ExportInfo[]> {
  const negotiation = await negotiateNbd(socket)
  const names = await negotiation.list()
  const exports: ExportInfo[] = []
  for (const name of names.slice(0, MIGRATION_DISKS_MAX)) {
    const { size, blockSizes } = await negotiation.info(name)
    exports.push({ name, size, blockSizes })
  }
  await negotiation.abort()
  return exports
}

/** A new QEMU that greets and then says nothing must not hold a disk, and who waits for it, for ever. */
async function inTime<Result>(
  socket: Socket,
  clock: Clock,
  handshake: () => Promise<Result>,
): Promise<Result> {
  let late = false
  const cancel = clock.after(NBD_HANDSHAKE_MS, () => {
    late = true
    socket.destroy()
  })
  try {
    return await handshake()
  } catch (error) {
    if (!late) throw error
    const text = `NBD handshake with the new QEMU: not done in ${NBD_HANDSHAKE_MS} ms`
    throw new TimeoutError(text, { cause: error })
  } finally {
    cancel()
  }
}

function connected(socket: Socket, port: number, clock: Clock): Promise<void> {
  return new Promise((resolve, reject) => {
    const cancel = clock.after(QEMU_CONNECT_MS, () => {
      socket.destroy()
      reject(
        new TimeoutError(`connect to port ${port} of the new QEMU: not connected in ${QEMU_CONNECT_MS} ms`),
      )
    })
    socket.once('connect', () => {
      cancel()
      resolve()
    })
    socket.once('close', () => {
      cancel()
      reject(new LostError(`connect to port ${port} of the new QEMU: refused or closed`))
    })
  })
}

/** Waits for the first byte of either side, and consumes nothing. */
function whoSpeaksFirst(server: Socket, client: Duplex): Promise<'server' | 'client'> {
  return new Promise((resolve, reject) => {
    const decide = (): void => {
      // Both at once: the client did not wait for a greeting, so it expects none.
      if (client.readableLength > 0) done(() => resolve('client'))
      else if (server.readableLength > 0) done(() => resolve('server'))
    }
    const gone = (): void => done(() => reject(new LostError('the connection ended before anybody spoke')))
    const done = (then: () => void): void => {
      server.off('readable', decide)
      client.off('readable', decide)
      server.off('close', gone)
      client.off('close', gone)
      then()
    }
    server.on('readable', decide)
    client.on('readable', decide)
    server.on('close', gone)
    client.on('close', gone)
    decide()
  })
}
