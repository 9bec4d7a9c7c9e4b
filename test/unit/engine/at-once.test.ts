/**
 * What the parts of the engine do at once, and remember, whatever the far side wants of them: each is given more than it may take, and
 * nothing of it ever comes to an end.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import type { Slab } from '../../../lib/chunk/slab.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  ARRIVAL_PLACES_MAX,
  FINDING_CHUNKS_MAX,
  GUESS_IMAGES_MAX,
  HINTS_TURN_CHUNKS_MAX,
  IMAGE_BYTES_MAX,
  LITERALS_IN_FLIGHT_MAX,
  SENT_PARTS_MAX,
} from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, HINT_BYTES, KIB, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import type { BlockPlaces } from '../../../lib/engine/block-finder.ts'
import { BlockLevel } from '../../../lib/engine/block-level.ts'
import { DeliveredSource, Offer, OfferedBlocks } from '../../../lib/engine/delivered.ts'
import { Hinter } from '../../../lib/engine/hinter.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { LiteralSender } from '../../../lib/engine/literals.ts'
import { Reports } from '../../../lib/engine/reports.ts'
import { Room } from '../../../lib/engine/room.ts'
import { RootLevel } from '../../../lib/engine/root-level.ts'
import { type ChunkRecord, newRecord } from '../../../lib/engine/sender-parts.ts'
import { SentChunks } from '../../../lib/engine/sent-chunks.ts'
import { type ChunkQuery, SessionSource } from '../../../lib/engine/sources.ts'
import { StockSource } from '../../../lib/engine/stock-source.ts'
import { newTask, type Task } from '../../../lib/engine/task.ts'
import { DurableDevice, noise, wire } from './rig.ts'

const never = (): Promise<never> => new Promise(() => undefined)

async function turns(count = 30): Promise<void> {
  for (let at = 0; at < count; at++) await new Promise((resolve) => setImmediate(resolve))
}

const query: ChunkQuery = { digest: randomBytes(32), offset: 0, length: BLOCK_BYTES, verify: () => false }

// ---- the sender ----------------------------------------------------------------------------------------------------

/** Chunks of one run of noise. */
function records(count: number, length: number): ChunkRecord[] {
  const bytes = new Uint8Array(new SharedArrayBuffer(count * length))
  bytes.set(noise(count * length, 1))
  const slab: Slab = { bytes, retain: () => undefined, release: () => undefined }
  const run = {
    zero: false,
    offset: 0,
    length: count * length,
    lengths: new Uint32Array(count).fill(length),
    digests: new Uint8Array(count * 32),
  } as const
  return Array.from({ length: count }, (_, seq) => {
    const record = newRecord(seq, seq * length, length, { slab, slabOffset: seq * length, base: 0, run })
    record.wantedBytes = length
    return record
  })
}

test('literals: so many are packed or on their way at once', async () => {
  const { a } = wire([])
  let sent = 0
  a.send = () => {
    sent++
    return never()
  }
  const literals = new LiteralSender({
    link: new DiskLink(a),
    disk: 0,
    epoch: 1,
    isNeeded: () => true,
    isUrgent: () => false,
    onSent: () => undefined,
    onError: assert.ifError,
  })
  for (const record of records(20, 256 * KIB)) literals.queue(record)
  literals.pump()
  for (let waits = 0; waits < 200 && sent < LITERALS_IN_FLIGHT_MAX; waits++)
    await new Promise((resolve) => setTimeout(resolve, 10))
  await new Promise((resolve) => setTimeout(resolve, 50))
  assert.equal(sent, LITERALS_IN_FLIGHT_MAX)
  literals.close()
})

test('hints: those of so many chunks are digested before other work has its turn', async () => {
  const told: number[] = []
  const hinter = new Hinter({
    isNeeded: () => true,
    send: async (_, chunks) => {
      told.push(chunks.length)
    },
  })
  for (const record of records(2 * HINTS_TURN_CHUNKS_MAX + 1, 2 * BLOCK_BYTES)) hinter.queue(record)
  await hinter.pump()
  assert.deepEqual(told, [HINTS_TURN_CHUNKS_MAX, HINTS_TURN_CHUNKS_MAX, 1])
})

test('what was sent of the largest disk is remembered in larger parts, of which there are no more', () => {
  const at = (size: number): SentChunks => {
    const room = new Room({ windowBytes: MIB, drainMs: 1000 })
    const nothing = (): void => undefined
    const account = new DiskAccount('vda', size)
    const sent = new SentChunks({ size, account, room, onWanted: nothing, onAsked: nothing })
    const { slab, slabOffset } = records(1, 64 * KIB)[0]!
    const lengths = Uint32Array.of(64 * KIB)
    const run = {
      zero: false,
      offset: slabOffset,
      length: 64 * KIB,
      lengths,
      digests: randomBytes(32),
    } as const
    sent.addRun(0, slab!, run)
    return sent
  }
  const usual = at(SENT_PARTS_MAX * 64 * KIB)
  assert.ok(usual.wereSent(0, 1) && !usual.wereSent(64 * KIB, 1))
  const largest = at(IMAGE_BYTES_MAX)
  const part = IMAGE_BYTES_MAX / SENT_PARTS_MAX
  assert.ok(part > 64 * KIB && largest.wereSent(part - 1, 1) && !largest.wereSent(part, 1))
})

