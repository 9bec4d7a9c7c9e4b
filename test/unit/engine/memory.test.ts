/**
 * What the two ends of a disk hold (I6), and how long they keep the event loop: a slow disk behind a fast link, a far
 * side that sends what nobody asked for, disks with tens of thousands of zero ranges.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { LostError } from '../../../lib/core/errors.ts'
import { EARLY_BYTES_MAX, SENDER_RECORDS_MAX, STAGE_PIECES_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { SendWindow } from '../../../lib/engine/send-window.ts'
import {
  DISK_LITERAL,
  DISK_WANT,
  type DiskMessageBody,
  decodeDiskMessage,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { BUSY_MS_MAX, leastBusyMs } from '../../busy.ts'
import { closeRigs, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

test('a fast link and a slow disk: the receiver holds no more than its budget', async () => {
  const budget = new ByteBudget({ bytesMax: MIB })
  const { sender, device } = await rig({ contents: Buffer.alloc(24 * MIB), memory: budget })
  let held = 0
  let most = 0
  const write = device.write.bind(device)
  device.write = async (offset, data) => {
    held += data.length
    most = Math.max(most, held)
    await turns(20)
    await write(offset, data)
    held -= data.length
  }
  const bytes = noise(24 * MIB, 3)
  for (let at = 0; at < bytes.length; at += MIB) await sender.write(at, bytes.subarray(at, at + MIB))
  await sender.flush()
  assert.ok(device.durable.equals(bytes))
  // Blocks that chunks share are put together beside it: 4 KiB each.
  assert.ok(most > MIB / 4 && most <= MIB + 256 * KIB, `${most} bytes were held at once`)
  assert.equal(budget.used, 0)
})

test('two disks share one budget, and one that hangs does not stop the other', async () => {
  const budget = new ByteBudget({ bytesMax: MIB })
  const stuck = await rig({ contents: Buffer.alloc(8 * MIB), memory: budget })
  const moving = await rig({ contents: Buffer.alloc(8 * MIB), memory: budget })
  stuck.device.write = () => new Promise(() => undefined)
  const bytes = noise(8 * MIB, 4)
  await stuck.sender.write(0, bytes)
  await moving.sender.write(0, bytes)
  await moving.sender.flush()
  assert.ok(moving.device.durable.equals(bytes))
  assert.ok(budget.used > 0 && budget.used <= MIB / 2, `${budget.used} bytes are held by the disk that hangs`)
  await stuck.sender.close()
  await turns(20)
  assert.equal(budget.used, 0, 'what it held comes back when it ends')
})

test('the disks of a daemon share a window; one that does not move lets the others in', async () => {
  const window = new SendWindow({ bytesMax: 8 * MIB })
  const limits = { window, windowBytes: 64 * MIB, drainMs: 1000, flushDeadlineMs: 60_000 }
  const stuck = await rig({ contents: Buffer.alloc(32 * MIB), limits })
  const moving = await rig({ contents: Buffer.alloc(32 * MIB), limits })
  stuck.device.write = () => new Promise(() => undefined)
  const bytes = noise(32 * MIB, 5)
  let told = 0
  const writes = Array.from({ length: 32 }, async (_, at) => {
    await stuck.sender.write(at * MIB, bytes.subarray(at * MIB, (at + 1) * MIB))
    told += MIB
  })
  for (const write of writes) write.catch(() => undefined)
  await turns(50)
  assert.ok(told > 0 && told <= 9 * MIB, `${told} bytes of the disk that hangs were acknowledged`)
  // One at a time, as a guest does: what waits for an answer is not counted as told.
  for (let at = 0; at < 32; at++) {
    await moving.sender.write(at * MIB, bytes.subarray(at * MIB, (at + 1) * MIB))
  }
  await moving.sender.flush()
  assert.ok(moving.device.durable.equals(bytes))
  await stuck.sender.close()
  assert.equal(window.usedBytes, 0)
})

test('a window smaller than a run still lets everything through', async () => {
  const limits = { windowBytes: 512 * KIB, drainMs: 1000, flushDeadlineMs: 60_000 }
  const slabs = new SlabPool({ bytesMax: MIB })
  const { sender, device } = await rig({ contents: Buffer.alloc(8 * MIB), limits, slabs })
  const bytes = noise(8 * MIB, 6)
  await Promise.all(
    [0, 1].map((at) => sender.write(at * 4 * MIB, bytes.subarray(at * 4 * MIB, (at + 1) * 4 * MIB))),
  )
  await sender.flush()
  assert.ok(device.durable.equals(bytes))
})

/** Speaks for the sender, and says what no sender would. */
function hostile({ wire }: Rig, message: DiskMessageBody): void {
  const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 7 })
  void wire.a.send(type, payload, 0)
}

async function failure(joined: Rig): Promise<string> {
  for (let i = 0; i < 2000 && joined.receiverError() === undefined; i++) await turns(1)
  return String(joined.receiverError()?.message)
}

