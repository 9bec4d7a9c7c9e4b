/**
 * Sessions of one daemon that have content from each other: two guests that arrive at once ask for the same content once, and
 * neither ever depends on the other: it may end, fail, stall, lie or hang.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import fc from 'fast-check'
import { hintOf } from '../../../lib/chunk/digest.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { ARRIVAL_READ_MS, ARRIVAL_SILENCE_MS } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Arrivals } from '../../../lib/engine/arrivals.ts'
import type { DeliveredChunks } from '../../../lib/engine/delivered.ts'
import { newTask, type Task } from '../../../lib/engine/task.ts'
import { DISK_LITERAL, decodeDiskMessage } from '../../../lib/wire/disk.ts'
import { random } from '../../random.ts'
import { closeRigs, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

const NOTHING: DeliveredChunks = { name: 'session', has: () => false, find: async () => undefined }

async function until(what: string, check: () => boolean): Promise<void> {
  for (let i = 0; i < 3000 && !check(); i++) await new Promise((resolve) => setTimeout(resolve, 1))
  assert.ok(check(), `waited in vain for ${what}`)
}

/** Literals on their way to the receiver, until `go`. */
function stall({ wire }: Rig): { held: () => number; go: () => void } {
  const held: [number, Buffer][] = []
  wire.tamper = (type, payload) => {
    if (type !== DISK_LITERAL) return payload
    held.push([type, payload])
    return undefined
  }
  const go = (): void => {
    wire.tamper = undefined
    for (const [type, payload] of held.splice(0)) wire.b.onFrame?.(type, payload, 0)
  }
  return { held: () => held.length, go }
}

/** Chunks that the receiver asked its sender for. */
function asks({ wire }: Rig): { readonly count: number } {
  const counted = { count: 0 }
  const send = wire.b.send.bind(wire.b)
  wire.b.send = async (type, payload, cls) => {
    const message = decodeDiskMessage(type, Buffer.concat(payload as Uint8Array[]))
    if (message.type === 'want' || message.type === 'ask')
      for (const { count } of message.runs) counted.count += count
    await send(type, payload, cls)
  }
  return counted
}

/** A session that has asked for everything that goes to this receiver, before it is told of it. */
function askedElsewhere({ wire }: Rig, arrivals: Arrivals, delivered = NOTHING) {
  const session = arrivals.join(delivered, () => true)
  const tasks: Task[] = []
  wire.tamper = (type, payload) => {
    const message = decodeDiskMessage(type, payload)
    if (message.type === 'survey' || message.type === 'describe') {
      for (let at = 0; at < message.digests.length; at += 32) {
        const digest = Buffer.from(message.digests.subarray(at, at + 32))
        const task = newTask(tasks.length, 0, 1, digest, undefined)
        tasks.push(task)
        session.asked(task)
      }
    }
    return payload
  }
  return { session, tasks }
}

async function pair(options: { size?: number; clock?: ManualClock; budget?: number } = {}) {
  const { size = 8 * MIB, clock = new ManualClock(), budget = 64 * MIB } = options
  const arrivals = new Arrivals(clock)
  const memory = new ByteBudget({ bytesMax: budget })
  const one = await rig({ contents: Buffer.alloc(size), memory, arrivals })
  const two = await rig({ contents: Buffer.alloc(size), memory, arrivals })
  return { arrivals, clock, memory, one, two }
}

const literals = (...rigs: Rig[]): number =>
  rigs.reduce((sum, { sender }) => sum + sender.account.bySource.literal, 0)

async function flushed(one: Rig, bytes: Buffer): Promise<void> {
  await one.sender.flush()
  assert.ok(one.device.durable.equals(bytes), 'the disk is what was written')
}

// ---- two guests ----------------------------------------------------------------------------------------------------

test('two that begin at once: what both have crosses once, and both disks are whole', async () => {
  const { arrivals, memory, one, two } = await pair()
  const bytes = noise(8 * MIB, 1)
  await Promise.all([one, two].map(({ sender }) => sender.write(0, Buffer.from(bytes))))
  await Promise.all([one, two].map(({ sender }) => sender.settle()))
  assert.equal(literals(one, two), 8 * MIB)
  assert.equal(one.sender.account.bySource.session + two.sender.account.bySource.session, 8 * MIB)
  await Promise.all([flushed(one, bytes), flushed(two, bytes)])
  assert.equal(memory.used, 0)
  assert.equal(arrivals.size, 0)
})

