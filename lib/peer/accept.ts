/**
 * The daemon's peer socket: takes channels from swam-peer (the forced command), groups those of one bundle, and gives
 * the bundle when it is whole. Who the peer is stands in the preamble that swam-peer writes, from its own command line;
 * what comes after it is from the far host, and hostile until it parsed. Half-open bundles are bounded in number and
 * time. The listener does not own the bundles that it gave away.
 */
import { chmod, lstat, unlink } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { errorText, ProtocolError, RefusedError, SwamError, TimeoutError } from '../core/errors.ts'
import {
  BUNDLES_MAX,
  CHANNELS_MAX,
  HALF_OPEN_BUNDLES_MAX,
  HALF_OPEN_MS_MAX,
  IN_FLIGHT_BYTES_MAX,
  PEER_BUNDLES_MAX,
  PEER_HALF_OPEN_BUNDLES_MAX,
  PREAMBLE_BYTES_MAX,
} from '../core/limits.ts'
import { commonFeatures, type Hello, PROTOCOL_VERSION } from '../wire/hello.ts'
import { Bundle } from './bundle.ts'
import { FrameChannel } from './channel.ts'
import { receiveHello, refuse, sendHello } from './handshake.ts'
import type { BundleConnection, BundleTuning } from './options.ts'
import { parsePreamble, readPreamble } from './preamble.ts'

export interface PeerListenerOptions extends BundleTuning {
  /** Path of the unix socket; made with mode 0600. */
  readonly path: string
  readonly localName: string
  readonly features?: readonly string[]
  /** Which start of this daemon this is: 32 hex digits. */
  readonly instance?: string
  readonly halfOpenMs?: number
  readonly bundlesMax?: number
  readonly onBundle: (bundle: Bundle) => void
  /** Somebody came and was not taken; for the log. */
  readonly onRefused?: (peer: string, error: Error) => void
}

interface Group {
  readonly key: string
  readonly hello: Hello
  readonly peer: string
  /** The bundle whose lost link these channels are to replace. */
  readonly resumed: Bundle | undefined
  readonly channels: (FrameChannel | undefined)[]
  readonly connections: BundleConnection[]
  readonly timer: NodeJS.Timeout
}

export class PeerListener {
  readonly path: string
  readonly #options: PeerListenerOptions
  readonly #server: Server
  readonly #pending = new Set<Socket>()
  readonly #groups = new Map<string, Group>()
  readonly #bundles = new Map<string, Bundle>()

  private constructor(options: PeerListenerOptions) {
    this.path = options.path
    this.#options = options
    this.#server = createServer((socket) => this.#accept(socket))
  }

  static async listen(options: PeerListenerOptions): Promise<PeerListener> {
    await removeStaleSocket(options.path)
    const listener = new PeerListener(options)
    const server = listener.#server
    await new Promise<void>((resolve, reject) => {
      server.once('error', reject)
      // bind() happens within this call: the socket is never there with a wider mode.
      const mask = process.umask(0o177)
      try {
        server.listen({ path: options.path }, () => {
          server.off('error', reject)
          resolve()
        })
      } finally {
        process.umask(mask)
      }
    })
    await chmod(options.path, 0o600)
    return listener
  }

