/**
 * ImageStock: when several migrations begin at once each image is known once, its file is open once; what was found in the
 * background is used; where not everything finds room, what is asked for does.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdir, mkdtemp, readdir, readFile, readlink, rm, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { listImages } from '../../../lib/catalog/image-files.ts'
import type { IndexedImage } from '../../../lib/catalog/image-index.ts'
import { ImageMap } from '../../../lib/catalog/image-map.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageStock, type StockOptions } from '../../../lib/catalog/stock.ts'
import { Chunker } from '../../../lib/chunk/chunker.ts'
import { hintOf, sha256 } from '../../../lib/chunk/digest.ts'
import { IMAGE_RESCAN_MS, KNOWN_IMAGES_MAX } from '../../../lib/core/limits.ts'
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
    const files = await listImages([directory])
    await Promise.all(Array.from({ length: 4 }, () => stock.refresh(async () => files, new Set())))
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
  const stock = new ImageStock({
    indexBytesMax: MIB,
    blockIndexBytesMax: MIB,
    imagesMax: 16,
    numbersMax: 5,
    restMs: 0,
  })
  try {
    const paths = ['a.raw', 'b.raw'].map((name) => join(directory, name))
    for (let round = 0; round < 6; round++) {
      // Another size: another identity, whatever the clock of the file system resolves.
      const contents = paths.map(() => randomBytes(2 * MIB + 4096 * round))
      for (const [at, path] of paths.entries()) await writeFile(path, contents[at]!)
      await stock.refresh(() => listImages([directory]), new Set())
      const end = Date.now() + 10_000
      while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
      assert.deepEqual(stock.images.map(({ path }) => path).sort(), paths, `round ${round}`)
      for (const bytes of contents)
        assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 }, `round ${round}`)
      assert.deepEqual(await openedAtRest(directory, paths.length), paths, `round ${round}`)
    }
  } finally {
    await stock.close()
    await rm(directory, { recursive: true })
  }
})

test('at rest no image is open, and a refresh finds them again without a scan', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-stock-'))
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 16, restMs: 0 })
  try {
    const paths = ['a.raw', 'b.raw', 'c.raw'].map((name) => join(directory, name))
    for (const path of paths) await writeFile(path, randomBytes(2 * MIB))
    await stock.refresh(() => listImages([directory]), new Set())
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
    await stock.refresh(() => listImages([directory]), new Set([paths[2]!]))
    assert.deepEqual(stock.images.map(({ path }) => path).sort(), paths.slice(1))
    assert.equal(stock.scanning, 1)
    while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
    const changed = stock.images.find(({ path }) => path === paths[1])
    assert.notEqual(changed?.number, numbers.get(paths[1]!), 'what has changed has other entries')
    await stock.rest(() => true)

    await stock.refresh(() => listImages([directory]), new Set())
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

// ---- maps, made before anybody asks ----------------------------------------------------------------------------

interface Rig {
  readonly directory: string
  readonly catalog: string
  readonly stock: ImageStock
  readonly problems: string[]
  readonly indexed: IndexedImage[]
  path(name: string): string
  refresh(busy?: readonly string[]): Promise<void>
  tend(busy?: readonly string[]): Promise<void>
  settled(): Promise<void>
}

async function rig(context: TestContext, options: Partial<StockOptions> = {}): Promise<Rig> {
  const directory = await mkdtemp(join(tmpdir(), 'swam-stock-'))
  const catalog = join(directory, 'state', 'catalog')
  await mkdir(dirname(catalog))
  const problems: string[] = []
  const indexed: IndexedImage[] = []
  const stock = new ImageStock({
    indexBytesMax: MIB,
    blockIndexBytesMax: MIB,
    imagesMax: 16,
    catalog,
    onProblem: (text) => problems.push(text),
    onIndexed: (image) => indexed.push(image),
    ...options,
  })
  context.after(async () => {
    await stock.close()
    assert.deepEqual(await opened(directory), [])
    await rm(directory, { recursive: true })
  })
  const settled = async (): Promise<void> => {
    const end = Date.now() + 20_000
    while (stock.busy && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
  }
  return {
    directory,
    catalog,
    stock,
    problems,
    indexed,
    settled,
    path: (name) => join(directory, name),
    refresh: async (busy = []) => {
      await stock.refresh(() => listImages([directory]), new Set(busy))
      await settled()
    },
    tend: async (busy = []) => {
      const files = await listImages([directory])
      await stock.tend(async () => files, { busy: () => new Set(busy), bytesPerSecond: 1024 * MIB })
    },
  }
}

/** At rest since long ago. */
async function age(path: string, seconds = 3600): Promise<void> {
  const when = Date.now() / 1000 - seconds
  await utimes(path, when, when)
}

