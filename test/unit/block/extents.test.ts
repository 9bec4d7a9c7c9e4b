/** IntervalMap against the obvious model: one value per byte. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { IntervalMap } from '../../../lib/block/extents.ts'

const SIZE = 64
const step = fc.record({
  kind: fc.constantFrom('set', 'delete', 'deleteValue'),
  start: fc.integer({ min: 0, max: SIZE - 1 }),
  length: fc.integer({ min: 1, max: SIZE }),
  value: fc.integer({ min: 1, max: 5 }),
})

test('IntervalMap behaves as an array with one value a byte', () => {
  fc.assert(
    fc.property(fc.array(step, { maxLength: 40 }), (steps) => {
      const map = new IntervalMap<number>()
      const model = new Array<number>(SIZE).fill(0)
      for (const { kind, start, length, value } of steps) {
        const end = Math.min(SIZE, start + length)
        if (kind === 'set') {
          map.set(start, end, value)
          model.fill(value, start, end)
        } else if (kind === 'delete') {
          map.delete(start, end)
          model.fill(0, start, end)
        } else {
          map.deleteValue(start, end, value)
          for (let i = start; i < end; i++) if (model[i] === value) model[i] = 0
        }
        const seen = new Array<number>(SIZE).fill(0)
        let before = 0
        for (const range of map.entries()) {
          assert.ok(range.start >= before && range.end > range.start, 'sorted, not overlapping, not empty')
          before = range.end
          seen.fill(range.value, range.start, range.end)
        }
        assert.deepEqual(seen, model)
        assert.equal(map.bytes, model.filter((byte) => byte !== 0).length)
        const covered = model.slice(start, end).every((byte) => byte !== 0)
        assert.equal(map.covers(start, end), covered)
        assert.equal(
          map.overlaps(start, end),
          model.slice(start, end).some((byte) => byte !== 0),
        )
        const holes = new Array<number>(SIZE).fill(1)
        for (const gap of map.gaps(0, SIZE)) holes.fill(0, gap.start, gap.end)
        assert.deepEqual(
          holes,
          model.map((byte) => (byte === 0 ? 0 : 1)),
        )
      }
    }),
    { numRuns: 300 },
  )
})

test('runAround joins touching ranges of the same kind only', () => {
  const map = new IntervalMap<string>()
  map.set(0, 4, 'a')
  map.set(4, 8, 'a')
  map.set(8, 12, 'b')
  map.set(16, 20, 'a')
  const run = map.runAround(5, (a, b) => a === b)
  assert.deepEqual(
    run?.map((range) => [range.start, range.end]),
    [
      [0, 4],
      [4, 8],
    ],
  )
  assert.equal(
    map.runAround(13, () => true),
    undefined,
  )
})
