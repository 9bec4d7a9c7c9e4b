/**
 * The folder of maps as a whole, for root, who looks after it: what lies there and whether it still is of its image; a map made,
 * made again and compared, or taken away. The folder is the daemon's, which is nobody to trust here: no name in it is followed, and
 * no image is opened because a map names it. Maps belong to who owns the state directory.
 */
import { createHash, type Hash } from 'node:crypto'
import { lchownSync, lstatSync, mkdirSync, readdirSync, rmSync } from 'node:fs'
import { basename, dirname, join } from 'node:path'
import { Chunker } from '../chunk/chunker.ts'
import { errorText, RefusedError } from '../core/errors.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import { Handprint } from './handprint.ts'
import {
  type ImageFile,
  type ImageFormat,
  type ImageIdentity,
  ImageSource,
  listImages,
} from './image-files.ts'
import { blocksOf, ImageMap, type MappedBlocks, mapHead } from './image-map.ts'
import {
  CHUNK_ENTRY_BYTES,
  CHUNKS,
  KEY_BYTES,
  mapPath,
  OFFSET_BYTES,
  writeChunk,
} from './image-map-format.ts'
import { type ImageMapEncoder, ImageMapWriter, type MapOwner } from './image-map-writer.ts'
import { ImagePlaces, listedIn, type Whereabouts } from './image-places.ts'
import { scanImage } from './image-scan.ts'
import { type LedgerEntry, MapLedger } from './map-ledger.ts'
import { SALVAGE_FOLDER } from './salvage.ts'

export interface FolderMap {
  readonly place: string
  readonly mapBytes: number
  /**
   * `old`: of what the image was before; `away`: its directory, or file system, is not there now; `gone`: no such image lies here;
   * `damaged`: no map, `problem` says why.
   */
  readonly state: 'good' | 'old' | 'away' | 'gone' | 'damaged'
  readonly problem: string | null
  /** Of a map that is none: empty. */
  readonly path: string
  /** What it describes: the file itself, or the disk that it holds as a qcow2. */
  readonly format: ImageFormat
  /** Of the disk, in bytes. */
  readonly size: number
  readonly chunks: number
  readonly blocks: number
  /** When it was made, or a migration found something in its image, last; ms since 1970. */
  readonly usedAt: number | null
  /** Until then it is kept, if its image does not come back: of one that is away. */
  readonly keptUntil: number | null
}

/** Images of a directory that is there, but on another file system than they were on. */
export interface AwayImages {
  readonly directory: string
  readonly images: number
}

export interface MapFolderOptions {
  readonly stateDir: string
  /** Where images lie; others have no maps. */
  readonly images: readonly string[]
  /** Of all maps; 0: none is kept. */
  readonly bytesMax?: number
  readonly ageMsMax?: number
}

export class MapFolder {
  readonly path: string
  readonly #options: MapFolderOptions

  constructor(options: MapFolderOptions) {
    this.#options = options
    this.path = join(options.stateDir, 'catalog')
  }

  /** In the order of the images' paths. Throws what reading the folder throws; one that is not there has no maps. */
  async list(): Promise<FolderMap[]> {
    return (await this.look()).maps
  }

