/** The cap that all bundles of a daemon share, and that bundles keep to it. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { RateLimit } from '../../../lib/peer/rate-limit.ts'

test('what passes in a long time is the rate, whatever the frames', () => {
  for (const frame of [100, 5000, 200_000]) {
    let now = 0
    const limit = new RateLimit({ bytesPerSecond: 1_000_000, clock: () => now })
    let sent = 0
    while (now < 10_000) {
      const wait = limit.waitMs()
      if (wait > 0) now += wait
      else {
        limit.sent(frame)
        sent += frame
      }
    }
    assert.ok(
      sent >= 9_900_000 && sent <= 10_000_000 + 20_000 + frame,
      `${sent} bytes in 10 s, frames of ${frame}`,
    )
  }
})

test('an idle time gives no more than a short burst', () => {
  let now = 0
  const limit = new RateLimit({ bytesPerSecond: 1_000_000, clock: () => now })
  now += 60_000
  let sent = 0
  while (limit.waitMs() === 0) {
    limit.sent(1000)
    sent += 1000
  }
  assert.ok(sent <= 21_000, `${sent} bytes at once`)
})

test('a bundle holds back bulk frames by the cap, and never control frames', async () => {
  const clock = { now: 0 }
  const rateLimit = new RateLimit({ bytesPerSecond: 1, clock: () => clock.now })
  const { near, far } = await bundlePair({ rateLimit })
  const got: number[] = []
  far.onFrame = (type) => got.push(type)
  await near.send(20, [Buffer.alloc(1000)], 3)
  let second = false
  const held = near.send(21, [Buffer.alloc(1000)], 3).then(() => {
    second = true
  })
  await near.send(22, [Buffer.alloc(10)], 0)
  while (got.length < 2) await new Promise((resolve) => setImmediate(resolve))
  assert.deepEqual([got, second], [[20, 22], false])
  // With the clock moved on, the next frame that comes finds the bucket full again, and the older one goes first.
  clock.now += 3_600_000
  const later = near.send(23, [Buffer.alloc(1)], 3)
  later.catch(() => undefined)
  await held
  await near.close(new Error('the test is over'))
  await assert.rejects(later)
})
