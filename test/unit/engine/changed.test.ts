/**
 * What is rewritten again and again: the sender knows what the far side has there, and sends what changed along with the
 * description. One trip, and nothing is believed that does not fit the digest (I3).
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { EARLY_BYTES_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES as BLOCK, KIB, MIB, PIECE_BYTES } from '../../../lib/core/units.ts'
import { VersionMemory } from '../../../lib/engine/sent-versions.ts'
import { asChanged } from '../../../lib/engine/unasked.ts'
import {
  DISK_APPLIED,
  DISK_CHANGED,
  DISK_DESCRIBE,
  DISK_FLUSH,
  DISK_LITERAL,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
  FEATURE_CHANGED,
  FEATURE_DELTA,
} from '../../../lib/wire/disk.ts'
import { random } from '../../random.ts'
import { closeRigs, loneReceiver, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const UNIT = 64 * KIB
const AREA = 2 * MIB

interface Rewriting extends Rig {
  readonly disk: Buffer
  readonly sent: Map<number, number>
  readonly heard: Map<number, number>
  /** Writes [from, to) again, with so many blocks of which a few bytes changed; resolves with their number. */
  readonly rewrite: (seed: number, from?: number, to?: number) => Promise<number>
}

/** A disk of which the first 2 MiB are written a third time from now on. */
async function rewriting(options: Partial<Parameters<typeof rig>[0]> = {}): Promise<Rewriting> {
  const disk = noise(4 * MIB, 31)
  const made = await rig({ contents: Buffer.alloc(disk.length), minimum: BLOCK, ...options })
  const { sender, wire } = made
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  const rewrite = async (seed: number, from = 0, to = AREA): Promise<number> => {
    const next = random(seed)
    let blocks = 0
    for (let at = from; at < to; at += BLOCK) {
      if (next() > 0.2) continue
      noise(8, seed * 1000 + at).copy(disk, at + PIECE_BYTES * 3)
      blocks++
    }
    await sender.write(from, Buffer.from(disk.subarray(from, to)))
    return blocks
  }
  await rewrite(1)
  await sender.settle()
  const sent = new Map<number, number>()
  const heard = new Map<number, number>()
  wire.tamper = (type, payload) => {
    sent.set(type, (sent.get(type) ?? 0) + 1)
    return payload
  }
  const receive = wire.a.onFrame!
  wire.a.onFrame = (type, payload, cls) => {
    heard.set(type, (heard.get(type) ?? 0) + 1)
    receive(type, payload, cls)
  }
  return { ...made, disk, rewrite, sent, heard }
}

for (const flushes of [false, true]) {
  test(`what changed goes along, and nobody asks${flushes ? ', while a FLUSH waits' : ''}`, async () => {
    const { sender, device, disk, rewrite, sent, heard } = await rewriting()
    const before = { ...sender.account.bySource }
    let blocks = 0
    for (let round = 2; round < 6; round++) {
      const write = rewrite(round)
      if (flushes) await Promise.all([write, sender.flush()])
      blocks += await write
      await sender.settle()
    }
    assert.deepEqual(
      [...heard.keys()].filter((type) => type !== DISK_APPLIED && type !== 24),
      [],
    )
    assert.deepEqual([...sent.keys()].filter((type) => type !== DISK_FLUSH).sort(), [
      DISK_LITERAL,
      DISK_CHANGED,
    ])
    const { literal, delta, digest } = sender.account.bySource
    assert.deepEqual(
      [literal - before.literal, delta - before.delta],
      [blocks * PIECE_BYTES, blocks * (BLOCK - PIECE_BYTES)],
    )
    assert.ok(
      digest - before.digest < 4 * (AREA / UNIT) * 60,
      `${digest - before.digest} bytes of descriptions`,
    )
    await sender.flush()
    assert.ok(device.durable.equals(disk))
  })
}

