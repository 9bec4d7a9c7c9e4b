/**
 * What lies in place costs next to nothing: one SURVEY for what was written together, one root for many chunks. What does not
 * fit is told apart, and nothing is believed that its digest does not confirm.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { GIB, KIB, MIB, PIECE_BYTES } from '../../../lib/core/units.ts'
import { RunWriter } from '../../../lib/engine/seams.ts'
import type { DiskSender } from '../../../lib/engine/sender.ts'
import {
  DISK_DESCRIBE,
  DISK_DIGESTS,
  DISK_OPEN,
  DISK_SURVEY,
  DISK_ZERO,
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  encodeDiskMessage,
  FEATURE_BLOCKS,
} from '../../../lib/wire/disk.ts'
import { random } from '../../random.ts'
import { closeRigs, DurableDevice, loneReceiver, noise, type Rig, rig, type Wire, wire } from './rig.ts'

after(closeRigs)

const BLOCK = 4096

/** Messages to the receiver, as they are or as `change` makes them. */
function listen(joined: Wire, change?: (message: DiskMessage) => DiskMessage): DiskMessage[] {
  const heard: DiskMessage[] = []
  joined.tamper = (type, payload) => {
    const message = decodeDiskMessage(type, payload)
    heard.push(message)
    return change === undefined ? payload : Buffer.concat(encodeDiskMessage(change(message)).payload)
  }
  return heard
}

/** As a mirror job does, which flushes only at its end: all has left, and is applied, before anybody flushes. */
async function writeAll({ sender }: Rig, bytes: Buffer, from = 0, to = bytes.length): Promise<void> {
  for (let at = from; at < to; at += MIB) await sender.write(at, bytes.subarray(at, Math.min(to, at + MIB)))
  await settled(sender)
}

async function settled(sender: DiskSender): Promise<void> {
  while (sender.unsettledBytes > 0 && sender.lost === undefined)
    await new Promise((resolve) => setTimeout(resolve, 5))
}

/** What has gone so far lay in place: the sender takes for granted that the rest does, too. */
async function trusting(contents: Buffer, minimum = 4096): Promise<Rig> {
  const one = await rig({ contents: Buffer.from(contents), minimum })
  await writeAll(one, contents, 0, 24 * MIB)
  await one.sender.flush()
  assert.equal(one.sender.account.bySource.inPlace, 24 * MIB)
  return one
}

const rooted = (message: DiskMessage): boolean => message.type === 'survey' && message.roots

test('a disk that lies in place as it is: a few bytes for each chunk, nothing is written', async () => {
  const contents = Buffer.alloc(64 * MIB)
  // Data with holes of a block in it, as file systems have them.
  for (let at = 0; at < contents.length; at += 256 * KIB) noise(252 * KIB, at + 1).copy(contents, at)
  const one = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  const heard = listen(one.wire)
  await writeAll(one, contents, 0, 16 * MIB)
  await writeAll(one, contents, 16 * MIB)
  await one.sender.flush()
  const { bySource } = one.sender.account
  assert.equal(bySource.inPlace, 63 * MIB)
  assert.equal(bySource.zero, MIB)
  assert.equal(one.device.writes, 0)
  assert.ok(heard.filter(rooted).length >= 2)
  assert.ok(!heard.some(({ type }) => type === 'describe' || type === 'zero'))
  const chunks = heard.reduce(
    (sum, message) =>
      message.type === 'survey'
        ? sum + message.runs.reduce((all, run) => all + (run.zero ? 0 : run.lengths.length), 0)
        : sum,
    0,
  )
  // The first 16 MiB with their digests; then lengths, a root for 32 chunks, runs.
  assert.ok(
    one.wire.bytes < 32 * (chunks / 4) + 10 * chunks + 2000,
    `${one.wire.bytes} bytes for ${chunks} chunks`,
  )
})

