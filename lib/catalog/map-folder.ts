/**
 * The folder of maps as a whole, for whoever looks after it: what lies there and whether it still is of its image; a map made,
 * made again and compared, or taken away. Maps belong to who owns the folder, whoever makes them.
 */
import { chownSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs'
import { join } from 'node:path'
import { Chunker } from '../chunk/chunker.ts'
import { hintOf } from '../chunk/digest.ts'
import { errorText, RefusedError } from '../core/errors.ts'
import { ImageSource, sameIdentity } from './image-files.ts'
import { ImageMap, ImageMapWriter, mapPath } from './image-map.ts'
import { scanImage } from './image-scan.ts'

export interface FolderMap {
  readonly place: string
  readonly mapBytes: number
  /** `old`: of what the image was before; `gone`: the image is not there; `damaged`: no map, `problem` says why. */
  readonly state: 'good' | 'old' | 'gone' | 'damaged'
  readonly problem: string | null
  /** Of a map that is none: empty. */
  readonly path: string
  /** Of the image, in bytes. */
  readonly size: number
  readonly chunks: number
  readonly blocks: number
}

/** In the order of the images' paths. Throws what reading the folder throws; one that is not there has no maps. */
export async function mapsIn(folder: string): Promise<FolderMap[]> {
  const maps: FolderMap[] = []
  for (const name of namesIn(folder)) maps.push(await mapAt(join(folder, name)))
  return maps.sort((one, other) => (one.path < other.path ? -1 : 1))
}

function namesIn(folder: string): string[] {
  try {
    return readdirSync(folder).filter((name) => /^[0-9a-f]{32}\.map$/.test(name))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}

async function mapAt(place: string): Promise<FolderMap> {
  const mapBytes = statSync(place, { throwIfNoEntry: false })?.size ?? 0
  try {
    const { map, path, identity } = ImageMap.at(place)
    using whole = map
    const { count: chunks, blockCount: blocks } = whole
    const found = { place, mapBytes, problem: null, path, size: identity.size, chunks, blocks }
    try {
      await using source = await ImageSource.open(path)
      return { ...found, state: sameIdentity(source.identity, identity) ? 'good' : 'old' }
    } catch {
      return { ...found, state: 'gone' }
    }
  } catch (error) {
    const problem = errorText(error)
    return { place, mapBytes, state: 'damaged', problem, path: '', size: 0, chunks: 0, blocks: 0 }
  }
}

/** Scans the image and lays its map down. @throws RefusedError for an image that cannot be read, or that is written to meanwhile */
export async function makeMap(folder: string, path: string): Promise<void> {
  await using source = await ImageSource.open(path)
  const writer = new ImageMapWriter(folder, path, source.identity)
  try {
    await scanImage(source, new Chunker(), {
      onChunk: (offset, length, digests, digestOffset) => writer.add(digests, digestOffset, offset, length),
      onBlock: (offset, bytes) => writer.addBlock(offset, hintOf(bytes)),
    })
    if (await source.isStale()) throw new RefusedError(`${path}: it was written to while it was scanned`)
    writer.finish()
    const { uid, gid } = statSync(folder)
    chownSync(mapPath(folder, path), uid, gid)
  } finally {
    writer.abort()
  }
}

/** Whether a new scan of the image makes the same map. Throws as makeMap does. */
export async function isExact(folder: string, path: string): Promise<boolean> {
  const other = mkdtempSync(join(folder, 'verify-'))
  try {
    await makeMap(other, path)
    return readFileSync(mapPath(other, path)).equals(readFileSync(mapPath(folder, path)))
  } finally {
    rmSync(other, { recursive: true, force: true })
  }
}

/** False when there is none. */
export function removeMap(folder: string, path: string): boolean {
  const place = mapPath(folder, path)
  const there = statSync(place, { throwIfNoEntry: false }) !== undefined
  rmSync(place, { force: true })
  return there
}
