/**
 * Pairs of disk images for the benches: what is sent, and what lies at the destination already. One pair of each kind that
 * decides how much can be found: a clone, a later version, another layout of the same files, another clone, nothing.
 * The images are real Debian file systems (pairs/recipe.sh), built once into a cache that is keyed by a digest of the recipe;
 * the network is used only then. It deliberately knows nothing of what the benches measure.
 */
import { existsSync } from 'node:fs'
import { readFile, rename, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { buildDirectory, debianMirror, digestOfFiles } from '../lab/debian/build.ts'
import { CACHE_DIR } from '../lab/release.ts'
import { type ImageFacts, imageFacts } from './blocks.ts'

const RELEASE = 'bookworm'
const RECIPE = join(import.meta.dirname, 'pairs/recipe.sh')
const RECIPE_FILES = [
  RECIPE,
  join(import.meta.dirname, 'pairs/later.py'),
  join(import.meta.dirname, '../lab/debian/image.sh'),
  join(import.meta.dirname, '../lab/debian/life.py'),
]

const IMAGES = ['base', 'web', 'web2', 'indep', 'db'] as const
export type ImageName = (typeof IMAGES)[number]

export interface PairImage extends ImageFacts {
  readonly name: ImageName
  /** A raw image with holes. It is shared by all runs: read it only. */
  readonly path: string
}

export type PairKind = 'clone' | 'later version' | 'other layout' | 'other clone' | 'nothing'

export interface Pair {
  /** `web | base`: web is sent, base is at the destination. */
  readonly name: string
  readonly kind: PairKind
  readonly target: PairImage
  readonly have: readonly PairImage[]
}

const KINDS: readonly (readonly [kind: PairKind, target: ImageName, ...have: ImageName[]])[] = [
  ['clone', 'web', 'base'],
  ['later version', 'web2', 'web'],
  ['other layout', 'indep', 'web'],
  ['other clone', 'db', 'base', 'web'],
  ['nothing', 'web'],
]

/** Builds the images when they are not in the cache (some minutes, as root, from the machine's own Debian mirror). */
export async function imagePairs(cache: string = join(CACHE_DIR, 'pairs')): Promise<readonly Pair[]> {
  const images = await pairImages(cache)
  return KINDS.map(([kind, target, ...have]) => ({
    name: `${target} | ${have.length === 0 ? 'nothing' : have.join(', ')}`,
    kind,
    target: images[target],
    have: have.map((name) => images[name]),
  }))
}

async function pairImages(cache: string): Promise<Readonly<Record<ImageName, PairImage>>> {
  const directory = join(cache, `pairs-${await digestOfFiles(RELEASE, RECIPE_FILES)}`)
  if (!existsSync(directory)) {
    const [mirror, security] = [await debianMirror(RELEASE), await debianMirror(`${RELEASE}-security`)]
    await buildDirectory(directory, RECIPE, [mirror, RELEASE, security])
  }
  const facts = await keptFacts(directory)
  const entries = IMAGES.map((name) => [name, { name, path: join(directory, `${name}.raw`), ...facts[name] }])
  return Object.fromEntries(entries) as Record<ImageName, PairImage>
}

/** Read from images.json beside the images, which the first caller writes. */
async function keptFacts(directory: string): Promise<Readonly<Record<ImageName, ImageFacts>>> {
  const file = join(directory, 'images.json')
  if (!existsSync(file)) {
    const facts: Partial<Record<ImageName, ImageFacts>> = {}
    for (const name of IMAGES) facts[name] = await imageFacts(join(directory, `${name}.raw`))
    const part = `${file}.${process.pid}`
    await writeFile(part, `${JSON.stringify(facts)}\n`)
    await rename(part, file)
  }
  return JSON.parse(await readFile(file, 'utf8')) as Record<ImageName, ImageFacts>
}

if (import.meta.main) {
  for (const { name, kind, target, have } of await imagePairs()) {
    console.log(`${kind}: ${name}: ${target.path} (${(target.dataBytes / 1e6).toFixed(0)} MB of data)`)
    for (const { path } of have) console.log(`  have ${path}`)
  }
}
