/**
 * A stock over file systems that come and go; mounts.test.ts runs it with mounts of its own. argv: an empty folder. It says on stdout, as
 * one JSON object, what it saw at each step.
 */
import { execFileSync } from 'node:child_process'
import { randomBytes } from 'node:crypto'
import { mkdirSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { listImages } from '../../../lib/catalog/image-files.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { MapFolder } from '../../../lib/catalog/map-folder.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { MIB } from '../../../lib/core/units.ts'

const root = process.argv[2]!
const [store, images, stateDir] = ['store', 'images', 'state'].map((name) => join(root, name))
const catalog = join(stateDir!, 'catalog')
for (const directory of [store, images, stateDir]) mkdirSync(directory!)
const mount = (...words: string[]): unknown => execFileSync('mount', words)
const comes = (): unknown => mount('--bind', store!, images!)
const goes = (): unknown => execFileSync('umount', [images!])

mount('-t', 'tmpfs', '-o', 'size=64m', 'swam-test', store!)
comes()
const names = ['a.raw', 'b.raw', 'c.raw']
for (const name of names) {
  writeFileSync(join(images!, name), randomBytes(MIB))
  utimesSync(join(images!, name), 1e9, 1e9)
}

const scanned: string[] = []
let days = 0
const stock = new ImageStock({
  indexBytesMax: MIB,
  blockIndexBytesMax: MIB,
  imagesMax: 16,
  catalog,
  retention: {
    images: [images!],
    bytesMax: 100 * MIB,
    ageMsMax: 10 * 86_400_000,
    wallMs: () => Date.now() + days * 86_400_000,
  },
  onIndexed: ({ path }) => scanned.push(path),
})
const folder = new MapFolder({ stateDir: stateDir!, images: [images!] })
const steps: Record<string, unknown> = {}
const step = async (name: string): Promise<void> => {
  await stock.tend(() => listImages([images!]), { busy: () => new Set(), bytesPerSecond: 1024 * MIB })
  const there = new Set(readdirSync(catalog))
  steps[name] = {
    maps: names.filter((one) => there.has(mapPath('', join(images!, one)))),
    scanned: scanned.length,
    states: (await folder.list()).map(({ state }) => state),
    away: (await folder.away()).map((one) => one.images),
  }
}

try {
  await step('mounted')
  goes()
  await step('not mounted')
  rmSync(join(store!, 'b.raw'))
  await step('deleted where nobody sees it')
  comes()
  await step('mounted again')
  rmSync(join(images!, 'c.raw'))
  await step('deleted')
  // Another one in its place, with an image of its own.
  goes()
  mount('-t', 'tmpfs', '-o', 'size=64m', 'swam-test', images!)
  writeFileSync(join(images!, 'b.raw'), randomBytes(MIB))
  utimesSync(join(images!, 'b.raw'), 1e9, 1e9)
  await step('another one')
  // What was made there is looked at once more before that is gone, too.
  await step('another one')
  goes()
  days = 11
  await step('too long')
} finally {
  await stock.close()
}
process.stdout.write(`${JSON.stringify(steps)}\n`)
