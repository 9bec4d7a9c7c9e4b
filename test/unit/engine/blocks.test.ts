/**
 * The second level: a chunk that lies nowhere as a whole is put together from 4 KiB blocks. What crosses is what lacks, what is
 * written is verified (I3), and either end that lies about blocks breaks the protocol.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { hintOf, sha256 } from '../../../lib/chunk/digest.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { blockCount, KIB, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import type { BlockPlaces } from '../../../lib/engine/block-finder.ts'
import { hintsOf, partsOf } from '../../../lib/engine/chunk-blocks.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskSender } from '../../../lib/engine/sender.ts'
import {
  DISK_DESCRIBE,
  DISK_LITERAL,
  DISK_OPEN,
  type DiskMessageBody,
  decodeDiskMessage,
  encodeDiskMessage,
  FEATURE_BLOCKS,
} from '../../../lib/wire/disk.ts'
import { DISK_HINTS } from '../../../lib/wire/disk-blocks.ts'
import { random } from '../../random.ts'
import { blocksOf, closeRigs, loneReceiver, noise, rig, type Wire, wire } from './rig.ts'

after(closeRigs)

const BLOCK = 4096
const BLOCKS: readonly string[] = [FEATURE_BLOCKS]

/** Payloads to the receiver, by type. */
function sentTypes(joined: Wire): number[] {
  const types: number[] = []
  const before = joined.tamper
  joined.tamper = (type, payload) => {
    types.push(type)
    return before === undefined ? payload : before(type, payload)
  }
  return types
}

test('one block of many changed: it crosses, and nothing else of its chunk', async () => {
  const contents = noise(8 * MIB, 3)
  const changed = Buffer.from(contents)
  // One inside of a chunk, and three neighbours.
  for (const block of [700, 1500, 1501, 1502]) noise(BLOCK, block).copy(changed, block * BLOCK)
  const { sender, device, wire: joined } = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  await sender.write(0, changed.subarray(0, 4 * MIB))
  await sender.write(4 * MIB, changed.subarray(4 * MIB))
  await sender.flush()
  assert.ok(device.durable.equals(changed))
  const { bySource } = sender.account
  assert.equal(bySource.literal, 4 * BLOCK)
  assert.equal(bySource.inPlace + bySource.block + bySource.literal, 8 * MIB)
  assert.ok(bySource.block > 0)
  assert.ok(joined.bytes < 4 * BLOCK + 20_000, `${joined.bytes} bytes on the wire`)
})

for (const minimum of [1, 512, 4096]) {
  test(`another layout: what lies elsewhere in whole blocks does not cross (block ${minimum})`, async () => {
    const stock = noise(8 * MIB, 4)
    const next = random(5)
    // Files of 1 to 9 blocks in another order, some of them new.
    const target = Buffer.alloc(8 * MIB)
    let fresh = 0
    for (let at = 0; at < target.length; ) {
      const length = Math.min(target.length - at, BLOCK * (1 + Math.floor(next() * 9)))
      if (next() < 0.1) {
        noise(length, at + 1).copy(target, at)
        fresh += length
      } else {
        const from = Math.floor((next() * (stock.length - length)) / BLOCK) * BLOCK
        stock.copy(target, at, from, from + length)
      }
      at += length
    }
    const places = blocksOf(stock)
    const { sender, device } = await rig({
      contents: Buffer.alloc(8 * MIB),
      minimum,
      blockPlaces: [places],
    })
    for (let at = 0; at < target.length; at += MIB) await sender.write(at, target.subarray(at, at + MIB))
    await sender.flush()
    assert.ok(device.durable.equals(target))
    const { literal, block } = sender.account.bySource
    assert.ok(literal <= fresh + 64 * KIB, `${literal} bytes of ${fresh} that are new`)
    assert.ok(block >= (target.length - fresh) * 0.9)
    assert.ok(
      places.reads < (target.length / BLOCK) * 0.7,
      `${places.reads} reads: neighbours are read together`,
    )
  })
}

test('a block that is missing at two places crosses once, when the first has arrived', async () => {
  const stock = noise(4 * MIB, 8)
  const fresh = noise(BLOCK, 77)
  const place = (at: number): Buffer => {
    const bytes = Buffer.from(stock.subarray(at, at + MIB))
    fresh.copy(bytes, 30 * BLOCK)
    return bytes
  }
  const { sender, device } = await rig({ contents: Buffer.alloc(4 * MIB), blockPlaces: [blocksOf(stock)] })
  await sender.write(0, place(0))
  await sender.flush()
  assert.equal(sender.account.bySource.literal, BLOCK)
  await sender.write(2 * MIB, place(2 * MIB))
  await sender.flush()
  assert.equal(sender.account.bySource.literal, BLOCK)
  assert.ok(device.durable.subarray(2 * MIB, 3 * MIB).equals(place(2 * MIB)))
})