test('a FLUSH behind a rewriting needs one answer: all of it is sent before anything was heard', async () => {
  const { sender, device, disk, rewrite, wire, sent } = await rewriting()
  const gate = Promise.withResolvers<void>()
  const receive = wire.a.onFrame!
  const held: [number, Buffer][] = []
  wire.a.onFrame = (type, payload) => {
    held.push([type, Buffer.from(payload)])
    if (type === 24) gate.resolve()
  }
  await rewrite(2)
  const flushed = sender.flush()
  await gate.promise
  assert.deepEqual([...sent.keys()].sort(), [DISK_LITERAL, DISK_FLUSH, DISK_CHANGED])
  assert.ok(device.durable.equals(disk))
  wire.a.onFrame = receive
  for (const [type, payload] of held) receive(type, payload, 0)
  await flushed
})

test('an end that does not know it is spoken to without it, and so is one without deltas', async () => {
  for (const left of [FEATURE_CHANGED, FEATURE_DELTA]) {
    const features = ENGINE_FEATURES.filter((feature) => feature !== left)
    const { sender, device, disk, rewrite, sent } = await rewriting({ features })
    await rewrite(2)
    await sender.flush()
    assert.ok(device.durable.equals(disk))
    assert.equal(sent.get(DISK_CHANGED), undefined, left)
  }
})

test('what is not known goes as before: zeroed since, or forgotten for others', async () => {
  const { sender, device, disk, rewrite, sent } = await rewriting()
  await sender.writeZeroes(0, UNIT)
  await sender.settle()
  sent.clear()
  // The place of the zeroes again: nobody has an older version there.
  await rewrite(2, 0, UNIT)
  await sender.flush()
  assert.deepEqual([sent.get(DISK_CHANGED), sent.get(DISK_DESCRIBE)], [undefined, 1])
  assert.ok(device.durable.equals(disk))

  const small = await rewriting({ versions: new VersionMemory({ bytesMax: MIB }) })
  await small.rewrite(2)
  await small.sender.flush()
  assert.equal(small.sent.get(DISK_CHANGED), undefined)
  assert.ok(small.device.durable.equals(small.disk))
})

test('what is remembered is given back when the disk is closed', async () => {
  const versions = new VersionMemory()
  const { sender } = await rewriting({ versions })
  assert.ok(versions.allocatedBytes > 0)
  await sender.flush()
  await sender.close()
  assert.equal(versions.allocatedBytes, 0)
})

test('what is new for the most part goes as a whole', async () => {
  const { sender, device, disk, sent } = await rewriting()
  noise(UNIT, 77).copy(disk, UNIT)
  await sender.write(UNIT, Buffer.from(disk.subarray(UNIT, 2 * UNIT)))
  await sender.flush()
  assert.equal(sent.get(DISK_CHANGED), undefined)
  assert.ok(device.durable.equals(disk))
})

test('how a piece goes: by what changed of it, and by what was sent unasked already', () => {
  assert.equal(asChanged(UNIT, 0, 0), 'changed')
  assert.equal(asChanged(UNIT, UNIT * 0.75, 0), 'changed')
  assert.equal(asChanged(UNIT, UNIT * 0.75 + 1, 0), 'run')
  assert.equal(asChanged(UNIT, 1000, EARLY_BYTES_MAX - 1000), 'changed')
  assert.equal(asChanged(UNIT, 1000, EARLY_BYTES_MAX - 999), 'hints')
})

test('more than may go unasked: the rest is hinted, and no bound of the far side is broken', async () => {
  const size = 32 * MIB
  const disk = noise(size, 41)
  const { sender, device, wire, receiverError } = await rig({ contents: Buffer.alloc(size), minimum: BLOCK })
  const write = async (): Promise<void> => {
    for (let at = 0; at < size; at += MIB) await sender.write(at, Buffer.from(disk.subarray(at, at + MIB)))
  }
  await write()
  await sender.flush()
  await write()
  await sender.flush()
  const gate = Promise.withResolvers<void>()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    await gate.promise
    return await read(offset, length)
  }
  // Half of each block.
  for (let at = 0; at < size; at += BLOCK) noise(BLOCK / 2, at + 1).copy(disk, at)
  let early = 0
  wire.tamper = (type, payload) => {
    const message = decodeDiskMessage(type, Buffer.from(payload))
    if (message.type === 'literal') early += message.chunks.reduce((sum, { length }) => sum + length, 0)
    return payload
  }
  const written = write()
  const flushed = written.then(() => sender.flush())
  await new Promise((resolve) => setTimeout(resolve, 1500))
  assert.ok(early > EARLY_BYTES_MAX / 2 && early <= EARLY_BYTES_MAX, `${early} bytes went unasked`)
  gate.resolve()
  await flushed
  assert.equal(receiverError(), undefined)
  assert.ok(device.durable.equals(disk))
})

