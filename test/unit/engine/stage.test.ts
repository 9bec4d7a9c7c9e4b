/** Where writes wait: order, what newer writes supersede, and what is held back while the rest leaves. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Stage, type StagedRun } from '../../../lib/engine/stage.ts'
import { random } from '../../random.ts'

const MAX = 1000

function filled(length: number, value: number): Buffer {
  return Buffer.alloc(length, value)
}

function what(run: StagedRun | undefined): [number, string] | undefined {
  return run && [run.offset, run.zero ? `${run.length} zeroes` : Buffer.concat(run.parts).toString('hex')]
}

test('what is held stays when the rest leaves, and a forced take has it in its order', () => {
  const stage = new Stage()
  stage.put(0, filled(2, 1), 100)
  stage.put(10, filled(2, 2))
  stage.put(20, filled(2, 3), 110)
  assert.equal(stage.oldestOrder, 0)
  assert.equal(stage.oldestFreeOrder, 1)
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [10, '0202'])
  assert.equal(stage.takeOldest(MAX, false), undefined)
  assert.equal(stage.oldestFreeOrder, undefined)
  assert.equal(stage.heldBytes, 4)
  assert.deepEqual(what(stage.takeOldest(MAX)), [0, '0101'])
  assert.deepEqual(what(stage.takeOldest(MAX)), [20, '0303'])
  assert.equal(stage.heldBytes, 0)
  assert.equal(stage.empty, true)
})

test('held neighbours are no part of a run that may not take them', () => {
  const stage = new Stage()
  stage.put(2, filled(2, 2), 100)
  stage.put(0, filled(2, 1))
  stage.put(4, filled(2, 3))
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [0, '0101'])
  assert.deepEqual(what(stage.takeOldest(MAX)), [2, '02020303'])
})

test('I1: what takes the place of an older write is as old as it, held or not', () => {
  const stage = new Stage()
  stage.put(0, filled(4, 1))
  stage.put(100, filled(4, 2))
  stage.put(2, filled(4, 3), 100)
  assert.equal(stage.oldestOrder, 0)
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [0, '0101'])
  assert.equal(stage.oldestOrder, 0, 'the held one stands for the first')
  stage.putZeroes(2, 4)
  assert.equal(stage.heldBytes, 0)
  assert.equal(stage.oldestFreeOrder, 0)
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [2, '4 zeroes'])
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [100, '02020202'])
})

test('what rested is let go, by its last write, and leaves as old as it is', () => {
  const stage = new Stage()
  stage.put(0, filled(2, 1), 100)
  stage.put(10, filled(2, 2), 100)
  stage.put(0, filled(2, 3), 400)
  stage.letGo(99)
  assert.equal(stage.oldestFreeOrder, undefined)
  stage.letGo(100)
  assert.equal(stage.oldestFreeOrder, 1)
  assert.equal(stage.oldestOrder, 0)
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [10, '0202'])
  stage.letGo(400)
  assert.deepEqual(what(stage.takeOldest(MAX, false)), [0, '0303'])
})

test('when too much is held, what has been held the longest goes', () => {
  const stage = new Stage()
  for (let at = 0; at < 5; at++) stage.put(at * 10, filled(4, at + 1), 100 + at)
  stage.letGoOver(10)
  assert.equal(stage.heldBytes, 8)
  assert.equal(stage.dataBytes, 20)
  for (let at = 0; at < 3; at++) assert.equal(stage.takeOldest(MAX, false)?.offset, at * 10)
  assert.equal(stage.takeOldest(MAX, false), undefined)
})

test('property: everything that is put is taken once, as it was written last, never after what is younger', () => {
  for (let seed = 1; seed <= 300; seed++) {
    const next = random(seed)
    const stage = new Stage()
    const size = 64
    const written = Buffer.alloc(size)
    const taken = Buffer.alloc(size)
    /** Of each byte: the oldest write since it was taken. */
    const orders = new Array<number>(size).fill(Number.POSITIVE_INFINITY)
    const take = (held: boolean): void => {
      const oldest = held ? stage.oldestOrder : stage.oldestFreeOrder
      const run = stage.takeOldest(1 + Math.floor(next() * size), held)
      assert.equal(run === undefined, oldest === undefined)
      if (run === undefined) return
      const bytes = run.zero ? Buffer.alloc(run.length) : Buffer.concat(run.parts)
      assert.equal(bytes.length, run.length)
      bytes.copy(taken, run.offset)
      orders.fill(Number.POSITIVE_INFINITY, run.offset, run.offset + run.length)
    }
    for (let step = 0; step < 200; step++) {
      const kind = next()
      const offset = Math.floor(next() * size)
      const length = 1 + Math.floor(next() * (size - offset) * 0.4)
      if (kind < 0.6) {
        const order = stage.nextOrder
        const bytes = filled(length, kind < 0.1 ? 0 : 1 + (step % 250))
        bytes.copy(written, offset)
        if (kind < 0.1) stage.putZeroes(offset, length)
        else stage.put(offset, bytes, next() < 0.5 ? step : undefined)
        for (let at = offset; at < offset + length; at++) orders[at] = Math.min(orders[at]!, order)
      } else if (kind < 0.65) stage.letGo(step - Math.floor(next() * 30))
      else if (kind < 0.7) stage.letGoOver(Math.floor(next() * size))
      else take(next() < 0.5)
      const oldest = Math.min(...orders)
      // It may stand for something older that was taken already, never for something younger.
      if (oldest < Number.POSITIVE_INFINITY)
        assert.ok(stage.oldestOrder! <= oldest, `seed ${seed}, step ${step}`)
      else assert.equal(stage.empty, true)
      assert.ok(stage.heldBytes >= 0 && stage.heldBytes <= stage.dataBytes)
    }
    stage.letGo(1000)
    assert.equal(stage.heldBytes, 0)
    while (!stage.empty) take(false)
    assert.ok(taken.equals(written), `seed ${seed}`)
    assert.equal(stage.dataBytes, 0)
  }
})
