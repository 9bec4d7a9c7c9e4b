/** Sets of leaves: held against a plain set of numbers, and coarsened within their bound. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { LeafSet } from '../../../lib/proof/leaf-set.ts'

const LEAVES = 60

function numbers(set: LeafSet): number[] {
  return set.runs().flatMap(({ first, end }) => Array.from({ length: end - first }, (_, at) => first + at))
}

const ranges = fc.array(
  fc.record({
    what: fc.constantFrom('add', 'add', 'delete'),
    first: fc.integer({ min: 0, max: LEAVES }),
    length: fc.integer({ min: 0, max: 12 }),
  }),
  { maxLength: 40 },
)

test('property: it is the set of its leaves, in runs that never touch', () => {
  fc.assert(
    fc.property(ranges, fc.integer({ min: 0, max: LEAVES }), (steps, at) => {
      const set = new LeafSet()
      const plain = new Set<number>()
      for (const { what, first, length } of steps) {
        set[what as 'add' | 'delete'](first, first + length)
        for (let leaf = first; leaf < first + length; leaf++) {
          if (what === 'add') plain.add(leaf)
          else plain.delete(leaf)
        }
      }
      const sorted = [...plain].sort((a, b) => a - b)
      assert.deepEqual(numbers(set), sorted)
      assert.equal(set.leaves, plain.size)
      assert.deepEqual([...set.entries()], set.runs())
      const runs = set.runs()
      for (const [index, run] of runs.entries()) if (index > 0) assert.ok(run.first > runs[index - 1]!.end)
      assert.equal(set.has(at), plain.has(at))
      assert.equal(
        set.overlaps(at, at + 5),
        sorted.some((leaf) => leaf >= at && leaf < at + 5),
      )
      const within = new LeafSet(set.within(at, at + 9))
      assert.deepEqual(
        numbers(within),
        sorted.filter((leaf) => leaf >= at && leaf < at + 9),
      )
    }),
  )
})

test('what is coarsened holds all that it held, and takes in the smallest gaps', () => {
  const set = new LeafSet([
    { first: 0, end: 1 },
    { first: 2, end: 3 },
    { first: 10, end: 11 },
    { first: 13, end: 14 },
  ])
  assert.deepEqual(set.coarsen(4), [])
  assert.deepEqual(set.coarsen(2), [
    { first: 1, end: 2 },
    { first: 11, end: 13 },
  ])
  assert.deepEqual(set.runs(), [
    { first: 0, end: 3 },
    { first: 10, end: 14 },
  ])
  assert.equal(set.leaves, 7)
  const bounded = new LeafSet([], 8)
  for (let leaf = 0; leaf < 1000; leaf += 2) {
    bounded.add(leaf, leaf + 1)
    assert.ok(bounded.count <= 8)
  }
  for (let leaf = 0; leaf < 1000; leaf += 2) assert.ok(bounded.has(leaf))
})