test('I3: a block that only its hint is like is not believed: the chunk is sent as a whole', async () => {
  const stock = noise(4 * MIB, 9)
  const data = Buffer.from(stock.subarray(0, MIB))
  for (let block = 5; block < 256; block += 16) noise(BLOCK, block).copy(data, block * BLOCK)
  const {
    sender,
    device,
    wire: joined,
  } = await rig({
    contents: Buffer.alloc(4 * MIB),
    blockPlaces: [blocksOf(stock)],
  })
  // The hint of a block that lies here, in the place of that of one that does not: as if 8 bytes of SHA-256 had collided.
  const lie = hintOf(stock.subarray(2 * MIB, 2 * MIB + BLOCK))
  let lies = 0
  joined.tamper = (type, payload) => {
    if (type !== DISK_HINTS) return payload
    const message = decodeDiskMessage(type, payload)
    assert.ok(message.type === 'hints')
    const chunks = message.chunks.map(({ seq, hints }) => {
      const changed = Buffer.from(hints)
      if (hints.length > 24) lies += lie.copy(changed, 16)
      return { seq, hints: changed }
    })
    return Buffer.concat(encodeDiskMessage({ ...message, chunks }).payload)
  }
  const types = sentTypes(joined)
  await sender.write(0, data)
  await sender.flush()
  assert.ok(lies > 0)
  assert.ok(device.durable.subarray(0, MIB).equals(data), "not a byte that is not the sender's")
  assert.ok(types.includes(DISK_HINTS))
  assert.ok(sender.account.bySource.literal > 16 * BLOCK)
})

test('places that lie, break off or are gone are as good as none', async () => {
  const stock = noise(2 * MIB, 10)
  const good = blocksOf(stock)
  for (const read of [
    async (_: number, length: number) => noise(length, 3),
    async () => Buffer.alloc(10),
    async () => {
      throw new Error('it was closed')
    },
  ]) {
    const bad: BlockPlaces = {
      blockCount: 1,
      lookup: (hints, at) => good.lookup(hints, at).map((place) => ({ ...place, read })),
    }
    const { sender, device } = await rig({ contents: Buffer.alloc(2 * MIB), blockPlaces: [bad] })
    await sender.write(0, stock.subarray(0, MIB))
    await sender.flush()
    assert.ok(device.durable.subarray(0, MIB).equals(stock.subarray(0, MIB)))
    assert.equal(sender.account.bySource.literal, MIB)
  }
})

test('an end that does not know blocks is spoken to without them', async () => {
  const stock = noise(2 * MIB, 11)
  const {
    sender,
    device,
    wire: joined,
  } = await rig({
    contents: noise(2 * MIB, 12),
    blockPlaces: [blocksOf(stock)],
    features: [],
  })
  const types = sentTypes(joined)
  await sender.write(0, Buffer.concat([noise(BLOCK, 1), stock.subarray(0, MIB - BLOCK)]))
  await sender.flush()
  assert.equal(sender.account.bySource.literal, MIB)
  assert.ok(!types.includes(DISK_HINTS) && types.includes(DISK_DESCRIBE) && types.includes(DISK_LITERAL))
  assert.ok(device.durable.subarray(BLOCK, MIB).equals(stock.subarray(0, MIB - BLOCK)))
})

test('where nothing could be found nothing is asked: an empty disk, and no images', async () => {
  const { sender, wire: joined } = await rig({ contents: Buffer.alloc(4 * MIB) })
  const types = sentTypes(joined)
  await sender.write(0, noise(2 * MIB, 5))
  await sender.flush()
  assert.ok(!types.includes(DISK_HINTS))
})

// ---- geometry ----------------------------------------------------------------------------------------------------

