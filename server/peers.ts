/**
 * The peers of this host: one control bundle to each, dialed by us and kept up, for what we ask as a destination; and
 * the control bundles that they dialed, on which we answer as a source. Dialing backs off (sshd punishes whoever
 * fails often), and is tried at once when a migration needs the peer.
 */
import { readFile } from 'node:fs/promises'
import { hostname } from 'node:os'
import type { PeerConfig } from '../config/schema.ts'
import { type Clock, systemClock } from '../lib/core/clock.ts'
import { AbsentError, errorText, LostError, TimeoutError } from '../lib/core/errors.ts'
import {
  CHANNELS_MAX,
  LONG_LINK_MS,
  PEER_BACKOFF_MS_MAX,
  PEER_BACKOFF_MS_MIN,
  PEER_CALL_MS,
} from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import type { Bundle } from '../lib/peer/bundle.ts'
import type { BundleTuning } from '../lib/peer/options.ts'
import type { RateLimit } from '../lib/peer/rate-limit.ts'
import { Rpc, type RpcHandler } from '../lib/peer/rpc.ts'
import { dialBundle } from '../lib/peer/ssh.ts'
import type { WindowPool } from '../lib/peer/windows.ts'
import { ENGINE_FEATURES } from '../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../lib/wire/disk-proof.ts'
import { FEATURE_RESUME, FEATURE_WIDE_STREAM } from '../lib/wire/hello.ts'
import { aboutOf, failedAbout, type PeerAbout } from './about.ts'
import { type LinkTestReport, type LinkTests, roundTrip } from './link-test.ts'
import type { PeerReport } from './report.ts'

/**
 * Enough channels that windows of 2 MiB do not limit a 100 ms link (four: 80 MB/s), few because each costs the far side
 * a process start of some 80 ms.
 */
const CHANNELS = { control: 1, disk: 4, ram: 4 } as const
/** From LONG_LINK_MS on: windows of 2 MiB carry 1 to 1.5 in a round trip, and one TCP connection some 3. */
const LONG_LINK = { channels: CHANNELS_MAX, connections: 2 } as const

/** What all bundles of this host have in common. */
export interface OwnEnd {
  /** Drawn by each start of the daemon. */
  readonly instance: string
  /** How long a broken link may take to be resumed. */
  readonly resumeMs: number
  /** What all that this host sends shares, if there is a cap. */
  readonly rateLimit: RateLimit | undefined
  /** What the bundles share of memory. */
  readonly windows: WindowPool
  readonly linkTests: LinkTests
  /** Whether maps of disks are kept: verify is not "off". */
  readonly proofs?: boolean
}

/** What this end knows of the transfer of disks. */
export function diskFeatures(own: OwnEnd): string[] {
  return own.proofs === true ? [...ENGINE_FEATURES, FEATURE_PROOF] : [...ENGINE_FEATURES]
}

/** A control bundle is simply dialed anew; what a migration has under way is resumed. */
export function bundleTuning(own: OwnEnd): BundleTuning {
  return {
    resumeMs: own.resumeMs,
    windows: own.windows,
    ...(own.rateLimit === undefined ? {} : { rateLimit: own.rateLimit }),
  }
}

export class Peer {
  readonly config: PeerConfig
  readonly #log: Log
  readonly #own: OwnEnd
  #bundle: Bundle | undefined
  #rpc: Rpc | undefined
  #dialing: Promise<Rpc> | undefined
  #backoffMs = PEER_BACKOFF_MS_MIN
  readonly #clock: Clock
  #cancel: () => void = () => undefined
  #error: string | null = null
  #closed = false

  constructor(config: PeerConfig, log: Log, own: OwnEnd, clock: Clock = systemClock) {
    this.#clock = clock
    this.config = config
    this.#log = log
    this.#own = own
  }

  get connected(): boolean {
    return this.#rpc !== undefined
  }

  /** Dials, and goes on dialing. */
  start(): void {
    void this.#connect().catch(() => undefined)
  }

  /** Calls the peer's daemon; dials first when there is no connection. */
  async call(method: string, params: object, timeoutMs: number = PEER_CALL_MS): Promise<unknown> {
    const deadline = AbortSignal.timeout(timeoutMs)
    const rpc = await Promise.race([
      this.#connect(),
      new Promise<never>((_resolve, reject) => {
        deadline.addEventListener('abort', () =>
          reject(new TimeoutError(`${method} at ${this.config.name}: not connected in ${timeoutMs} ms`)),
        )
      }),
    ])
    return await rpc.call(method, params, { timeoutMs })
  }

  /** What it says of itself and of us, and how its clock differs from ours. */
  async about(ownName: string): Promise<PeerAbout> {
    const { name } = this.config
    try {
      const rpc = await this.#connect()
      const { clockMs } = await roundTrip(rpc)
      return { name, about: aboutOf(await rpc.call('about', { name: ownName })), clockMs, error: null }
    } catch (error) {
      return failedAbout(name, error)
    }
  }

