/** `swam catalog`, by the command, on maps of real files: made, listed, compared, spoilt, taken away. */
import assert from 'node:assert/strict'
import {
  chownSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { type TestContext, test } from 'node:test'
import { mapPath } from '../../../lib/catalog/image-map.ts'
import { MIB } from '../../../lib/core/units.ts'
import { EXIT } from '../../../server/cli/exit-codes.ts'
import { runSwam } from '../../../server/cli/program.ts'
import { patchyBytes } from '../chunk/samples.ts'

interface Host {
  readonly catalog: string
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

const json = (text: string): Record<string, unknown> => JSON.parse(text) as Record<string, unknown>

test('nothing is known yet', async (context) => {
  const { swam } = host(context)
  assert.deepEqual(await swam('list'), { code: 0, out: 'no image is known yet\n', err: '' })
  assert.match((await swam('stats')).out, /^0 maps of 0 B, 0 of images as they are/)
  assert.deepEqual(await swam('verify'), { code: 0, out: '0 maps checked, 0 are not exact\n', err: '' })
})

test('a map is made, owned by who owns the folder, listed, exact, and forgotten', async (context) => {
  const { swam, image, catalog } = host(context)
  const path = image('a.raw', 1)
  mkdirSync(catalog, { recursive: true, mode: 0o700 })
  chownSync(catalog, 1234, 1235)
  assert.deepEqual(await swam('add', path), { code: 0, out: '', err: '' })
  const { uid, gid, mode, size } = statSync(mapPath(catalog, path))
  assert.deepEqual([uid, gid, mode & 0o777], [1234, 1235, 0o600])
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
  for (const path of [changed, gone, damaged, lies]) assert.equal((await swam('add', path!)).code, 0)
  writeFileSync(changed!, 'something else')
  rmSync(gone!)
  const bytes = readFileSync(mapPath(catalog, damaged!))
  bytes[200]! ^= 1
  writeFileSync(mapPath(catalog, damaged!), bytes)
  // As many bytes, at the same time: nothing but the contents tells.
  const { atime, mtime } = statSync(lies!)
  writeFileSync(lies!, patchyBytes(3 * MIB, 99))
  const { utimesSync } = await import('node:fs')
  utimesSync(lies!, atime, mtime)
  const states = (json((await swam('--json', 'list')).out)['maps'] as Record<string, unknown>[]).map(
    ({ path, state }) => `${path === '' ? 'damaged' : path} ${state}`,
  )
  assert.ok(
    states.includes('damaged damaged') &&
      states.includes(`${changed} old`) &&
      states.includes(`${gone} gone`),
  )
  const verified = await swam('verify')
  assert.equal(verified.code, EXIT.failed)
  assert.match(verified.out, /its digest does not fit|a chunk of|blocks from/)
})

test('an image that cannot be read is one line, and no map', async (context) => {
  const { swam, catalog } = host(context)
  const { code, err } = await swam('add', '/nowhere/x.raw')
  assert.equal(code, EXIT.failed)
  assert.match(err, /^swam: .*x\.raw.*\n$/)
  assert.throws(() => readdirSync(catalog))
})