test('blocks of a chunk: their number, their parts, and hints only of those that are whole in the run', () => {
  assert.equal(blockCount(0, 4096), 1)
  assert.equal(blockCount(1, 4097), 2)
  assert.equal(blockCount(4095, 4097), 2)
  assert.equal(blockCount(4000, 256 * KIB + 4000), 65)
  const all = Buffer.from([0xff, 0xff])
  assert.deepEqual(partsOf(100, 9000, all), [{ from: 0, to: 8900 }])
  assert.deepEqual(partsOf(100, 9000, Buffer.from([0b101])), [
    { from: 0, to: 3996 },
    { from: 8092, to: 8900 },
  ])
  assert.deepEqual(partsOf(100, 9000, Buffer.from([0])), [])
  const run = noise(5 * BLOCK, 2)
  const start = 3 * BLOCK
  const hints = hintsOf(run, start, start + 100, start + 2 * BLOCK + 1)
  assert.equal(hints.length, 3 * 8)
  assert.ok(
    hints.subarray(16).equals(hintOf(run.subarray(2 * BLOCK, 3 * BLOCK))),
    'a block that two chunks share',
  )
  const partial = hintsOf(run.subarray(512), start + 512, start + 512, start + 2 * BLOCK)
  assert.ok(partial.subarray(0, 8).equals(Buffer.alloc(8)), 'of what is not in the run nobody knows')
  assert.ok(partial.subarray(8).equals(hintOf(run.subarray(BLOCK, 2 * BLOCK))))
})

// ---- ends that lie ------------------------------------------------------------------------------------------------

const CHUNK = Buffer.concat([noise(MIB, 1).subarray(0, 7 * BLOCK), noise(BLOCK, 99)])
const DESCRIBED: DiskMessageBody = {
  type: 'describe',
  firstSeq: 0,
  offset: 0,
  lengths: Uint32Array.of(CHUNK.length),
  digests: sha256(CHUNK),
}
const HINTED: DiskMessageBody = {
  type: 'hints',
  chunks: [{ seq: 0, hints: hintsOf(CHUNK, 0, 0, CHUNK.length) }],
}

test('a receiver asks, gets hints, asks for parts and applies what fits', async () => {
  const { say, heard, device, ended } = loneReceiver(BLOCKS)
  await say(DESCRIBED)
  assert.deepEqual(heard.at(-1), { type: 'ask', disk: 0, epoch: 1, runs: [{ first: 0, count: 1 }] })
  await say(HINTED)
  assert.deepEqual(heard.at(-1), {
    type: 'parts',
    disk: 0,
    epoch: 1,
    chunks: [{ seq: 0, blocks: 8, missing: Buffer.from([0x80]) }],
  })
  await say({
    type: 'literal',
    codec: 'raw',
    chunks: [{ seq: 0, length: BLOCK }],
    data: CHUNK.subarray(7 * BLOCK),
  })
  assert.equal(ended(), undefined)
  assert.ok(device.bytes.subarray(0, CHUNK.length).equals(CHUNK))
  assert.equal(device.writes, 1)
})

test('parts that do not fit are not written: the chunk is wanted, and comes as a whole', async () => {
  const { say, heard, device, ended } = loneReceiver(BLOCKS)
  await say(DESCRIBED)
  await say(HINTED)
  await say({ type: 'literal', codec: 'raw', chunks: [{ seq: 0, length: BLOCK }], data: noise(BLOCK, 98) })
  assert.equal(ended(), undefined)
  assert.equal(device.writes, 0)
  assert.equal(heard.at(-1)?.type, 'want')
  await say({ type: 'literal', codec: 'raw', chunks: [{ seq: 0, length: CHUNK.length }], data: CHUNK })
  assert.equal(ended(), undefined)
  assert.ok(device.bytes.subarray(0, CHUNK.length).equals(CHUNK))
})

for (const { name, before, message, says } of [
  { name: 'that were not asked for', before: [], message: HINTED, says: /chunk 0 was not asked for/ },
  {
    name: 'of a chunk that was wanted as a whole: a FLUSH waits',
    before: [{ type: 'flush', id: 1, barrier: 1 }, DESCRIBED],
    message: HINTED,
    says: /which was not asked for/,
  },
  { name: 'a second time', before: [DESCRIBED, HINTED], message: HINTED, says: /a second time/ },
  {
    name: 'of too few blocks',
    before: [DESCRIBED],
    message: { type: 'hints', chunks: [{ seq: 0, hints: Buffer.alloc(7 * 8) }] },
    says: /7 of 8 blocks/,
  },
  {
    name: 'of too many blocks',
    before: [DESCRIBED],
    message: { type: 'hints', chunks: [{ seq: 0, hints: Buffer.alloc(9 * 8) }] },
    says: /9 of 8 blocks/,
  },
] as const satisfies readonly {
  message: DiskMessageBody
  before: readonly DiskMessageBody[]
  [key: string]: unknown
}[]) {
  test(`HINTS ${name} are a breach`, async () => {
    const { say, ended, device } = loneReceiver(BLOCKS)
    for (const one of before) await say(one)
    assert.equal(ended(), undefined)
    await say(message)
    assert.match(ended()?.message ?? '', says)
    assert.equal(device.writes, 0)
  })
}

