/**
 * Both ends of the engine and everything that a guest, a link and a far host may do to them, from a seed: writes of new, old and
 * slightly changed content, whole and in part, zeroes, overlaps, FLUSHes, reads, frames that come late, links that are cut, hosts
 * that lose what was not flushed, an old version of the disk of which a byte is not what it was. Held against a model of the disk:
 *   I1  after an acknowledged FLUSH the durable disk is the model; between two of them each sector is one of its versions since
 *   I2  after a loss nothing succeeds any more, and nothing is written
 *   I3  the device is never written with bytes that the guest did not write there
 * Timers of the engine run by the seed's clock; only what libuv's threads compress comes when it comes.
 *   proof  both ends agree on a root at every FLUSH, and the last one is that of the model, of which leaf by leaf nothing else is known
 * After a loss the next session begins, on what lies there, as the same virsh command again would. Throws with the seed.
 */
import assert from 'node:assert/strict'
import type { BlockDevice, BlockSizes, DeviceFeatures, StatusExtent } from '../../../lib/block/device.ts'
import { Chunker, unflatten } from '../../../lib/chunk/chunker.ts'
import { leafDigests } from '../../../lib/chunk/leaf-digests.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { LostError } from '../../../lib/core/errors.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import { DiskSender } from '../../../lib/engine/sender.ts'
import { SenderGroup } from '../../../lib/engine/sender-group.ts'
import { VersionMemory } from '../../../lib/engine/sent-versions.ts'
import { ENGINE_FEATURES } from '../../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../../lib/wire/disk-proof.ts'
import { random } from '../../random.ts'
import { type ProofEnds, plainRoot, proofEnds } from './proof-rig.ts'
import { DurableDevice, noise, type Wire, wire } from './rig.ts'

const SIZE = 512 * KIB
const SECTOR = 512
const SESSIONS = 3
const STEPS = 40

const chunker = new Chunker()
/** Content that guests write: made once, since making it is what takes time. */
const POOL = noise(2 * MIB, 77)

type Next = () => number

/** Knows how many writes it is at, and how many came from a session that had ended. */
class WatchedDevice extends DurableDevice {
  busy = 0
  writtenLate = 0

  override async write(offset: number, data: Buffer): Promise<void> {
    await this.#watched(super.write(offset, data))
  }

  override async writeZeroes(offset: number, length: number): Promise<void> {
    await this.#watched(super.writeZeroes(offset, length))
  }

  async #watched(work: Promise<void>): Promise<void> {
    this.busy++
    try {
      await work
    } finally {
      this.busy--
    }
  }
}

/** The device as one session has it, until that ends: a real one is closed then, this one says what comes afterwards. */
class SessionDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
  readonly #device: WatchedDevice
  readonly #next: Next
  ended = false

  constructor(device: WatchedDevice, next: Next) {
    this.#device = device
    this.#next = next
    this.size = device.size
    this.blockSizes = device.blockSizes
    this.features = device.features
  }

  /** A read may take longer than all else: what waits for it must look whether there is still a session. */
  async read(offset: number, length: number): Promise<Buffer> {
    if (this.#next() < 0.05) for (let turns = this.#next() * 300; turns > 0; turns--) await turn()
    return await this.#device.read(offset, length)
  }

  async write(offset: number, data: Buffer): Promise<void> {
    if (this.ended) this.#device.writtenLate++
    await this.#device.write(offset, data)
  }

  async writeZeroes(offset: number, length: number): Promise<void> {
    if (this.ended) this.#device.writtenLate++
    await this.#device.writeZeroes(offset, length)
  }

  async trim(): Promise<void> {
    await this.#device.trim()
  }

  async cache(): Promise<void> {
    await this.#device.cache()
  }

  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    return await this.#device.blockStatus(offset, length)
  }

  async flush(): Promise<void> {
    await this.#device.flush()
  }

  async close(): Promise<void> {
    await this.#device.close()
  }
}

interface Session {
  readonly sender: DiskSender
  readonly wire: Wire
  /** The engine's time: the machine's load is no part of a seed. */
  readonly clock: ManualClock
  readonly proof: ProofEnds | undefined
}

/** The versions that each sector may have: since the last acknowledged FLUSH, the first being what it was then. */
class Model {
  readonly bytes: Buffer
  readonly #versions: Buffer[][]
  /** Of each sector, how many versions were before those. */
  readonly #before: number[] = new Array<number>(SIZE / SECTOR).fill(0)