test('four that begin one after the other: one copy crosses', async () => {
  const arrivals = new Arrivals(new ManualClock())
  const memory = new ByteBudget({ bytesMax: 8 * MIB })
  const bytes = noise(4 * MIB, 20)
  const guests = await Promise.all(
    Array.from({ length: 4 }, async (_, at) => {
      const one = await rig({ contents: Buffer.alloc(4 * MIB), memory, arrivals })
      await turns(at * 20)
      await one.sender.write(0, Buffer.from(bytes))
      await one.sender.settle()
      return one
    }),
  )
  assert.equal(literals(...guests), 4 * MIB)
  for (const one of guests) await flushed(one, bytes)
  assert.equal(memory.used, 0)
})

test('what is on its way to one is waited for by the other, without room in memory, and not asked for', async () => {
  const { arrivals, memory, one, two } = await pair()
  const bytes = noise(8 * MIB, 2)
  const link = stall(one)
  const [asked, askedToo] = [asks(one), asks(two)]
  await one.sender.write(0, Buffer.from(bytes))
  const settled = one.sender.settle()
  await until('all to be asked for', () => memory.used === 8 * MIB && link.held() > 0)
  await two.sender.write(0, Buffer.from(bytes))
  const settledToo = two.sender.settle()
  await until('all to wait', () => arrivals.waiting === asked.count)
  await until('room to be given back', () => memory.used === 8 * MIB)
  assert.equal(askedToo.count, 0)
  link.go()
  await Promise.all([settled, settledToo])
  assert.equal(askedToo.count, 0)
  assert.equal(literals(one), 8 * MIB)
  assert.equal(two.sender.account.bySource.session, 8 * MIB)
  await Promise.all([flushed(one, bytes), flushed(two, bytes)])
  assert.equal(arrivals.size, 0)
})

test('one that begins when the other has half: the first half is read from its disk, the second waited for', async () => {
  const { arrivals, one, two } = await pair({ size: 16 * MIB })
  const bytes = noise(16 * MIB, 3)
  await one.sender.write(0, Buffer.from(bytes.subarray(0, 8 * MIB)))
  await one.sender.settle()
  assert.equal(literals(one), 8 * MIB)
  const [link, asked] = [stall(one), asks(one)]
  await one.sender.write(8 * MIB, Buffer.from(bytes.subarray(8 * MIB)))
  const settled = one.sender.settle()
  await until('the second half to be asked for', () => link.held() > 0)
  for (const at of [0, 8 * MIB]) {
    await two.sender.write(at, Buffer.from(bytes.subarray(at, at + 8 * MIB)))
    if (at === 0) await two.sender.settle()
  }
  assert.equal(two.sender.account.bySource.session, 8 * MIB)
  const settledToo = two.sender.settle()
  await until('all to wait', () => asked.count > 50 && arrivals.waiting === asked.count)
  link.go()
  await Promise.all([settled, settledToo])
  assert.equal(literals(one, two), 16 * MIB)
  await Promise.all([flushed(one, bytes), flushed(two, bytes)])
})

test('hardly any room: nobody waits for ever, no more is held than there is, and most crosses once', async () => {
  const { memory, one, two } = await pair({ budget: 600 * KIB })
  const bytes = noise(8 * MIB, 4)
  let most = 0
  for (const { device } of [one, two]) {
    const write = device.write.bind(device)
    device.write = async (offset, data) => {
      await turns(3)
      most = Math.max(most, memory.used)
      await write(offset, data)
    }
  }
  await Promise.all([one, two].map(({ sender }) => sender.write(0, Buffer.from(bytes))))
  await Promise.all([one, two].map(({ sender }) => sender.settle()))
  assert.ok(most <= 600 * KIB, `${most} bytes`)
  assert.ok(literals(one, two) < 10 * MIB, `${literals(one, two)} bytes crossed`)
  await Promise.all([flushed(one, bytes), flushed(two, bytes)])
  assert.equal(memory.used, 0)
})

