/** The file device: what the contract leaves open (sparseness, opening, ends of files). */
import assert from 'node:assert/strict'
import { mkdtemp, rm, stat, truncate, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { describe, test } from 'node:test'
import { openFileDevice } from '../../../lib/block/file.ts'
import { RefusedError } from '../../../lib/core/errors.ts'

const MIB = 1024 * 1024

function inFolder(work: (path: string) => Promise<void>): () => Promise<void> {
  return async () => {
    const folder = await mkdtemp(join(tmpdir(), 'swam-file-'))
    try {
      await work(join(folder, 'disk.img'))
    } finally {
      await rm(folder, { recursive: true })
    }
  }
}

async function allocated(path: string): Promise<number> {
  return (await stat(path)).blocks * 512
}

describe('openFileDevice', () => {
  test(
    'zeroes over a hole leave it a hole, NO_HOLE does not',
    inFolder(async (path) => {
      const device = await openFileDevice(path, { createBytes: 16 * MIB })
      await device.writeZeroes(0, 16 * MIB)
      await device.flush()
      assert.equal(await allocated(path), 0)
      assert.deepEqual(await device.blockStatus(0, 16 * MIB), [{ length: 16 * MIB, hole: true, zero: true }])
      await device.writeZeroes(0, MIB, { noHole: true })
      await device.flush()
      assert.ok((await allocated(path)) >= MIB)
      await device.close()
    }),
  )

  test(
    'zeroes over data are written, also in a file of which nothing is known',
    inFolder(async (path) => {
      await writeFile(path, Buffer.alloc(3 * MIB, 7))
      const device = await openFileDevice(path)
      assert.deepEqual(await device.blockStatus(0, MIB), [{ length: MIB, hole: false, zero: false }])
      await device.writeZeroes(100, 2 * MIB)
      const expected = Buffer.alloc(3 * MIB, 7).fill(0, 100, 100 + 2 * MIB)
      assert.ok((await device.read(0, 3 * MIB)).equals(expected))
      await device.close()
    }),
  )

  test(
    'holes are told by grains of 64 KiB',
    inFolder(async (path) => {
      const device = await openFileDevice(path, { createBytes: MIB })
      await device.write(65536 + 5, Buffer.from('x'))
      assert.deepEqual(await device.blockStatus(1000, MIB - 1000), [
        { length: 64536, hole: true, zero: true },
        { length: 65536, hole: false, zero: false },
        { length: MIB - 2 * 65536, hole: true, zero: true },
      ])
      await device.close()
    }),
  )

  test(
    'read-only refuses to write, an existing file is not created again, a folder is no disk',
    inFolder(async (path) => {
      await writeFile(path, 'data')
      const device = await openFileDevice(path, { readOnly: true })
      assert.equal(device.features.readOnly, true)
      await assert.rejects(device.write(0, Buffer.from('x')), /EBADF/)
      await device.close()
      await assert.rejects(openFileDevice(path, { createBytes: 5 }), /EEXIST/)
      await assert.rejects(openFileDevice(tmpdir(), { readOnly: true }), RefusedError)
    }),
  )

  test(
    'a file that got shorter is an error, not zeroes',
    inFolder(async (path) => {
      await writeFile(path, Buffer.alloc(1000, 1))
      const device = await openFileDevice(path)
      await truncate(path, 500)
      await assert.rejects(device.read(0, 1000), /the file ends before 1000/)
      await device.close()
    }),
  )
})
