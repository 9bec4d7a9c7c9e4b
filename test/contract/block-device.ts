/**
 * What every BlockDevice must do, whoever implements it: one suite, run on each kind. A kind is a function that makes a
 * fresh device of a given size, all zero. What a device does not offer (its features say so) is not asked of it.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { describe, test } from 'node:test'
import type { BlockDevice } from '../../lib/block/device.ts'

export interface MadeDevice {
  readonly device: BlockDevice
  /** After the device was closed. */
  cleanup(): Promise<void>
}

const MIB = 1024 * 1024
const SIZE = 8 * MIB

export function blockDeviceContract(kind: string, make: (size: number) => Promise<MadeDevice>): void {
  const on = (name: string, work: (device: BlockDevice) => Promise<void>): void => {
    test(name, async () => {
      const made = await make(SIZE)
      try {
        await work(made.device)
      } finally {
        await made.device.close()
        await made.cleanup()
      }
    })
  }

  describe(`BlockDevice contract: ${kind}`, () => {
    on('has the size asked for and sane block sizes', async (device) => {
      assert.equal(device.size, SIZE)
      const { minimum, preferred, maximum } = device.blockSizes
      assert.ok(Number.isInteger(Math.log2(minimum)) && minimum <= 65536, `minimum ${minimum}`)
      assert.ok(preferred >= minimum && maximum >= minimum)
    })

    on('reads zeroes where nothing was written', async (device) => {
      assert.deepEqual(await device.read(MIB, MIB), Buffer.alloc(MIB))
      assert.deepEqual(await device.read(SIZE - 65536, 65536), Buffer.alloc(65536))
    })

    on('reads what was written, at once and in pieces, and nothing beside it changed', async (device) => {
      const data = randomBytes(3 * 65536)
      await device.write(65536, Buffer.from(data))
      assert.deepEqual(await device.read(65536, data.length), data)
      assert.deepEqual(await device.read(2 * 65536, 65536), data.subarray(65536, 2 * 65536))
      assert.deepEqual(await device.read(0, 65536), Buffer.alloc(65536))
      assert.deepEqual(await device.read(4 * 65536, 65536), Buffer.alloc(65536))
    })

    on('writes of any alignment down to the minimum block', async (device) => {
      const step = device.blockSizes.minimum
      const image = Buffer.alloc(256 * 1024)
      const unit = Math.max(step, 1)
      for (const [offset, length] of [
        [unit, unit],
        [65536 - unit, 2 * unit],
        [3 * unit, 70_000 - (70_000 % unit)],
        [131072 - unit, unit],
      ] as const) {
        const data = randomBytes(length)
        data.copy(image, offset)
        await device.write(offset, data)
      }
      assert.deepEqual(await device.read(0, image.length), image)
    })

    on('the last byte can be written and read', async (device) => {
      const data = randomBytes(65536)
      await device.write(SIZE - data.length, Buffer.from(data))
      assert.deepEqual(await device.read(SIZE - data.length, data.length), data)
    })

    on('many writes and reads in flight at once', async (device) => {
      const image = randomBytes(SIZE)
      const pieces = Array.from({ length: SIZE / 65536 }, (_, index) => index * 65536)
      await Promise.all(pieces.map((at) => device.write(at, Buffer.from(image.subarray(at, at + 65536)))))
      await device.flush()
      const read = await Promise.all(pieces.map((at) => device.read(at, 65536)))
      assert.ok(Buffer.concat(read).equals(image))
    })

    on("the buffer of a read is the caller's own", async (device) => {
      await device.write(0, Buffer.alloc(4096, 7))
      const first = await device.read(0, 4096)
      first.fill(9)
      assert.deepEqual(await device.read(0, 4096), Buffer.alloc(4096, 7))
    })

    on('zeroes', async (device) => {
      if (!device.features.writeZeroes) return
      const image = randomBytes(512 * 1024)
      await device.write(0, Buffer.from(image))
      for (const [offset, length, noHole] of [
        [65536, 65536, false],
        [200 * 1024, 4096, true],
        [300 * 1024, 152 * 1024, false],
      ] as const) {
        await device.writeZeroes(offset, length, { noHole })
        image.fill(0, offset, offset + length)
      }
      assert.ok((await device.read(0, image.length)).equals(image))
      await device.writeZeroes(0, SIZE)
      assert.ok((await device.read(0, SIZE)).equals(Buffer.alloc(SIZE)))
    })

    on('FUA, flush, trim and cache succeed where they are offered', async (device) => {
      if (device.features.fua) await device.write(0, randomBytes(4096), { fua: true })
      if (device.features.fua && device.features.writeZeroes) await device.writeZeroes(0, 4096, { fua: true })
      if (device.features.trim) await device.trim(0, 65536)
      if (device.features.cache) await device.cache(0, 65536)
      await device.flush()
      await device.flush()
    })

    on('extents are contiguous, within the range, and never call data zero', async (device) => {
      await device.write(MIB, randomBytes(MIB))
      let at = 0
      while (at < SIZE) {
        const extents = await device.blockStatus(at, SIZE - at)
        assert.ok(extents.length > 0)
        for (const extent of extents) {
          assert.ok(extent.length > 0 && at + extent.length <= SIZE)
          const overlapsData = at < 2 * MIB && at + extent.length > MIB
          if (overlapsData) assert.equal(extent.zero, false, `zero at ${at}`)
          at += extent.length
        }
      }
      assert.equal(at, SIZE)
    })

    on('blockStatus says of empty space that it is a hole, where it is answered', async (device) => {
      if (!device.features.blockStatus) return
      const [first] = await device.blockStatus(0, SIZE)
      assert.deepEqual(first, { length: SIZE, hole: true, zero: true })
    })

    on('close is idempotent', async (device) => {
      await device.close()
      await device.close()
    })
  })
}