test('I3: where something else lies in place, what is put together does not fit, and the whole is sent', async () => {
  const { sender, device, disk, rewrite, sent, heard } = await rewriting()
  // Nobody writes there but the engine; a disk that turned a bit does.
  device.bytes[5 * BLOCK + 9]! ^= 1
  await rewrite(2)
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.equal(sent.get(DISK_CHANGED), AREA / UNIT / 4)
  assert.equal(heard.get(20), 1, 'one WANT')
})

test('a place that cannot be read: the whole is sent', async () => {
  const { sender, device, disk, rewrite, heard } = await rewriting()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    if (offset === UNIT) throw new RefusedError('a bad sector', { errno: 5 })
    return await read(offset, length)
  }
  await rewrite(2)
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.ok(heard.get(20) === 1)
})

test('I3: what changed, changed on its way', async () => {
  const { sender, device, disk, rewrite, wire } = await rewriting()
  const before = Buffer.from(device.bytes)
  wire.tamper = (type, payload) => {
    if (type !== DISK_CHANGED) return payload
    const message = decodeDiskMessage(type, Buffer.from(payload))
    assert.ok(message.type === 'changed')
    const digests = Buffer.from(message.digests)
    digests[0]! ^= 1
    const lie = encodeDiskMessage({ ...message, digests })
    return Buffer.concat(lie.payload as Uint8Array[])
  }
  await rewrite(2, 0, UNIT)
  await assert.rejects(sender.flush())
  assert.ok(device.bytes.equals(before), 'nothing was written')
  assert.ok(!device.bytes.equals(disk))
})

// ---- a receiver, and a hand that speaks to it ---------------------------------------------------------------

const OLD = noise(MIB, 1).subarray(0, 2 * BLOCK)
const NOW = Buffer.from(OLD)
NOW.fill(0xaa, BLOCK + 10, BLOCK + 20)
const CHANGED: DiskMessageBody = {
  type: 'changed',
  firstSeq: 0,
  offset: 0,
  lengths: Uint32Array.of(NOW.length),
  digests: sha256(NOW),
  missing: [Buffer.from([2])],
}
const BODY = Buffer.concat([Buffer.from([0, 0, 0, 1]), NOW.subarray(BLOCK, BLOCK + PIECE_BYTES)])
const literal = (data: Buffer): DiskMessageBody => ({
  type: 'literal',
  chunks: [{ seq: 0, length: data.length }],
  codec: 'raw',
  data,
})

for (const [name, first] of [
  ['after it was looked for', 0],
  ['before', 30],
] as const) {
  test(`a receiver takes what changed, ${name}`, async () => {
    const lone = loneReceiver(ENGINE_FEATURES, async () => {
      for (let turns = 0; turns < first; turns++) await new Promise((resolve) => setImmediate(resolve))
    })
    await lone.say(CHANGED)
    await lone.say(literal(BODY))
    for (let turns = 0; turns < 200; turns++) await new Promise((resolve) => setImmediate(resolve))
    assert.equal(lone.ended(), undefined)
    assert.ok(lone.device.bytes.subarray(0, NOW.length).equals(NOW))
    assert.ok(!lone.heard.some(({ type }) => type === 'want' || type === 'ask'))
  })
}