/** How much of the bytes the stock finds and holds. */
async function share(stock: ImageStock, bytes: Buffer): Promise<{ chunks: number; blocks: number }> {
  return { chunks: await chunkShare(stock, bytes), blocks: blockShare(stock, bytes) }
}

/** What an entry names is read and compared. */
async function chunkShare(stock: ImageStock, bytes: Buffer): Promise<number> {
  const { lengths, digests } = described(bytes)
  let found = 0
  let at = 0
  for (const [number, length] of lengths.entries()) {
    for (const place of stock.lookup(digests.subarray(number * 32, number * 32 + 32))) {
      const there = await stock.image(place.image)?.source.read(place.offset, place.length)
      if (there?.equals(bytes.subarray(at, at + length)) !== true) continue
      found += length
      break
    }
    at += length
  }
  return found / bytes.length
}

function blockShare(stock: ImageStock, bytes: Buffer): number {
  let found = 0
  for (let at = 0; at < bytes.length; at += 4096) {
    const hint = hintOf(bytes.subarray(at, at + 4096))
    if (stock.lookupBlock(hint, 0).some(({ image }) => stock.image(image) !== undefined)) found += 4096
  }
  return found / bytes.length
}

function described(bytes: Buffer): { lengths: Uint32Array; digests: Buffer } {
  const { lengths, digests } = new Chunker().describe(bytes, 0)
  return { lengths: Uint32Array.from(lengths), digests: Buffer.from(digests) }
}

test('what was made in the background is known at once, and nothing is scanned again', async (context) => {
  const { stock, path, tend, refresh, indexed, problems } = await rig(context)
  const contents = new Map(['a.raw', 'b.raw'].map((name) => [path(name), randomBytes(3 * MIB)]))
  for (const [name, bytes] of contents) {
    await writeFile(name, bytes)
    await age(name)
  }
  await tend()
  assert.deepEqual(
    indexed.map(({ mapped, imageNumber }) => [mapped, imageNumber]),
    [
      [false, null],
      [false, null],
    ],
  )
  assert.deepEqual(
    [stock.images.length, stock.chunkCount, stock.blockCount],
    [0, 0, 0],
    'nobody needs it yet',
  )
  await tend()
  assert.equal(indexed.length, 2, 'nothing to do')
  await refresh()
  assert.deepEqual(
    indexed.slice(2).map(({ mapped, stale }) => [mapped, stale]),
    [
      [true, false],
      [true, false],
    ],
  )
  for (const bytes of contents.values()) assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
  assert.deepEqual(problems, [])
})

test('the old map of an image that a guest writes to is a good guess, and no scan is begun for it', async (context) => {
  const { stock, path, tend, refresh, indexed } = await rig(context)
  const name = path('running.raw')
  const bytes = randomBytes(8 * MIB)
  await writeFile(name, bytes)
  await age(name)
  await tend()
  randomBytes(100_000).copy(bytes, 5 * MIB)
  await writeFile(name, bytes)
  await tend()
  assert.equal(indexed.length, 1, 'it is written to, and its map is young')
  await refresh()
  assert.deepEqual(
    indexed.slice(1).map(({ mapped, stale }) => [mapped, stale]),
    [[true, true]],
  )
  const { chunks, blocks } = await share(stock, bytes)
  assert.ok(chunks > 0.9 && chunks < 0.99 && blocks > 0.98 && blocks < 1, `${chunks} ${blocks}`)

  // It rests: a refresh scans it again, and the old entries go when the new ones are there.
  await stock.rest(() => true)
  await age(name)
  await refresh()
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
  assert.equal(stock.images.length, 1)
})

test('an image that rests again is scanned again in the background, one that is received is not', async (context) => {
  const { stock, path, tend, refresh, indexed } = await rig(context)
  const name = path('disk.raw')
  await writeFile(name, randomBytes(2 * MIB))
  await age(name)
  await tend([name])
  assert.equal(indexed.length, 0)
  await tend()
  const bytes = randomBytes(2 * MIB)
  await writeFile(name, bytes)
  await age(name, 1800)
  await refresh([name])
  assert.equal((await share(stock, bytes)).chunks, 0, 'while it is received it is what it was')
  await tend([name])
  assert.equal(indexed.filter(({ mapped }) => !mapped).length, 1)
  await tend()
  await refresh()
  assert.equal(indexed.filter(({ mapped }) => !mapped).length, 2)
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
})

