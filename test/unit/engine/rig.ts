/**
 * A sender and a receiver joined in memory, over a device that tells what is durable from what was only written. The
 * channel delivers in order and later, by a seeded clock of microtask turns, so that replies and requests interleave.
 */

import {
  ALL_FEATURES,
  type BlockDevice,
  type BlockSizes,
  type DeviceFeatures,
  type StatusExtent,
} from '../../../lib/block/device.ts'
import { Describer } from '../../../lib/chunk/describer.ts'
import { hintOf } from '../../../lib/chunk/digest.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import type { Clock } from '../../../lib/core/clock.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { BLOCK_BYTES, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import type { Arrivals } from '../../../lib/engine/arrivals.ts'
import type { BlockPlace, BlockPlaces } from '../../../lib/engine/block-finder.ts'
import { DiskLink, type FrameChannel } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import { DiskSender } from '../../../lib/engine/sender.ts'
import type { SenderGroup } from '../../../lib/engine/sender-group.ts'
import type { SenderLimits } from '../../../lib/engine/sender-parts.ts'
import { VersionMemory } from '../../../lib/engine/sent-versions.ts'
import type { ChunkSource } from '../../../lib/engine/sources.ts'
import {
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../../lib/wire/disk-proof.ts'
import { random } from '../../random.ts'
import type { ProofEnds, ProofOptions } from './proof-rig.ts'
import { closeProofs, proofEnds } from './proof-rig.ts'

/** Bytes that nothing compresses, the same for the same seed. */
export function noise(length: number, seed: number): Buffer {
  const next = random(seed)
  const bytes = Buffer.allocUnsafe(length)
  for (let i = 0; i < length; i += 4) bytes.writeUInt32LE(Math.floor(next() * 4294967296), i)
  return bytes
}

/** Written bytes become durable on flush; counts what it is asked and can be told to fail. */
export class DurableDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures = ALL_FEATURES
  readonly bytes: Buffer
  durable: Buffer
  readonly written: { offset: number; bytes: Buffer }[] = []
  writes = 0
  writtenBytes = 0
  zeroedBytes = 0
  flushes = 0
  failWrite: RefusedError | undefined
  failFlush: RefusedError | undefined
  readonly #delay: () => Promise<void>

  constructor(contents: Buffer, minimum: number, delay: () => Promise<void> = async () => undefined) {
    this.bytes = contents
    this.durable = Buffer.from(contents)
    this.size = contents.length
    this.blockSizes = { minimum, preferred: 4096, maximum: 32 * MIB }
    this.#delay = delay
  }

  #aligned(what: string, offset: number, length: number): void {
    const unit = this.blockSizes.minimum
    if (offset % unit !== 0 || length % unit !== 0 || offset + length > this.size || length === 0) {
      throw new RefusedError(`${what} ${offset}+${length}: not aligned to ${unit}, or beyond ${this.size}`, {
        errno: 22,
      })
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.#aligned('read', offset, length)
    await this.#delay()
    return Buffer.from(this.bytes.subarray(offset, offset + length))
  }

  async write(offset: number, data: Buffer): Promise<void> {
    this.#aligned('write', offset, data.length)
    await this.#delay()
    if (this.failWrite !== undefined) throw this.failWrite
    data.copy(this.bytes, offset)
    this.writes++
    this.writtenBytes += data.length
    await this.#delay()
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    this.#aligned('writeZeroes', offset, length)
    await this.#delay()
    this.bytes.fill(0, offset, offset + length)
    this.zeroedBytes += length
  }

  async trim(): Promise<void> {
    throw new Error('the engine never trims')
  }

  async cache(): Promise<void> {}

  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    const extents: StatusExtent[] = []
    for (let at = offset; at < offset + length; at += 4096) {
      const zero = this.bytes.subarray(at, Math.min(at + 4096, offset + length)).every((byte) => byte === 0)
      extents.push({ length: Math.min(4096, offset + length - at), hole: zero, zero })
    }
    return extents
  }

  async flush(): Promise<void> {
    await this.#delay()
    if (this.failFlush !== undefined) throw this.failFlush
    this.durable = Buffer.from(this.bytes)
    this.flushes++
  }

  async close(): Promise<void> {}
}

