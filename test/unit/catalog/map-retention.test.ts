/**
 * The folder of maps over time, with real files: images that are deleted, that change, that nobody uses; directories that are away.
 * File systems that are really mounted are mounts.test.ts.
 */
import assert from 'node:assert/strict'
import {
  chmodSync,
  copyFileSync,
  existsSync,
  linkSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { ImageSource, listImages } from '../../../lib/catalog/image-files.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { MapFolder } from '../../../lib/catalog/map-folder.ts'
import { MapRetention } from '../../../lib/catalog/map-retention.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'

const DAY_MS = 86_400_000

interface Rig {
  readonly images: string
  readonly catalog: string
  readonly path: (name: string) => string
  /** An image with a map of so many blocks. */
  readonly image: (name: string, mapKiB?: number) => Promise<string>
  readonly map: (path: string, mapKiB?: number) => Promise<void>
  /** A new daemon's, if it is asked for. */
  readonly sweep: (options?: { inUse?: readonly string[]; restarted?: boolean }) => Promise<string[]>
  readonly retention: () => MapRetention
  readonly maps: () => string[]
  readonly mapped: (path: string) => boolean
  days: number
  bytesMax: number
}

function rig(context: TestContext, directories: (root: string) => readonly string[] = () => []): Rig {
  const root = mkdtempSync(join(tmpdir(), 'swam-retention-'))
  context.after(() => {
    rmSync(root, { recursive: true, force: true })
  })
  const images = join(root, 'images')
  const catalog = join(root, 'state', 'catalog')
  mkdirSync(images)
  const configured = [images, ...directories(root)]
  const make = (): MapRetention =>
    new MapRetention({
      catalog,
      images: configured,
      bytesMax: at.bytesMax,
      ageMsMax: 400 * DAY_MS,
      wallMs: () => Date.now() + at.days * DAY_MS,
    })
  let retention: MapRetention | undefined
  const at: Rig = {
    images,
    catalog,
    days: 0,
    bytesMax: 100 * MIB,
    path: (name) => join(images, name),
    image: async (name, mapKiB = 4) => {
      const path = join(images, name)
      writeFileSync(path, Buffer.alloc(MIB, name))
      await at.map(path, mapKiB)
      return path
    },
    map: async (path, mapKiB = 4) => {
      await using source = await ImageSource.open(path)
      const disk = { format: 'raw', bytes: 64 * 1024 * MIB } as const
      const writer = new ImageMapWriter(catalog, path, source.identity, { disk })
      for (let block = 0; block < mapKiB * 128 - 40; block++)
        writer.addBlock(block * 4096, Buffer.alloc(8, 7))
      writer.finish()
    },
    sweep: async ({ inUse = [], restarted = false } = {}) => {
      if (restarted) retention = undefined
      retention ??= make()
      const forgotten = await retention.sweep(new Set(inUse), await listImages(configured))
      return forgotten
        .map(({ path, tooOld }) => `${path.slice(images.length + 1)} ${tooOld ? 'old' : 'room'}`)
        .sort()
    },
    retention: () => (retention ??= make()),
    maps: () =>
      readdirSync(catalog)
        .filter((name) => name.includes('.map'))
        .sort(),
    mapped: (path) => existsSync(mapPath(catalog, path)),
  }
  return at
}

test('the map of an image that is deleted goes, with what a scan left of it, and what is no map stays', async (context) => {
  const at = rig(context)
  const [kept, gone] = [await at.image('kept.raw'), await at.image('gone.raw')]
  for (const path of [`${mapPath(at.catalog, gone)}.new`, join(at.catalog, 'notes')]) writeFileSync(path, 'x')
  assert.deepEqual(await at.sweep(), [])
  assert.ok(existsSync(`${mapPath(at.catalog, gone)}.new`), 'of an image that is here the next scan goes on')
  rmSync(gone)
  assert.deepEqual(await at.sweep({ inUse: [gone] }), [])
  assert.deepEqual(at.maps(), [mapPath('', kept), `${mapPath('', gone)}.new`].sort(), 'it is being scanned')
  assert.deepEqual(await at.sweep(), [])
  assert.deepEqual(at.maps(), [mapPath('', kept)])
  assert.ok(existsSync(join(at.catalog, 'notes')))
  rmSync(kept)
  await at.sweep({ restarted: true })
  assert.deepEqual(at.maps(), [])
})

test('so does that of one that became too small, or has another name now, and what is no map', async (context) => {
  const at = rig(context)
  const paths = ['small', 'moved', 'linked'].map((name) => at.path(name))
  for (const name of ['small', 'moved', 'linked', 'other']) await at.image(name)
  writeFileSync(mapPath(at.catalog, at.path('nowhere')), 'no map')
  await at.sweep()
  assert.equal(at.maps().length, 4)
  truncateSync(at.path('small'), 4096)
  renameSync(at.path('moved'), at.path('moved-to'))
  linkSync(at.path('other'), at.path('linked-too'))
  rmSync(at.path('linked'))
  renameSync(at.path('linked-too'), at.path('linked'))
  await at.sweep()
  // Of two names of one file either may be the one that is listed.
  assert.deepEqual(
    paths.slice(0, 2).map((path) => at.mapped(path)),
    [false, false],
  )
  assert.equal(at.maps().length, 1)
})

test('a directory that cannot be found for a while keeps its maps, until they are too old; back again it has the same', async (context) => {
  const at = rig(context)
  const elsewhere = `${at.images}-elsewhere`
  const path = await at.image('a.raw')
  await at.sweep()
  const { ino } = statSync(mapPath(at.catalog, path))
  const goAway = (): void => {
    asOnAnotherFileSystem(at)
    renameSync(at.images, elsewhere)
  }
  goAway()
  at.days = 300
  await at.sweep({ restarted: true })
  await at.sweep({ restarted: true })
  assert.deepEqual(at.maps(), [mapPath('', path)])
  const [away] = await new MapFolder({ stateDir: join(at.catalog, '..'), images: [at.images] }).list()
  assert.deepEqual([away?.path, away?.state], [path, 'away'])
  renameSync(elsewhere, at.images)
  await at.sweep()
  assert.equal(statSync(mapPath(at.catalog, path)).ino, ino)
  goAway()
  // It was there again on day 300.
  at.days = 699
  await at.sweep({ restarted: true })
  assert.equal(at.mapped(path), true)
  at.days = 701
  await at.sweep()
  assert.equal(at.mapped(path), false)
})

/** What is remembered of the images: as if they lay on another one than the directories around them do. */
function asOnAnotherFileSystem(at: Rig): void {
  const place = join(at.catalog, 'seen')
  const lines = readFileSync(place, 'latin1').split('\n')
  const other = lines.map((line) => line.replace(/(?<= )\d+/, (dev) => String(BigInt(dev) + 1n)))
  writeFileSync(place, other.join('\n'))
}

test('a directory that is deleted on the very file system on which its images lay takes its maps with it', async (context) => {
  const at = rig(context)
  const path = await at.image('a.raw')
  await at.sweep()
  rmSync(at.images, { recursive: true })
  await at.sweep()
  assert.equal(at.mapped(path), false)
})

test('a directory that the config names no more has no maps any more, even while another one is away', async (context) => {
  const at = rig(context, (root) => [join(root, 'away')])
  const other = `${at.images}-not-named`
  mkdirSync(other)
  const path = join(other, 'a.raw')
  writeFileSync(path, Buffer.alloc(MIB, 1))
  await at.map(path)
  await at.sweep()
  assert.deepEqual(at.maps(), [])
})

test('what is kept of failed migrations: a link that is removed takes its map with it', async (context) => {
  const at = rig(context)
  const folder = join(at.images, '.swam-salvage')
  mkdirSync(folder, { mode: 0o700 })
  const path = join(folder, '33333333-3333-4333-8333-333333333333-vda.raw')
  writeFileSync(path, Buffer.alloc(MIB, 1))
  await at.map(path)
  await at.sweep()
  assert.equal(at.mapped(path), true)
  chmodSync(folder, 0o755)
  await at.sweep()
  assert.equal(at.mapped(path), true, 'it is not listed, and it is there')
  rmSync(folder, { recursive: true })
  await at.sweep()
  assert.equal(at.mapped(path), false)
})

test('what nobody changed or used for so long is forgotten, not made again, and made again when it is used or changed', async (context) => {
  const at = rig(context)
  const [idle, used, changed] = [await at.image('idle'), await at.image('used'), await at.image('changed')]
  assert.deepEqual(await at.sweep(), [])
  at.days = 300
  at.retention().used(used)
  await at.sweep()
  at.days = 399
  assert.deepEqual(await at.sweep({ restarted: true }), [])
  at.days = 401
  assert.deepEqual(await at.sweep({ inUse: [changed] }), ['idle old'], 'not one that a migration uses')
  assert.deepEqual(await at.sweep(), ['changed old'])
  assert.deepEqual(at.maps(), [mapPath('', used)])
  const bytesMaxOf = (path: string): number => at.retention().bytesMaxOf(path)
  assert.deepEqual([idle, changed, used].map(bytesMaxOf), [0, 0, at.bytesMax])
  const forgotten = await new MapFolder({ stateDir: join(at.catalog, '..'), images: [at.images] }).look()
  assert.deepEqual(forgotten.forgotten.sort(), [changed, idle].sort())
  // Days later, and by a new daemon.
  at.days = 410
  await at.sweep({ restarted: true })
  assert.deepEqual([idle, changed, used].map(bytesMaxOf), [0, 0, at.bytesMax])
  at.retention().used(idle)
  await at.sweep()
  assert.deepEqual([idle, changed].map(bytesMaxOf), [at.bytesMax, 0])
  // Real clocks say when a file changed: 410 days ago this was.
  at.days = 0
  writeFileSync(changed, 'more')
  utimesSync(changed, 1, 1)
  truncateSync(changed, 2 * MIB)
  at.days = 1
  await at.sweep()
  assert.deepEqual([idle, changed].map(bytesMaxOf), [at.bytesMax, at.bytesMax])
  // Another file in its place, with an old time: nothing is known of it.
  at.days = 500
  await at.sweep()
  assert.equal(bytesMaxOf(changed), 0)
  copyFileSync(changed, at.path('copy'))
  renameSync(at.path('copy'), changed)
  utimesSync(changed, 1, 1)
  await at.sweep()
  assert.equal(bytesMaxOf(changed), at.bytesMax)
})

test('over the total that goes which was touched longest ago, and nothing is made that would go at once', async (context) => {
  const at = rig(context)
  at.bytesMax = 100 * KIB
  const paths: string[] = []
  for (const name of ['a', 'b', 'c']) {
    paths.push(await at.image(name, 30))
    // The file system's clock goes in steps.
    await new Promise((resolve) => setTimeout(resolve, 25))
  }
  assert.deepEqual(await at.sweep(), [])
  const late = await at.image('late', 30)
  at.days = 3
  at.retention().used(paths[0]!)
  assert.deepEqual(await at.sweep(), ['b room'])
  const bytesMaxOf = (path: string): number => at.retention().bytesMaxOf(path)
  assert.deepEqual([...paths, late].map(bytesMaxOf), [at.bytesMax, 0, at.bytesMax, at.bytesMax])
  for (let round = 0; round < 5; round++) {
    at.days++
    assert.deepEqual(await at.sweep({ restarted: round === 2 }), [])
    assert.equal(bytesMaxOf(paths[1]!), 0)
  }
  // Found in a migration it is worth more than what nobody touched since.
  at.retention().used(paths[1]!)
  assert.deepEqual(await at.sweep({ inUse: [paths[2]!] }), ['late room'])
  assert.equal(bytesMaxOf(paths[1]!), at.bytesMax)
  // So is one that never had a map.
  const never = at.path('never')
  writeFileSync(never, Buffer.alloc(MIB, 'never'))
  await at.sweep()
  assert.equal(bytesMaxOf(never), 0)
  at.retention().used(never)
  await at.sweep()
  await at.sweep({ restarted: true })
  assert.equal(bytesMaxOf(never), at.bytesMax)
})

test('one that was given up because it was too large is not begun again', async (context) => {
  const at = rig(context)
  at.bytesMax = 100 * KIB
  const path = at.path('large')
  writeFileSync(path, Buffer.alloc(MIB, 1))
  await at.sweep()
  assert.equal(at.retention().bytesMaxOf(path), at.bytesMax, 'it looked as if it would find room')
  const [file] = await listImages([at.images])
  await at.retention().tooLarge(file!, at.bytesMax + 1)
  await at.sweep()
  assert.equal(at.retention().bytesMaxOf(path), 0)
  await at.sweep({ restarted: true })
  assert.equal(at.retention().bytesMaxOf(path), 0, 'not by the next daemon either')
  at.bytesMax = 1000 * KIB
  await at.sweep({ restarted: true })
  assert.equal(at.retention().bytesMaxOf(path), at.bytesMax)
})

test('what swam catalog add is writing stays, also for an image that is forgotten; what a scan left long ago goes', async (context) => {
  const at = rig(context)
  const path = await at.image('a')
  at.days = 401
  writeFileSync(`${mapPath(at.catalog, path)}.new`, 'x')
  const now = Date.now() / 1000 + 401 * 86_400
  utimesSync(`${mapPath(at.catalog, path)}.new`, now, now)
  assert.deepEqual(await at.sweep(), ['a old'])
  assert.deepEqual(at.maps(), [`${mapPath('', path)}.new`])
  at.days = 402
  await at.sweep()
  assert.deepEqual(at.maps(), [])
})

test('with catalogGiB = 0 there are none, but of what a migration uses until it is over', async (context) => {
  const at = rig(context)
  const [one, other] = [await at.image('one'), await at.image('other')]
  at.bytesMax = 0
  assert.deepEqual(await at.sweep({ inUse: [one] }), ['other room'])
  assert.deepEqual([at.mapped(one), at.mapped(other)], [true, false])
  assert.deepEqual(
    [one, other].map((path) => at.retention().bytesMaxOf(path)),
    [0, 0],
  )
  assert.deepEqual(await at.sweep(), ['one room'])
})

test('a clock that was years ahead for a while keeps nothing for ever', async (context) => {
  const at = rig(context)
  const path = await at.image('a')
  at.days = 9000
  at.retention().used(path)
  await at.sweep({ inUse: [path] })
  at.days = 0
  await at.sweep()
  at.days = 401
  assert.deepEqual(await at.sweep(), ['a old'])
})