test('an image that a guest writes to all the time is scanned again once its map is very old', async (context) => {
  const { stock, catalog, path, tend, indexed } = await rig(context)
  const name = path('running.raw')
  await writeFile(name, randomBytes(MIB))
  await age(name)
  await tend()
  await writeFile(name, randomBytes(MIB))
  for (const [ageMs, scans] of [
    [IMAGE_RESCAN_MS - 60_000, 1],
    [IMAGE_RESCAN_MS + 1000, 2],
  ] as const) {
    await age(mapPath(catalog, name), ageMs / 1000)
    // Not at rest, however long this takes.
    await age(name, -3600)
    await tend()
    assert.equal(indexed.length, scans)
  }
  assert.equal(stock.images.length, 0)
})

test('an image that was written to a moment ago waits for its scan in the background until it rests', async (context) => {
  const { path, tend, indexed } = await rig(context, { restMs: 3_600_000 })
  const name = path('disk.raw')
  await writeFile(name, randomBytes(MIB))
  await age(name, 7200)
  await tend()
  await writeFile(name, randomBytes(MIB))
  await age(name, 1800)
  await tend()
  assert.equal(indexed.length, 1)
  await age(name, 7201)
  await tend()
  assert.equal(indexed.length, 2)
})

test('no more images are known than allowed: of further ones no map is made', async (context) => {
  const { stock, path, directory, indexed } = await rig(context)
  await writeFile(path('z.raw'), randomBytes(MIB))
  await age(path('z.raw'))
  const [last] = await listImages([directory])
  const others = Array.from({ length: KNOWN_IMAGES_MAX }, (_, at) => ({ ...last!, path: path(`${at}.raw`) }))
  const busy = new Set(others.map((file) => file.path))
  const tend = async (count: number): Promise<void> => {
    const files = [...others.slice(0, count), last!]
    await stock.tend(async () => files, { busy: () => busy, bytesPerSecond: 0 })
  }
  await tend(KNOWN_IMAGES_MAX)
  assert.equal(indexed.length, 0)
  await tend(KNOWN_IMAGES_MAX - 1)
  assert.equal(indexed.length, 1)
})

test('images are listed when their turn comes: an older list does not undo a newer one', async (context) => {
  const { stock, path, settled } = await rig(context)
  await writeFile(path('a.raw'), randomBytes(MIB))
  const list = (): ReturnType<typeof listImages> => listImages([dirname(path('a.raw'))])
  const slow = async (): ReturnType<typeof listImages> => {
    const before = await list()
    await new Promise((resolve) => setTimeout(resolve, 50))
    return before
  }
  const first = stock.refresh(slow, new Set())
  await new Promise((resolve) => setTimeout(resolve, 20))
  await writeFile(path('b.raw'), randomBytes(MIB))
  await Promise.all([first, stock.refresh(list, new Set())])
  assert.deepEqual(stock.images.map((image) => image.path).sort(), [path('a.raw'), path('b.raw')])
  await settled()
})

test('no more images are open than allowed', async (context) => {
  const { stock, path, refresh } = await rig(context, { imagesMax: 2 })
  for (const name of ['a', 'b', 'c']) await writeFile(path(`${name}.raw`), randomBytes(MIB))
  await refresh()
  assert.equal(stock.images.length, 2)
})

