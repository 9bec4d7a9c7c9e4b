/** ImageStock with maps that are bounded: what is forgotten is not read again and again, and comes back when a migration finds it. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  rmSync,
  statSync,
  utimesSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { listImages } from '../../../lib/catalog/image-files.ts'
import type { IndexedImage } from '../../../lib/catalog/image-index.ts'
import type { ForgottenMap } from '../../../lib/catalog/map-retention.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { Chunker } from '../../../lib/chunk/chunker.ts'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { CATALOG_FIRST_TEND_MS } from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { StockSource } from '../../../lib/engine/stock-source.ts'
import { CatalogTender } from '../../../server/catalog-tender.ts'
import { ImageList } from '../../../server/image-list.ts'

const DAY_MS = 86_400_000

interface Rig {
  readonly images: string
  readonly stock: ImageStock
  readonly indexed: IndexedImage[]
  readonly forgotten: ForgottenMap[]
  readonly problems: string[]
  readonly image: (name: string, bytes: Buffer) => string
  readonly maps: () => { count: number; bytes: number }
  readonly tend: () => Promise<void>
  readonly refresh: () => Promise<void>
  days: number
}

function rig(context: TestContext, bytesMax: number): Rig {
  const root = mkdtempSync(join(tmpdir(), 'swam-stock-'))
  const images = join(root, 'images')
  const catalog = join(root, 'state', 'catalog')
  for (const directory of [images, join(root, 'state')]) mkdirSync(directory)
  const [indexed, forgotten, problems]: [IndexedImage[], ForgottenMap[], string[]] = [[], [], []]
  const stock = new ImageStock({
    indexBytesMax: MIB,
    blockIndexBytesMax: MIB,
    imagesMax: 16,
    catalog,
    retention: {
      images: [images],
      bytesMax,
      ageMsMax: 400 * DAY_MS,
      wallMs: () => Date.now() + at.days * DAY_MS,
    },
    onIndexed: (image) => indexed.push(image),
    onForgotten: (map) => forgotten.push(map),
    onProblem: (text) => problems.push(text),
  })
  context.after(async () => {
    await stock.close()
    rmSync(root, { recursive: true })
  })
  const at: Rig = {
    images,
    stock,
    indexed,
    forgotten,
    problems,
    image: (name, bytes) => {
      const path = join(images, name)
      writeFileSync(path, bytes)
      utimesSync(path, 1e9, 1e9)
      return path
    },
    maps: () => {
      const sizes = readdirSync(catalog)
        .filter((name) => /\.map/.test(name))
        .map((name) => statSync(join(catalog, name)).size)
      return { count: sizes.length, bytes: sizes.reduce((sum, one) => sum + one, 0) }
    },
    tend: () => stock.tend(() => listImages([images]), { busy: () => new Set(), bytesPerSecond: 1024 * MIB }),
    refresh: async () => {
      await stock.refresh(() => listImages([images]), new Set())
      const end = Date.now() + 60_000
      while (stock.busy && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
    },
    days: 0,
  }
  return at
}

test('an image that is forgotten is not read in the background; a migration that uses it brings its map back', async (context) => {
  const at = rig(context, 100 * MIB)
  const bytes = randomBytes(2 * MIB)
  const path = at.image('a.raw', bytes)
  await at.tend()
  assert.deepEqual([at.indexed.length, at.maps().count], [1, 1])
  at.days = 401
  for (let round = 0; round < 3; round++) await at.tend()
  assert.deepEqual(
    at.forgotten.map((map) => [map.path, map.tooOld]),
    [[path, true]],
  )
  assert.deepEqual([at.indexed.length, at.maps().count], [1, 0])

  // It is read when a migration comes, for the index alone.
  await at.refresh()
  assert.deepEqual(
    at.indexed.slice(1).map(({ mapped, imageNumber }) => [mapped, imageNumber !== null]),
    [[false, true]],
  )
  assert.equal(at.maps().count, 0)
  await at.stock.rest(() => true)
  await at.tend()
  assert.deepEqual([at.indexed.length, at.maps().count], [2, 0], 'nobody found anything there')

  await at.refresh()
  const { lengths, digests } = new Chunker().describe(bytes, 0)
  const [length, digest] = [lengths[0]!, Buffer.from(digests.subarray(0, 32))]
  const found = await new StockSource(at.stock, new Set()).find({
    offset: 0,
    length,
    digest,
    verify: (read) => sha256(read).equals(digest),
  })
  assert.ok(found?.equals(bytes.subarray(0, length)))
  await at.stock.rest(() => true)
  await at.tend()
  assert.equal(at.maps().count, 1)
  at.days = 800
  await at.tend()
  assert.equal(at.maps().count, 1, 'used on day 401')
  assert.deepEqual(at.problems, [])
})

test('what a migration uses has had its time only when that is over', async (context) => {
  const at = rig(context, 100 * MIB)
  at.image('a.raw', randomBytes(2 * MIB))
  await at.tend()
  at.days = 300
  await at.refresh()
  at.days = 401
  await at.tend()
  assert.deepEqual([at.maps().count, at.stock.images.length], [1, 1])
  await at.stock.rest(() => true)
  await at.tend()
  assert.deepEqual([at.maps().count, at.forgotten.length], [0, 1])
})

test('maps keep to their total although they take more than was thought, and the images without are read once at most', async (context) => {
  const bytesMax = 20 * KIB
  const at = rig(context, bytesMax)
  for (const name of ['a', 'b', 'c']) at.image(name, randomBytes(4 * MIB))
  for (let round = 0; round < 4; round++) {
    await at.tend()
    assert.ok(at.maps().bytes <= bytesMax)
  }
  assert.deepEqual([at.maps().count, at.indexed.length], [1, 1])
})

test('a map that alone takes more than all may is given up, and its image is not read for it again', async (context) => {
  const bytesMax = 20 * KIB
  const at = rig(context, bytesMax)
  const path = join(at.images, 'patchy.raw')
  const fd = openSync(path, 'w')
  // Every other block: a map takes four times what it does of other images.
  for (let block = 0; block < 2048; block++) writeSync(fd, randomBytes(4096), 0, 4096, block * 8192)
  ftruncateSync(fd, 16 * MIB)
  closeSync(fd)
  utimesSync(path, 1e9, 1e9)
  for (let round = 0; round < 3; round++) await at.tend()
  assert.deepEqual([at.maps().count, at.indexed.length], [0, 1])
  assert.match(
    at.problems.join('\n'),
    /^map of .*patchy\.raw: \d+ bytes and more, expected at most 20480 \(limits\.catalogGiB\)$/,
  )
})

test('where nothing is read in the background the maps of what is gone go all the same', async (context) => {
  const at = rig(context, 100 * MIB)
  const path = at.image('a.raw', randomBytes(MIB))
  await at.tend()
  assert.equal(at.maps().count, 1)
  rmSync(path)
  at.image('b.raw', randomBytes(MIB))
  const log = createLog({ level: 'silent' })
  const images = new ImageList({ images: [at.images], qcow2: [], formats: async () => [], log })
  const clock = new ManualClock()
  const tender = new CatalogTender({
    stock: at.stock,
    images,
    scanMiBps: 0,
    busy: () => new Set(),
    log,
    clock,
  })
  tender.start()
  clock.advance(CATALOG_FIRST_TEND_MS)
  const end = Date.now() + 30_000
  while (at.maps().count > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
  tender.close()
  assert.deepEqual([at.maps().count, at.indexed.length], [0, 1])
})