  /** Measures the link over the control bundle. */
  async test(release: string): Promise<LinkTestReport> {
    const rpc = await this.#connect()
    const bundle = this.#bundle
    if (bundle === undefined) throw new LostError(`${this.config.name}: the connection is lost`)
    return await this.#own.linkTests.run(bundle, rpc, release)
  }

  async dial(kind: 'control' | 'disk' | 'ram', migrationId: string): Promise<Bundle> {
    const { ssh, addresses, name } = this.config
    const link = {
      channels: CHANNELS[kind],
      connections: 1,
      ...(kind !== 'control' && this.#isFar ? LONG_LINK : {}),
    }
    const bundle = await dialBundle({
      addresses,
      port: ssh.port,
      user: ssh.user,
      privateKey: await readFile(ssh.key, 'utf8'),
      hostKey: ssh.hostKey,
      kind,
      migrationId,
      ...link,
      localName: hostname(),
      peer: name,
      features: [
        ...(kind === 'control' || this.#own.resumeMs === 0 ? [] : [FEATURE_RESUME]),
        ...(kind === 'disk' ? diskFeatures(this.#own) : []),
        ...(kind === 'ram' ? [FEATURE_WIDE_STREAM] : []),
      ],
      instance: this.#own.instance,
      ...bundleTuning(this.#own),
    })
    const { length: connections } = bundle.connections
    if (connections < link.connections)
      this.#log.warn(
        { peer: name, kind, connections, wanted: link.connections },
        'SSH gave fewer connections',
      )
    return bundle
  }

  get #isFar(): boolean {
    return (this.#bundle?.rttMs.min ?? 0) >= LONG_LINK_MS
  }

  /**
   * Whether that start of the far daemon is still there. `unknown` while it cannot be reached; a daemon that began anew, or
   * none behind a far sshd that answers, has lost every migration.
   */
  async lives(instance: string): Promise<'yes' | 'no' | 'unknown'> {
    if (instance === '') return 'unknown'
    try {
      await this.#connect()
      return this.#bundle?.peerInstance === instance ? 'yes' : 'no'
    } catch (error) {
      return error instanceof AbsentError ? 'no' : 'unknown'
    }
  }

  async #connect(): Promise<Rpc> {
    if (this.#closed) throw new LostError('the daemon is ending')
    if (this.#rpc !== undefined) return this.#rpc
    this.#dialing ??= this.#dialControl().finally(() => {
      this.#dialing = undefined
    })
    return await this.#dialing
  }

  async #dialControl(): Promise<Rpc> {
    this.#cancel()
    try {
      const bundle = await this.dial('control', '')
      const rpc = new Rpc(bundle, {
        other: (type, payload) => this.#own.linkTests.frame(bundle, type, payload),
      })
      this.#bundle = bundle
      this.#rpc = rpc
      this.#error = null
      this.#backoffMs = PEER_BACKOFF_MS_MIN
      this.#log.info({ peer: this.config.name }, 'connected to the peer')
      void bundle.closed.then((error) => {
        this.#rpc = undefined
        this.#bundle = undefined
        this.#error = errorText(error ?? 'it closed the connection')
        this.#log.warn({ peer: this.config.name, error }, 'the connection to the peer is lost')
        this.#again()
      })
      return rpc
    } catch (error) {
      if (this.#error !== errorText(error)) {
        this.#log.warn({ peer: this.config.name, error }, 'the peer cannot be reached')
      }
      this.#error = errorText(error)
      this.#again()
      throw error
    }
  }

  #again(): void {
    if (this.#closed) return
    this.#cancel()
    this.#cancel = this.#clock.after(this.#backoffMs, () => this.start())
    this.#backoffMs = Math.min(PEER_BACKOFF_MS_MAX, this.#backoffMs * 2)
  }

  report(): PeerReport {
    const rttMs = this.#bundle?.rttMs.smoothed
    return {
      name: this.config.name,
      site: this.config.site,
      address: this.config.addresses[0] ?? '',
      up: this.#rpc !== undefined,
      rttMs: rttMs === undefined ? null : Math.round(rttMs * 10) / 10,
      error: this.#error,
    }
  }

  async close(): Promise<void> {
    this.#closed = true
    this.#cancel()
    await this.#bundle?.close(new LostError('the daemon is ending'))
  }
}

/** Answers a peer's calls on a control bundle that it dialed. */
export function answerPeer(
  bundle: Bundle,
  handlers: Readonly<Record<string, (params: unknown, peer: string) => Promise<unknown>>>,
  linkTests: LinkTests,
): void {
  const rpc = new Rpc(bundle, { other: (type, payload) => linkTests.frame(bundle, type, payload) })
  for (const [method, handler] of Object.entries(linkTests.handlers(bundle))) rpc.handle(method, handler)
  for (const [method, handler] of Object.entries(handlers)) {
    const answer: RpcHandler = async (params) => await handler(params, bundle.peer)
    rpc.handle(method, answer)
  }
}