export interface Wire {
  readonly a: FrameChannel
  readonly b: FrameChannel
  /** Bytes that crossed, both ways. */
  bytes: number
  /** Types of messages from the receiver that get lost. */
  readonly dropped: Set<number>
  cut(error: Error): void
  /** Changes a payload on its way to the receiver; undefined drops it. */
  tamper: ((type: number, payload: Buffer) => Buffer | undefined) | undefined
}

/** @param features of both ends */
export function wire(features: readonly string[] = ENGINE_FEATURES): Wire {
  const closed = Promise.withResolvers<Error | undefined>()
  let dead = false
  const make = (): FrameChannel & { peer?: FrameChannel; out: (type: number, payload: Buffer) => void } => ({
    onFrame: undefined,
    features: new Set(features),
    rateBytesPerSecond: 100 * MIB,
    roundTripMs: 0,
    silentMs: 0,
    closed: closed.promise,
    async close(reason?: Error) {
      closed.resolve(reason ?? new LostError('closed'))
    },
    out: () => undefined,
    async send(type, payload) {
      if (dead) throw new LostError('the wire is cut')
      const bytes = Buffer.concat(payload as Uint8Array[])
      result.bytes += bytes.length
      this.out(type, bytes)
    },
  })
  const a = make()
  const b = make()
  const deliver = (to: FrameChannel, tampered: boolean) => {
    const queue: [number, Buffer][] = []
    let running = false
    return (type: number, payload: Buffer): void => {
      const changed = tampered && result.tamper !== undefined ? result.tamper(type, payload) : payload
      if (changed === undefined) return
      queue.push([type, changed])
      if (running) return
      running = true
      setImmediate(function next() {
        const item = queue.shift()
        if (item === undefined || dead) {
          running = false
          return
        }
        to.onFrame?.(item[0], item[1], 0)
        setImmediate(next)
      })
    }
  }
  const result: Wire = {
    a,
    b,
    bytes: 0,
    dropped: new Set(),
    tamper: undefined,
    cut(error) {
      dead = true
      closed.resolve(error)
    },
  }
  a.out = deliver(b, true)
  const toSender = deliver(a, false)
  b.out = (type, payload) => {
    if (!result.dropped.has(type)) toSender(type, payload)
  }
  return result
}

/** Every block of these bytes, wherever it lies in them. */
export function blocksOf(bytes: Buffer, isOwn = false): BlockPlaces & { reads: number } {
  const offsets = new Map<string, number[]>()
  for (let at = 0; at + BLOCK_BYTES <= bytes.length; at += BLOCK_BYTES) {
    const key = hintOf(bytes.subarray(at, at + BLOCK_BYTES)).toString('hex')
    offsets.set(key, [...(offsets.get(key) ?? []), at])
  }
  const places = {
    reads: 0,
    blockCount: bytes.length / BLOCK_BYTES,
    lookup(hints: Buffer, at: number): BlockPlace[] {
      const key = hints.toString('hex', at, at + 8)
      return (offsets.get(key) ?? []).map((offset) => ({
        offset,
        size: bytes.length,
        isOwn,
        read: async (from: number, length: number) => {
          places.reads++
          return Buffer.from(bytes.subarray(from, from + length))
        },
      }))
    },
  }
  return places
}

export interface Rig {
  readonly sender: DiskSender
  readonly device: DurableDevice
  readonly wire: Wire
  readonly receiverError: () => Error | undefined
  /** Where it was asked for. */
  readonly proof: ProofEnds | undefined
}

const describer: { current: Describer | undefined } = { current: undefined }

export async function closeRigs(): Promise<void> {
  await closeProofs()
  await describer.current?.close()
  describer.current = undefined
}