for (const minimum of [1, 512, 4096]) {
  test(`a block that changed where all was thought to be in place: it crosses alone (block ${minimum})`, async () => {
    const contents = noise(64 * MIB, 7)
    const one = await trusting(contents, minimum)
    const heard = listen(one.wire)
    const changed = Buffer.from(contents)
    for (let block = 6500; block < 16_384; block += 1777) noise(BLOCK, block).copy(changed, block * BLOCK)
    await writeAll(one, changed, 24 * MIB)
    await one.sender.flush()
    assert.ok(one.device.durable.equals(changed))
    assert.ok(heard.some(rooted), 'roots were told')
    assert.ok(
      heard.some(({ type }) => type === 'digests'),
      'and those that did not fit were told apart',
    )
    const { literal, inPlace } = one.sender.account.bySource
    assert.equal(literal, 6 * BLOCK)
    assert.ok(inPlace > 60 * MIB)
    assert.ok(one.device.writtenBytes < 6 * 512 * KIB, `${one.device.writtenBytes} bytes were written`)
  })
}

test('a root that lies costs bytes, and is no harm', async () => {
  const contents = noise(48 * MIB, 8)
  const one = await trusting(contents)
  let lies = 0
  listen(one.wire, (message) => {
    if (message.type !== 'survey' || !message.roots) return message
    lies++
    return { ...message, digests: Buffer.alloc(message.digests.length, 5) }
  })
  await writeAll(one, contents, 24 * MIB)
  await one.sender.flush()
  assert.ok(lies > 0)
  assert.equal(one.sender.account.bySource.inPlace, 48 * MIB)
  assert.equal(one.device.writes, 0)
})

test('I3: what does not fit the root is not taken for being in place', async () => {
  const contents = noise(48 * MIB, 9)
  const one = await trusting(contents)
  // One byte of the target is not what the sender thinks.
  one.device.bytes[40 * MIB + 5]! ^= 1
  await writeAll(one, contents, 24 * MIB)
  await one.sender.flush()
  assert.ok(one.device.durable.equals(contents))
  // Of the block that differs one piece.
  const { literal, delta } = one.sender.account.bySource
  assert.deepEqual([literal, literal + delta], [PIECE_BYTES, BLOCK])
})

test('I3: digests that lie end the session before anything is written', async () => {
  const contents = noise(48 * MIB, 10)
  const one = await trusting(contents)
  const changed = Buffer.from(contents)
  noise(BLOCK, 3).copy(changed, 30 * MIB)
  listen(one.wire, (message) =>
    message.type === 'digests' ? { ...message, digests: Buffer.alloc(message.digests.length, 6) } : message,
  )
  await writeAll(one, changed, 24 * MIB)
  await assert.rejects(one.sender.flush(), { errno: 5 })
  assert.match(String(one.receiverError()), /do not match the digest/)
  assert.equal(one.device.writes, 0)
})

test('a target that cannot be read is written all the same', async () => {
  const contents = noise(48 * MIB, 11)
  const one = await trusting(contents)
  const read = one.device.read.bind(one.device)
  one.device.read = async (offset, length) => {
    if (offset < 40 * MIB && offset + length > 39 * MIB) throw new RefusedError('a bad sector', { errno: 5 })
    return await read(offset, length)
  }
  await writeAll(one, contents, 24 * MIB)
  await one.sender.flush()
  assert.ok(one.device.durable.equals(contents))
  assert.ok(one.sender.account.bySource.literal >= MIB)
})

test('a far side that holds something else is soon not trusted any more, and nothing is lost', async () => {
  const one = await rig({ contents: noise(64 * MIB, 20), minimum: 4096 })
  const heard = listen(one.wire)
  const other = noise(64 * MIB, 21)
  await writeAll(one, other, 0, 20 * MIB)
  await writeAll(one, other, 20 * MIB)
  await one.sender.flush()
  assert.ok(one.device.durable.equals(other))
  const surveys = heard.filter(({ type }) => type === 'survey')
  assert.ok(rooted(surveys[0]!) && !rooted(surveys.at(-1)!))
  assert.equal(one.sender.account.bySource.literal, 64 * MIB)
})