test('while an image is scanned anew in the background, its old map is used', async (context) => {
  const { stock, path, tend, settled } = await rig(context)
  const name = path('disk.raw')
  const bytes = randomBytes(24 * MIB)
  await writeFile(name, bytes)
  await age(name)
  await tend()
  await age(name, 1800)
  const files = await listImages([dirname(name)])
  const tending = stock.tend(async () => files, { busy: () => new Set(), bytesPerSecond: (24 * MIB) / 3600 })
  while (stock.scanning === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  // Being received, it makes nobody hurry.
  await stock.refresh(async () => files, new Set([name]))
  const end = Date.now() + 20_000
  while (blockShare(stock, bytes) < 1 && Date.now() < end)
    await new Promise((resolve) => setTimeout(resolve, 10))
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
  assert.equal(stock.scanning, 1)
  await stock.refresh(async () => files, new Set())
  await tending
  await settled()
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
})

test('a migration makes a scan in the background hurry', async (context) => {
  const { stock, path, refresh } = await rig(context)
  const name = path('disk.raw')
  const bytes = randomBytes(24 * MIB)
  await writeFile(name, bytes)
  await age(name)
  // An hour for what is left after the first burst.
  const tending = stock.tend(() => listImages([dirname(name)]), {
    busy: () => new Set(),
    bytesPerSecond: (24 * MIB) / 3600,
  })
  while (stock.scanning === 0) await new Promise((resolve) => setTimeout(resolve, 5))
  await refresh()
  await tending
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
})

test('a map that is damaged is said, and the image is scanned', async (context) => {
  const { stock, path, tend, refresh, settled, problems, catalog } = await rig(context)
  const name = path('disk.raw')
  const bytes = randomBytes(4 * MIB)
  await writeFile(name, bytes)
  await age(name)
  await tend()
  const place = mapPath(catalog, name)
  const map = await readFile(place)
  // In the middle, where a look at its ends sees nothing.
  const hint = sha256(bytes.subarray(500 * 4096, 501 * 4096)).subarray(0, 8)
  const wrong = Buffer.from('no block')
  wrong.copy(map, map.indexOf(hint))
  await writeFile(place, map)
  await refresh()
  await settled()
  // It is proven while it is taken in.
  assert.deepEqual(stock.lookupBlock(wrong, 0), [])
  assert.match(problems.join('\n'), /its digest does not fit|a chunk of|a section of/)
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
  const [file] = await listImages([dirname(name)])
  using whole = ImageMap.open(catalog, name, file!.identity)
  assert.equal(whole?.blockCount, 1024)
})

test('maps do not fill the disk on which the history lies: nothing is scanned for them, and one that is begun is given up', async (context) => {
  const { path, catalog, stock, tend, refresh, indexed, problems } = await rig(context, {
    freeBytesMin: Number.MAX_SAFE_INTEGER,
  })
  const bytes = randomBytes(4 * MIB)
  await writeFile(path('a.raw'), bytes)
  await age(path('a.raw'))
  await tend()
  assert.equal(indexed.length, 0)
  assert.match(problems.join('\n'), /^.*catalog: \d+ bytes free, expected at least \d+: no maps are made$/)
  // When a migration comes it is worth its while all the same.
  await refresh()
  assert.deepEqual(await share(stock, bytes), { chunks: 1, blocks: 1 })
  assert.match(problems.at(-1)!, /^map of .*a\.raw: .*: no maps are made$/)
  assert.deepEqual(await readdir(catalog), [])
})

test('what holds most of what comes in is in the index, when not everything finds room', async (context) => {
  // Chunks of all, blocks of two: 0.8 of the table, 20 bytes each.
  const blockIndexBytesMax = Math.ceil(((2.5 * 2048) / 0.8) * 20) + 9 * 1024
  const { stock, path, tend, refresh, settled } = await rig(context, { blockIndexBytesMax })
  const contents = Array.from({ length: 4 }, () => randomBytes(8 * MIB))
  for (const [number, bytes] of contents.entries()) {
    await writeFile(path(`${number}.raw`), bytes)
    await age(path(`${number}.raw`))
  }
  await tend()
  await refresh()
  const shares = (): number[] => contents.map((bytes) => Math.round(blockShare(stock, bytes)))
  // Asking counts too: blocks do not.
  const before = shares()
  assert.equal(
    before.reduce((sum, one) => sum + one),
    2,
    `${before}`,
  )

  // What comes in is like one of the others.
  const missing = contents[before.indexOf(0)]!
  const { lengths, digests } = described(missing)
  for (let number = 0; number < lengths.length; number++)
    stock.lookup(digests.subarray(number * 32, number * 32 + 32))
  const end = Date.now() + 20_000
  while (shares()[before.indexOf(0)] === 0 && Date.now() < end) await settled()
  assert.ok(blockShare(stock, missing) > 0.9)
  assert.equal(
    shares().reduce((sum, one) => sum + one),
    2,
  )
})

test('an image whose chunks find no room is left out, and taken in when it is asked for', async (context) => {
  const chunks = (bytes: Buffer): number => described(bytes).lengths.length
  const contents = Array.from({ length: 3 }, () => randomBytes(16 * MIB))
  const all = contents.reduce((sum, bytes) => sum + chunks(bytes), 0)
  const indexBytesMax = Math.ceil(((0.75 * all) / 0.8) * 20) + 9 * 1024
  const { stock, path, tend, refresh, settled, indexed } = await rig(context, { indexBytesMax })
  for (const [number, bytes] of contents.entries()) {
    await writeFile(path(`${number}.raw`), bytes)
    await age(path(`${number}.raw`))
  }
  await tend()
  await refresh()
  const loaded = indexed.filter(({ mapped }) => mapped).map(({ path: name }) => name)
  assert.equal(new Set(loaded).size, 2)
  const missing = contents.findIndex((_, number) => !loaded.includes(path(`${number}.raw`)))
  const end = Date.now() + 20_000
  let found = 0
  while (found < 0.9 && Date.now() < end) {
    found = await chunkShare(stock, contents[missing]!)
    await settled()
  }
  // Places of forgotten entries are taken where they are come across.
  assert.ok(found > 0.9)
  assert.equal(stock.images.length, 3, 'they are all open, for guesses')
})