export async function rig(options: {
  contents: Buffer
  minimum?: number
  sources?: ChunkSource[]
  limits?: SenderLimits
  memory?: ByteBudget
  slabs?: SlabPool
  delay?: () => Promise<void>
  /** Of both ends. */
  features?: readonly string[]
  blockPlaces?: readonly BlockPlaces[]
  /** Shared with other rigs. */
  arrivals?: Arrivals
  /** Instead of the wire, which then carries nothing. */
  channels?: { readonly near: FrameChannel; readonly far: FrameChannel }
  /** Of the sender. */
  clock?: Clock
  versions?: VersionMemory
  group?: SenderGroup
  /** Both ends keep a map of the disk. */
  proof?: ProofOptions
  /** Makes the device fail, before anything is opened. */
  break?: (device: DurableDevice) => void
}): Promise<Rig> {
  describer.current ??= new Describer({ workers: 1 })
  const describe = describer.current
  const device = new DurableDevice(options.contents, options.minimum ?? 1, options.delay)
  options.break?.(device)
  const proof = options.proof === undefined ? undefined : await proofEnds(device, describe, options.proof)
  const agreed = options.features ?? [...ENGINE_FEATURES, ...(proof === undefined ? [] : [FEATURE_PROOF])]
  const joined = wire(agreed)
  let receiverError: Error | undefined
  const far: DiskLink = new DiskLink(options.channels?.far ?? joined.b, (message) => {
    if (message.type !== 'open') return undefined
    const receiver = new DiskReceiver({
      link: far,
      disk: message.disk,
      epoch: message.epoch,
      device: proof?.receiver.device ?? device,
      ...(proof === undefined ? {} : { proof: proof.receiver }),
      account: new DiskAccount('vda', device.size),
      sources: options.sources ?? [],
      blockPlaces: options.blockPlaces ?? [],
      memory: options.memory ?? new ByteBudget({ bytesMax: 64 * MIB }),
      sessionEntriesMax: 1000,
      ...(options.arrivals === undefined ? {} : { arrivals: options.arrivals }),
      onEnd: (error) => {
        receiverError = error
      },
    })
    void receiver
      .scanTarget()
      .then(() =>
        far.send({ type: 'opened', disk: message.disk, epoch: message.epoch, errno: 0, text: '' }, 0),
      )
    return { onMessage: () => undefined, onLost: () => undefined }
  })
  const sender = new DiskSender({
    link: new DiskLink(options.channels?.near ?? joined.a),
    disk: 0,
    epoch: 7,
    size: device.size,
    blockSizes: device.blockSizes,
    account: new DiskAccount('vda', device.size),
    slabs: options.slabs ?? new SlabPool({ bytesMax: 128 * MIB }),
    describe: (bytes) => describe.describe(bytes),
    limits: options.limits ?? { windowBytes: 64 * MIB, drainMs: 1000, flushDeadlineMs: 2000 },
    versions: options.versions ?? new VersionMemory(),
    ...(options.clock === undefined ? {} : { clock: options.clock }),
    ...(options.group === undefined ? {} : { group: options.group }),
    ...(proof === undefined ? {} : { proof: proof.sender }),
  })
  await sender.open(49153, 'drive-virtio-disk0')
  return { sender, device, wire: joined, receiverError: () => receiverError, proof }
}

export interface LoneReceiver {
  readonly device: DurableDevice
  /** What it said. */
  readonly heard: DiskMessage[]
  readonly say: (message: DiskMessageBody) => Promise<void>
  readonly ended: () => Error | undefined
}

/** A receiver with a MiB of noise in place (seed 1), and a hand that speaks to it. */
export function loneReceiver(
  features: readonly string[] = ENGINE_FEATURES,
  delay?: () => Promise<void>,
): LoneReceiver {
  const joined = wire(features)
  const device = new DurableDevice(noise(MIB, 1), 1, delay)
  const heard: DiskMessage[] = []
  joined.b.send = async (type, payload) => {
    heard.push(decodeDiskMessage(type, Buffer.concat(payload as Uint8Array[])))
  }
  let error: Error | undefined
  new DiskReceiver({
    link: new DiskLink(joined.b),
    disk: 0,
    epoch: 1,
    device,
    account: new DiskAccount('vda', device.size),
    sources: [],
    memory: new ByteBudget({ bytesMax: 64 * MIB }),
    sessionEntriesMax: 100,
    onEnd: (reason) => {
      error = reason
    },
  })
  const say = async (message: DiskMessageBody): Promise<void> => {
    const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 1 })
    joined.b.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
    for (let turn = 0; turn < 30; turn++) await new Promise((resolve) => setImmediate(resolve))
  }
  return { say, heard, device, ended: () => error }
}
