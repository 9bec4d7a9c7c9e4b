/** The memory device: what the contract leaves open (holes, pages, what it keeps of a written buffer). */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { FaultyDevice } from '../../../lib/block/faulty.ts'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { RefusedError } from '../../../lib/core/errors.ts'

const PAGE = 65536

describe('MemoryDevice', () => {
  test('zeroed pages are holes again, partly zeroed ones are not', async () => {
    const device = new MemoryDevice({ size: 4 * PAGE + 100 })
    await device.write(0, Buffer.alloc(4 * PAGE + 100, 1))
    assert.deepEqual(await device.blockStatus(0, device.size), [
      { length: device.size, hole: false, zero: false },
    ])
    await device.writeZeroes(PAGE, PAGE + 1)
    await device.writeZeroes(4 * PAGE, 100)
    assert.deepEqual(await device.blockStatus(0, device.size), [
      { length: PAGE, hole: false, zero: false },
      { length: PAGE, hole: true, zero: true },
      { length: 2 * PAGE, hole: false, zero: false },
      { length: 100, hole: true, zero: true },
    ])
  })

  test('NO_HOLE leaves no hole', async () => {
    const device = new MemoryDevice({ size: 2 * PAGE })
    await device.writeZeroes(0, PAGE, { noHole: true })
    assert.deepEqual(await device.blockStatus(0, 2 * PAGE), [
      { length: PAGE, hole: false, zero: false },
      { length: PAGE, hole: true, zero: true },
    ])
  })

  test('a disk of 8 TiB costs what was written', async () => {
    const device = new MemoryDevice({ size: 8 * 2 ** 40 })
    await device.write(2 ** 42, Buffer.from('far out'))
    assert.equal((await device.read(2 ** 42, 7)).toString(), 'far out')
  })

  test('behaves as a plain buffer', async () => {
    const size = 5 * PAGE
    const range = fc.tuple(
      fc.nat(size - 1),
      fc.nat(2 * PAGE),
      fc.constantFrom('write', 'zero', 'noHole', 'trim'),
      fc.nat(255),
    )
    await fc.assert(
      fc.asyncProperty(fc.array(range, { maxLength: 12 }), async (operations) => {
        const device = new MemoryDevice({ size })
        const model = Buffer.alloc(size)
        for (const [offset, wanted, operation, value] of operations) {
          const length = Math.min(wanted + 1, size - offset)
          model.fill(operation === 'write' ? value : 0, offset, offset + length)
          if (operation === 'write') await device.write(offset, Buffer.alloc(length, value))
          else if (operation === 'trim') await device.trim(offset, length)
          else await device.writeZeroes(offset, length, { noHole: operation === 'noHole' })
        }
        assert.ok((await device.read(0, size)).equals(model))
      }),
      { numRuns: 50 },
    )
  })
})

describe('FaultyDevice', () => {
  test('fails the nth call, and only that', async () => {
    const inner = new MemoryDevice({ size: PAGE })
    const device = new FaultyDevice(inner, [{ operation: 'write', nth: 2, errno: 28 }])
    await device.write(0, Buffer.from('a'))
    await assert.rejects(
      device.write(0, Buffer.from('b')),
      (error) => error instanceof RefusedError && error.errno === 28,
    )
    await device.write(1, Buffer.from('c'))
    assert.equal((await device.read(0, 2)).toString(), 'ac')
    assert.equal(device.calls('write'), 3)
  })

  test('holds a call until its promise is settled', async () => {
    const gate = Promise.withResolvers<void>()
    const inner = new MemoryDevice({ size: PAGE })
    const device = new FaultyDevice(inner, [{ operation: 'flush', after: gate.promise }])
    const flushing = device.flush()
    await device.write(0, Buffer.from('a'))
    assert.equal(inner.flushes, 0)
    gate.resolve()
    await flushing
    assert.equal(inner.flushes, 1)
  })
})
