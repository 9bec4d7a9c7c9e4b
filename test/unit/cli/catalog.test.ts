/** `swam catalog`, by the command, on maps of real files: made, listed, compared, spoilt, taken away. */
import assert from 'node:assert/strict'
import {
  appendFileSync,
  chownSync,
  lstatSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { type ImageIdentity, ImageSource } from '../../../lib/catalog/image-files.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { MIB } from '../../../lib/core/units.ts'
import { EXIT } from '../../../server/cli/exit-codes.ts'
import { runSwam } from '../../../server/cli/program.ts'
import { patchyBytes } from '../chunk/samples.ts'

interface Host {
  readonly catalog: string
  /** More of it. */
  readonly config: (text: string) => void
  readonly image: (name: string, seed: number) => string
  readonly swam: (...words: string[]) => Promise<{ code: number; out: string; err: string }>
}

function host(context: TestContext): Host {
  const folder = mkdtempSync(join(tmpdir(), 'swam-catalog-'))
  context.after(() => rmSync(folder, { recursive: true, force: true }))
  const config = join(folder, 'swam.toml')
  writeFileSync(
    config,
    `site = "ams"\nstateDir = "${folder}/state"\nrunDir = "${folder}/run"\nimages = ["${folder}"]\n`,
  )
  return {
    catalog: join(folder, 'state', 'catalog'),
    config: (text) => appendFileSync(config, text),
    image: (name, seed) => {
      const path = join(folder, name)
      writeFileSync(path, patchyBytes(3 * MIB, seed))
      return path
    },
    swam: async (...words) => {
      let out = ''
      let err = ''
      const output = {
        out: (text: string) => {
          out += text
        },
        err: (text: string) => {
          err += text
        },
      }
      const code = await runSwam(['--config', config, 'catalog', ...words], Readable.from([]), output)
      return { code, out, err }
    },
  }
}

async function identityOf(path: string): Promise<ImageIdentity> {
  await using source = await ImageSource.open(path)
  return source.identity
}

const json = (text: string): Record<string, unknown> => JSON.parse(text) as Record<string, unknown>

test('nothing is known yet', async (context) => {
  const { swam } = host(context)
  assert.deepEqual(await swam('list'), { code: 0, out: 'no image is known yet\n', err: '' })
  assert.match((await swam('stats')).out, /^0 maps of 0 B \(at most 32\.0 GiB\), 0 of images as they are/)
  assert.deepEqual(await swam('verify'), { code: 0, out: '0 maps checked, 0 are not exact\n', err: '' })
})

test('a map is made, owned by who owns the folder, listed, exact, and forgotten', async (context) => {
  const { swam, image, catalog } = host(context)
  const path = image('a.raw', 1)
  // The folder itself is made, too, and becomes the daemon's.
  mkdirSync(dirname(catalog), { mode: 0o700 })
  chownSync(dirname(catalog), 1234, 1235)
  assert.deepEqual(await swam('add', path), { code: 0, out: '', err: '' })
  const { uid, gid, mode, size } = statSync(mapPath(catalog, path))
  assert.deepEqual([uid, gid, mode & 0o777], [1234, 1235, 0o600])
  const made = statSync(catalog)
  assert.deepEqual([made.uid, made.gid, made.mode & 0o777], [1234, 1235, 0o700])
  const [map] = json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]
  assert.deepEqual(
    [map?.['path'], map?.['state'], map?.['size'], map?.['mapBytes']],
    [path, 'good', 3 * MIB, size],
  )
  assert.ok((map?.['blocks'] as number) > 100 && (map?.['chunks'] as number) > 5)
  assert.ok(size < 0.006 * 3 * MIB, `${size} bytes: at most 0.6% of the image`)
  assert.match((await swam('list')).out, /a\.raw +3\.0 MiB/)
  assert.deepEqual(json((await swam('--json', 'verify')).out)['checked'], [
    { path, exact: true, problem: null },
  ])
  assert.deepEqual(readdirSync(catalog), [mapPath('', path)], 'verify leaves nothing')
  assert.equal((await swam('remove', path)).code, 0)
  const again = await swam('remove', path)
  assert.equal(again.code, EXIT.notFound)
  assert.match(again.err, /^swam: no map of .*a\.raw in .*: see swam catalog list\n$/)
})