for (const { name, end } of [
  { name: 'is closed', end: async ({ sender }: Rig) => await sender.close() },
  { name: 'loses its link', end: async ({ wire }: Rig) => wire.cut(new LostError('cut')) },
  {
    name: 'cannot write',
    end: async ({ device, wire }: Rig, go: () => void) => {
      device.failWrite = new RefusedError('no space', { errno: 28 })
      go()
      assert.ok(wire.tamper === undefined)
    },
  },
]) {
  test(`the other one ${name}: what was waited for there is asked for at once`, async () => {
    const { arrivals, memory, one, two } = await pair()
    const bytes = noise(8 * MIB, 5)
    const link = stall(one)
    await one.sender.write(0, Buffer.from(bytes))
    one.sender.settle().catch(() => undefined)
    await until('all to be asked for', () => memory.used === 8 * MIB && link.held() > 0)
    await two.sender.write(0, Buffer.from(bytes))
    const settled = two.sender.settle()
    await until('all to wait', () => arrivals.waiting > 50 && arrivals.waiting === arrivals.size)
    assert.equal(two.sender.account.appliedBytes, 0)
    // The clock stands still: no wait runs out.
    await end(one, link.go)
    await settled
    await flushed(two, bytes)
    assert.equal(two.receiverError(), undefined)
    assert.equal(memory.used, 0)
    assert.equal(arrivals.size, 0)
  })
}

test('a FLUSH does not wait for a link that stalls: what was waited for, and what comes, is asked for', async () => {
  const { arrivals, memory, one, two } = await pair()
  const bytes = noise(8 * MIB, 6)
  const link = stall(one)
  await one.sender.write(0, Buffer.from(bytes))
  one.sender.settle().catch(() => undefined)
  await until('all to be asked for', () => memory.used === 8 * MIB && link.held() > 0)
  await two.sender.write(0, Buffer.from(bytes.subarray(0, 4 * MIB)))
  const settled = two.sender.settle()
  // All but the last one, whose end is another.
  await until('most to wait', () => arrivals.waiting > 30)
  await turns(50)
  assert.ok(literals(two) < 256 * KIB)
  // More than a stage: it is described only now.
  await two.sender.write(4 * MIB, Buffer.from(bytes.subarray(4 * MIB)))
  await flushed(two, bytes)
  await settled
  assert.equal(literals(two), 8 * MIB)
  await one.sender.close()
})

test('a FLUSH that waits already: nothing that comes then waits for another session', async () => {
  const { arrivals, two } = await pair()
  askedElsewhere(two, arrivals)
  const bytes = noise(8 * MIB, 7)
  // Held up: the FLUSH waits for the first piece.
  const gate = Promise.withResolvers<void>()
  const write = two.device.write.bind(two.device)
  two.device.write = async (offset, data) => {
    await gate.promise
    await write(offset, data)
  }
  await two.sender.write(0, Buffer.from(bytes.subarray(0, MIB)))
  const first = two.sender.flush()
  await turns(100)
  await two.sender.write(MIB, Buffer.from(bytes.subarray(MIB)))
  const second = two.sender.flush()
  await turns(100)
  gate.resolve()
  await Promise.all([first, second])
  assert.ok(two.device.durable.equals(bytes))
})

test('a link that stalls without a FLUSH: after a while the other one asks for itself', async () => {
  const { arrivals, clock, memory, one, two } = await pair()
  const bytes = noise(8 * MIB, 8)
  const link = stall(one)
  await one.sender.write(0, Buffer.from(bytes))
  one.sender.settle().catch(() => undefined)
  await until('all to be asked for', () => memory.used === 8 * MIB && link.held() > 0)
  clock.advance(1000)
  await two.sender.write(0, Buffer.from(bytes.subarray(0, 4 * MIB)))
  const settled = two.sender.settle()
  await until('most to wait', () => arrivals.waiting > 30)
  clock.advance(ARRIVAL_SILENCE_MS - 1001)
  await turns(50)
  assert.ok(literals(two) < 256 * KIB)
  clock.advance(1)
  await settled
  assert.equal(literals(two), 4 * MIB)
  // Nothing has come there meanwhile: it is not waited for again.
  await two.sender.write(4 * MIB, Buffer.from(bytes.subarray(4 * MIB)))
  await two.sender.settle()
  await flushed(two, bytes)
  await one.sender.close()
})

// ---- who lies, hangs or is late --------------------------------------------------------------------------------------

test('I3: bytes from another session are verified here too', async () => {
  const { arrivals, two } = await pair()
  const { session, tasks } = askedElsewhere(two, arrivals)
  const asked = asks(two)
  const bytes = noise(8 * MIB, 9)
  await two.sender.write(0, Buffer.from(bytes))
  const settled = two.sender.settle()
  await until('all to wait', () => arrivals.waiting > 50 && arrivals.waiting === tasks.length)
  assert.equal(asked.count, 0)
  for (const task of tasks) {
    session.arrived(task, noise(64 * KIB, task.seq))
  }
  await settled
  await flushed(two, bytes)
  assert.equal(literals(two), 8 * MIB)
  assert.equal(two.device.writtenBytes, 8 * MIB, 'not a byte was written twice')
})