test('while a FLUSH waits no roots are told: they may cost a round trip', async () => {
  const contents = noise(48 * MIB, 12)
  const one = await trusting(contents)
  const heard = listen(one.wire)
  await one.sender.write(24 * MIB, contents.subarray(24 * MIB, 26 * MIB))
  await one.sender.flush()
  assert.ok(heard.some(({ type }) => type === 'survey') && !heard.some(rooted))
})

test('an end that does not know surveys is spoken to without them', async () => {
  const contents = noise(40 * MIB, 13)
  const one = await rig({ contents: Buffer.from(contents), minimum: 4096, features: [FEATURE_BLOCKS] })
  const types = new Set<number>()
  one.wire.tamper = (type, payload) => {
    types.add(type)
    return payload
  }
  await one.sender.writeZeroes(0, MIB)
  await writeAll(one, contents, MIB)
  await one.sender.flush()
  assert.ok(
    types.has(DISK_DESCRIBE) && types.has(DISK_ZERO) && !types.has(DISK_SURVEY) && !types.has(DISK_DIGESTS),
  )
  contents.fill(0, 0, MIB)
  assert.ok(one.device.durable.equals(contents))
})

for (const minimum of [1, 512, 4096]) {
  for (let seed = 1; seed <= 2; seed++) {
    test(`I1: the same holds where most of it is in place (block ${minimum}, seed ${seed})`, async () => {
      const next = random(seed * 97 + minimum)
      const contents = noise(40 * MIB, seed)
      for (let at = 0; at < contents.length; at += 600 * KIB)
        contents.fill(0, at, at + Math.floor(next() * 9) * BLOCK)
      const model = Buffer.from(contents)
      const delay = async (): Promise<void> => {
        if (next() < 0.05) await new Promise((resolve) => setImmediate(resolve))
      }
      const one = await rig({ contents: Buffer.from(contents), minimum, delay })
      const heard = listen(one.wire)
      const unit = Math.max(minimum, 512)
      for (let round = 0; round < 3; round++) {
        for (let at = 0; at < model.length; at += MIB) {
          // A few bytes here and there differ from what lies at the far side.
          if (round > 0 && next() < 0.15) {
            const length = unit * (1 + Math.floor(next() * 12))
            const offset = at + Math.floor((next() * (MIB - length)) / unit) * unit
            if (next() < 0.3) model.fill(0, offset, offset + length)
            else noise(length, at + round).copy(model, offset)
          }
          if (round > 0 && next() < 0.03) {
            model.fill(0, at, at + 64 * KIB)
            void one.sender.writeZeroes(at, 64 * KIB)
          }
          await one.sender.write(at, Buffer.from(model.subarray(at, at + MIB)))
        }
        const before = Buffer.from(model)
        if (round < 2) await settled(one.sender)
        await one.sender.flush()
        assert.ok(one.device.durable.equals(before), `durable content after round ${round}`)
      }
      assert.ok(heard.some(rooted), 'roots were told')
    })
  }
}

test('a block that a chunk in place, of which nobody has the bytes, shares with a new one is both', async () => {
  const before = noise(3 * BLOCK, 60)
  const fresh = noise(3 * BLOCK, 61).subarray(0, 3 * BLOCK - 6000)
  const device = new DurableDevice(Buffer.from(before), BLOCK)
  const writer = new RunWriter(device, 0, 3 * BLOCK, () => false)
  await Promise.all([writer.inPlace(0, 6000), writer.chunk(6000, fresh, false)])
  assert.ok(device.bytes.equals(Buffer.concat([before.subarray(0, 6000), fresh])))
})