test('what changed, is gone or is damaged is told; what the map does not say is found by verify', async (context) => {
  const { swam, image, catalog } = host(context)
  const [changed, gone, damaged, lies] = ['b', 'c', 'd', 'e'].map((name, at) => image(`${name}.raw`, at + 2))
  const when = new Date(2020, 1, 1)
  utimesSync(lies!, when, when)
  const before = await swam('add', changed!)
  assert.equal(before.code, EXIT.failed)
  assert.match(before.err, /state: expected a directory, found nothing: swamd makes it when it starts\n$/)
  mkdirSync(dirname(catalog))
  for (const path of [changed, gone, damaged, lies]) assert.equal((await swam('add', path!)).code, 0)
  writeFileSync(changed!, patchyBytes(3 * MIB, 98))
  rmSync(gone!)
  const bytes = readFileSync(mapPath(catalog, damaged!))
  bytes[200]! ^= 1
  writeFileSync(mapPath(catalog, damaged!), bytes)
  // As many bytes, of the same time: nothing but the contents tells.
  writeFileSync(lies!, patchyBytes(3 * MIB, 99))
  utimesSync(lies!, when, when)
  const states = (json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]).map(
    ({ path, state }) => `${path} ${state}`,
  )
  assert.deepEqual(states.sort(), [' damaged', `${changed} old`, `${gone} gone`, `${lies} good`].sort())
  const { out } = await swam('list')
  assert.match(out, /b\.raw .*the image has changed since/)
  assert.match(out, /c\.raw .*the image is gone/)
  const verified = await swam('verify')
  assert.equal(verified.code, EXIT.failed)
  assert.match(verified.out, /its digest does not fit|a chunk of|blocks from/)
  assert.match(verified.out, /e\.raw: the image holds something else\n/)
  assert.match(verified.out, /2 maps checked, 2 are not exact\n$/)
})

test('what is no image of this host gets no map, and is one line', async (context) => {
  const { swam, image, catalog } = host(context)
  mkdirSync(dirname(catalog))
  const elsewhere = mkdtempSync(join(tmpdir(), 'swam-elsewhere-'))
  context.after(() => rmSync(elsewhere, { recursive: true, force: true }))
  const outside = join(elsewhere, 'x.raw')
  writeFileSync(outside, patchyBytes(3 * MIB, 8))
  const small = image('small.raw', 9)
  writeFileSync(small, 'a few bytes')
  for (const path of [outside, small, '/etc/shadow', '/etc']) {
    const { code, err } = await swam('add', path)
    assert.equal(code, EXIT.failed)
    assert.match(err, /^swam: .*: expected a file of 1 MiB or more, directly in one of images \(.*\)\n$/)
  }
  for (const path of ['/nowhere/x.raw', join(outside, 'x'), join(elsewhere, 'gone')]) {
    const { code, err } = await swam('add', path)
    assert.deepEqual([code, err], [EXIT.notFound, `swam: ${path}: no such image\n`])
  }
  assert.throws(() => readdirSync(catalog))
})

test('the map of what swamd has as a qcow2 is not made by root, who reads raw images only', async (context) => {
  const { swam, image, catalog } = host(context)
  const path = image('g.qcow2', 12)
  mkdirSync(dirname(catalog))
  await using source = await ImageSource.open(path)
  const writer = new ImageMapWriter(catalog, path, source.identity, {
    disk: { format: 'qcow2', bytes: 16 * MIB },
  })
  writer.finish()
  const before = readFileSync(mapPath(catalog, path))
  const { code, err } = await swam('add', path)
  assert.equal(code, EXIT.failed)
  assert.match(err, /^swam: .*g\.qcow2: swamd knows it as a qcow2, so its map is left to swamd\n$/)
  assert.ok(readFileSync(mapPath(catalog, path)).equals(before))
  const verified = json((await swam('--json', 'verify')).out)
  assert.deepEqual([verified['checked'], verified['left']], [[], [path]])
})

test('of an image whose file system is not there it says so, and until when its map is kept', async (context) => {
  const { swam, image, catalog } = host(context)
  mkdirSync(dirname(catalog))
  const path = image('g.raw', 13)
  const disk = { format: 'raw', bytes: 3 * MIB } as const
  const identity = await identityOf(path)
  // On another device than the directory is now, and gone from there.
  new ImageMapWriter(catalog, path, { ...identity, dev: identity.dev + 1n }, { disk }).finish()
  rmSync(path)
  const day = 86_400_000
  const seenAt = Date.now() - 10 * day
  const place = mapPath(catalog, path)
  utimesSync(place, seenAt / 1000 - 3600, seenAt / 1000 - 3600)
  const seen = `${identity.dev + 1n} ${identity.ino} ${seenAt} ${seenAt - 20 * day} 300`
  writeFileSync(join(catalog, 'seen'), `${mapPath('', path).slice(0, 32)} ${seen}\n`)
  const [map] = json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]
  assert.deepEqual(
    [map?.['path'], map?.['state'], map?.['usedAt'], map?.['keptUntil']],
    [path, 'away', Math.round(statSync(place).mtimeMs), seenAt + 400 * day],
  )
  const until = new Date(seenAt + 400 * day).toISOString().slice(0, 10)
  assert.match(
    (await swam('list')).out,
    new RegExp(`g\\.raw .*the image is not there now; kept until ${until}\n`),
  )
  assert.match(
    (await swam('stats')).out,
    /^1 maps of .*, 0 of images as they are; .*\n1 of images that are not there now\n$/,
  )
  const verified = await swam('verify')
  assert.equal(verified.code, EXIT.done)
  assert.equal(
    verified.out,
    '0 maps checked, 0 are not exact\n1 of images that are not there now cannot be held against them\n',
  )
  assert.deepEqual(json((await swam('--json', 'verify')).out)['away'], [path])
  // Without what is remembered it is as if it were seen last today.
  rmSync(join(catalog, 'seen'))
  const [again] = json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]
  assert.equal(again?.['state'], 'away')
  assert.ok(Math.abs((again?.['keptUntil'] as number) - Date.now() - 400 * day) < day)
})

