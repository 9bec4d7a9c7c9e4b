/** What is done before QEMU asks for it: flushes of the far disk in the background, and of a guest's other disks. */
import assert from 'node:assert/strict'
import { after, mock, test } from 'node:test'
import { ManualClock } from '../../../lib/core/clock.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { FLUSH_AHEAD_MS, FLUSH_BULK_MS } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { FlushAhead } from '../../../lib/engine/flush-ahead.ts'
import { SenderGroup } from '../../../lib/engine/sender-group.ts'
import { closeRigs, noise, rig } from './rig.ts'

after(closeRigs)

test('a device is flushed when something was written since, once it was asked to flush, and not twice at a time', async () => {
  const clock = new ManualClock()
  const gates: PromiseWithResolvers<void>[] = []
  const device = {
    flush(): Promise<void> {
      gates.push(Promise.withResolvers<void>())
      return gates.at(-1)!.promise
    },
  }
  const ahead = new FlushAhead({ device, clock, fail: (error) => assert.fail(String(error)) })
  ahead.wrote()
  clock.advance(3 * FLUSH_AHEAD_MS)
  assert.equal(gates.length, 0)
  ahead.start()
  clock.advance(FLUSH_AHEAD_MS)
  assert.equal(gates.length, 1)
  ahead.wrote()
  clock.advance(FLUSH_AHEAD_MS)
  assert.equal(gates.length, 1)
  gates[0]!.resolve()
  await new Promise((resolve) => setImmediate(resolve))
  clock.advance(FLUSH_AHEAD_MS)
  assert.equal(gates.length, 2)
  gates[1]!.resolve()
  await new Promise((resolve) => setImmediate(resolve))
  clock.advance(3 * FLUSH_AHEAD_MS)
  assert.equal(gates.length, 2, 'nothing was written since')
  ahead.wrote()
  ahead.stop()
  clock.advance(3 * FLUSH_AHEAD_MS)
  assert.equal(gates.length, 2)
})

test('while a disk is copied it is flushed now and then: of what a QEMU that is killed leaves the next attempt finds most', async () => {
  const clock = new ManualClock()
  let flushes = 0
  const device = {
    async flush(): Promise<void> {
      flushes++
    },
  }
  const ahead = new FlushAhead({ device, clock, fail: (error) => assert.fail(String(error)) })
  clock.advance(2 * FLUSH_BULK_MS)
  assert.equal(flushes, 0, 'nothing was written')
  ahead.wrote()
  clock.advance(FLUSH_BULK_MS - 1)
  ahead.wrote()
  assert.equal(flushes, 0)
  clock.advance(1)
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(flushes, 1)
  clock.advance(2 * FLUSH_BULK_MS)
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(flushes, 1, 'nothing was written since')
  ahead.wrote()
  clock.advance(FLUSH_BULK_MS)
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(flushes, 2)
  ahead.wrote()
  ahead.start()
  clock.advance(FLUSH_AHEAD_MS)
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(flushes, 3, 'from now on often')
  ahead.stop()
  ahead.wrote()
  clock.advance(2 * FLUSH_BULK_MS)
  assert.equal(flushes, 3)
})

test('I2: a flush in the background that fails is the end of the session, though the next one would not fail', async () => {
  const { sender, device } = await rig({ contents: Buffer.alloc(MIB) })
  await sender.write(0, noise(65536, 1))
  await sender.flush()
  device.failFlush = new RefusedError('no', { errno: 5 })
  await sender.write(0, noise(65536, 2))
  await sender.settle()
  await assert.rejects(async () => {
    for (let at = 0; at < 100; at++) {
      await new Promise((resolve) => setTimeout(resolve, FLUSH_AHEAD_MS / 5))
      await sender.settle()
    }
  }, /no/)
  device.failFlush = undefined
  await assert.rejects(sender.flush(), { errno: 5 })
})

test('a FLUSH of one disk is one of all disks of the guest, when all are copied', async () => {
  let final = false
  const group = new SenderGroup(() => final)
  const disks = Array.from({ length: 3 }, () => {
    const disk = {
      flush: mock.fn(async () => {
        group.flushing(disk)
      }),
    }
    group.join(disk)
    return disk
  })
  const calls = (): number[] => disks.map(({ flush }) => flush.mock.callCount())
  await disks[0]!.flush()
  assert.deepEqual(calls(), [1, 0, 0])
  final = true
  await disks[0]!.flush()
  assert.deepEqual(calls(), [2, 1, 1])
  disks[1]!.flush.mock.mockImplementationOnce(async () => {
    throw new Error('it is lost')
  })
  group.leave(disks[2]!)
  await disks[0]!.flush()
  assert.deepEqual(calls(), [3, 2, 1])
})

test('whoever wants to know hears of each FLUSH that QEMU asks for, and of its answer, also of one with nothing to do', async () => {
  const told: string[] = []
  const group = new SenderGroup(
    () => false,
    () => {
      told.push('asked')
      return () => told.push('answered')
    },
  )
  const { sender, device } = await rig({ contents: Buffer.alloc(65536), group })
  assert.deepEqual(told.splice(0), [])
  await sender.flush()
  assert.deepEqual(told.splice(0), ['asked', 'answered'])
  await sender.write(0, noise(4096, 1))
  assert.deepEqual(told.splice(0), [])
  const flushed = sender.flush()
  assert.deepEqual(told.splice(0), ['asked'])
  await flushed
  assert.deepEqual(told.splice(0), ['answered'])
  await sender.write(0, noise(4096, 2))
  device.failFlush = new RefusedError('no', { errno: 5 })
  await assert.rejects(sender.flush())
  assert.deepEqual(told.splice(0), ['asked'])
})