test('I3: what another session delivered and does not hold any more is not believed', async () => {
  const { one, two } = await pair()
  const bytes = noise(8 * MIB, 10)
  await one.sender.write(0, Buffer.from(bytes))
  await one.sender.settle()
  one.device.bytes.fill(5, 0, 4 * MIB)
  await two.sender.write(0, Buffer.from(bytes))
  await two.sender.settle()
  await flushed(two, bytes)
  const { literal, session } = two.sender.account.bySource
  assert.ok(literal >= 4 * MIB && literal < 4 * MIB + 256 * KIB, `${literal}`)
  assert.equal(literal + session, 8 * MIB)
})

test('what a session delivered is found until it ends, and a disk that refuses to read has nothing', async () => {
  for (const end of [
    async ({ sender }: Rig) => await sender.close(),
    async ({ device }: Rig) => {
      device.read = async () => {
        throw new RefusedError('a bad sector', { errno: 5 })
      }
    },
  ]) {
    const { one, two } = await pair()
    const bytes = noise(8 * MIB, 11)
    await one.sender.write(0, Buffer.from(bytes))
    await one.sender.settle()
    await two.sender.write(0, Buffer.from(bytes.subarray(0, 4 * MIB)))
    await two.sender.settle()
    assert.ok(two.sender.account.bySource.session > 3 * MIB)
    await end(one)
    await turns(20)
    const reads = one.device.read.bind(one.device)
    let after = 0
    if (one.sender.lost !== undefined) {
      one.device.read = (offset, length) => {
        after++
        return reads(offset, length)
      }
    }
    await two.sender.write(4 * MIB, Buffer.from(bytes.subarray(4 * MIB)))
    await two.sender.settle()
    await flushed(two, bytes)
    assert.ok(literals(two) >= 4 * MIB)
    assert.equal(after, 0, 'nothing is read of a session that has ended')
  }
})

test('a disk that hangs: its session is no source until it answers, and the other guest goes on', async () => {
  const { clock, memory, one, two } = await pair()
  const bytes = noise(8 * MIB, 12)
  await one.sender.write(0, Buffer.from(bytes))
  await one.sender.settle()
  const gate = Promise.withResolvers<void>()
  const read = one.device.read.bind(one.device)
  let reads = 0
  one.device.read = async (offset, length) => {
    reads++
    await gate.promise
    return await read(offset, length)
  }
  await two.sender.write(0, Buffer.from(bytes.subarray(0, 4 * MIB)))
  const settled = two.sender.settle()
  await until('reads', () => reads > 0)
  clock.advance(ARRIVAL_READ_MS - 1)
  await turns(50)
  assert.equal(two.sender.account.appliedBytes, 0)
  clock.advance(1)
  await settled
  assert.equal(literals(two), 4 * MIB)
  const hung = reads
  assert.ok(hung <= 24, `${hung} reads`)
  gate.resolve()
  await turns(50)
  await two.sender.write(4 * MIB, Buffer.from(bytes.subarray(4 * MIB)))
  await two.sender.settle()
  assert.ok(literals(two) < 4 * MIB + 256 * KIB, 'it answers again')
  await flushed(two, bytes)
  assert.equal(memory.used, 0)
})

test('a literal that comes unasked ends the wait', async () => {
  const { arrivals, two } = await pair()
  const { tasks } = askedElsewhere(two, arrivals)
  const told = two.wire.tamper!
  const held: Buffer[] = []
  two.wire.tamper = (type, payload) => {
    if (type !== DISK_LITERAL) return told(type, payload)
    held.push(payload)
    return undefined
  }
  const bytes = noise(64 * KIB, 13)
  await two.sender.write(0, Buffer.from(bytes))
  const settled = two.sender.settle()
  await until('it to wait', () => held.length > 0 && arrivals.waiting === tasks.length)
  assert.equal(two.sender.account.appliedBytes, 0)
  for (const payload of held) two.wire.b.onFrame?.(DISK_LITERAL, payload, 0)
  await settled
  assert.ok(two.device.bytes.subarray(0, 64 * KIB).equals(bytes))
})

