/** The zero scan against a naive one. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { isZero, type ZeroRun, zeroRuns } from '../../../lib/chunk/zero.ts'
import { BLOCK_BYTES, MIB } from '../../../lib/core/units.ts'

function naiveRuns(bytes: Uint8Array): ZeroRun[] {
  const runs: { offset: number; length: number; zero: boolean }[] = []
  for (let offset = 0; offset < bytes.length; offset += BLOCK_BYTES) {
    const block = bytes.subarray(offset, offset + BLOCK_BYTES)
    const zero = block.every((byte) => byte === 0)
    const last = runs.at(-1)
    if (last?.zero === zero) last.length += block.length
    else runs.push({ offset, length: block.length, zero })
  }
  return runs
}

test('runs equal those of a naive scan, wherever the one byte of a block lies', () => {
  const block = fc.option(fc.integer({ min: 0, max: BLOCK_BYTES - 1 }))
  fc.assert(
    fc.property(fc.array(block, { maxLength: 40 }), fc.integer({ min: 0, max: 4095 }), (blocks, short) => {
      const bytes = new Uint8Array(Math.max(0, blocks.length * BLOCK_BYTES - short))
      blocks.forEach((place, index) => {
        if (place !== null) bytes[index * BLOCK_BYTES + place] = 1
      })
      assert.deepEqual(zeroRuns(bytes), naiveRuns(bytes))
    }),
  )
})

test('every single byte is seen', () => {
  const bytes = new Uint8Array(2 * MIB + 3)
  assert.ok(isZero(bytes))
  for (const place of [0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, 2 * MIB, 2 * MIB + 2]) {
    bytes[place] = 0x80
    assert.ok(!isZero(bytes), `place ${place}`)
    bytes[place] = 0
  }
  assert.ok(isZero(bytes, 5, 5))
  assert.deepEqual(zeroRuns(bytes), [{ offset: 0, length: bytes.length, zero: true }])
  assert.deepEqual(zeroRuns(new Uint8Array(0)), [])
})