test('the whole chunk instead of what changed is taken too', async () => {
  const lone = loneReceiver()
  await lone.say(CHANGED)
  await lone.say(literal(NOW))
  assert.equal(lone.ended(), undefined)
  assert.ok(lone.device.bytes.subarray(0, NOW.length).equals(NOW))
})

for (const [name, body, says] of [
  ['with too few bytes', BODY.subarray(0, 3), /are no pieces/],
  ['that names more than it has', Buffer.from([0xff, 0xff, 0xff, 0xff, 1]), /are no pieces/],
  ['with bytes behind its pieces', Buffer.concat([BODY, BODY]), /are no pieces/],
  ['longer than its blocks', noise(BLOCK + 8, 4), /was not described/],
  ['of other bytes', Buffer.concat([BODY.subarray(0, 4), noise(PIECE_BYTES, 3)]), undefined],
] as const) {
  test(`what changed, ${name}, is never written`, async () => {
    const { say, heard, device, ended } = loneReceiver()
    await say(CHANGED)
    await say(literal(Buffer.from(body)))
    assert.equal(device.writes, 0)
    if (says !== undefined) {
      assert.match(ended()?.message ?? '', says)
      return
    }
    assert.equal(heard.at(-1)?.type, 'want')
    await say(literal(NOW))
    assert.ok(device.bytes.subarray(0, NOW.length).equals(NOW))
  })
}

test('CHANGED that was not agreed on is a breach, with and without blocks', async () => {
  for (const agreed of [
    ENGINE_FEATURES.filter((feature) => feature !== FEATURE_CHANGED),
    [FEATURE_CHANGED],
  ]) {
    const { say, ended } = loneReceiver(agreed)
    await say(CHANGED)
    assert.match(ended()?.message ?? '', /CHANGED: it was not agreed on/)
  }
})

test('CHANGED of a chunk in which nothing did: what lies in place is looked at, and wanted if it does not fit', async () => {
  const { say, heard } = loneReceiver()
  await say({ ...CHANGED, digests: sha256(OLD), missing: [Buffer.from([0])] })
  assert.deepEqual(
    heard.filter(({ type }) => type !== 'held').map((one) => one.type === 'applied' && one.runs[0]?.source),
    ['inPlace'],
  )
  const other = loneReceiver()
  await other.say({ ...CHANGED, missing: [Buffer.from([0])] })
  assert.deepEqual(
    other.heard.filter(({ type }) => type !== 'held').map(({ type }) => type),
    ['ask'],
  )
})

test('whoever asks for blocks of a chunk that goes as what changed breaks the protocol, and so does a second WANT', async () => {
  for (const lies of [
    [{ type: 'parts', chunks: [{ seq: -1, blocks: 16, missing: Buffer.from([1, 0]) }] }],
    [
      { type: 'ask', runs: [{ first: -1, count: 1 }] },
      { type: 'parts', chunks: [{ seq: -1, blocks: 16, missing: Buffer.from([1, 0]) }] },
    ],
    [
      { type: 'want', runs: [{ first: -1, count: 1 }] },
      { type: 'want', runs: [{ first: -1, count: 1 }] },
    ],
  ] as const) {
    const { sender, wire, rewrite } = await rewriting()
    let seq = -1
    const described = Promise.withResolvers<void>()
    wire.tamper = (type, payload) => {
      const message = decodeDiskMessage(type, Buffer.from(payload))
      if (message.type !== 'changed') return undefined
      seq = message.firstSeq
      described.resolve()
      return undefined
    }
    await rewrite(2, 0, UNIT)
    await described.promise
    const flushed = sender.flush()
    for (const lie of lies) {
      const named = JSON.parse(JSON.stringify(lie), (key, value) =>
        value === -1 && (key === 'seq' || key === 'first')
          ? seq
          : value?.type === 'Buffer'
            ? Buffer.from(value.data)
            : value,
      ) as DiskMessageBody
      const { type, payload } = encodeDiskMessage({ disk: 0, epoch: 7, ...named } as never)
      wire.a.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
    }
    await assert.rejects(flushed, /which was not asked for|which was wanted before|of a chunk in 16/)
  }
})
