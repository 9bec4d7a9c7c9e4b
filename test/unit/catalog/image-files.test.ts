/** Which files count as images, and how they are read. */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import {
  appendFileSync,
  mkdirSync,
  mkdtempSync,
  realpathSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ImageSource, lieIn, listImages, sameIdentity } from '../../../lib/catalog/image-files.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { MIB } from '../../../lib/core/units.ts'
import { randomBytes } from '../chunk/samples.ts'

const root = realpathSync(mkdtempSync(join(tmpdir(), 'swam-images-')))
after(() => rmSync(root, { recursive: true }))

const images = join(root, 'images')
const more = join(root, 'more')
const secret = join(root, 'secret')
for (const directory of [images, more, secret, join(images, 'below')]) mkdirSync(directory)
const bytes = randomBytes(2 * MIB, 1)
for (const path of ['images/a.img', 'more/b.qcow2', 'secret/c.img', 'images/below/d.img']) {
  writeFileSync(join(root, path), bytes)
}
writeFileSync(join(images, 'small'), bytes.subarray(0, MIB - 1))
symlinkSync('../more/b.qcow2', join(images, 'b'))
symlinkSync(join(secret, 'c.img'), join(images, 'c'))
symlinkSync(join(images, 'below'), join(images, 'below-link'))
symlinkSync('nowhere', join(images, 'dangling'))
symlinkSync('/dev/zero', join(images, 'zero'))
symlinkSync(secret, join(images, 'secret'))
symlinkSync(images, join(root, 'images-link'))
execFileSync('mkfifo', [join(images, 'fifo')])

test('lists regular files of 1 MiB and more, one level deep, each once, inside the directories only', async () => {
  const listed = await listImages([images, more, join(root, 'images-link'), join(root, 'missing')])
  assert.deepEqual(
    listed.map(({ path }) => path),
    [join(images, 'a.img'), join(more, 'b.qcow2')],
  )
  assert.equal(listed[0]!.identity.size, 2 * MIB)
})

test('a link to a file of a directory that is not allowed does not count', async () => {
  const listed = await listImages([images])
  assert.deepEqual(
    listed.map(({ path }) => path),
    [join(images, 'a.img')],
  )
})

for (const [name, lies] of [
  ['a.img', true],
  ['not-there-yet.img', true],
  ['b', false],
  ['c', false],
  ['below/d.img', false],
  ['secret/c.img', false],
  ['../secret/c.img', false],
  ['gone/e.img', undefined],
] as const) {
  test(`whether a disk lies in an image directory: ${name}`, async () => {
    const asked = lieIn([images, join(root, 'missing')], [join(images, 'a.img'), join(images, name)])
    if (lies === undefined) await assert.rejects(asked, { code: 'ENOENT' })
    else assert.equal(await asked, lies)
  })
}

test('reads exactly what was asked, and says when the file ends or has changed', async () => {
  const path = join(root, 'changing.img')
  writeFileSync(path, bytes)
  await using source = await ImageSource.open(path)
  assert.ok((await source.read(MIB + 3, 5000)).equals(bytes.subarray(MIB + 3, MIB + 5003)))
  assert.equal(await source.isStale(), false)
  await assert.rejects(source.read(2 * MIB - 10, 11), LostError)
  await assert.rejects(source.read(0, 0), RangeError)
  await assert.rejects(source.read(0, 16 * MIB + 1), RangeError)
  appendFileSync(path, 'x')
  assert.equal(await source.isStale(), true)
  truncateSync(path, 0)
  await assert.rejects(source.read(0, 1), LostError)
  await using again = await ImageSource.open(path)
  assert.equal(sameIdentity(source.identity, again.identity), false)
})

test('a link, a directory and a FIFO are refused, without waiting', async () => {
  await assert.rejects(ImageSource.open(join(images, 'b')), /ELOOP/)
  await assert.rejects(ImageSource.open(images), RefusedError)
  await assert.rejects(ImageSource.open(join(images, 'fifo')), RefusedError)
  await assert.rejects(ImageSource.open(join(images, 'missing')), /ENOENT/)
})

test('close may be called again', async () => {
  const source = await ImageSource.open(join(images, 'a.img'))
  await source.close()
  await source.close()
})
