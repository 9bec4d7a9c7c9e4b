/**
 * Sender and receiver as a whole, against a model disk: the invariants I1, I2 and I3, what is not sent twice, what is
 * not written again. Seeds are printed on failure.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { MIB } from '../../../lib/core/units.ts'
import { DISK_LITERAL, DISK_WANT } from '../../../lib/wire/disk.ts'
import { random } from '../../random.ts'
import { closeRigs, noise, rig } from './rig.ts'

after(closeRigs)

for (const minimum of [1, 512, 4096]) {
  for (let seed = 1; seed <= 8; seed++) {
    test(`I1: after an acknowledged FLUSH everything before it is durable (block ${minimum}, seed ${seed})`, async () => {
      const next = random(seed * 31 + minimum)
      const size = 2 * MIB
      const pool = noise(MIB, seed)
      const contents = Buffer.alloc(size)
      pool.copy(contents, 0, 0, MIB / 2)
      const model = Buffer.from(contents)
      const delay = async (): Promise<void> => {
        for (let turns = Math.floor(next() * 4); turns > 0; turns--) await new Promise((r) => setImmediate(r))
      }
      // Every other one with room for hardly a chunk: whoever waits for room must not hold what others need.
      const budget = new ByteBudget({ bytesMax: seed % 2 === 0 ? 20_000 : 64 * MIB })
      const { sender, device } = await rig({ contents, minimum, delay, memory: budget })
      const unit = Math.max(minimum, 512)
      const pending: Promise<void>[] = []
      for (let step = 0; step < 120; step++) {
        const offset = Math.floor(next() * (size / unit)) * unit
        const length = Math.min(
          size - offset,
          MIB / 2,
          unit * (1 + Math.floor(next() * (next() < 0.3 ? 600 : 40))),
        )
        const kind = next()
        if (kind < 0.6) {
          const from = Math.floor((next() * (pool.length - length)) / 512) * 512
          const data = Buffer.from(pool.subarray(from, from + length))
          if (next() < 0.3) data.fill(0, 0, Math.min(length, 8192))
          data.copy(model, offset)
          pending.push(sender.write(offset, data))
        } else if (kind < 0.8) {
          model.fill(0, offset, offset + length)
          pending.push(sender.writeZeroes(offset, length))
        } else if (kind < 0.88) {
          // Pushes what is staged out while more writes to the same places follow: order is then the receiver's task.
          pending.push(sender.flush())
        } else if (kind < 0.92) {
          const want = Buffer.from(model.subarray(offset, offset + length))
          assert.ok(
            (await sender.read(offset, length)).equals(want),
            `read ${offset}+${length} at step ${step}`,
          )
        } else {
          await Promise.all(pending.splice(0))
          const before = Buffer.from(model)
          await sender.flush()
          assert.ok(device.durable.equals(before), `durable content after the FLUSH at step ${step}`)
        }
      }
      await sender.flush()
      assert.ok(device.durable.equals(model))
      assert.ok(device.bytes.equals(model))
      assert.equal(budget.used, 0)
    })
  }
}

test('I1: a FLUSH is not answered while the far device has not flushed', async () => {
  const { sender, device } = await rig({ contents: Buffer.alloc(MIB) })
  await sender.write(0, noise(65536, 5))
  const gate = Promise.withResolvers<void>()
  const flush = device.flush.bind(device)
  device.flush = async () => {
    await gate.promise
    await flush()
  }
  let answered = false
  const flushed = sender.flush().then(() => {
    answered = true
  })
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.equal(answered, false)
  gate.resolve()
  await flushed
  assert.equal(device.flushes, 1)
})

test('a FLUSH with nothing new since the last is answered here', async () => {
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(MIB) })
  await sender.flush()
  assert.equal(device.flushes, 0)
  await sender.write(0, noise(4096, 5))
  await sender.flush()
  const bytes = wire.bytes
  await sender.flush()
  assert.equal(wire.bytes, bytes)
  assert.equal(device.flushes, 1)
})

test('I2: a write error at the far side is an error for ever, ENOSPC stays ENOSPC', async () => {
  for (const errno of [28, 5]) {
    const { sender, device } = await rig({ contents: Buffer.alloc(MIB) })
    device.failWrite = new RefusedError('no', { errno })
    await sender.write(0, noise(65536, 5))
    const isErrno = (error: unknown): boolean => error instanceof RefusedError && error.errno === errno
    await assert.rejects(sender.flush(), isErrno)
    device.failWrite = undefined
    await assert.rejects(sender.write(0, noise(4096, 1)), isErrno)
    await assert.rejects(sender.flush(), isErrno)
    await assert.rejects(sender.writeZeroes(0, 4096), isErrno)
  }
})

test('I2: a failing flush at the far side, and a cut wire, are errors for ever', async () => {
  const one = await rig({ contents: Buffer.alloc(MIB) })
  one.device.failFlush = new RefusedError('no', { errno: 5 })
  await one.sender.write(0, noise(65536, 5))
  await assert.rejects(one.sender.flush(), { errno: 5 })
  one.device.failFlush = undefined
  await assert.rejects(one.sender.flush(), { errno: 5 })

  const two = await rig({ contents: Buffer.alloc(MIB) })
  await two.sender.write(0, noise(65536, 5))
  two.wire.cut(new LostError('cut'))
  await assert.rejects(two.sender.flush(), { errno: 5 })
  await assert.rejects(two.sender.write(0, noise(4096, 5)), { errno: 5 })
})

test('I3: a literal that does not match its digest is never written', async () => {
  const { sender, device, wire, receiverError } = await rig({ contents: Buffer.alloc(4 * MIB) })
  wire.tamper = (type, payload) => {
    if (type !== DISK_LITERAL) return payload
    const changed = Buffer.from(payload)
    changed[changed.length - 9]! ^= 1
    return changed
  }
  // Random bytes do not compress, so the last bytes of the frame are content.
  const data = noise(MIB, 9)
  await sender.write(0, Buffer.from(data))
  await assert.rejects(sender.flush(), { errno: 5 })
  for (let i = 0; i < MIB; i++) {
    if (device.bytes[i] !== 0 && device.bytes[i] !== data[i]) assert.fail(`byte ${i} matches no digest`)
  }
  assert.ok(device.writtenBytes < MIB, 'the changed chunk was not written')
  assert.match(String(receiverError()?.message), /do not match the digest/)
})

test('I3: a source that lies is not believed', async () => {
  const lies = { name: 'chunk' as const, find: async () => noise(65536, 77) }
  const { sender, device } = await rig({
    contents: Buffer.alloc(4 * MIB),
    sources: [
      {
        name: 'chunk',
        find: async (query) => {
          const bytes = await lies.find()
          return query.verify(bytes) ? bytes : undefined
        },
      },
    ],
  })
  const data = noise(MIB, 9)
  await sender.write(0, Buffer.from(data))
  await sender.flush()
  assert.ok(device.durable.subarray(0, MIB).equals(data))
  assert.equal(sender.account.bySource.literal, MIB)
})

test('what lies in place is neither sent nor written again; zeroes over zeroes are not written', async () => {
  const contents = Buffer.alloc(8 * MIB)
  noise(3 * MIB, 3).copy(contents, MIB)
  const { sender, device, wire } = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  for (let at = 0; at < contents.length; at += MIB) {
    await sender.write(at, Buffer.from(contents.subarray(at, at + MIB)))
  }
  await sender.flush()
  assert.ok(device.durable.equals(contents))
  assert.equal(device.writes, 0)
  assert.equal(device.zeroedBytes, 0)
  assert.equal(sender.account.bySource.inPlace, 3 * MIB)
  assert.equal(sender.account.bySource.zero, 5 * MIB)
  assert.ok(wire.bytes < 20_000, `${wire.bytes} bytes on the wire`)
})

test('a zeroing pass over the whole disk does not erase the old version', async () => {
  const contents = Buffer.alloc(4 * MIB)
  noise(2 * MIB, 4).copy(contents, 0)
  const { sender, device } = await rig({ contents: Buffer.from(contents), minimum: 4096 })
  await sender.writeZeroes(0, contents.length)
  await sender.write(0, Buffer.from(contents.subarray(0, MIB)))
  await sender.flush()
  const expected = Buffer.alloc(4 * MIB)
  contents.copy(expected, 0, 0, MIB)
  assert.ok(device.durable.equals(expected))
  assert.equal(sender.account.bySource.inPlace, MIB)
  assert.equal(sender.account.bySource.literal, 0)
})

test('the same content at two places crosses once', async () => {
  const data = noise(2 * MIB, 6)
  const { sender, device } = await rig({ contents: Buffer.alloc(8 * MIB), minimum: 512 })
  await sender.write(0, Buffer.from(data))
  await sender.flush()
  const literal = sender.account.bySource.literal
  assert.equal(literal, 2 * MIB)
  await sender.write(4 * MIB, Buffer.from(data))
  await sender.flush()
  assert.equal(sender.account.bySource.literal, literal)
  assert.equal(sender.account.bySource.session, 2 * MIB)
  assert.ok(device.durable.subarray(4 * MIB, 6 * MIB).equals(data))
})

test('writes that come out of order are put in order before they are cut', async () => {
  const data = noise(8 * MIB, 8)
  const order = [4, 3, 2, 1, 0, 7, 5, 6]
  const literal = async (sequence: number[]): Promise<number> => {
    const { sender } = await rig({ contents: Buffer.alloc(16 * MIB) })
    await Promise.all(
      sequence.map((i) => sender.write(i * MIB, Buffer.from(data.subarray(i * MIB, (i + 1) * MIB)))),
    )
    await sender.flush()
    return sender.account.bySource.digest
  }
  assert.equal(await literal(order), await literal([0, 1, 2, 3, 4, 5, 6, 7]), 'the same cuts')
})

test('a superseded write that was still staged never crosses', async () => {
  const { sender, device } = await rig({ contents: Buffer.alloc(4 * MIB) })
  await Promise.all([
    sender.write(0, noise(65536, 1)),
    sender.write(0, noise(65536, 2)),
    sender.write(0, noise(65536, 3)),
  ])
  await sender.flush()
  assert.equal(sender.account.bySource.literal, 65536)
  assert.ok(device.durable.subarray(0, 65536).equals(noise(65536, 3)))
})

test('a small write and its FLUSH take one round trip: no WANT is waited for', async () => {
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(4 * MIB) })
  const data = noise(65536, 1)
  wire.dropped.add(DISK_WANT)
  await sender.write(MIB, Buffer.from(data))
  await sender.flush()
  assert.ok(device.durable.subarray(MIB, MIB + 65536).equals(data))
})

test('I3: a literal that was sent unasked is verified too', async () => {
  const { sender, device, wire } = await rig({ contents: Buffer.alloc(4 * MIB) })
  wire.tamper = (type, payload) => {
    if (type !== DISK_LITERAL) return payload
    const changed = Buffer.from(payload)
    changed[changed.length - 9]! ^= 1
    return changed
  }
  await sender.write(0, noise(65536, 9))
  await assert.rejects(sender.flush(), { errno: 5 })
  assert.equal(device.writes, 0)
})

test('bytes that are in place are not written even if their literal came unasked', async () => {
  const contents = Buffer.alloc(MIB)
  noise(65536, 3).copy(contents, 0)
  const { sender, device } = await rig({ contents: Buffer.from(contents) })
  await sender.write(0, noise(65536, 3))
  await sender.flush()
  assert.equal(device.writes, 0)
  assert.equal(sender.account.bySource.inPlace, 65536)
})

test('a target that cannot be read is written all the same, as by a plain mirror', async () => {
  const contents = noise(2 * MIB, 3)
  const { sender, device } = await rig({
    contents: Buffer.from(contents),
    break: (target) => {
      target.read = async () => {
        throw new RefusedError('a bad sector', { errno: 5 })
      }
      target.blockStatus = target.read as unknown as typeof target.blockStatus
    },
  })
  const fresh = noise(MIB, 4)
  await sender.write(0, fresh)
  await sender.flush()
  assert.ok(device.durable.equals(Buffer.concat([fresh, contents.subarray(MIB)])))
})

test('what is acknowledged drains in the time that is allowed, by what came of the bytes before', async () => {
  const acknowledged = async (known: boolean): Promise<number> => {
    const size = 64 * MIB
    const contents = noise(size, 9)
    // The rig's wire says 100 MiB/s: 10 MiB may be under way.
    const { sender, wire } = await rig({
      contents,
      limits: { windowBytes: size, drainMs: 100, flushDeadlineMs: 60_000 },
    })
    const data = known ? contents : noise(size, 10)
    const half = size / 2
    for (let at = 0; at < half; at += MIB) await sender.write(at, data.subarray(at, at + MIB))
    await sender.flush()
    wire.tamper = () => undefined
    let bytes = 0
    for (let at = half; at < size; at += MIB) {
      const write = sender.write(at, data.subarray(at, at + MIB)).then(() => true)
      if (!(await Promise.race([write, new Promise((resolve) => setTimeout(resolve, 300))]))) {
        write.catch(() => undefined)
        break
      }
      bytes += MIB
    }
    wire.cut(new LostError('the end of the test'))
    return bytes
  }
  const [unknown, found] = [await acknowledged(false), await acknowledged(true)]
  assert.ok(unknown <= 11 * MIB, `${unknown} bytes of what has to be sent`)
  assert.ok(unknown >= 8 * MIB, `${unknown} bytes of what has to be sent`)
  assert.ok(found >= 20 * MIB, `${found} bytes of what lies there already`)
})