test('I2: a block that was being read for when the session ended is not written any more', async () => {
  const before = noise(3 * BLOCK, 60)
  const device = new DurableDevice(Buffer.from(before), BLOCK)
  const gate = Promise.withResolvers<void>()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    await gate.promise
    return await read(offset, length)
  }
  let ended = false
  const writer = new RunWriter(device, 0, 3 * BLOCK, () => ended)
  const works = [writer.inPlace(0, 6000), writer.chunk(6000, noise(3 * BLOCK, 61).subarray(6000), false)]
  for (const work of works) work.catch(() => undefined)
  await turn()
  // What lies whole in the chunk was written before.
  assert.equal(device.writes, 1)
  ended = true
  gate.resolve()
  for (const work of works) await assert.rejects(work, LostError)
  await assert.rejects(
    new RunWriter(device, 0, BLOCK, () => true).chunk(0, noise(BLOCK, 1), false),
    LostError,
  )
  assert.ok(device.bytes.subarray(0, 2 * BLOCK).equals(before.subarray(0, 2 * BLOCK)))
  assert.equal(device.writes, 1)
})

test('I2: what is found in place when the session has ended completes no block of a chunk that waited for it', async () => {
  const { say, device, ended } = loneReceiver()
  const lies = Buffer.from(device.bytes.subarray(0, 64 * KIB))
  const fresh = noise(20_000, 62)
  const gate = Promise.withResolvers<void>()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    if (offset > 0) await gate.promise
    return await read(offset, length)
  }
  const second = lies.subarray(fresh.length)
  await say({
    type: 'describe',
    firstSeq: 0,
    offset: 0,
    lengths: Uint32Array.of(fresh.length, second.length),
    digests: Buffer.concat([sha256(fresh), sha256(second)]),
  })
  await say({ type: 'literal', codec: 'raw', chunks: [{ seq: 0, length: fresh.length }], data: fresh })
  // Its whole blocks are there, the one that it shares is not.
  assert.equal(device.writtenBytes, 16_384)
  await say({ type: 'close' })
  gate.resolve()
  for (let turns = 0; turns < 20; turns++) await turn()
  assert.equal(ended(), undefined)
  assert.equal(device.writtenBytes, 16_384)
  assert.ok(device.bytes.subarray(16_384, 64 * KIB).equals(lies.subarray(16_384)))
})

for (const how of ['root', 'digest'] as const) {
  test(`I1: what lies there is not taken for what was written back while something newer is being written (${how})`, async () => {
    const gate = Promise.withResolvers<void>()
    const { say, heard, device, ended } = loneReceiver()
    const lay = Buffer.from(device.bytes.subarray(0, DATA.length))
    const write = device.write.bind(device)
    device.write = async (offset, bytes) => {
      await gate.promise
      await write(offset, bytes)
    }
    await say(surveyed(0, false, sha256(DATA)))
    await say(literal(0))
    // The guest writes back what was there.
    await say(surveyed(1, how === 'root', how === 'root' ? sha256(sha256(lay)) : sha256(lay)))
    const applied = (): boolean =>
      heard.some(({ type, ...rest }) => type === 'applied' && JSON.stringify(rest).includes('"first":1'))
    assert.equal(applied(), false)
    gate.resolve()
    await say({ type: 'flush', id: 1, barrier: 2 })
    if (how === 'root') await say(digested(1, sha256(lay)))
    await say({ type: 'literal', codec: 'raw', chunks: [{ seq: 1, length: lay.length }], data: lay })
    assert.equal(ended(), undefined)
    assert.equal(heard.at(-1)?.type, 'flushed', JSON.stringify(heard))
    assert.ok(device.durable.subarray(0, lay.length).equals(lay))
  })
}

// ---- ends that lie, and order ----------------------------------------------------------------------------------

const DATA = noise(64 * KIB, 50)
const lengths = Uint32Array.of(DATA.length)
const surveyed = (firstSeq: number, roots: boolean, digests: Uint8Array): DiskMessageBody => ({
  type: 'survey',
  firstSeq,
  offset: 0,
  runs: [{ zero: false, lengths }],
  roots,
  digests,
})
const digested = (firstSeq: number, digests: Uint8Array = sha256(DATA)): DiskMessageBody => ({
  type: 'digests',
  firstSeq,
  digests,
})
const literal = (seq: number): DiskMessageBody => ({
  type: 'literal',
  codec: 'raw',
  chunks: [{ seq, length: DATA.length }],
  data: DATA,
})

