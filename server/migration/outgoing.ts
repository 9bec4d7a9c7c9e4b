/**
 * An outgoing migration: what the source's daemon does for one guest that another host is about to receive. The far
 * side announces it and dials the disk and RAM bundles; when its QEMU listens it reports the ports, and only then, and
 * only for those ports, connections are caught. Each listener belongs to exactly one far port of one migration.
 *
 * Who speaks first tells what a port is: an NBD server does, QEMU's RAM stream is client-first. So the first connection
 * to a port goes to the far side as a plain stream; when the far side sees an NBD greeting it says so (`classify`),
 * and from then on connections of that port are served by our own NBD server over the engine. Nothing is probed.
 *
 * It ends when every connection is gone and libvirt says where the guest is, or when either bundle is lost.
 */
import { randomInt } from 'node:crypto'
import { createServer, type Server, type Socket } from 'node:net'
import { viewOf } from '../../lib/block/view.ts'
import { type Clock, systemClock } from '../../lib/core/clock.ts'
import { errorText, LostError, RefusedError } from '../../lib/core/errors.ts'
import {
  FAR_ASK_MS,
  MIGRATION_ANNOUNCED_MS,
  MIGRATION_CAUGHT_PORTS_MAX,
  MIGRATION_IDLE_MS,
  MIGRATION_LINGER_MS,
  OUTCOME_HEARD_MS,
  RAM_AFTER_FLUSH_MS,
  REFUSAL_HEARD_MS,
} from '../../lib/core/limits.ts'
import type { Log } from '../../lib/core/log.ts'
import { DiskAccount } from '../../lib/engine/account.ts'
import { DiskLink } from '../../lib/engine/link.ts'
import { DiskSender } from '../../lib/engine/sender.ts'
import { SenderGroup } from '../../lib/engine/sender-group.ts'
import { isDisproof } from '../../lib/engine/sender-proof.ts'
import {
  REDIRECT_LISTEN_ADDRESS_4,
  REDIRECT_LISTEN_ADDRESS_6,
  type RedirectEntry,
} from '../../lib/host/redirect.ts'
import { serveNbd } from '../../lib/nbd/server.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import { StreamMux } from '../../lib/peer/stream.ts'
import { RamPace } from '../../lib/ram/pace.ts'
import { type Counts, passThrough, slowLink } from '../../lib/ram/passthrough.ts'
import { FEATURE_PROOF } from '../../lib/wire/disk-proof.ts'
import { Door } from './door.ts'
import type { ExportInfo, OutgoingOptions } from './outgoing-options.ts'
import { MigrationRecord } from './record.ts'
import { relay } from './relay.ts'

interface Port {
  readonly port: number
  readonly listenPort: number
  readonly servers: Server[]
  kind: 'unknown' | 'nbd' | 'stream'
  exports: readonly ExportInfo[]
  /** Connections whose kind is not known yet; the first one's stream is with the far side. */
  undecided: Set<() => void>
}

/** Behind the reason of a failure: what became of the guest. */
const WHERE = {
  here: 'libvirt gave the migration up, the guest runs on here',
  gone: 'the guest ended here (destroyed or shut down)',
  unknown: 'libvirt does not say where the guest is',
  undecided: null,
} as const