  constructor(bytes: Buffer) {
    this.bytes = bytes
    this.#versions = Array.from({ length: SIZE / SECTOR }, (_, at) => [this.#sector(at)])
  }

  #sector(at: number): Buffer {
    return Buffer.from(this.bytes.subarray(at * SECTOR, (at + 1) * SECTOR))
  }

  write(offset: number, data: Buffer): void {
    data.copy(this.bytes, offset)
    for (let at = offset / SECTOR; at < (offset + data.length) / SECTOR; at++)
      this.#versions[at]!.push(this.#sector(at))
  }

  /** How many versions each sector has now: a FLUSH that begins here makes the last of these durable. */
  mark(): number[] {
    return this.#versions.map((versions, at) => this.#before[at]! + versions.length)
  }

  flushed(mark: readonly number[]): void {
    for (const [at, count] of mark.entries()) {
      const old = count - 1 - this.#before[at]!
      // A later FLUSH may have been answered before.
      if (old <= 0) continue
      this.#versions[at]!.splice(0, old)
      this.#before[at]! += old
    }
  }

  assertVersions(disk: Buffer, what: string): void {
    for (const [at, versions] of this.#versions.entries()) {
      const sector = disk.subarray(at * SECTOR, (at + 1) * SECTOR)
      const known = versions.some((version) => version.equals(sector))
      assert.ok(known, `${what}: the sector at ${at * SECTOR} is none of its ${versions.length} versions`)
    }
  }

  /** What lies on the disk now is what it was before anything of the next session. */
  begin(disk: Buffer): void {
    for (const [at, versions] of this.#versions.entries()) {
      const there = Buffer.from(disk.subarray(at * SECTOR, (at + 1) * SECTOR))
      this.#before[at]! += versions.length
      versions.splice(0, versions.length, there, this.#sector(at))
    }
  }
}

export async function runSeed(seed: number): Promise<void> {
  const next = random(seed * 7919 + 1)
  try {
    const contents = Buffer.alloc(SIZE)
    // An older version of the disk, in part, or nothing.
    if (next() < 0.7) POOL.copy(contents, 0, 0, Math.floor((next() * SIZE) / SECTOR) * SECTOR)
    const model = new Model(Buffer.from(contents))
    const minimum = [1, 512, 4096][Math.floor(next() * 3)]!
    const device = new WatchedDevice(contents, minimum, () => late(next))
    for (let session = 0; session < SESSIONS; session++) {
      if (session > 0 && next() < 0.5) flip(device, next)
      model.begin(device.bytes)
      const last = session === SESSIONS - 1
      await runSession(
        next,
        model,
        device,
        Math.max(512, minimum),
        last ? 'whole' : next() < 0.8 ? 'cut' : 'whole',
      )
      // A host that went down keeps what was flushed; one that did not, everything.
      if (next() < 0.5) device.durable.copy(device.bytes)
      else device.durable = Buffer.from(device.bytes)
      model.assertVersions(device.bytes, `after session ${session}`)
      assert.equal(device.writtenLate, 0, 'I2: written after the end of a session')
    }
    assert.ok(device.durable.equals(model.bytes), 'the disk at the end')
    assert.equal(device.writtenLate, 0, 'I2: written after the end of a session')
  } catch (error) {
    throw new Error(`seed ${seed}: ${(error as Error).message}`, { cause: error })
  }
}

/** A bad disk: a byte of the old version is another one. */
function flip(device: WatchedDevice, next: Next): void {
  const at = Math.floor(next() * SIZE)
  device.bytes[at]! ^= 1 << Math.floor(next() * 8)
  device.durable = Buffer.from(device.bytes)
}

