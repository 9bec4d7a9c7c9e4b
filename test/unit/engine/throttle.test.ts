/** throttle = true: once a disk is copied, writes are acknowledged only as fast as they arrive. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LostError } from '../../../lib/core/errors.ts'
import { THROTTLE_BYTES_MIN, THROTTLE_MS } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { closeRigs, noise, rig } from './rig.ts'

after(closeRigs)

const SIZE = 16 * MIB

/** Of writes of 64 KiB that never arrive, how many bytes are acknowledged. */
async function acknowledged(throttle: boolean, copied: boolean, rate: number): Promise<number> {
  const { sender, wire } = await rig({
    contents: Buffer.alloc(SIZE),
    limits: { windowBytes: 2 * SIZE, drainMs: 1000, flushDeadlineMs: 60_000, throttle },
  })
  if (copied) {
    await sender.write(0, noise(SIZE, 1))
    await sender.flush()
  }
  Object.assign(wire.a, { rateBytesPerSecond: rate })
  wire.tamper = () => undefined
  const data = noise(64 * KIB, 2)
  let bytes = 0
  for (let at = 0; at < SIZE / 2; at += data.length) {
    const write = sender.write(at, data).then(() => true)
    write.catch(() => undefined)
    if ((await Promise.race([write, sleep(300)])) !== true) break
    bytes += data.length
  }
  wire.cut(new LostError('the end of the test'))
  return bytes
}

test('a disk that is copied has only so much under way as the link takes in a moment', async () => {
  const rate = 10 * MIB
  const bytes = await acknowledged(true, true, rate)
  assert.ok(
    bytes <= (rate * THROTTLE_MS) / 1000 && bytes >= (rate * THROTTLE_MS) / 1000 - 128 * KIB,
    `${bytes}`,
  )
  const slow = await acknowledged(true, true, 1000)
  assert.ok(slow <= THROTTLE_BYTES_MIN && slow >= THROTTLE_BYTES_MIN - 128 * KIB, `${slow}`)
})

test('while it is being copied, and without the key, as much as ever', async () => {
  assert.equal(await acknowledged(true, false, 10 * MIB), SIZE / 2)
  assert.equal(await acknowledged(false, true, 10 * MIB), SIZE / 2)
})
