/** ImageStock when several migrations begin at once: each image is known once, its file is open once. */
import assert from 'node:assert/strict'
import { mkdtemp, readdir, readlink, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { MIB } from '../../../lib/core/units.ts'

async function opened(directory: string): Promise<string[]> {
  const names = await readdir('/proc/self/fd')
  const paths = await Promise.all(names.map((name) => readlink(`/proc/self/fd/${name}`).catch(() => '')))
  return paths.filter((path) => path.startsWith(`${directory}/`)).sort()
}

/** The thread that scans says what it found before it closes the file: waits for that, but not for what stays open. */
async function openedAtRest(directory: string, count: number): Promise<string[]> {
  const end = Date.now() + 10_000
  for (;;) {
    const paths = await opened(directory)
    if (paths.length <= count || Date.now() > end) return paths
    await new Promise((resolve) => setTimeout(resolve, 10))
  }
}

test('refreshes at the same time leave each image once, and none after close', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-stock-'))
  const stock = new ImageStock({ indexBytesMax: MIB, imagesMax: 16 })
  try {
    const paths = ['a.raw', 'b.raw', 'c.raw'].map((name) => join(directory, name))
    for (const path of paths) await writeFile(path, Buffer.alloc(2 * MIB, path))
    await Promise.all(Array.from({ length: 4 }, () => stock.refresh([directory], new Set())))
    const end = Date.now() + 10_000
    while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
    assert.deepEqual(stock.images.map(({ path }) => path).sort(), paths)
    assert.deepEqual(await openedAtRest(directory, paths.length), paths)
  } finally {
    await stock.close()
    assert.deepEqual(await opened(directory), [])
    await rm(directory, { recursive: true })
  }
})

test('when the numbers of images are used up the index is made anew, and finds them again', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-stock-'))
  const stock = new ImageStock({ indexBytesMax: MIB, imagesMax: 16, numbersMax: 5 })
  try {
    const paths = ['a.raw', 'b.raw'].map((name) => join(directory, name))
    for (let round = 0; round < 6; round++) {
      // Another size: another identity, whatever the clock of the file system resolves.
      for (const path of paths) await writeFile(path, Buffer.alloc(2 * MIB + 4096 * round, path))
      await stock.refresh([directory], new Set())
      const end = Date.now() + 10_000
      while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
      assert.deepEqual(stock.images.map(({ path }) => path).sort(), paths, `round ${round}`)
      assert.ok(stock.chunkCount > 0, `round ${round}`)
      assert.deepEqual(await openedAtRest(directory, paths.length), paths, `round ${round}`)
    }
  } finally {
    await stock.close()
    await rm(directory, { recursive: true })
  }
})