async function begin(next: Next, disk: WatchedDevice): Promise<Session> {
  const device = new SessionDevice(disk, next)
  const features =
    next() < 0.8
      ? [...ENGINE_FEATURES, FEATURE_PROOF]
      : ENGINE_FEATURES.slice(0, Math.floor(next() * ENGINE_FEATURES.length))
  const joined = wire(features)
  const worker = {
    describe: async (bytes: Uint8Array) => {
      await late(next)
      return unflatten(chunker.describe(bytes))
    },
    digestLeaves: async (bytes: Uint8Array, span: { from: number; to: number }) => {
      await late(next)
      return leafDigests(bytes, span)
    },
  }
  const proof = features.includes(FEATURE_PROOF)
    ? await proofEnds(device, worker, {
        read: next() < 0.3,
        // Now and then there is no room to put leaves together.
        slots: new LeafSlots({ bytesMax: next() < 0.3 ? 128 * KIB : 8 * MIB }),
      })
    : undefined
  Object.assign(joined.a, {
    roundTripMs: next() < 0.5 ? 0 : 20,
    rateBytesPerSecond: next() < 0.5 ? 100 * MIB : 2 * MIB,
  })
  const clock = new ManualClock()
  const far: DiskLink = new DiskLink(joined.b, (message) => {
    if (message.type !== 'open') return undefined
    const receiver = new DiskReceiver({
      link: far,
      disk: 0,
      epoch: message.epoch,
      device: proof?.receiver.device ?? device,
      ...(proof === undefined ? {} : { proof: proof.receiver }),
      account: new DiskAccount('vda', SIZE),
      sources: [],
      memory: new ByteBudget({ bytesMax: next() < 0.3 ? 20_000 : 8 * MIB }),
      sessionEntriesMax: 100,
      clock,
      onEnd: () => {
        device.ended = true
      },
    })
    void receiver
      .scanTarget()
      .then(() => far.send({ type: 'opened', disk: 0, epoch: message.epoch, errno: 0, text: '' }, 0))
      .catch(() => undefined)
    return { onMessage: () => undefined, onLost: () => undefined }
  })
  const sender = new DiskSender({
    link: new DiskLink(joined.a),
    disk: 0,
    epoch: 1 + Math.floor(next() * 1000),
    size: SIZE,
    blockSizes: device.blockSizes,
    account: new DiskAccount('vda', SIZE),
    slabs: new SlabPool({ bytesMax: 4 * MIB }),
    describe: async (bytes) => {
      await late(next)
      return unflatten(chunker.describe(bytes))
    },
    ...(proof === undefined ? {} : { proof: proof.sender }),
    limits: {
      windowBytes: 4 * MIB,
      drainMs: 1000,
      flushDeadlineMs: 5000,
      // One root for many chunks, until answers tell that little of it lies in place.
      olderBytesMin: next() < 0.5 ? 64 * KIB : SIZE + 1,
    },
    versions: new VersionMemory(),
    group: new SenderGroup(() => true),
    clock,
  })
  await sender.open(49_153, 'drive-virtio-disk0')
  return { sender, wire: joined, clock, proof }
}

async function runSession(
  next: Next,
  model: Model,
  device: WatchedDevice,
  unit: number,
  ends: 'whole' | 'cut',
): Promise<void> {
  const { sender, wire, clock, proof } = await begin(next, device)
  let lost = false
  const cutAt = ends === 'cut' ? Math.floor(next() * (STEPS + SIZE / (64 * KIB))) : Number.POSITIVE_INFINITY
  const asked: Promise<void>[] = []
  const ask = (work: Promise<unknown>): void => {
    const answered = work.then(
      () => undefined,
      (error: unknown) => {
        // After a loss the engine may refuse; what was flushed before must be there all the same.
        if (!lost || error instanceof assert.AssertionError) throw error
      },
    )
    // It is judged at the end, with the seed: a rejection that nobody handles would end the test without.
    answered.catch(() => undefined)
    asked.push(answered)
  }
  const flush = (): void => {
    const mark = model.mark()
    ask(
      sender.flush().then(() => {
        model.flushed(mark)
        model.assertVersions(device.durable, 'I1: after a FLUSH')
      }),
    )
  }
  const write = (offset: number, data: Buffer): void => {
    model.write(offset, data)
    ask(sender.write(offset, data))
  }
  let step = 0
  const tick = async (): Promise<boolean> => {
    if (step++ === cutAt) {
      lost = true
      wire.cut(new LostError('cut'))
    }
    if (next() < 0.25) clock.advance(Math.floor(next() * 150))
    for (let turns = Math.floor(next() * 4); turns > 0; turns--) await turn()
    return !lost
  }
  const allAnswered = async (): Promise<void> => {
    let waiting = true
    const answered = Promise.all(asked).finally(() => {
      waiting = false
    })
    answered.catch(() => undefined)
    for (; waiting; await turn()) clock.advance(1)
    await answered
  }
  // The bulk of a mirror: the whole disk, in order, while the guest goes on.
  for (let at = 0; at < SIZE && (await tick()); at += 64 * KIB) {
    write(at, Buffer.from(model.bytes.subarray(at, at + 64 * KIB)))
    if (next() < 0.2) change(next, model, unit, write, ask, sender)
  }
  for (let count = 0; count < STEPS && (await tick()); count++) {
    const kind = next()
    if (kind < 0.7) change(next, model, unit, write, ask, sender)
    else if (kind < 0.85) flush()
    else if (kind < 0.92) ask(sender.settle())
    else {
      const offset = Math.floor((next() * SIZE) / unit) * unit
      // Answered some time: by then it may be something newer.
      ask(sender.read(offset, unit))
    }
  }
  if (!lost && ends === 'whole') {
    flush()
    await allAnswered()
    assert.ok(device.durable.equals(model.bytes), 'I1: after the last FLUSH')
    if (proof !== undefined) await assertProved(proof, model.bytes)
    await sender.close()
    await proof?.sender.map.close()
    await proof?.receiver.map.close()
    return
  }
  if (!lost) {
    lost = true
    wire.cut(new LostError('cut'))
  }
  await allAnswered()
  const later = await Promise.allSettled([
    sender.write(0, Buffer.alloc(unit)),
    sender.flush(),
    sender.writeZeroes(0, unit),
  ])
  for (const { status } of later) assert.equal(status, 'rejected', 'I2: success after a loss')
  await proof?.sender.map.close()
  await proof?.receiver.map.close()
  // A write that is under way is one of this session; the next one's QEMU is another.
  for (let still = 0; still < 20; still = device.busy === 0 ? still + 1 : 0) await turn()
}