// ---- the receiver --------------------------------------------------------------------------------------------------

/** Tasks of chunks of so many blocks, one behind the other. */
function tasks(count: number, blocks: number): Task[] {
  const bytes = blocks * BLOCK_BYTES
  return Array.from({ length: count }, (_, seq) =>
    newTask(seq, seq * bytes, (seq + 1) * bytes, randomBytes(32), undefined),
  )
}

const reports = (): Reports => new Reports(() => undefined, true)

test('chunks of which only a root was told are looked for a few at once', async () => {
  let resolving = 0
  const level = new RootLevel({
    device: new DurableDevice(Buffer.alloc(MIB), 1),
    reports: reports(),
    ended: () => false,
    mayHold: () => true,
    hold: async () => undefined,
    letGo: () => undefined,
    inPlace: () => undefined,
    resolve: () => {
      resolving++
      return never()
    },
    fail: assert.ifError,
  })
  const rooted = tasks(3 * FINDING_CHUNKS_MAX, 1)
  for (const task of rooted) Object.assign(task, { detailed: true, digest: undefined })
  level.digests(new Map(rooted.map((task) => [task.seq, task])), 0, randomBytes(32 * rooted.length))
  await turns()
  assert.equal(resolving, FINDING_CHUNKS_MAX)
})

function blockLevel(device: DurableDevice, sessionBytesMax = MIB): BlockLevel {
  return new BlockLevel({
    device,
    places: [],
    sessionBytesMax,
    reports: reports(),
    deltas: true,
    mayHold: () => true,
    ended: () => false,
    apply: () => undefined,
    take: () => undefined,
    want: () => undefined,
    early: () => undefined,
    fail: assert.ifError,
  })
}

test('chunks are looked for block by block a few at once', async () => {
  const device = new DurableDevice(Buffer.alloc(MIB), 1)
  let reads = 0
  device.read = () => {
    reads++
    return never()
  }
  const level = blockLevel(device)
  for (const task of tasks(3 * FINDING_CHUNKS_MAX, 2)) {
    task.hints = randomBytes(2 * HINT_BYTES)
    assert.ok(level.ask(task))
  }
  await turns()
  assert.equal(reads, FINDING_CHUNKS_MAX)
})

test('what a session remembers of what it delivered has a bound: the newest chunks, and blocks until their index is full', () => {
  const device = new DurableDevice(Buffer.alloc(MIB), 1)
  const session = new SessionSource(device, 2)
  const digests = [randomBytes(32), randomBytes(32), randomBytes(32)] as const
  for (const [at, digest] of digests.entries()) session.delivered(digest, at * BLOCK_BYTES)
  assert.deepEqual(
    digests.map((digest) => session.has(digest)),
    [false, true, true],
  )
  const level = blockLevel(device, 64 * KIB)
  for (const task of tasks(500, 16)) {
    task.hints = randomBytes(16 * HINT_BYTES)
    level.delivered(task)
  }
  const { blockCount } = level.session
  assert.ok(blockCount > 1000 && blockCount * 20 <= 64 * KIB, `${blockCount} blocks are known`)
})

// ---- other places --------------------------------------------------------------------------------------------------

test('of many sessions that have the same a few are read', async () => {
  let reads = 0
  const clock = new ManualClock()
  const find = async (): Promise<undefined> => {
    reads++
  }
  const places: BlockPlaces = {
    blockCount: 1,
    lookup: () => [{ offset: 0, size: BLOCK_BYTES, read: never }],
  }
  const others = Array.from({ length: 3 * ARRIVAL_PLACES_MAX }, () => {
    const offer = new Offer({ name: 'session', has: () => true, find }, clock)
    offer.blocks = places
    return offer
  })
  const own = new Offer({ name: 'session', has: () => true, find }, clock)
  const offers = new Set([own, ...others])
  assert.equal(await new DeliveredSource(offers, own).find(query), undefined)
  assert.equal(reads, ARRIVAL_PLACES_MAX)
  const blocks = new OfferedBlocks(offers, own)
  assert.equal(blocks.lookup(randomBytes(HINT_BYTES), 0).length, ARRIVAL_PLACES_MAX)
})

test('of many images a few are guessed at', async () => {
  let reads = 0
  const source = {
    read: async () => {
      reads++
      return Buffer.alloc(BLOCK_BYTES)
    },
  }
  const images = Array.from({ length: 3 * GUESS_IMAGES_MAX }, (_, number) => ({
    ...{ number, path: `/images/${number}`, size: MIB, source },
  }))
  const stock = new StockSource(
    { images, image: () => undefined, lookup: () => [], blockCount: 0, lookupBlock: () => [] },
    new Set(),
  )
  assert.equal(await stock.find(query), undefined)
  assert.equal(reads, GUESS_IMAGES_MAX)
})