  /** The same, and the images here whose maps were taken away, for their age or for want of room. */
  async look(): Promise<{ readonly maps: FolderMap[]; readonly forgotten: string[] }> {
    const images = await listImages(this.#options.images)
    const ledger = await MapLedger.read(this.path)
    await using places = await ImagePlaces.look(this.#options.images)
    const isListed = listedIn(images)
    const byPath = new Map(images.map((image) => [image.path, image]))
    const names = this.#names()
    const maps: FolderMap[] = []
    for (const name of names) {
      const map = mapAt(join(this.path, name), byPath)
      const known = ledger.of(name.slice(0, 32), map.identity?.ino)
      maps.push(await this.#told(map, known, async (identity) => places.of(map.path, identity, isListed)))
    }
    maps.sort((one, other) => (one.path < other.path ? -1 : 1))
    const mapped = new Set(names)
    const forgotten = images.filter(({ path, identity }) => {
      const name = mapPath('', path)
      return !mapped.has(name) && ledger.of(name.slice(0, 32), identity.ino) !== undefined
    })
    return { maps, forgotten: forgotten.map(({ path }) => path) }
  }

  async #told(
    { identity, madeAtMs, ...map }: FoundMap,
    known: LedgerEntry | undefined,
    whereabouts: (identity: ImageIdentity) => Promise<Whereabouts>,
  ): Promise<FolderMap> {
    const { ageMsMax } = this.#options
    const usedAt = madeAtMs === undefined ? null : Math.max(Math.round(madeAtMs), known?.usedAtMs ?? 0)
    if (map.state !== 'gone' || identity === undefined) return { ...map, usedAt, keptUntil: null }
    const where = await whereabouts(known === undefined ? identity : { ...identity, dev: known.dev })
    if (where === 'gone') return { ...map, usedAt, keptUntil: null }
    const seenAt = Math.max(known?.seenAtMs ?? Date.now(), usedAt ?? 0)
    return { ...map, state: 'away', usedAt, keptUntil: ageMsMax === undefined ? null : seenAt + ageMsMax }
  }

  /** Reads the heads of maps only, and says where a directory is there and its images are not, because their file system is not. */
  async away(): Promise<AwayImages[]> {
    const images = await listImages(this.#options.images)
    const isListed = listedIn(images)
    const listed = new Set(images.map(({ path }) => mapPath('', path)))
    const ledger = await MapLedger.read(this.path)
    await using places = await ImagePlaces.look(this.#options.images)
    const counts = new Map<string, number>()
    for (const name of this.#names()) {
      const head = listed.has(name) ? undefined : mapHead(join(this.path, name))
      if (head === undefined) continue
      const { path, identity } = head
      const dev = ledger.of(name.slice(0, 32), identity.ino)?.dev ?? identity.dev
      if ((await places.of(path, { ...identity, dev }, isListed)) === 'gone') continue
      const directory = directoryOf(path)
      if (lstatSync(directory, { throwIfNoEntry: false })?.isDirectory() === true)
        counts.set(directory, (counts.get(directory) ?? 0) + 1)
    }
    return [...counts].map(([directory, count]) => ({ directory, images: count }))
  }

  #names(): string[] {
    try {
      return readdirSync(this.path).filter((name) => /^[0-9a-f]{32}\.map$/.test(name))
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
      throw error
    }
  }

  /**
   * Scans the image and lays its map down; of one that is written to meanwhile it is an old one at once.
   * @throws RefusedError for what is no image of this host, or cannot be read
   */
  async make(path: string): Promise<void> {
    const { stateDir, images, bytesMax } = this.#options
    if (bytesMax === 0) throw new RefusedError(`${path}: limits.catalogGiB is 0, so no map is kept`)
    if (!(await listImages(images)).some((image) => image.path === path)) {
      const where = images.join(', ')
      throw new RefusedError(
        `${path}: expected a file of 1 MiB or more, directly in one of images (${where})`,
      )
    }
    if (this.#formatAt(path) === 'qcow2')
      throw new RefusedError(`${path}: swamd knows it as a qcow2, so its map is left to swamd`)
    const owner = ownerOf(stateDir)
    if (lstatSync(this.path, { throwIfNoEntry: false }) === undefined) {
      mkdirSync(this.path, { mode: 0o700 })
      lchownSync(this.path, owner.uid, owner.gid)
    } else ownerOf(this.path)
    await using source = await ImageSource.open(path)
    const writer = new ImageMapWriter(this.path, path, source.identity, { owner })
    try {
      await scanInto(source, writer)
      writer.finish(await source.isStale())
    } finally {
      writer.abort()
    }
  }

  /** Of the map that lies there; what is none has none. */
  #formatAt(path: string): ImageFormat | undefined {
    try {
      const { map } = ImageMap.at(mapPath(this.path, path))
      map.close()
      return map.disk.format
    } catch {
      return undefined
    }
  }

  /** Whether a new scan of the raw image makes the same map. Throws as `make` does. */
  async isExact(path: string): Promise<boolean> {
    await using source = await ImageSource.open(path)
    using map = ImageMap.open(this.path, path, source.identity)
    if (map === undefined) return false
    const found = new Contents()
    await scanInto(source, found)
    const said = new Contents()
    for (const { kind, entries } of map.entries()) {
      if (kind === CHUNKS) said.addEntries(entries)
      else said.addRun(blocksOf(entries))
    }
    const handprint = ImageMap.peek(this.path, path, source.identity)?.handprint ?? []
    const same = found.digest(found.handprint.samples()).equals(said.digest(handprint))
    return same && !(await source.isStale())
  }

  /** False when there is none. */
  remove(path: string): boolean {
    const place = mapPath(this.path, path)
    const there = lstatSync(place, { throwIfNoEntry: false }) !== undefined
    rmSync(place, { force: true })
    return there
  }
}

/**
 * What a map says, whatever its sections are: a scan that was resumed cuts them at other places, so two maps of the same image need not
 * be the same bytes.
 */
class Contents {
  readonly handprint = new Handprint()
  readonly #chunks: Hash = createHash('sha256')
  readonly #blocks: Hash = createHash('sha256')
  readonly #entry = Buffer.alloc(CHUNK_ENTRY_BYTES)
  readonly #block = Buffer.alloc(OFFSET_BYTES + KEY_BYTES)

  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    this.handprint.add(digests, digestOffset)
    writeChunk(this.#entry, 0, digests.subarray(digestOffset), offset, length)
    this.#chunks.update(this.#entry)
  }

  addBlock(offset: number, hint: Buffer): void {
    this.#block.writeUIntBE(offset, 0, OFFSET_BYTES)
    hint.copy(this.#block, OFFSET_BYTES, 0, KEY_BYTES)
    this.#blocks.update(this.#block)
  }

  /** Chunks as they stand in a map. */
  addEntries(entries: Buffer): void {
    this.#chunks.update(entries)
  }

  addRun({ offset, hints }: MappedBlocks): void {
    for (let at = 0; at < hints.length; at += KEY_BYTES)
      this.addBlock(offset + (at / KEY_BYTES) * BLOCK_BYTES, hints.subarray(at, at + KEY_BYTES))
  }

  /** Ends it. */
  digest(handprint: readonly string[]): Buffer {
    const parts = [this.#chunks.digest(), this.#blocks.digest(), Buffer.from(handprint.join(''), 'latin1')]
    return Buffer.concat(parts)
  }
}

/** @throws RefusedError for what is no directory, a link to one too */
function ownerOf(directory: string): MapOwner {
  const stats = lstatSync(directory, { throwIfNoEntry: false })
  if (stats?.isDirectory() !== true) {
    const found = stats === undefined ? 'nothing: swamd makes it when it starts' : 'something else'
    throw new RefusedError(`${directory}: expected a directory, found ${found}`)
  }
  return { uid: stats.uid, gid: stats.gid }
}

/** Of the config, in which an image lay. */
function directoryOf(path: string): string {
  const directory = dirname(path)
  return basename(directory) === SALVAGE_FOLDER ? dirname(directory) : directory
}

type FoundMap = Omit<FolderMap, 'usedAt' | 'keptUntil'> & {
  readonly identity: ImageIdentity | undefined
  readonly madeAtMs: number | undefined
}

function mapAt(place: string, images: ReadonlyMap<string, ImageFile>): FoundMap {
  const mapBytes = lstatSync(place, { throwIfNoEntry: false })?.size ?? 0
  try {
    const { map, path } = ImageMap.at(place)
    const { count: chunks, blockCount: blocks, identity, madeAtMs } = map
    map.close()
    const image = images.get(path)
    const state = image === undefined ? 'gone' : map.isOf(image.identity) ? 'good' : 'old'
    const { format, bytes: size } = map.disk
    return { place, mapBytes, state, problem: null, path, format, size, chunks, blocks, identity, madeAtMs }
  } catch (error) {
    const problem = errorText(error)
    const nothing = { path: '', format: 'raw', size: 0, chunks: 0, blocks: 0 } as const
    const none = { identity: undefined, madeAtMs: undefined }
    return { place, mapBytes, state: 'damaged', problem, ...nothing, ...none }
  }
}

async function scanInto(source: ImageSource, map: Pick<ImageMapEncoder, 'add' | 'addBlock'>): Promise<void> {
  await scanImage(source, new Chunker(), {
    onChunk: (offset, length, digests, digestOffset) => map.add(digests, digestOffset, offset, length),
    onBlock: (offset, hint) => map.addBlock(offset, hint),
  })
}
