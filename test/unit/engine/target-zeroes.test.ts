/** What is remembered of a target's zeroes is bounded, and neither learning nor settling them holds up the event loop. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  KNOWN_ZEROES_MAX,
  PENDING_ZEROES_MAX,
  SCANNED_EXTENTS_MAX,
  SETTLING_ZEROES_MAX,
} from '../../../lib/core/limits.ts'
import { TargetZeroes } from '../../../lib/engine/target-zeroes.ts'
import { DurableDevice } from './rig.ts'

/** A target of which every other byte is zero, the first one too, and which says so. */
function fragmented(zeroes: number) {
  const device = new DurableDevice(Buffer.alloc(2 * zeroes, 1), 1)
  for (let at = 0; at < device.size; at += 2) device.bytes[at] = 0
  device.blockStatus = async (offset, length) =>
    Array.from({ length }, (_, at) => {
      const zero = device.bytes[offset + at] === 0
      return { length: 1, hole: zero, zero }
    })
  const turn = { inTurn: async (work: () => Promise<void>): Promise<void> => await work() }
  const target = new TargetZeroes({
    device,
    ended: () => false,
    untouched: () => true,
    inTurn: (_start, _end, work) => turn.inTurn(work),
  })
  return { device, target, turn }
}

test('of a target in very many pieces so many zeroes are known, and what is forgotten is zeroed once more', async () => {
  const { device, target } = fragmented(KNOWN_ZEROES_MAX + 1)
  assert.equal(await target.scan(), KNOWN_ZEROES_MAX + 1)
  assert.ok(target.isKnown(0, 1) && target.isKnown(2 * KNOWN_ZEROES_MAX - 2, 2 * KNOWN_ZEROES_MAX - 1))
  assert.ok(!target.isKnown(2 * KNOWN_ZEROES_MAX, 2 * KNOWN_ZEROES_MAX + 1))
  target.add(1, 2)
  await target.settle()
  assert.ok(target.isKnown(1, 2) && !target.isKnown(0, 1))
  target.add(0, 1)
  await target.settle()
  assert.equal(device.zeroedBytes, 2)
})

test('while extents are learned other work goes on', async () => {
  const { target } = fragmented(2 * SCANNED_EXTENTS_MAX)
  let turns = 0
  let done = false
  const scanned = target.scan().finally(() => {
    done = true
  })
  while (!done) {
    await new Promise((resolve) => setImmediate(resolve))
    turns++
  }
  await scanned
  assert.ok(turns >= 4, `${turns} turns`)
})

test('pending zeroes: beyond so many ranges they are to be settled, some at once', async () => {
  const { target, turn } = fragmented(PENDING_ZEROES_MAX + 1)
  for (let range = 0; range < PENDING_ZEROES_MAX; range++)
    assert.equal(target.add(2 * range, 2 * range + 1), false)
  assert.equal(target.add(2 * PENDING_ZEROES_MAX, 2 * PENDING_ZEROES_MAX + 1), true)
  let under = 0
  turn.inTurn = () => {
    under++
    return new Promise(() => undefined)
  }
  void target.settle()
  for (let turns = 0; turns < 5; turns++) await new Promise((resolve) => setImmediate(resolve))
  assert.equal(under, SETTLING_ZEROES_MAX)
})

test('what is left of zeroes from any byte on, and newer ones around it that come before their turn: no sector is torn', async () => {
  const device = new DurableDevice(Buffer.alloc(32_768, 1), 1)
  const gate = Promise.withResolvers<void>()
  const turns: [number, number][] = []
  const target = new TargetZeroes({
    device,
    ended: () => false,
    untouched: () => true,
    inTurn: async (start, end, work) => {
      turns.push([start, end])
      await gate.promise
      await work()
    },
  })
  // As a chunk leaves it that ends there, and one that begins behind it.
  target.add(8192 + 301, 20_480 + 77)
  const settled = target.settle()
  target.add(4096, 28_672)
  gate.resolve()
  await settled
  assert.deepEqual(turns, [[8192, 24_576]])
  const zeroes = device.bytes.subarray(8192, 24_576).every((byte) => byte === 0)
  assert.ok(zeroes, 'whole blocks, since the newer zeroes are of all of them')
  assert.equal(device.zeroedBytes, 24_576 - 8192, 'and the rest of those has time')
  await target.settle()
  assert.deepEqual(turns.slice(1), [
    [4096, 8192],
    [24_576, 28_672],
  ])
  assert.equal(device.zeroedBytes, 28_672 - 4096)
})

test('I2: zeroes that were being settled when the session ended are no more than the one that was under way', async () => {
  const device = new DurableDevice(Buffer.alloc(64, 1), 1)
  // A hole between two that are known: of one pending range two parts are written.
  device.blockStatus = async () => [
    { length: 16, hole: false, zero: false },
    { length: 16, hole: true, zero: true },
    { length: 32, hole: false, zero: false },
  ]
  let ended = false
  const target = new TargetZeroes({
    device,
    ended: () => ended,
    untouched: () => true,
    inTurn: async (_start, _end, work) => await work(),
  })
  await target.scan()
  target.add(0, 64)
  const zeroes = device.writeZeroes.bind(device)
  device.writeZeroes = async (offset, length) => {
    await zeroes(offset, length)
    ended = true
  }
  await target.settle()
  assert.equal(device.zeroedBytes, 16)
})
