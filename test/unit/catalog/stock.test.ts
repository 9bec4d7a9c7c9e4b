/** ImageStock when several migrations begin at once: each image is known once, its file is open once. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
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
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 16 })
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
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 16, numbersMax: 5 })
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

test('at rest no image is open, and a refresh finds them again without a scan', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-stock-'))
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 16 })
  try {
    const paths = ['a.raw', 'b.raw', 'c.raw'].map((name) => join(directory, name))
    for (const path of paths) await writeFile(path, randomBytes(2 * MIB))
    await stock.refresh([directory], new Set())
    const end = Date.now() + 10_000
    while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
    const numbers = new Map(stock.images.map(({ path, number }) => [path, number]))
    const count = stock.chunkCount

    await stock.rest(() => false)
    assert.deepEqual(await openedAtRest(directory, paths.length), paths, 'somebody needs them')
    await stock.rest(() => true)
    assert.deepEqual(await opened(directory), [])
    assert.equal(stock.images.length, 0)

    // One is gone, one has changed, one is received now.
    await rm(paths[0]!)
    await writeFile(paths[1]!, randomBytes(3 * MIB))
    await stock.refresh([directory], new Set([paths[2]!]))
    assert.deepEqual(
      stock.images.map(({ path }) => path),
      [paths[1]],
    )
    assert.notEqual(stock.images[0]?.number, numbers.get(paths[1]!), 'what has changed is another image')
    while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
    await stock.rest(() => true)

    await stock.refresh([directory], new Set())
    assert.equal(stock.scanning, 0, 'nothing is scanned again')
    const third = stock.images.find(({ path }) => path === paths[2])
    assert.equal(third?.number, numbers.get(paths[2]!))
    assert.ok(stock.chunkCount > count / 4)
    assert.equal((await third!.source.read(0, 4096)).length, 4096)
  } finally {
    await stock.close()
    await rm(directory, { recursive: true })
  }
})
