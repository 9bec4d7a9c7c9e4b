/** The slab pool: bound, reference counts, reuse, waiting. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { type Slab, SlabExhaustedError, SlabPool } from '../../../lib/chunk/slab.ts'
import { SLAB_BYTES_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'

test('a slab is as long as asked, shared, counted by its class, and reused after the last release', () => {
  const pool = new SlabPool({ bytesMax: MIB })
  const slab = pool.take(5000)
  assert.equal(slab.bytes.length, 5000)
  assert.ok(slab.bytes.buffer instanceof SharedArrayBuffer)
  assert.equal(pool.used, 8 * KIB)
  slab.retain()
  slab.release()
  assert.equal(pool.used, 8 * KIB)
  slab.release()
  assert.equal(pool.used, 0)
  assert.throws(() => slab.release(), /released more often/)
  assert.throws(() => slab.retain(), /after its last release/)
  const next = pool.take(8 * KIB)
  assert.equal(next.bytes.buffer, slab.bytes.buffer)
})

test('the bound holds, idle slabs of other classes make room', () => {
  const pool = new SlabPool({ bytesMax: 64 * KIB })
  const small = Array.from({ length: 16 }, () => pool.take(1))
  assert.equal(pool.used, 64 * KIB)
  assert.throws(() => pool.take(1), SlabExhaustedError)
  for (const slab of small) slab.release()
  const large = pool.take(64 * KIB)
  assert.equal(pool.used, 64 * KIB)
  large.release()
})

for (const length of [0, -1, 1.5, Number.NaN, SLAB_BYTES_MAX + 1]) {
  test(`a length of ${length} is refused`, async () => {
    const pool = new SlabPool({ bytesMax: 64 * MIB })
    assert.throws(() => pool.take(length), RangeError)
    await assert.rejects(pool.takeAsync(length), RangeError)
  })
}

test('a request beyond the whole pool is refused, not waited for; the whole pool can be had', async () => {
  const pool = new SlabPool({ bytesMax: 100_000 })
  await assert.rejects(pool.takeAsync(100_001), RangeError)
  const all = await pool.takeAsync(100_000)
  assert.equal(pool.used, 100_000)
  all.release()
})

test('waiters are served in order, and an aborted one lets the next pass', async () => {
  const pool = new SlabPool({ bytesMax: 16 * KIB })
  const first = pool.take(8 * KIB)
  const second = pool.take(4 * KIB)
  const abort = new AbortController()
  const served: string[] = []
  const large = pool.takeAsync(16 * KIB, abort.signal)
  const small = pool.takeAsync(4 * KIB).then((slab) => {
    served.push('small')
    return slab
  })
  assert.equal(pool.waiting, 2)
  // There is room for it, but it would overtake.
  assert.throws(() => pool.take(4 * KIB), SlabExhaustedError)
  const reason = new Error('enough')
  abort.abort(reason)
  await assert.rejects(large, (error) => error === reason)
  const slab = await small
  assert.deepEqual(served, ['small'])
  assert.equal(pool.used, 16 * KIB)

  const last = pool.takeAsync(16 * KIB)
  for (const held of [first, second, slab]) held.release()
  ;(await last).release()
  assert.equal(pool.used, 0)
  await assert.rejects(pool.takeAsync(1, AbortSignal.abort(reason)), (error) => error === reason)
})

test('under any order of takes and releases the bound holds and no two slabs in use overlap', () => {
  const step = fc.oneof(
    fc.record({ take: fc.integer({ min: 1, max: 200 * KIB }) }),
    fc.record({ release: fc.nat({ max: 100 }) }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 100 }), (steps) => {
      const pool = new SlabPool({ bytesMax: 512 * KIB })
      const held: Slab[] = []
      for (const action of steps) {
        if ('take' in action) {
          try {
            held.push(pool.take(action.take))
          } catch (error) {
            assert.ok(error instanceof SlabExhaustedError)
          }
        } else if (held.length > 0) {
          held.splice(action.release % held.length, 1)[0]!.release()
        }
        assert.ok(pool.used <= pool.bytesMax)
        assert.equal(new Set(held.map(({ bytes }) => bytes.buffer)).size, held.length)
        assert.equal(
          pool.used,
          held.reduce((sum, { bytes }) => sum + bytes.buffer.byteLength, 0),
        )
      }
    }),
  )
})

test('when nothing is in use, no more is kept than for the next start', () => {
  const pool = new SlabPool({ bytesMax: 256 * MIB })
  const slabs = Array.from({ length: 12 }, () => pool.take(16 * MIB))
  for (const slab of slabs.slice(1)) slab.release()
  assert.equal(pool.idleBytes, 11 * 16 * MIB)
  slabs[0]!.release()
  assert.equal(pool.used, 0)
  assert.equal(pool.idleBytes, 32 * MIB)
})
