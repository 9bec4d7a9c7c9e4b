/**
 * Sender and receiver over a real bundle whose link breaks: what was acknowledged as flushed is durable (I1) whatever is cut
 * and when, and QEMU's requests wait on a broken link only for as long as they are allowed to (I2).
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { RefusedError } from '../../../lib/core/errors.ts'
import { DISK_WAITS_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { bundlePair, type MemoryOptions, type MemoryPair } from '../../../lib/peer/memory.ts'
import { FEATURE_RESUME } from '../../../lib/wire/hello.ts'
import { random } from '../../random.ts'
import { closeRigs, type Rig, rig } from './rig.ts'

after(closeRigs)

const EIO = 5
const SIZE = 8 * MIB

async function joined(
  options: MemoryOptions & { readonly flushDeadlineMs: number; readonly windowBytes?: number },
): Promise<MemoryPair & Rig> {
  const pair = await bundlePair({ features: [FEATURE_RESUME], channels: 2, delayMs: 1, ...options })
  const { flushDeadlineMs, windowBytes = 64 * MIB } = options
  const made = await rig({
    contents: Buffer.alloc(SIZE),
    channels: pair,
    limits: { windowBytes, drainMs: 1000, flushDeadlineMs },
  })
  return { ...pair, ...made }
}

for (let seed = 1; seed <= 6; seed++) {
  test(`I1: a FLUSH that was answered is durable, with the link cut at any moment (seed ${seed})`, async () => {
    const { near, far, cut, sender, device } = await joined({ flushDeadlineMs: 10_000 })
    const next = random(seed)
    const model = Buffer.alloc(SIZE)
    let over = false
    const cutting = (async () => {
      while (!over) {
        await sleep(Math.floor(next() * 60))
        if (!over) cut()
      }
    })()
    const pending: Promise<void>[] = []
    for (let step = 0; step < 160; step++) {
      const offset = Math.floor((next() * (SIZE - 2 * MIB)) / 4096) * 4096
      const data = Buffer.allocUnsafe(4096 * (1 + Math.floor(next() * (next() < 0.1 ? 256 : 16))))
      for (let at = 0; at < data.length; at += 4) data.writeUInt32LE(Math.floor(next() * 4294967296), at)
      data.copy(model, offset)
      pending.push(sender.write(offset, data))
      if (next() < 0.08) {
        const flushed = Buffer.from(model)
        await Promise.all(pending.splice(0))
        await sender.flush()
        assert.ok(device.durable.equals(flushed), `step ${step}: what was flushed is not durable`)
      } else if (next() < 0.2) await sleep(1)
    }
    await Promise.all(pending)
    await sender.flush()
    over = true
    await cutting
    assert.ok(device.durable.equals(model))
    assert.ok(near.resumes > 0, 'the link was cut')
    await near.close()
    await far.closed
  })
}

test('a FLUSH on a broken link waits for the deadline and no longer, then the session is lost for ever', async () => {
  const { near, cut, setDown, sender } = await joined({ flushDeadlineMs: 600 })
  await sender.write(0, Buffer.alloc(4096, 1))
  setDown(true)
  cut()
  const started = performance.now()
  const isLost = (error: unknown): boolean =>
    error instanceof RefusedError && error.errno === EIO && /flushDeadlineMs is 600/.test(error.message)
  await assert.rejects(sender.flush(), isLost)
  const waitedMs = performance.now() - started
  assert.ok(waitedMs >= 600 && waitedMs < 3000, `${waitedMs} ms`)
  setDown(false)
  while (near.broken) await sleep(5)
  await assert.rejects(sender.write(0, Buffer.alloc(4096, 2)), isLost)
  await assert.rejects(sender.flush(), isLost)
  await near.close()
})

test('a WRITE that finds the window full waits no longer either', async () => {
  const { near, cut, setDown, sender } = await joined({ flushDeadlineMs: 500, windowBytes: MIB })
  setDown(true)
  cut()
  const noise = random(5)
  const block = Buffer.alloc(MIB)
  for (let at = 0; at < block.length; at += 4) block.writeUInt32LE(Math.floor(noise() * 4294967296), at)
  const results = await Promise.allSettled([0, 1, 2, 3].map((at) => sender.write(at * MIB, block)))
  const failed = results.filter((result) => result.status === 'rejected')
  assert.ok(failed.length > 0)
  for (const { reason } of failed) assert.equal((reason as RefusedError).errno, EIO)
  await near.close(new Error('done'))
})

test('a FLUSH on a broken link that comes back in time is answered', async () => {
  const { near, cut, setDown, sender, device } = await joined({ flushDeadlineMs: 5000 })
  await sender.write(8192, Buffer.alloc(4096, 7))
  setDown(true)
  cut()
  const flushed = sender.flush()
  await sleep(300)
  setDown(false)
  await flushed
  assert.ok(device.durable.subarray(8192, 12288).equals(Buffer.alloc(4096, 7)))
  assert.equal(near.resumes, 1)
  await near.close()
})

test('the account lists how long QEMU waited: for a FLUSH with news, not for one without, and only the last ones', async () => {
  const { near, cut, setDown, sender } = await joined({ flushDeadlineMs: 5000 })
  const { waits } = sender.account
  const flush = async (value: number): Promise<void> => {
    await sender.write(8192, Buffer.alloc(4096, value))
    await sender.flush()
  }
  await flush(1)
  setDown(true)
  cut()
  const before = Date.now()
  const flushed = Promise.all([flush(2), sender.flush()])
  await sleep(300)
  setDown(false)
  await flushed
  assert.equal(waits.length, 2, 'both FLUSHes were one wait')
  const { at, ms } = waits[1]!
  assert.ok(ms >= 290 && at >= before - 2 && at + ms <= Date.now() + 2, `${ms} ms from ${at - before} on`)
  await sender.flush()
  assert.equal(waits.length, 2, 'a FLUSH of nothing waits for nobody')
  for (let value = 3; value < 15; value++) await flush(value)
  assert.equal(waits.length, DISK_WAITS_MAX)
  assert.ok(
    waits.every(
      (wait, index) => index === 0 || wait.at + wait.ms >= waits[index - 1]!.at + waits[index - 1]!.ms,
    ),
  )
  await near.close()
})

test('nothing waits: a break is ridden out for as long as the bundle tries', async () => {
  const { near, cut, setDown, sender, device } = await joined({ flushDeadlineMs: 200 })
  await sender.write(0, Buffer.alloc(4096, 3))
  await sender.flush()
  setDown(true)
  cut()
  await sleep(1200)
  setDown(false)
  await sender.write(4096, Buffer.alloc(4096, 4))
  while (near.broken) await sleep(5)
  await sender.flush()
  assert.ok(device.durable.subarray(4096, 8192).equals(Buffer.alloc(4096, 4)))
  await near.close()
})

test('a link that is slow, but gives signs, is no break', async () => {
  const { near, sender } = await joined({ flushDeadlineMs: 300, bytesPerSecond: 2 * MIB, pingIntervalMs: 50 })
  const noise = random(9)
  const block = Buffer.alloc(4 * MIB)
  for (let at = 0; at < block.length; at += 4) block.writeUInt32LE(Math.floor(noise() * 4294967296), at)
  await sender.write(0, block)
  const started = performance.now()
  await sender.flush()
  assert.ok(performance.now() - started > 600, 'it took longer than the deadline')
  await near.close()
})