export class OutgoingMigration {
  readonly record: MigrationRecord
  readonly #options: OutgoingOptions
  readonly #log: Log
  readonly #door: Door
  readonly #clock: Clock
  readonly #ports = new Map<number, Port>()
  readonly #sockets = new Set<Socket>()
  readonly #group = new SenderGroup(
    () => this.record.phase === 'ready',
    () => this.#flushAsked(),
  )
  readonly #paces = new Set<RamPace>()
  readonly #senders = new Map<string, { sender: Promise<DiskSender>; users: number }>()
  #disk: { bundle: Bundle; link: DiskLink } | undefined
  #ram: { bundle: Bundle; mux: StreamMux } | undefined
  #nextDisk = 0
  #accepting: Promise<void> = Promise.resolve()
  #arming: Promise<void> = Promise.resolve()
  /** Cancels what is waited for. */
  #cancel: () => void = () => undefined
  #ended = false
  #direct = false
  #finishing: Promise<void> | undefined
  #watching = false
  /** What the far side says of the guest, and who waits for it. */
  readonly #verdict: { heard: 'arrived' | 'stopped' | undefined; tell: () => void; told: Promise<void> }

  constructor(options: OutgoingOptions) {
    const { promise: told, resolve: tell } = Promise.withResolvers<void>()
    this.#verdict = { heard: undefined, tell, told }
    this.#options = options
    this.#log = options.log
    this.#door = new Door(options)
    this.#clock = options.clock ?? systemClock
    this.record = new MigrationRecord({
      id: options.id,
      guest: options.guest,
      uuid: options.uuid,
      peer: options.peer,
      direction: 'out',
    })
    this.#wait(MIGRATION_ANNOUNCED_MS, 'the far side announced it and never armed it')
  }

  get id(): string {
    return this.#options.id
  }

  get peer(): string {
    return this.#options.peer
  }

  /** What has to be caught for this migration now. */
  get entries(): RedirectEntry[] {
    if (this.#ended) return []
    return [...this.#ports.values()].flatMap(({ port, listenPort }) =>
      this.#options.peerAddresses.map((address) => ({ address, port, listenPort })),
    )
  }

  /** Announced, and the far side has not opened all its channels yet. */
  get waitsForChannels(): boolean {
    return !this.#ended && (this.#disk === undefined || this.#ram === undefined)
  }

  /** A bundle that the far side dialed for this migration. */
  attach(bundle: Bundle): void {
    if (this.#ended) throw new RefusedError(`migration ${this.id} has ended`)
    if (bundle.kind === 'disk' && this.#disk === undefined) {
      this.#disk = { bundle, link: new DiskLink(bundle) }
    } else if (bundle.kind === 'ram' && this.#ram === undefined) {
      this.#ram = { bundle, mux: new StreamMux(bundle) }
    } else throw new RefusedError(`migration ${this.id} has a ${bundle.kind} bundle already`)
    this.record.addBundle(bundle)
    bundle.onBroken = (reason) => void this.#askFar(bundle, reason)
    void bundle.closed.then((error) => {
      if (this.#ended) return
      const loss = `the ${bundle.kind} channel to ${this.peer} was lost: ${errorText(error ?? 'closed by it')}`
      // Nothing is caught before it is armed: libvirt goes on without us.
      if (this.#ports.size === 0) {
        void this.goDirect(loss)
        return
      }
      this.record.error ??= loss
      void this.#finish()
    })
  }

  /**
   * The far end makes the new link, so here nothing tells a daemon that died from a link that broke: its control socket
   * does. A daemon that lost the migration is a loss at once, not only when the time to resume is up (I2). And a guest that
   * is paused to switch over must not stand still for that time either: it goes on at the source.
   */
  async #askFar(bundle: Bundle, reason: Error): Promise<void> {
    this.#log.warn({ error: reason, kind: bundle.kind }, 'the link broke: waiting for it to be resumed')
    let pausedAt: number | undefined
    while (bundle.broken && !bundle.ended && !this.#ended) {
      const [lives, paused] = await Promise.all([
        this.#options.farLives(bundle.peerInstance),
        this.#options.paused().catch(() => false),
      ])
      pausedAt = paused ? (pausedAt ?? performance.now()) : undefined
      const pausedMs = pausedAt === undefined ? 0 : performance.now() - pausedAt
      const long = pausedMs >= this.#options.limits.flushDeadlineMs
      if (lives === 'no' || long) {
        const why = long
          ? `the guest has been paused for ${Math.round(pausedMs)} ms of a broken link`
          : `the swamd of ${this.peer} is gone`
        if (bundle.broken) bundle.lost(new LostError(`${why} (${reason.message})`))
        return
      }
      await new Promise((resolve) => setTimeout(resolve, FAR_ASK_MS))
    }
    if (!bundle.broken && !bundle.ended) this.#log.info({ kind: bundle.kind }, 'the link was resumed')
  }

  /**
   * The far QEMU listens on these ports: make listeners for them. The caller arms the redirect for `entries`.
   * @param note why no disk may come, as far as the far side can know
   */
  async arm(ports: readonly number[], note: string | null = null): Promise<void> {
    if (this.#ended) throw new RefusedError(`migration ${this.id} has ended`)
    if (this.#disk === undefined || this.#ram === undefined) {
      throw new RefusedError(`migration ${this.id}: armed before its channels were there`)
    }
    // One call after the other: two at once for one port would both listen, and one listener would be nobody's.
    const made = this.#arming.then(() => this.#listenAll(ports))
    this.#arming = made.catch(() => undefined)
    await made
    this.record.note = note
    this.#waitForFirst()
  }

  /** Disks that go past us take hours before the memory comes: given up is only what libvirt does not work on. */
  #waitForFirst(): void {
    this.#cancel()
    // It may have ended while it was being armed.
    if (this.#ended) return
    this.#cancel = this.#clock.after(MIGRATION_IDLE_MS, async () => {
      const migrating = await this.#options.migrating()
      if (this.#ended || this.#sockets.size > 0 || this.record.accelerated) return
      // Who is at the door may be the one that is waited for.
      if (migrating || this.#door.waiting > 0) {
        this.#waitForFirst()
        return
      }
      this.record.error ??= 'no connection came within a minute of the redirect'
      void this.#finish()
    })
  }

  /** Nothing is caught: the migration goes on without us, and only its end is watched. */
  async goDirect(reason: string): Promise<void> {
    if (this.#ended) return
    this.#ended = true
    this.#watching = true
    this.record.reason ??= reason
    this.#direct = true
    this.#cancel()
    await Promise.allSettled([this.#closeDoors(), this.#disk?.bundle.close(), this.#ram?.bundle.close()])
    void this.#options
      .directOutcome()
      .catch(() => 'unknown' as const)
      .then((state) => this.#watched(state))
  }

  #watched(state: 'here' | 'gone' | 'unknown'): void {
    if (!this.#watching) return
    this.#watching = false
    this.#close(state)
  }

  /** What the far side found a port to be, before it answered anything on it. */
  classify(port: number, exports: readonly ExportInfo[]): void {
    const known = this.#ports.get(port)
    if (known === undefined)
      throw new RefusedError(`migration ${this.id}: port ${port} is not one of its ports`)
    if (known.kind === 'stream')
      throw new RefusedError(`migration ${this.id}: port ${port} carries a stream already`)
    known.kind = 'nbd'
    known.exports = exports
    this.record.accelerated = true
    for (const decided of [...known.undecided]) decided()
  }

  /** The far side cannot look into that port, for this reason: it carries a stream. */
  opaque(port: number, reason: string): void {
    const known = this.#ports.get(port)
    if (known === undefined)
      throw new RefusedError(`migration ${this.id}: port ${port} is not one of its ports`)
    this.record.reason ??= reason
  }

  /** The far side says that the guest is not there: it never started, or did not arrive. Nobody waits for the end. */
  stop(reason: string): void {
    if (this.#verdict.heard === undefined) {
      this.#verdict.heard = 'stopped'
      this.record.error ??= reason
      this.#verdict.tell()
    }
    void this.#finish()
  }

  /** The far side says that the guest runs there. */
  arrived(): void {
    this.#verdict.heard ??= 'arrived'
    this.#verdict.tell()
  }

  /** Nobody may be caught for a listener that is gone: he would be refused. */
  async #closeDoors(): Promise<void> {
    await this.#options.disarm()
    for (const port of this.#ports.values()) for (const server of port.servers) server.close()
  }

  // ---- listeners ---------------------------------------------------------------------------------------------

  async #listenAll(ports: readonly number[]): Promise<void> {
    const all = new Set([...this.#ports.keys(), ...ports])
    if (all.size > MIGRATION_CAUGHT_PORTS_MAX)
      throw new RefusedError(`migration ${this.id}: ${all.size} ports`)
    for (const port of all) {
      if (this.#ports.has(port)) continue
      const listening = await this.#listen(port)
      this.#ports.set(port, listening)
      if (!this.#ended) continue
      for (const server of listening.servers) server.close()
      throw new RefusedError(`migration ${this.id} has ended`)
    }
  }

  async #listen(port: number): Promise<Port> {
    for (let attempt = 0; ; attempt++) {
      const listenPort = this.#options.pickListenPort()
      const made: Port = { port, listenPort, servers: [], kind: 'unknown', exports: [], undecided: new Set() }
      try {
        made.servers.push(await this.#server(made, REDIRECT_LISTEN_ADDRESS_4, listenPort))
        if (this.#options.peerAddresses.some((address) => address.includes(':'))) {
          made.servers.push(await this.#server(made, REDIRECT_LISTEN_ADDRESS_6, listenPort))
        }
        return made
      } catch (error) {
        for (const server of made.servers) server.close()
        if (attempt >= 20) throw error
      }
    }
  }

  #server(port: Port, host: string, listenPort: number): Promise<Server> {
    return new Promise((resolve, reject) => {
      const server = createServer({ allowHalfOpen: true, noDelay: true }, (socket) =>
        this.#accept(port, socket),
      )
      server.once('error', reject)
      server.listen({ host, port: listenPort, ipv6Only: host.includes(':') }, () => {
        server.off('error', reject)
        server.on('error', (error) => this.#log.warn({ error }, 'listener failed'))
        resolve(server)
      })
    })
  }

  /** In the order of arrival: QEMU tells its parallel RAM connections apart by it. */
  #accept(port: Port, socket: Socket): void {
    socket.on('error', () => undefined)
    // The redirect catches libvirtd and QEMU only; a local user who finds the listener comes without it.
    const admitted = this.#door.admit(port.port, socket)
    this.#accepting = this.#accepting
      .then(() => this.#connection(port, socket, admitted))
      .catch((error: unknown) => {
        this.#log.warn({ error, port: port.port }, 'a connection cannot be carried')
        socket.destroy()
      })
  }

  async #connection(port: Port, socket: Socket, admitted: Promise<boolean>): Promise<void> {
    if (!(await admitted) || socket.destroyed || (this.#ended && !this.#direct)) {
      socket.destroy()
      return
    }
    if (this.#direct) {
      // nft takes seconds on a host that is very busy.
      this.#log.info({ port: port.port }, 'caught although the migration goes direct: it is passed on')
      await relay(socket, this.#options.peerAddresses, port.port)
      return
    }
    this.#sockets.add(socket)
    this.record.connected(this.#sockets.size)
    socket.once('close', () => {
      this.#sockets.delete(socket)
      this.record.connected(this.#sockets.size)
      this.#connectionGone()
    })
    this.#cancel()
    if (port.kind === 'nbd') void this.#serve(port, socket)
    else this.#stream(port, socket)
  }

  /** Until its kind is known a connection is a plain stream; it stays one when its own side speaks first. */
  #stream(port: Port, socket: Socket): void {
    const stream = this.#ram!.mux.open({ port: port.port })
    stream.on('error', () => undefined)
    if (port.kind === 'stream') {
      this.#pass(socket, stream)
      return
    }
    const undecide = (): void => {
      port.undecided.delete(nbd)
      socket.off('readable', first)
      socket.off('end', gone)
      stream.off('readable', first)
      stream.off('close', gone)
    }
    const nbd = (): void => {
      undecide()
      stream.destroy()
      void this.#serve(port, socket)
    }
    const first = (): void => {
      if (socket.readableLength === 0 && stream.readableLength === 0) return
      undecide()
      // Bytes of the client before any greeting: RAM, or something unknown.
      if (port.kind === 'unknown') port.kind = 'stream'
      if (port.kind === 'nbd') {
        stream.destroy()
        void this.#serve(port, socket)
      } else this.#pass(socket, stream)
    }
    const gone = (): void => {
      undecide()
      socket.resetAndDestroy()
      stream.destroy()
    }
    port.undecided.add(nbd)
    socket.on('readable', first)
    socket.on('end', gone)
    stream.on('readable', first)
    stream.on('close', gone)
    first()
  }

  #pass(socket: Socket, stream: ReturnType<StreamMux['open']>): void {
    const counts: Counts = { toStream: 0, fromStream: 0 }
    this.record.addStream(counts)
    const { bundle } = this.#ram!
    const pace = new RamPace({
      clock: this.#clock,
      linkRate: () => bundle.rateBytesPerSecond,
      onReleased: (heldMs, until) =>
        this.#log.info({ heldMs, until }, "the last of the guest's memory was taken slowly"),
    })
    this.#paces.add(pace)
    const worth = this.#options.compress ? slowLink(bundle, pace) : () => false
    void passThrough(socket, stream, counts, worth, pace).then(() => this.#paces.delete(pace))
    socket.resume()
    stream.resume()
  }

  /**
   * QEMU flushes the disks of a guest that it has paused. What is held up of its memory would stand before that FLUSH on the link, and
   * take the processor from both ends and from libvirt: on a fast link it can wait for both. @returns called when it is answered
   */
  #flushAsked(): () => void {
    const paces = [...this.#paces]
    const release = (): void => {
      for (const pace of paces) pace.release('flush')
    }
    const canWaitMs = (this.#ram?.bundle.roundTripMs ?? 0) + RAM_AFTER_FLUSH_MS
    if (paces.every((pace) => pace.drainsIn(canWaitMs)))
      return () => void this.#clock.after(RAM_AFTER_FLUSH_MS, release)
    release()
    return () => undefined
  }

  async #serve(port: Port, socket: Socket): Promise<void> {
    const opened: string[] = []
    try {
      await serveNbd(socket, {
        exports: {
          list: async () => port.exports.map(({ name }) => name),
          open: async (name) => {
            const info = port.exports.find((known) => known.name === name)
            if (info === undefined) return undefined
            const sender = await this.#sender(port, info)
            opened.push(name)
            return viewOf(sender)
          },
        },
      })
    } catch (error) {
      if (!this.#ended) this.#log.info({ error }, 'an NBD connection ended with an error')
    } finally {
      socket.destroy()
      for (const name of opened) this.#release(port, name)
    }
  }

  async #sender(port: Port, info: ExportInfo): Promise<DiskSender> {
    const key = `${port.port}/${info.name}`
    let entry = this.#senders.get(key)
    if (entry === undefined) {
      entry = { sender: this.#openSender(port.port, info), users: 0 }
      this.#senders.set(key, entry)
      entry.sender.catch(() => this.#senders.delete(key))
    }
    entry.users++
    return await entry.sender
  }

  async #openSender(port: number, info: ExportInfo): Promise<DiskSender> {
    const account = new DiskAccount(this.#options.targetOf(info.name), info.size)
    const { link } = this.#disk!
    const { proofs } = this.#options
    this.record.unproved = proofs === undefined ? 'verify is "off" here' : 'the far side proves nothing'
    const agreed = link.features.has(FEATURE_PROOF)
    const proof = agreed ? await proofs?.sender(account.target, info.size) : undefined
    const sender = new DiskSender({
      link,
      disk: this.#nextDisk++,
      epoch: randomInt(1, 2 ** 32),
      size: info.size,
      blockSizes: info.blockSizes,
      account,
      slabs: this.#options.slabs,
      describe: this.#options.describe,
      limits: this.#options.limits,
      versions: this.#options.versions,
      group: this.#group,
      ...(proof === undefined ? {} : { proof }),
      onLost: (error) => {
        this.record.error ??= errorText(error)
        this.record.disproved ||= isDisproof(error)
        this.#log.warn({ error, export: info.name }, 'the disk session is lost: QEMU gets an error')
      },
    })
    await sender.open(port, info.name)
    this.record.addDisk(account, proof)
    this.record.addSender(sender)
    return sender
  }

  #release(port: Port, name: string): void {
    const key = `${port.port}/${name}`
    const entry = this.#senders.get(key)
    if (entry === undefined) return
    entry.users--
    if (entry.users > 0) return
    this.#senders.delete(key)
    void entry.sender.then((sender) => sender.close()).catch(() => undefined)
  }

  // ---- the end -----------------------------------------------------------------------------------------------

  #wait(ms: number, reason: string): void {
    this.#cancel()
    this.#cancel = this.#clock.after(ms, () => {
      // Who is at the door may be the one that is waited for.
      if (this.#door.waiting > 0) {
        this.#wait(MIGRATION_LINGER_MS, reason)
        return
      }
      this.record.error ??= reason
      void this.#finish()
    })
  }

  #connectionGone(): void {
    if (this.#ended || this.#sockets.size > 0) return
    this.#cancel()
    this.#cancel = this.#clock.after(MIGRATION_LINGER_MS, () => {
      if (this.#door.waiting > 0) this.#connectionGone()
      else void this.#finish()
    })
  }

  /** Once; who asks again waits for the same end. */
  async #finish(): Promise<void> {
    if (this.#ended) return await this.#finishing
    this.#ended = true
    this.#finishing = this.#end()
    await this.#finishing
  }

  async #end(): Promise<void> {
    this.#cancel()
    void this.#closeDoors()
    const lost = this.record.error !== null
    for (const socket of this.#sockets) {
      if (lost) socket.resetAndDestroy()
      else socket.destroy()
    }
    await this.record.measure()
    // Both ends close at once: what the other one did not acknowledge any more may take seconds, and matters to nobody.
    void Promise.allSettled([this.#disk?.bundle.close(), this.#ram?.bundle.close()])
    // When the channels are lost libvirt has not decided yet, and the guest stays or goes down with its QEMU.
    const decided = !lost || this.#verdict.heard === 'stopped'
    const state = decided ? await this.#options.outcome().catch(() => 'unknown' as const) : 'undecided'
    // A guest that is gone has left or has died, one that is here was refused there: the far side knows.
    if (state === 'gone' && !lost) await this.#heard(OUTCOME_HEARD_MS)
    if (state === 'here' && !lost) await this.#heard(REFUSAL_HEARD_MS)
    this.#close(state)
  }

  #close(state: keyof typeof WHERE): void {
    const failed = this.record.error !== null || state !== 'gone'
    if (failed)
      this.record.error = [this.record.error, WHERE[state]].filter((text) => text !== null).join('; ')
    this.record.finish(failed ? 'failed' : 'done')
    void this.#options.proofs?.end(!failed)
    this.#options.onEnd(this)
  }

  async #heard(ms: number): Promise<void> {
    const cancel = this.#clock.after(ms, this.#verdict.tell)
    await this.#verdict.told
    cancel()
  }

  /** Everything is dropped now. One whose end is being looked into stays what it was: the guest may be coming back already. */
  async abort(reason: string): Promise<void> {
    if (this.#ended && !this.#watching) {
      this.#verdict.tell()
      return
    }
    this.record.error ??= reason
    this.#watched('unknown')
    await this.#disk?.bundle.close(new LostError(reason))
    await this.#ram?.bundle.close(new LostError(reason))
    await this.#finish()
  }
}
