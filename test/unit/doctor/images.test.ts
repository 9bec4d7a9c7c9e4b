/** What the doctor says of directories of images whose file system is not there: only that, and nothing of images that were deleted. */
import assert from 'node:assert/strict'
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { MIB } from '../../../lib/core/units.ts'
import { checkImages } from '../../../server/doctor/images.ts'
import type { Place } from '../../../server/doctor/place.ts'

test('images that were on another file system are missed, those that were deleted are not', async (context) => {
  const root = mkdtempSync(join(tmpdir(), 'swam-doctor-'))
  context.after(() => rmSync(root, { recursive: true }))
  const [images, stateDir] = [join(root, 'images'), join(root, 'state')]
  for (const directory of [images, stateDir]) mkdirSync(directory)
  const config = { images: [images, join(root, 'missing')], stateDir } as unknown as Config
  const ids = async (): Promise<string[]> => {
    const findings = await checkImages({ config } as unknown as Place)
    return findings.filter(({ id }) => id === 'images-away').map(({ what }) => what)
  }
  assert.deepEqual(await ids(), [], 'nothing is known of any')
  for (const [name, elsewhere] of [
    ['here', 0n],
    ['deleted', 0n],
    ['away', 1n],
    ['away-too', 1n],
  ] as const) {
    const path = join(images, name)
    writeFileSync(path, Buffer.alloc(MIB, name))
    await using source = await ImageSource.open(path)
    const { identity } = source
    new ImageMapWriter(join(stateDir, 'catalog'), path, {
      ...identity,
      dev: identity.dev + elsewhere,
    }).finish()
    if (name !== 'here') rmSync(path)
  }
  assert.deepEqual(await ids(), [
    `${images}: 2 image(s) that swamd knew there are on a file system that is not mounted there now`,
  ])
})