/** Nothing is under way: both maps are of this disk, as far as they know it, and what the source wrote whole is known. */
async function assertProved({ sender, receiver }: ProofEnds, bytes: Buffer): Promise<void> {
  const unknown = await sender.map.turn(async (turn) => turn.unknown.runs())
  assert.deepEqual(sender.since, [], 'proof: nothing came after the last FLUSH')
  assert.deepEqual(receiver.since, [])
  const leftOut = unknown.reduce((sum, { first, end }) => sum + end - first, 0)
  assert.equal(sender.cutOver?.proved, SIZE / (64 * KIB) - leftOut, 'proof: leaves')
  assert.equal(sender.cutOver.root, plainRoot(bytes, unknown), 'proof: the root of the model')
  assert.equal(receiver.cutOver?.root, sender.cutOver.root, 'proof: both ends')
  for (const map of [sender.map, receiver.map]) {
    await map.turn(async (turn) => {
      for (let leaf = 0; leaf < map.leaves; leaf++) {
        const content = bytes.subarray(leaf * 64 * KIB, (leaf + 1) * 64 * KIB)
        const digest = await turn.digest(leaf)
        if (digest !== undefined)
          assert.deepEqual(digest, Buffer.from(leafDigests(content, { from: 0, to: content.length })))
      }
    })
  }
}

/** What the guest does next. */
function change(
  next: Next,
  model: Model,
  unit: number,
  write: (offset: number, data: Buffer) => void,
  ask: (work: Promise<unknown>) => void,
  sender: DiskSender,
): void {
  const kind = next()
  if (kind < 0.5) {
    // A little of what a mirror brings as 64 KiB.
    const offset = Math.floor((next() * SIZE) / (64 * KIB)) * 64 * KIB
    const data = Buffer.from(model.bytes.subarray(offset, offset + 64 * KIB))
    for (let rows = 1 + Math.floor(next() * 3); rows > 0; rows--) {
      const at = Math.floor(next() * (data.length - 200))
      POOL.copy(data, at, Math.floor(next() * MIB), Math.floor(next() * MIB) + 100)
    }
    write(offset, data)
    return
  }
  const offset = Math.floor((next() * SIZE) / unit) * unit
  const length = Math.min(SIZE - offset, unit * (1 + Math.floor(next() * (next() < 0.2 ? 200 : 20))))
  if (kind < 0.8) {
    const from = Math.floor((next() * (POOL.length - length)) / SECTOR) * SECTOR
    const data = Buffer.from(POOL.subarray(from, from + length))
    if (next() < 0.2) data.fill(0, 0, Math.min(length, 8192))
    write(offset, data)
    return
  }
  model.write(offset, Buffer.alloc(length))
  ask(sender.writeZeroes(offset, length))
}

/** Mostly a turn or two; now and then later than many others. */
async function late(next: Next): Promise<void> {
  const most = next() < 0.1 ? 60 : 3
  for (let turns = Math.floor(next() * most); turns > 0; turns--) await turn()
}

function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}
