/**
 * Keeps the folder of maps to what the config allows: which images have a map, how long, and how much all of them take. The choice is
 * map-choice.ts; here is what it is made from, and what follows from it. A map of an image that was taken away goes at once; one whose
 * image cannot be seen for now (image-places.ts) stays until it is too old. An image that lost its map to age or room gets none
 * again before it is chosen again: when it was changed, or a migration found something in it.
 *
 * It deletes maps only, and what is left of scans (`.new`); never an image.
 */
import { lstat, readdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { CATALOG_SEEN_MS, IMAGE_RESCAN_MS } from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import type { ImageFile, ImageIdentity } from './image-files.ts'
import { mapHead } from './image-map.ts'
import { KEY_BYTES, mapPath } from './image-map-format.ts'
import { ImagePlaces, listedIn, type Whereabouts } from './image-places.ts'
import { chooseMaps, type Keepable } from './map-choice.ts'
import { MapLedger } from './map-ledger.ts'

export interface MapRetentionOptions {
  /** Where maps lie. */
  readonly catalog: string
  /** The directories of images, as in the config. */
  readonly images: readonly string[]
  /** Of all maps; 0: there are none. */
  readonly bytesMax: number
  readonly ageMsMax: number
  readonly wallMs?: () => number
}

/** A map that was taken away although its image is there. */
export interface ForgottenMap {
  readonly path: string
  readonly mapBytes: number
  /** Nobody touched it for so long; else there is no room. */
  readonly tooOld: boolean
}

interface FoundMap {
  readonly bytes: number
  readonly madeAtMs: number
}

interface Candidate extends Keepable {
  /** Of the image, where it is there. */
  readonly path: string | undefined
}

/** What one sweep goes by. */
interface Look {
  readonly ledger: MapLedger
  /** By their names, as `listed` and `busy`. */
  readonly maps: ReadonlyMap<string, FoundMap>
  readonly listed: ReadonlyMap<string, ImageFile>
  readonly busy: ReadonlySet<string>
  readonly nowMs: number
}

/** What a map takes of the data that it describes, as long as nobody knows better: a hint a block, and an eighth for the chunks. */
const MAP_SHARE = (KEY_BYTES * 9) / (8 * BLOCK_BYTES)
/** Files that are looked at at once. */
const LOOKS = 64

export class MapRetention {
  readonly #options: MapRetentionOptions
  readonly #wallMs: () => number
  #ledger: MapLedger | undefined
  #files: readonly ImageFile[] = []
  /** When the images at these paths were used, since the last sweep. */
  #used = new Map<string, number>()
  /** Of images that are there and are to have one; undefined: nobody has looked yet. */
  #chosen: ReadonlySet<string> | undefined
  #chosenBytes = 0

  constructor(options: MapRetentionOptions) {
    this.#options = options
    this.#wallMs = options.wallMs ?? Date.now
  }

  /** What a map may take that is made now: all others of it give way. 0: none is to be made. */
  bytesMaxOf(path: string): number {
    return this.#chosen?.has(path) === false ? 0 : this.#options.bytesMax
  }

  /** What is chosen may take more than there is room for: a map may take four times what was thought. */
  get isTight(): boolean {
    return this.#chosenBytes > this.#options.bytesMax / 4
  }

  /** Something was found in this image. */
  used(path: string): void {
    this.#used.set(path, this.#wallMs())
  }

  /** Its map was given up when it was so large. */
  async tooLarge({ path, identity }: ImageFile, mapBytes: number): Promise<void> {
    const ledger = await this.#read()
    const name = mapPath('', path)
    const now = Math.round(this.#wallMs())
    const usedAtMs = ledger.get(key(name))?.usedAtMs ?? now
    const { dev, ino } = identity
    ledger.set(key(name), { dev, ino, seenAtMs: now, usedAtMs, mapBytes })
  }

  /**
   * Looks at all maps, and takes away those that have to go. @param files all images that are here; without: as they were last
   * @param inUse paths of images whose maps a migration uses, or that are being scanned
   */
  async sweep(
    inUse: ReadonlySet<string>,
    files: readonly ImageFile[] = this.#files,
  ): Promise<ForgottenMap[]> {
    const { catalog, bytesMax, ageMsMax } = this.#options
    this.#files = files
    const ledger = await this.#read()
    const nowMs = Math.round(this.#wallMs())
    const names = await mapsIn(catalog)
    const maps = await this.#found(names)
    const listed = new Map(files.map((file) => [mapPath('', file.path), file]))
    const busy = new Set([...inUse].map((path) => mapPath('', path)))
    const look: Look = { ledger, maps, listed, busy, nowMs }
    const candidates = [
      ...[...listed].map(([name, file]) => this.#present(look, name, file)),
      ...(await this.#absent(look)),
    ]
    const chosen = chooseMaps(candidates, { bytesMax, ageMsMax, nowMs })
    const kept = new Set([...chosen].map(({ name }) => name))
    const there = [...chosen].flatMap(({ path }) => (path === undefined ? [] : [path]))
    this.#chosen = new Set(there)
    this.#chosenBytes = [...chosen].reduce((sum, { bytes }) => sum + bytes, 0)
    const problems: unknown[] = []
    for (const name of names) {
      const map = name.replace(/\.new$/, '')
      const stays =
        name === map
          ? kept.has(map)
          : busy.has(map) || (listed.has(map) && (kept.has(map) || (await this.#isYoung(name, nowMs))))
      if (!stays) await rm(join(catalog, name), { force: true }).catch((error) => problems.push(error))
    }
    await ledger.save()
    if (problems.length > 0) throw problems[0]
    return candidates.flatMap((candidate) => {
      const { path, mapped, bytes: mapBytes, agesFromMs } = candidate
      if (path === undefined || !mapped || chosen.has(candidate)) return []
      return [{ path, mapBytes, tooOld: nowMs - agesFromMs > ageMsMax }]
    })
  }

  /** What a scan has left, which the next one may go on with; or `swam catalog add` is at work. */
  async #isYoung(name: string, nowMs: number): Promise<boolean> {
    const stats = await lstat(join(this.#options.catalog, name)).catch(() => undefined)
    return stats !== undefined && nowMs - stats.mtimeMs < IMAGE_RESCAN_MS
  }

  async #read(): Promise<MapLedger> {
    this.#ledger ??= await MapLedger.read(this.#options.catalog)
    return this.#ledger
  }

  async #found(names: readonly string[]): Promise<Map<string, FoundMap>> {
    const maps = new Map<string, FoundMap>()
    const all = names.filter((name) => name.endsWith('.map'))
    for (let at = 0; at < all.length; at += LOOKS) {
      const look = async (name: string): Promise<void> => {
        const stats = await lstat(join(this.#options.catalog, name)).catch(() => undefined)
        // A block that is begun is one: many small maps take room too.
        if (stats?.isFile() === true)
          maps.set(name, { bytes: Math.max(stats.size, stats.blocks * 512), madeAtMs: stats.mtimeMs })
      }
      await Promise.all(all.slice(at, at + LOOKS).map(look))
    }
    return maps
  }

  /** An image that is here. What never had a map is never too old for one. */
  #present({ ledger, maps, busy, nowMs }: Look, name: string, file: ImageFile): Candidate {
    const { path, identity } = file
    const map = maps.get(name)
    const known = ledger.of(key(name), identity.ino)
    const used = this.#used.get(path)
    this.#used.delete(path)
    const changedAtMs = file.changedAtMs ?? Number(identity.mtimeNs / 1_000_000n)
    let touchedAtMs = latest(nowMs, changedAtMs)
    let agesFromMs = nowMs
    if (map !== undefined || known !== undefined || used !== undefined) {
      const usedAtMs = latest(nowMs, known?.usedAtMs, map?.madeAtMs, used)
      const mapBytes = map?.bytes ?? known?.mapBytes ?? 0
      const seen = known?.seenAtMs ?? 0
      const seenAtMs = Math.abs(nowMs - seen) < CATALOG_SEEN_MS ? seen : nowMs
      const { dev, ino } = identity
      ledger.set(key(name), { dev, ino, seenAtMs, usedAtMs, mapBytes })
      touchedAtMs = Math.max(touchedAtMs, usedAtMs)
      agesFromMs = touchedAtMs
    }
    // Of what was only used there is none yet.
    const before = known?.mapBytes === 0 ? undefined : known?.mapBytes
    const bytes = map?.bytes ?? before ?? (file.allocatedBytes ?? identity.size) * MAP_SHARE
    const inUse = busy.has(name)
    return { name, path, bytes, mapped: map !== undefined, inUse, touchedAtMs, agesFromMs }
  }

  /** Maps of images that are not listed. Those of images that are gone are none; nor are those that are no maps. */
  async #absent(look: Look): Promise<Candidate[]> {
    const { ledger, maps, listed, nowMs } = look
    const isListed = listedIn(listed.values())
    await using places = await ImagePlaces.look(this.#options.images)
    const whereabouts = (path: string, identity: ImageIdentity): Promise<Whereabouts> =>
      places.of(path, identity, isListed)
    const candidates: Candidate[] = []
    for (const [name, map] of maps) {
      const candidate = listed.has(name) ? undefined : await this.#away(look, name, map, whereabouts)
      if (candidate !== undefined) candidates.push(candidate)
    }
    // Of neither image nor map anything is left, except on a file system that is away.
    for (const hash of ledger.names) {
      if (maps.has(`${hash}.map`) || listed.has(`${hash}.map`)) continue
      const { seenAtMs, usedAtMs } = ledger.get(hash)!
      if (nowMs - Math.max(seenAtMs, usedAtMs) > this.#options.ageMsMax) ledger.delete(hash)
    }
    return candidates
  }

  /** Undefined: its image is gone. */
  async #away(
    { ledger, busy, nowMs }: Look,
    name: string,
    { bytes, madeAtMs }: FoundMap,
    whereabouts: (path: string, identity: ImageIdentity) => Promise<Whereabouts>,
  ): Promise<Candidate | undefined> {
    const candidate = { name, path: undefined, bytes, mapped: true, inUse: busy.has(name) }
    let head: ReturnType<typeof mapHead>
    try {
      head = mapHead(join(this.#options.catalog, name))
    } catch {
      // It cannot be opened for a moment: another round will tell.
      return { ...candidate, touchedAtMs: latest(nowMs, madeAtMs), agesFromMs: nowMs }
    }
    const known = ledger.of(key(name), head?.identity.ino)
    // As it was seen last: since its map was made, its file system may have got another number.
    const dev = known?.dev ?? head?.identity.dev ?? 0n
    if (head === undefined || (await whereabouts(head.path, { ...head.identity, dev })) === 'gone') {
      ledger.delete(key(name))
      return undefined
    }
    const usedAtMs = latest(nowMs, known?.usedAtMs, madeAtMs)
    const seenAtMs = latest(nowMs, known === undefined ? nowMs : known.seenAtMs)
    ledger.set(key(name), { dev, ino: head.identity.ino, seenAtMs, usedAtMs, mapBytes: bytes })
    return { ...candidate, touchedAtMs: usedAtMs, agesFromMs: Math.max(usedAtMs, seenAtMs) }
  }
}

/** In the ledger. */
function key(name: string): string {
  return name.slice(0, 32)
}

/** Whole, and not in the future: a clock that was wrong must not keep anything for ever. */
function latest(nowMs: number, ...times: readonly (number | undefined)[]): number {
  return Math.round(Math.max(0, ...times.map((time) => Math.min(time ?? 0, nowMs))))
}

/** Maps, and what is beside them. */
async function mapsIn(directory: string): Promise<string[]> {
  try {
    return (await readdir(directory)).filter((name) => /^[0-9a-f]{32}\.map(\.new)?$/.test(name))
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
}