  /** Takes no more channels and drops half-open bundles. Whole ones go on. Idempotent. */
  async close(): Promise<void> {
    for (const group of [...this.#groups.values()])
      this.#drop(group, new RefusedError('this swamd is going down'))
    for (const socket of this.#pending) socket.destroy()
    if (!this.#server.listening) return
    // 'close' of a server waits for its connections, which belong to bundles: do not wait for it.
    this.#server.close()
    await unlink(this.path).catch(() => undefined)
  }

  #accept(socket: Socket): void {
    socket.on('error', () => socket.destroy())
    if (this.#pending.size >= HALF_OPEN_BUNDLES_MAX * CHANNELS_MAX) {
      socket.destroy()
      this.#refused('', new RefusedError(`${this.#pending.size} channels are half open already`))
      return
    }
    this.#pending.add(socket)
    const halfOpenMs = this.#options.halfOpenMs ?? HALF_OPEN_MS_MAX
    const timer = setTimeout(() => socket.destroy(), halfOpenMs)
    socket.once('close', () => this.#pending.delete(socket))
    void this.#introduce(socket)
      .catch((error: unknown) => {
        socket.destroy()
        this.#refused('', error)
      })
      .finally(() => {
        clearTimeout(timer)
        this.#pending.delete(socket)
      })
  }

  async #introduce(socket: Socket): Promise<void> {
    const { line, rest } = await readPreamble(socket, PREAMBLE_BYTES_MAX)
    const { peer, connection } = parsePreamble(line)
    const channel = new FrameChannel(socket, rest)
    try {
      this.#join(peer, connection, channel, await receiveHello(channel))
    } catch (error) {
      refuse(channel, error)
      this.#refused(peer, error)
    }
  }

  #join(peer: string, connection: BundleConnection | undefined, channel: FrameChannel, hello: Hello): void {
    const known = this.#bundles.get(`${peer} ${hello.bundle}`)
    if (hello.resume !== undefined && known === undefined) {
      throw new RefusedError(`bundle ${hello.bundle} is not known here any more`)
    }
    if (hello.resume === undefined && known !== undefined) {
      throw new ProtocolError(`bundle ${hello.bundle} is complete already`)
    }
    // A try to resume is a group of its own: channels of an earlier try may still be on their way.
    const key = `${peer} ${hello.bundle} ${hello.resume?.attempt ?? 0}`
    const group = this.#groups.get(key) ?? this.#newGroup(key, peer, hello, known)
    try {
      for (const field of ['kind', 'channels', 'migration'] as const) {
        if (hello[field] !== group.hello[field]) {
          throw new ProtocolError(
            `bundle ${hello.bundle}: channel ${hello.channel} says ${field} ${hello[field]}, another one said ${group.hello[field]}`,
          )
        }
      }
      if (hello.resume?.deliveredBytes !== group.hello.resume?.deliveredBytes) {
        throw new ProtocolError(`bundle ${hello.bundle}: its channels tell different delivered bytes`)
      }
      if (known !== undefined && (known.kind !== hello.kind || known.migrationId !== hello.migration)) {
        throw new ProtocolError(`bundle ${hello.bundle}: it is resumed as another one`)
      }
      if (group.channels[hello.channel] !== undefined) {
        throw new ProtocolError(`bundle ${hello.bundle}: channel ${hello.channel} came twice`)
      }
    } catch (error) {
      this.#drop(group, error)
      throw error
    }
    group.channels[hello.channel] = channel
    if (connection !== undefined && !group.connections.some((known) => sameConnection(known, connection))) {
      group.connections.push(connection)
    }
    if (group.channels.every((member) => member !== undefined)) this.#complete(group)
  }

  #newGroup(key: string, peer: string, hello: Hello, resumed: Bundle | undefined): Group {
    if (this.#groups.size >= HALF_OPEN_BUNDLES_MAX) {
      throw new RefusedError(`${this.#groups.size} bundles are half open already`)
    }
    // After a break all bundles come back at once: those are known, and bounded by themselves.
    const isNew = (group: Group): boolean => group.peer === peer && group.resumed === undefined
    const halfOpen = resumed === undefined ? [...this.#groups.values()].filter(isNew).length : 0
    if (halfOpen >= PEER_HALF_OPEN_BUNDLES_MAX)
      throw new RefusedError(`${halfOpen} bundles of ${peer} are half open already`)
    const own = [...this.#bundles.keys()].filter((known) => known.startsWith(`${peer} `)).length
    if (resumed === undefined && own >= PEER_BUNDLES_MAX)
      throw new RefusedError(`${own} bundles of ${peer} are open already`)
    const bundlesMax = this.#options.bundlesMax ?? BUNDLES_MAX
    if (resumed === undefined && this.#bundles.size >= bundlesMax)
      throw new RefusedError(`${bundlesMax} bundles are open already`)
    const halfOpenMs = this.#options.halfOpenMs ?? HALF_OPEN_MS_MAX
    const group: Group = {
      key,
      hello,
      peer,
      resumed,
      channels: new Array<FrameChannel | undefined>(hello.channels).fill(undefined),
      connections: [],
      timer: setTimeout(() => {
        const error = new TimeoutError(
          `bundle ${hello.bundle}: its ${hello.channels} channels did not come in ${halfOpenMs} ms`,
        )
        this.#drop(group, error)
        this.#refused(peer, error)
      }, halfOpenMs),
    }
    this.#groups.set(key, group)
    return group
  }

  #complete(group: Group): void {
    clearTimeout(group.timer)
    this.#groups.delete(group.key)
    const { localName, features = [], instance = '', onBundle, ...tuning } = this.#options
    const channels = group.channels as FrameChannel[]
    const window = group.resumed === undefined ? tuning.windows?.take(group.hello.kind) : undefined
    const answer = {
      ...group.hello,
      version: PROTOCOL_VERSION,
      name: localName,
      features,
      windowBytes: group.resumed?.windowBytes ?? window?.bytes ?? IN_FLIGHT_BYTES_MAX,
      instance,
    }
    if (group.resumed !== undefined) {
      this.#resume(group.resumed, answer, channels, group.connections)
      return
    }
    for (const [channel, each] of channels.entries()) sendHello(each, { ...answer, channel })
    const bundle = new Bundle({
      ...tuning,
      id: group.hello.bundle,
      kind: group.hello.kind,
      peer: group.peer,
      migrationId: group.hello.migration,
      features: commonFeatures(features, group.hello.features),
      dialed: false,
      channels,
      connections: group.connections,
      ...(window === undefined ? {} : { window }),
      peerWindowBytes: group.hello.windowBytes,
      peerInstance: group.hello.instance,
    })
    const key = `${group.peer} ${group.hello.bundle}`
    this.#bundles.set(key, bundle)
    void bundle.closed.then(() => this.#bundles.delete(key))
    onBundle(bundle)
  }

  #resume(
    bundle: Bundle,
    answer: Omit<Hello, 'channel'>,
    channels: readonly FrameChannel[],
    connections: readonly BundleConnection[],
  ): void {
    const { attempt, deliveredBytes } = answer.resume!
    let delivered: number
    try {
      delivered = bundle.suspend()
    } catch (error) {
      for (const channel of channels) refuse(channel, error)
      this.#refused(bundle.peer, error)
      return
    }
    const resume = { attempt, deliveredBytes: delivered }
    for (const [channel, each] of channels.entries()) sendHello(each, { ...answer, channel, resume })
    bundle.resumeOver({ channels, connections, peerDeliveredBytes: deliveredBytes })
  }

  #drop(group: Group, error: unknown): void {
    clearTimeout(group.timer)
    this.#groups.delete(group.key)
    for (const channel of group.channels) if (channel !== undefined) refuse(channel, error)
  }

  #refused(peer: string, error: unknown): void {
    this.#options.onRefused?.(
      peer,
      error instanceof Error ? error : new SwamError('SWAM_FAILED', errorText(error)),
    )
  }
}

function sameConnection(one: BundleConnection, other: BundleConnection): boolean {
  return (
    one.remotePort === other.remotePort &&
    one.remoteAddress === other.remoteAddress &&
    one.localPort === other.localPort &&
    one.localAddress === other.localAddress
  )
}

/** A socket that nobody listens on was left by a daemon that died. Anything else at that path is not ours to remove. */
async function removeStaleSocket(path: string): Promise<void> {
  const found = await lstat(path).catch(() => undefined)
  if (found === undefined) return
  if (!found.isSocket()) throw new RefusedError(`peer socket ${path}: something that is no socket lies there`)
  const alive = await new Promise<boolean>((resolve) => {
    const probe = connect({ path })
    probe.on('connect', () => {
      probe.destroy()
      resolve(true)
    })
    probe.on('error', () => resolve(false))
  })
  if (alive) throw new RefusedError(`peer socket ${path}: another swamd listens on it`)
  await unlink(path)
}
