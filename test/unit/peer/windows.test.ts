/** WindowPool: many bundles get less each, the sum is bounded, what ends gives back. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { IN_FLIGHT_BYTES_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { WindowPool } from '../../../lib/peer/windows.ts'

test('the first bundles get all that a long link needs, a hundred get little, and all of it comes back', () => {
  const pool = new WindowPool({ bytesMax: 256 * MIB })
  const windows = Array.from({ length: 100 }, () => pool.take('disk'))
  assert.deepEqual(
    windows.slice(0, 4).map(({ bytes }) => bytes),
    [IN_FLIGHT_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_BYTES_MAX, IN_FLIGHT_BYTES_MAX],
  )
  assert.equal(windows[99]!.bytes, 2 * MIB)
  assert.ok(pool.used <= 256 * MIB + 100 * 2 * MIB, `${pool.used} bytes`)
  for (const window of windows) window.release()
  windows[0]!.release()
  assert.equal(pool.used, 0)
})

test('a control bundle needs the least', () => {
  assert.equal(new WindowPool({ bytesMax: 256 * MIB }).take('control').bytes, 2 * MIB)
})