test('blocks that another session got are found', async () => {
  const arrivals = new Arrivals(new ManualClock())
  const stock = noise(4 * MIB, 14)
  const fresh = noise(4096, 77)
  const data = Buffer.from(stock.subarray(0, MIB))
  for (let at = 5; at < 256; at += 16) fresh.copy(data, at * 4096)
  const places = {
    blockCount: 1024,
    lookup: (hints: Buffer, at: number) => {
      const found = []
      for (let offset = 0; offset < stock.length; offset += 4096)
        if (hintOf(stock.subarray(offset, offset + 4096)).equals(hints.subarray(at, at + 8)))
          found.push({
            offset,
            size: stock.length,
            read: async (from: number, length: number) => stock.subarray(from, from + length),
          })
      return found
    },
  }
  const one = await rig({ contents: Buffer.alloc(4 * MIB), arrivals, blockPlaces: [places] })
  await one.sender.write(0, Buffer.from(data))
  await one.sender.settle()
  const first = one.sender.account.bySource.literal
  assert.ok(first > 0 && first <= 16 * 4096)
  // Shifted by a block, with other content around: no chunk is the same, each block is.
  const other = Buffer.concat([noise(4096, 5), data.subarray(0, MIB - 4096)])
  for (let at = 11; at < 256; at += 16) noise(4096, at).copy(other, at * 4096)
  const two = await rig({ contents: Buffer.alloc(4 * MIB), arrivals })
  await two.sender.write(0, Buffer.from(other))
  await two.sender.settle()
  await two.sender.flush()
  assert.ok(two.device.durable.subarray(0, MIB).equals(other))
  assert.ok(two.sender.account.bySource.block > MIB / 2, JSON.stringify(two.sender.account.bySource))
})

// ---- all of it ---------------------------------------------------------------------------------------------------------

const RUN_BYTES = 320 * KIB
const RUNS = 6

test('property: whatever two guests have in common, and whenever either ends, the other has its own bytes', async () => {
  const pool = Array.from({ length: 8 }, (_, seed) => noise(RUN_BYTES, 100 + seed))
  const side = fc.record({
    writes: fc.array(fc.tuple(fc.nat({ max: RUNS - 1 }), fc.nat({ max: 7 }), fc.nat({ max: 9 })), {
      minLength: 3,
      maxLength: 10,
    }),
    /** Before which write its link stalls, and before which it ends; none where it is larger. */
    stallAt: fc.nat({ max: 20 }),
    endAt: fc.nat({ max: 20 }),
    end: fc.constantFrom('close', 'cut', 'fail'),
  })
  await fc.assert(
    fc.asyncProperty(side, side, fc.nat(), fc.boolean(), async (left, right, seed, tight) => {
      const next = random(seed)
      const delay = async (): Promise<void> => await turns(Math.floor(next() * 4))
      const memory = new ByteBudget({ bytesMax: tight ? 300 * KIB : 64 * MIB })
      const clock = new ManualClock()
      const arrivals = new Arrivals(clock)
      const ticking = setInterval(() => clock.advance(100), 5)
      const guest = async (plan: typeof left): Promise<void> => {
        const one = await rig({ contents: Buffer.alloc(RUNS * RUN_BYTES), memory, arrivals, delay })
        const model = Buffer.alloc(RUNS * RUN_BYTES)
        let ended = false
        for (const [at, [place, content, pause]] of plan.writes.entries()) {
          if (at === plan.stallAt && plan.endAt < plan.writes.length) stall(one)
          if (at === plan.endAt) {
            ended = true
            if (plan.end === 'cut') one.wire.cut(new LostError('cut'))
            else if (plan.end === 'fail') one.device.failWrite = new RefusedError('no', { errno: 28 })
            else await one.sender.close()
          }
          const bytes = pool[content]!
          bytes.copy(model, place * RUN_BYTES)
          const written = one.sender.write(place * RUN_BYTES, Buffer.from(bytes))
          // A link that stalls may take no more before the session ends.
          await Promise.race([written, turns(200)]).catch(() => undefined)
          written.catch(() => undefined)
          await turns(pause)
          if (pause === 9) {
            const flush = one.sender.flush()
            await Promise.race([flush, turns(200)]).catch(() => undefined)
            flush.catch(() => undefined)
          }
        }
        if (ended) {
          await one.sender.close()
          one.wire.cut(new LostError('over'))
          return
        }
        await one.sender.settle()
        await one.sender.flush()
        assert.ok(one.device.durable.equals(model), 'the disk is what was written')
        assert.equal(one.receiverError(), undefined)
        await one.sender.close()
      }
      try {
        await Promise.all([guest(left), guest(right)])
        await until('all to be given back', () => memory.used === 0)
        assert.equal(arrivals.size, 0)
      } finally {
        clearInterval(ticking)
      }
    }),
    { numRuns: 25 },
  )
})