/** One chunk on which nothing can be done, since its device never answers a read. */
async function blocked(): Promise<{ joined: Rig; chunk: (seq: number) => Buffer }> {
  const joined = await rig({ contents: Buffer.alloc(64 * MIB) })
  joined.device.read = () => new Promise(() => undefined)
  // The real sender knows nothing of what is said in its name.
  joined.wire.dropped.add(DISK_WANT)
  // The target is known to be zero there, so nothing is read before it is described.
  return { joined, chunk: (seq) => Buffer.alloc(256 * KIB, (seq % 255) + 1) }
}

test('literals that nobody asked for are held up to a bound, and end the session beyond it', async () => {
  const { joined, chunk } = await blocked()
  // Overlapping on purpose: each waits for the one before it, so that none is taken.
  joined.device.write = () => new Promise(() => undefined)
  const count = EARLY_BYTES_MAX / (256 * KIB) + 4
  for (let seq = 0; seq < count; seq++) {
    const digests = sha256(chunk(seq))
    hostile(joined, {
      type: 'describe',
      firstSeq: seq,
      offset: 0,
      lengths: Uint32Array.of(256 * KIB),
      digests,
    })
    const chunks = [{ seq, length: 256 * KIB }]
    if (seq > 0) hostile(joined, { type: 'literal', chunks, codec: 'raw', data: chunk(seq) })
  }
  assert.match(await failure(joined), /bytes came that nobody asked for/)
})

test('a literal that comes twice ends the session: it would be decompressed for nothing', async () => {
  const { joined, chunk } = await blocked()
  joined.device.write = () => new Promise(() => undefined)
  const digests = sha256(chunk(0))
  hostile(joined, { type: 'describe', firstSeq: 0, offset: 0, lengths: Uint32Array.of(256 * KIB), digests })
  for (let i = 0; i < 2; i++) {
    hostile(joined, {
      type: 'literal',
      chunks: [{ seq: 0, length: 256 * KIB }],
      codec: 'raw',
      data: chunk(0),
    })
  }
  assert.match(await failure(joined), /chunk 0 came twice/)
})

test('a FLUSH over many small runs sends no more unasked than the far side takes', async () => {
  const joined = await rig({ contents: Buffer.alloc(32 * MIB, 1) })
  const { sender, device, wire } = joined
  // On a link as long as that bytes are there sooner than an answer.
  Object.assign(wire.a, { roundTripMs: 10_000 })
  let sent = 0
  wire.tamper = (type, payload) => {
    const message = type === DISK_LITERAL ? decodeDiskMessage(type, payload) : undefined
    if (message?.type === 'literal') for (const { length } of message.chunks) sent += length
    return payload
  }
  // What comes unasked waits while the far side looks whether it lies in place: here until all is described.
  const gate = Promise.withResolvers<void>()
  const read = device.read.bind(device)
  device.read = async (offset, length) => {
    await gate.promise
    return await read(offset, length)
  }
  const model = Buffer.alloc(32 * MIB, 1)
  // Below the size of a stage: all of it leaves with the FLUSH.
  for (let at = 0; at < 23 * MIB; at += 100 * KIB) {
    const bytes = noise(64 * KIB, at)
    bytes.copy(model, at)
    await sender.write(at, bytes)
  }
  const flushed = sender.flush()
  for (let before = -1; before !== sent || sent === 0; await sleep(300)) before = sent
  assert.ok(sent > EARLY_BYTES_MAX / 2 && sent <= EARLY_BYTES_MAX, `${sent} bytes were sent unasked`)
  gate.resolve()
  await flushed
  assert.ok(device.durable.equals(model))
  assert.equal(joined.receiverError(), undefined)
})

test('tens of thousands of zero ranges are settled without holding up the event loop', {
  timeout: 60_000,
}, async () => {
  const size = 256 * MIB
  const busyMs = await leastBusyMs(async (begin) => {
    const { sender, device } = await rig({ contents: Buffer.alloc(size, 1) })
    // A device that copies 256 MiB at each flush would be the one that is measured.
    device.flush = async () => undefined
    for (let at = 0; at < size; at += 16 * KIB) await sender.writeZeroes(at, 8 * KIB)
    begin()
    await sender.flush()
    assert.ok(device.bytes.subarray(size - 16 * KIB, size - 8 * KIB).equals(Buffer.alloc(8 * KIB)))
  })
  assert.ok(busyMs <= BUSY_MS_MAX, `a turn of ${busyMs} ms`)
})

test('what is acknowledged and not settled has a bound in number too: zeroes, which have no bytes', {
  timeout: 60_000,
}, async () => {
  const most = SENDER_RECORDS_MAX + STAGE_PIECES_MAX
  const { sender, wire } = await rig({ contents: Buffer.alloc(32 * MIB) })
  wire.tamper = () => undefined
  let acknowledged = 0
  for (let at = 0; at < most + 8192; at++) {
    const written = sender.writeZeroes(at * 512, 256).then(() => acknowledged++)
    written.catch(() => undefined)
    if (at % 1024 === 0) await turns(20)
  }
  await turns(100)
  assert.ok(acknowledged >= SENDER_RECORDS_MAX && acknowledged <= most + 2048, `${acknowledged}`)
  wire.cut(new LostError('the end of the test'))
})
