/** What a guest rewrites again and again is held back: versions in between never cross the link, and a FLUSH has them all. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ManualClock } from '../../../lib/core/clock.ts'
import { HELD_BACK_BYTES_MAX, HELD_BACK_MS, HOT_REST_MS, HOT_UNITS_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Heat } from '../../../lib/engine/heat.ts'
import { closeRigs, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const UNIT = 64 * KIB
const POOL = noise(9 * MIB, 1)
/** QEMU's mirror rests so long between two rounds. */
const ROUND_MS = 100

test('a place is hot when it is written for the third time, each soon after the one before', () => {
  const heat = new Heat()
  assert.equal(heat.wrote(0, UNIT, 0), false)
  assert.equal(heat.wrote(0, UNIT, 100), false)
  assert.equal(heat.wrote(0, UNIT, 200), true)
  assert.equal(heat.wrote(0, UNIT, 200 + HOT_REST_MS), true)
  assert.equal(heat.wrote(0, UNIT, 201 + 2 * HOT_REST_MS), false, 'it rested')
})

test('a write that is hot only in part is not hot, and what is written side by side is no rewrite', () => {
  const heat = new Heat()
  for (const atMs of [0, 1, 2]) heat.wrote(UNIT, UNIT, atMs)
  assert.equal(heat.wrote(UNIT, 2 * UNIT, 3), false)
  assert.equal(heat.wrote(UNIT, UNIT, 4), true)
  for (let at = 0; at < 16; at++) assert.equal(heat.wrote(10 * UNIT + at * 4 * KIB, 4 * KIB, 5 + at), false)
  assert.equal(heat.wrote(0, 2 * MIB, 50), false)
})

test('what it remembers is bounded, by number and by time', () => {
  const heat = new Heat()
  for (let at = 0; at < HOT_UNITS_MAX + 100; at++) heat.wrote(at * UNIT, UNIT, 1)
  assert.equal(heat.count, HOT_UNITS_MAX)
  heat.wrote(0, UNIT, 2 + HOT_REST_MS)
  assert.equal(heat.count, 1)
})

interface Held extends Rig {
  readonly clock: ManualClock
  readonly atDevice: (offset: number, length: number) => Buffer
}

async function start(): Promise<Held> {
  const clock = new ManualClock()
  const joined = await rig({ contents: Buffer.alloc(8 * MIB), clock })
  const atDevice = (offset: number, length: number): Buffer =>
    joined.device.bytes.subarray(offset, offset + length)
  return { ...joined, clock, atDevice }
}

/** One after the other, a round of the mirror apart. The first two are cold, and arrive. */
async function rewrite(held: Held, offset: number, versions: readonly Buffer[]): Promise<void> {
  for (const [at, version] of versions.entries()) {
    await held.sender.write(offset, version)
    held.clock.advance(ROUND_MS)
    if (at < 2) await arriveSoon(held, offset, version)
    else await sleep(20)
  }
}

/** Waits for it; whether it came is for the caller to look at. */
async function arriveSoon(held: Held, offset: number, version: Buffer): Promise<void> {
  const end = performance.now() + 10_000
  while (!held.atDevice(offset, version.length).equals(version) && performance.now() < end) await sleep(1)
}

test('the third version and those after it stay here until the place rests; then the last one goes', async () => {
  const held = await start()
  const versions = Array.from({ length: 9 }, (_, at) => noise(UNIT, at + 1))
  await rewrite(held, 0, versions)
  const before = held.wire.bytes
  assert.ok(held.atDevice(0, UNIT).equals(versions[1]!), 'the second one is the last that went')
  held.clock.advance(HOT_REST_MS)
  await arriveSoon(held, 0, versions[8]!)
  assert.ok(held.atDevice(0, UNIT).equals(versions[8]!))
  assert.ok(held.wire.bytes - before < 1.5 * UNIT, 'one version')
})

test('I1: a FLUSH has what is held', async () => {
  const held = await start()
  const versions = Array.from({ length: 5 }, (_, at) => noise(UNIT, at + 1))
  await rewrite(held, 0, versions)
  assert.ok(!held.atDevice(0, UNIT).equals(versions[4]!))
  await held.sender.flush()
  assert.ok(held.device.durable.subarray(0, UNIT).equals(versions[4]!))
})

test('what is cold leaves past what is held', async () => {
  const held = await start()
  await rewrite(
    held,
    0,
    Array.from({ length: 5 }, (_, at) => noise(UNIT, at + 1)),
  )
  const cold = noise(UNIT, 99)
  await rewrite(held, MIB, [cold])
  assert.ok(held.atDevice(MIB, UNIT).equals(cold))
  assert.ok(!held.atDevice(0, UNIT).equals(noise(UNIT, 5)))
})

for (const { what, rate, bytes } of [
  { what: 'than the link carries in a moment', rate: 4 * MIB, bytes: (4 * MIB * HELD_BACK_MS) / 1000 },
  { what: 'than is allowed on any link', rate: 1000 * MIB, bytes: HELD_BACK_BYTES_MAX },
]) {
  test(`no more is held ${what}: what has been held the longest goes`, async () => {
    const held = await start()
    Object.assign(held.wire.a, { rateBytesPerSecond: rate })
    const units = Math.floor(bytes / UNIT)
    const places = Array.from({ length: units + 1 }, (_, at) => at * UNIT)
    const version = (at: number, number: number): Buffer => POOL.subarray(at + number * 512).subarray(0, UNIT)
    for (let number = 1; number <= 3; number++) {
      for (const at of places) await held.sender.write(at, version(at, number))
      held.clock.advance(ROUND_MS)
      if (number < 3) for (const at of places) await arriveSoon(held, at, version(at, number))
    }
    await arriveSoon(held, 0, version(0, 3))
    const there = places.map((at) => held.atDevice(at, UNIT).equals(version(at, 3)))
    assert.deepEqual(there, [true, ...new Array<boolean>(units).fill(false)])
  })
}

test('while a FLUSH waits nothing is held', async () => {
  const held = await start()
  const versions = Array.from({ length: 4 }, (_, at) => noise(UNIT, at + 1))
  await rewrite(held, 0, versions.slice(0, 3))
  const gate = Promise.withResolvers<void>()
  const flush = held.device.flush.bind(held.device)
  held.device.flush = async () => {
    await gate.promise
    await flush()
  }
  const flushed = held.sender.flush()
  await arriveSoon(held, 0, versions[2]!)
  await held.sender.write(0, versions[3]!)
  held.clock.advance(ROUND_MS)
  await arriveSoon(held, 0, versions[3]!)
  assert.ok(held.atDevice(0, UNIT).equals(versions[3]!))
  gate.resolve()
  await flushed
})