test('images here whose maps were taken away by age or size are counted; with catalogGiB = 0 none is made', async (context) => {
  const { swam, image, catalog, config } = host(context)
  mkdirSync(dirname(catalog))
  const [path, other] = [image('g.raw', 13), image('h.raw', 14)]
  assert.equal((await swam('add', path)).code, 0)
  assert.equal((await swam('add', other)).code, 0)
  const { dev, ino } = await identityOf(path)
  const line = (one: string, inode: bigint): string =>
    `${mapPath('', one).slice(0, 32)} ${dev} ${inode} ${Date.now()} 1 300\n`
  const lines = [line(path, ino), line(other, (await identityOf(other)).ino), line('/gone', 5n)]
  writeFileSync(join(catalog, 'seen'), lines.join(''))
  assert.equal(json((await swam('--json', 'stats')).out)['forgotten'], 0)
  rmSync(mapPath(catalog, path))
  const stats = json((await swam('--json', 'stats')).out)
  assert.deepEqual([stats['forgotten'], stats['away'], stats['mapBytesMax']], [1, 0, 32 * 1024 * MIB])
  assert.match(
    (await swam('stats')).out,
    /\n1 images here have no map any more: limits\.catalogGiB, limits\.catalogDays\n$/,
  )
  config('[limits]\ncatalogGiB = 0\n')
  const { code, err } = await swam('add', path)
  assert.equal(code, EXIT.failed)
  assert.match(err, /g\.raw: limits\.catalogGiB is 0, so no map is kept\n$/)
})

test('without the words that are needed, or with a config that is none: the codes of all commands', async (context) => {
  const { swam } = host(context)
  for (const words of [['add'], ['remove'], ['nothing'], []]) {
    const { code, err } = await swam(...words)
    assert.equal(code, EXIT.usage, `${words.join(' ')}: ${err}`)
  }
  const said: string[] = []
  const output = { out: () => undefined, err: (text: string) => void said.push(text) }
  const code = await runSwam(['--config', '/nowhere/swam.toml', 'catalog', 'list'], Readable.from([]), output)
  assert.equal(code, EXIT.badConfig, said.join(''))
})

test('root follows no link that the daemon lays into its folder, and opens no file because a map names it', async (context) => {
  const { swam, image, catalog } = host(context)
  mkdirSync(dirname(catalog))
  const path = image('f.raw', 10)
  const victim = mkdtempSync(join(tmpdir(), 'swam-victim-'))
  context.after(() => rmSync(victim, { recursive: true, force: true }))
  symlinkSync(victim, catalog)
  const { code, err } = await swam('add', path)
  assert.equal(code, EXIT.failed)
  assert.match(err, /catalog: expected a directory, found something else\n$/)
  assert.deepEqual(readdirSync(victim), [])
  rmSync(catalog)
  mkdirSync(catalog)
  const file = join(victim, 'shadow')
  writeFileSync(file, 'secret')
  // Whatever stands where the map shall lie, and where it is written.
  symlinkSync(file, mapPath(catalog, path))
  symlinkSync(file, `${mapPath(catalog, path)}.new`)
  symlinkSync(file, join(catalog, 'seen'))
  chownSync(dirname(catalog), 1234, 1235)
  assert.equal((await swam('add', path)).code, 0)
  assert.equal(readFileSync(file, 'utf8'), 'secret')
  assert.equal(statSync(file).uid, 0)
  assert.ok(lstatSync(mapPath(catalog, path)).isFile())
  // A map of a file that is no image of this host.
  const other = join(victim, 'other.raw')
  writeFileSync(other, patchyBytes(3 * MIB, 11))
  await using source = await ImageSource.open(other)
  const writer = new ImageMapWriter(catalog, other, source.identity)
  writer.finish()
  const maps = json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]
  assert.deepEqual(maps.map(({ state }) => state).sort(), ['gone', 'good'])
  assert.deepEqual(
    (json((await swam('--json', 'verify')).out)['checked'] as { path: string }[]).map((one) => one.path),
    [path],
  )
})