test('a newer chunk of the same content, whose digest was known first, is not waited for by the older one', async () => {
  const gate = Promise.withResolvers<void>()
  const { say, heard, device, ended } = loneReceiver(undefined, () => gate.promise)
  await say(surveyed(0, true, sha256(sha256(DATA))))
  await say(surveyed(1, false, sha256(DATA)))
  gate.resolve()
  await say({ type: 'flush', id: 1, barrier: 2 })
  assert.deepEqual(heard.at(-1), { type: 'detail', disk: 0, epoch: 1, runs: [{ first: 0, count: 1 }] })
  await say(digested(0))
  assert.deepEqual(heard.at(-1), { type: 'want', disk: 0, epoch: 1, runs: [{ first: 0, count: 1 }] })
  await say(literal(0))
  assert.equal(ended(), undefined)
  assert.equal(heard.at(-1)?.type, 'flushed')
  assert.ok(device.durable.subarray(0, DATA.length).equals(DATA))
})

for (const [name, messages, says] of [
  [
    'that were not asked for',
    [surveyed(0, false, sha256(DATA)), digested(0)],
    /that of chunk 0 was not asked for/,
  ],
  ['of a chunk that was never described', [digested(7)], /that of chunk 7 was not asked for/],
  [
    'a second time',
    [surveyed(0, true, sha256(sha256(DATA))), digested(0), digested(0)],
    /that of chunk 0 was not asked for/,
  ],
  [
    'of more chunks than were asked for',
    [surveyed(0, true, sha256(sha256(DATA))), digested(0, Buffer.alloc(64))],
    /that of chunk 1 was not asked for/,
  ],
] as const) {
  test(`DIGESTS ${name} are a breach`, async () => {
    const { say, ended, device } = loneReceiver()
    for (const message of messages) await say(message)
    assert.match(ended()?.message ?? '', says)
    assert.equal(device.writes, 0)
  })
}

test('a SURVEY that was not agreed on, or is out of order, is a breach', async () => {
  const one = loneReceiver([FEATURE_BLOCKS])
  await one.say(surveyed(0, false, sha256(DATA)))
  assert.match(one.ended()?.message ?? '', /SURVEY: it was not agreed on/)
  const two = loneReceiver()
  await two.say(surveyed(1, true, sha256(DATA)))
  assert.match(two.ended()?.message ?? '', /SURVEY: sequence 1, expected 0/)
})

test('a far end that asks for details without need is a breach for the sender', async () => {
  for (const [roots, messages] of [
    [false, [{ first: 0, count: 1 }]],
    [
      true,
      [
        { first: 0, count: 1 },
        { first: 0, count: 1 },
      ],
    ],
    [true, [{ first: 9_999, count: 1 }]],
    [true, [{ first: 0, count: 2 ** 24 }]],
  ] as const) {
    const { sender, say } = await loneSender(roots)
    for (const run of messages) say({ type: 'detail', runs: [run] })
    await assert.rejects(sender.flush(), /DETAIL of/)
  }
})

/** A sender that has described 16 MiB, and a hand in the place of its far end. */
async function loneSender(
  roots: boolean,
): Promise<{ sender: DiskSender; say: (body: DiskMessageBody) => void }> {
  const joined = wire()
  const surveyed = Promise.withResolvers<void>()
  const say = (body: DiskMessageBody): void => {
    const { type, payload } = encodeDiskMessage({ ...body, disk: 0, epoch: 7 })
    joined.a.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
  }
  joined.a.send = async (type) => {
    if (type === DISK_OPEN) setImmediate(() => say({ type: 'opened', errno: 0, text: '' }))
    if (type === DISK_SURVEY) setImmediate(surveyed.resolve)
  }
  const { sender } = await rig({
    contents: Buffer.alloc(32 * MIB),
    channels: { near: joined.a, far: wire().b },
  })
  say({ type: 'held', bytes: roots ? GIB : 0 })
  for (let at = 0; at < 17 * MIB; at += MIB) await sender.write(at, noise(MIB, at + 1))
  await surveyed.promise
  return { sender, say }
}