test('a LITERAL of another length than that of the parts is a breach', async () => {
  const { say, ended } = loneReceiver(BLOCKS)
  await say(DESCRIBED)
  await say(HINTED)
  await say({
    type: 'literal',
    codec: 'raw',
    chunks: [{ seq: 0, length: 2 * BLOCK }],
    data: noise(2 * BLOCK, 1),
  })
  assert.match(ended()?.message ?? '', /LITERAL: chunk 0 of 8192 bytes was not described/)
})

test('HINTS and a stream that were not agreed on are a breach', async () => {
  const one = loneReceiver([])
  await one.say(DESCRIBED)
  await one.say(HINTED)
  assert.match(one.ended()?.message ?? '', /HINTS: chunk 0 was not asked for/)
  const two = loneReceiver([])
  await two.say(DESCRIBED)
  await two.say({ type: 'literal', codec: 'bulk', chunks: [{ seq: 0, length: CHUNK.length }], data: CHUNK })
  assert.match(two.ended()?.message ?? '', /codec bulk was not agreed on/)
})

const CHUNK_BYTES = 256 * KIB

/** A sender that has described two chunks of 64 blocks, and a hand in the place of its far end. */
async function sender(features: readonly string[]) {
  const joined = wire(features)
  const described = Promise.withResolvers<void>()
  const say = (message: DiskMessageBody): void => {
    const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 1 })
    joined.a.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
  }
  joined.a.send = async (type) => {
    if (type === DISK_OPEN) setImmediate(() => say({ type: 'opened', errno: 0, text: '' }))
    if (type === DISK_DESCRIBE) setImmediate(described.resolve)
  }
  const lengths = Uint32Array.of(CHUNK_BYTES, CHUNK_BYTES)
  const one = new DiskSender({
    link: new DiskLink(joined.a),
    disk: 0,
    epoch: 1,
    size: MIB,
    blockSizes: { minimum: 1, preferred: 4096, maximum: MIB },
    account: new DiskAccount('vda', MIB),
    slabs: new SlabPool({ bytesMax: 4 * MIB }),
    describe: async ({ length }) => [
      { offset: 0, length, zero: false, lengths, digests: new Uint8Array(64) },
    ],
    limits: { windowBytes: 64 * MIB, drainMs: 1000, flushDeadlineMs: 2000 },
  })
  await one.open(1, 'disk')
  await one.write(0, noise(2 * CHUNK_BYTES, 1))
  const flushed = one.flush()
  flushed.catch(() => undefined)
  await described.promise
  return { say, flushed }
}

const parts = (blocks: number, bits: number): DiskMessageBody => ({
  type: 'parts',
  chunks: [{ seq: 0, blocks, missing: Buffer.concat([Buffer.from([bits]), Buffer.alloc(7)]) }],
})
const run = { first: 0, count: 1 }
const ask: DiskMessageBody = { type: 'ask', runs: [run] }
const want: DiskMessageBody = { type: 'want', runs: [run] }

for (const [name, messages, says, features] of [
  ['ASK twice', [ask, ask], /ASK of chunk 0, which was asked for before/, BLOCKS],
  ['ASK of what was wanted', [want, ask], /ASK of chunk 0, which was wanted before/, BLOCKS],
  ['PARTS without ASK', [parts(64, 1)], /PARTS of chunk 0: 4096 bytes in 64 blocks/, BLOCKS],
  ['PARTS twice', [ask, parts(64, 1), parts(64, 1)], /PARTS of chunk 0: 4096 bytes/, BLOCKS],
  ['PARTS of no block', [ask, parts(64, 0)], /PARTS of chunk 0: 0 bytes/, BLOCKS],
  ['PARTS of another number of blocks', [ask, parts(63, 1)], /in 63 blocks/, BLOCKS],
  ['PARTS after WANT', [ask, want, parts(64, 1)], /PARTS of chunk 0, which was wanted before/, BLOCKS],
  ['WANT twice', [ask, want, want], /WANT of chunk 0, which was wanted before/, BLOCKS],
  [
    'ASK of what is not under way',
    [{ type: 'ask', runs: [{ first: 9, count: 1 }] }],
    /ASK of chunk 9/,
    BLOCKS,
  ],
  ['ASK that was not agreed on', [ask], /ask was not agreed on/, []],
  ['PARTS that were not agreed on', [parts(64, 1)], /parts was not agreed on/, []],
] as const satisfies readonly (readonly [string, readonly DiskMessageBody[], RegExp, readonly string[]])[]) {
  test(`a far end that lies is a breach for the sender: ${name}`, async () => {
    const { say, flushed } = await sender(features)
    for (const message of messages) say(message)
    await assert.rejects(flushed, says)
  })
}
