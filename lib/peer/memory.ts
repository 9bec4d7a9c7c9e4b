/**
 * Two bundles linked in memory, for `swam analyze` and for tests of what stands on them: the real hello, frames and pacing
 * over duplex pairs, with a link of a given one-way delay and rate where one is asked for.
 */
import { randomBytes } from 'node:crypto'
import { Duplex, duplexPair } from 'node:stream'
import { LostError, RefusedError } from '../core/errors.ts'
import { IN_FLIGHT_BYTES_MAX } from '../core/limits.ts'
import { type BundleKind, commonFeatures, type Hello, PROTOCOL_VERSION } from '../wire/hello.ts'
import { Bundle } from './bundle.ts'
import { FrameChannel } from './channel.ts'
import { greet, receiveHello, sendHello } from './handshake.ts'
import type { BundleTuning, ResumedLink, ResumeRequest } from './options.ts'

export interface MemoryOptions extends BundleTuning {
  readonly kind?: BundleKind
  readonly migrationId?: string
  readonly channels?: number
  readonly features?: readonly string[]
  readonly acceptorFeatures?: readonly string[]
  /** One way. */
  readonly delayMs?: number
  /** Of each direction. */
  readonly bytesPerSecond?: number
}

export interface MemoryPair {
  /** The end that dialed, and the end that was dialed. */
  readonly near: Bundle
  readonly far: Bundle
  /** Cuts the link: both ends lose the bundle, or resume it where both have the feature. */
  cut(): void
  /** From now on new links fail, or come up again. */
  setDown(down: boolean): void
}

export async function bundlePair(options: MemoryOptions = {}): Promise<MemoryPair> {
  const count = options.channels ?? 2
  const migrationId = options.migrationId ?? ''
  const kind = options.kind ?? 'disk'
  const id = randomBytes(16).toString('hex')
  const pairs = linkedPairs(count, options)
  const near = pairs.map(([side]) => new FrameChannel(side))
  const far = pairs.map(([, side]) => new FrameChannel(side))
  const hello = (name: string, channel: number, features: readonly string[]): Hello => ({
    version: PROTOCOL_VERSION,
    bundle: id,
    kind,
    channel,
    channels: count,
    name,
    migration: migrationId,
    features,
    windowBytes: IN_FLIGHT_BYTES_MAX,
    instance: '',
  })
  const nearFeatures = options.features ?? []
  const farFeatures = options.acceptorFeatures ?? nearFeatures
  const greeted = near.map((channel, index) => greet(channel, hello('near', index, nearFeatures)))
  await Promise.all(far.map((channel) => receiveHello(channel)))
  for (const [index, channel] of far.entries()) sendHello(channel, hello('far', index, farFeatures))
  await Promise.all(greeted)
  const shared = {
    ...options,
    id,
    kind,
    migrationId,
    features: commonFeatures(nearFeatures, farFeatures),
    connections: [],
    peerWindowBytes: IN_FLIGHT_BYTES_MAX,
  }
  let present = pairs
  let down = false
  const farBundle = new Bundle({ ...shared, peer: 'near', dialed: false, channels: far })
  const reconnect = async ({ deliveredBytes }: ResumeRequest): Promise<ResumedLink> => {
    await new Promise((resolve) => setTimeout(resolve, 2 * (options.delayMs ?? 0)))
    if (down) throw new LostError('the link is down')
    if (farBundle.ended) throw new RefusedError('the bundle is not known here any more')
    present = linkedPairs(count, options)
    const peerDeliveredBytes = farBundle.suspend()
    const [left, right] = [0, 1].map((side) => present.map((pair) => new FrameChannel(pair[side]!)))
    farBundle.resumeOver({ channels: right!, connections: [], peerDeliveredBytes: deliveredBytes })
    return { channels: left!, connections: [], peerDeliveredBytes }
  }
  return {
    near: new Bundle({ ...shared, peer: 'far', dialed: true, channels: near, reconnect }),
    far: farBundle,
    cut: () => {
      for (const pair of present) for (const side of pair) side.destroy()
    },
    setDown: (isDown) => {
      down = isDown
    },
  }
}

/** Pairs of streams that share one link, as the channels of one SSH connection share its TCP connection. */
export function linkedPairs(
  count: number,
  options: { readonly delayMs?: number; readonly bytesPerSecond?: number } = {},
): [Duplex, Duplex][] {
  const { delayMs = 0, bytesPerSecond = Number.POSITIVE_INFINITY } = options
  if (delayMs === 0 && bytesPerSecond === Number.POSITIVE_INFINITY) {
    return Array.from({ length: count }, () => duplexPair())
  }
  const there = new Link(delayMs, bytesPerSecond)
  const back = new Link(delayMs, bytesPerSecond)
  return Array.from({ length: count }, () => {
    const left: Duplex = linkEnd((bytes) => there.carry(() => right.push(bytes), bytes?.length ?? 0))
    const right: Duplex = linkEnd((bytes) => back.carry(() => left.push(bytes), bytes?.length ?? 0))
    return [left, right]
  })
}

function linkEnd(carry: (bytes: Buffer | null) => void): Duplex {
  return new Duplex({
    read: () => undefined,
    write: (bytes: Buffer, _encoding, done) => {
      carry(Buffer.from(bytes))
      done()
    },
    final: (done) => {
      carry(null)
      done()
    },
    destroy: (error, done) => {
      carry(null)
      done(error)
    },
  })
}

/** A queue with a rate, then a delay. */
class Link {
  readonly #delayMs: number
  readonly #bytesPerSecond: number
  readonly #carried: { at: number; arrive: () => void }[] = []
  #freeAt = 0
  #timer: NodeJS.Timeout | undefined

  constructor(delayMs: number, bytesPerSecond: number) {
    this.#delayMs = delayMs
    this.#bytesPerSecond = bytesPerSecond
  }

  carry(arrive: () => void, bytes: number): void {
    this.#freeAt = Math.max(this.#freeAt, performance.now()) + (bytes / this.#bytesPerSecond) * 1000
    this.#carried.push({ at: this.#freeAt + this.#delayMs, arrive })
    this.#wait()
  }

  #wait(): void {
    const first = this.#carried[0]
    if (first === undefined || this.#timer !== undefined) return
    this.#timer = setTimeout(
      () => {
        this.#timer = undefined
        const now = performance.now()
        while (this.#carried[0] !== undefined && this.#carried[0].at <= now) this.#carried.shift()!.arrive()
        this.#wait()
      },
      Math.max(0, first.at - performance.now()),
    )
  }
}
