/**
 * ImageStock: the images that lie on this host, as a source of chunks and blocks. Each is known by its map (image-map.ts). `tend`
 * makes the maps in the background; `refresh`, when a migration is announced, opens the images and takes what maps
 * say into one index of chunks and one of blocks, within their budgets; what has no map is scanned at once, into the index too.
 * Nobody waits for any of it: lookups use what is there so far.
 *
 * Where not everything finds room, the images that hold most of what comes in are taken: each digest that is looked up counts for
 * the images that have it in their handprint. Blocks give way before chunks. A map of what the file was at another time
 * is a good guess until there is a new one; an entry that is wrong only costs a failed verification. Which images have a map at all,
 * and for how long, is map-retention.ts; one that is to have none is scanned for the indexes alone, when a migration comes.
 *
 * Files are open only while somebody may read them (`rest`): an image that is deleted meanwhile must not keep its blocks on
 * the disk because we hold it. Deliberately not here: formats, which the caller knows, and any trust in what is found.
 */
import { errorText } from '../core/errors.ts'
import {
  CATALOG_PLAN_MS,
  IMAGE_NUMBER_MAX,
  IMAGE_RESCAN_MS,
  IMAGE_REST_MS,
  KNOWN_IMAGES_MAX,
  STOCK_EXPORTS_MAX,
} from '../core/limits.ts'
import { BLOCK_BYTES, KIB } from '../core/units.ts'
import { ChunkIndex } from './chunk-index.ts'
import { HandprintIndex } from './handprint.ts'
import { type ImageFile, sameFile, sameIdentity } from './image-files.ts'
import { ImageIndexer, type IndexedImage } from './image-index.ts'
import type { Known, Scan } from './known-image.ts'
import { MapRetention } from './map-retention.ts'
import { noRoomFor } from './map-space.ts'
import { type ImageRef, openImage } from './open-image.ts'
import { choose, ranked } from './stock-choice.ts'
import type { ListImages, StockImage, StockOptions, TendOptions } from './stock-options.ts'

export type { ListImages, StockImage, StockOptions, TendOptions } from './stock-options.ts'

const CHUNK_BYTES_MEAN = 64 * KIB
/** A chance hit is none: loading an image costs more than a chunk. */
const SCORE_MIN = 2

export class ImageStock {
  readonly #options: StockOptions
  #index: ChunkIndex
  #blocks: ChunkIndex
  #indexer: ImageIndexer
  readonly #known = new Map<string, Known>()
  readonly #byNumber = new Map<number, Known>()
  readonly #handprints = new HandprintIndex<Known>()
  readonly #retention: MapRetention | undefined
  #opened: StockImage[] | undefined
  #nextNumber = 0
  #loading = 0
  #refreshing: Promise<void> = Promise.resolve()
  #planning: Promise<void> | undefined
  #planAgain = false
  #planTimer: NodeJS.Timeout | undefined
  /** There are images with maps that found no room. */
  #crowded = false
  /** Between a refresh and a rest. */
  #inUse = false
  #closed = false

  constructor(options: StockOptions) {
    this.#options = options
    this.#index = ChunkIndex.create({ bytesMax: options.indexBytesMax })
    this.#blocks = ChunkIndex.create({ bytesMax: options.blockIndexBytesMax })
    this.#indexer = this.#newIndexer()
    const { catalog, retention } = options
    const always = { images: [], bytesMax: Number.POSITIVE_INFINITY, ageMsMax: Number.POSITIVE_INFINITY }
    if (catalog !== undefined) this.#retention = new MapRetention({ catalog, ...(retention ?? always) })
  }

  #newIndexer(): ImageIndexer {
    const { catalog, freeBytesMin } = this.#options
    return new ImageIndexer({
      index: this.#index,
      blocks: this.#blocks,
      ...(catalog === undefined ? {} : { catalog }),
      ...(freeBytesMin === undefined ? {} : { freeBytesMin }),
    })
  }

  get #numbersMax(): number {
    return this.#options.numbersMax ?? IMAGE_NUMBER_MAX + 1
  }

  /** Those that are open. */
  get images(): readonly StockImage[] {
    this.#opened ??= [...this.#known.values()].flatMap(stockImage)
    return this.#opened
  }

  get chunkCount(): number {
    return this.#index.count
  }

  /** Images whose scan is not finished, or whose map is being read. */
  get scanning(): number {
    let scanning = this.#loading
    for (const known of this.#known.values()) if (known.scan !== undefined) scanning++
    return scanning
  }

  /** Whether what is known may change by itself. */
  get busy(): boolean {
    return this.#planTimer !== undefined || this.#planning !== undefined || this.scanning > 0
  }

  image(number: number): StockImage | undefined {
    const known = this.#byNumber.get(number)
    return known && stockImage(known)[0]
  }

  get blockCount(): number {
    return this.#blocks.count
  }

  lookupBlock(hints: Buffer, hintOffset: number): { image: number; offset: number }[] {
    return this.#blocks.lookup(hints, hintOffset)
  }

  lookup(digest: Buffer): { image: number; offset: number; length: number }[] {
    if (this.#crowded) this.#count(digest)
    return this.#index.lookup(digest)
  }

  /** What was looked for was found there. */
  used(number: number): void {
    const known = this.#byNumber.get(number)
    if (known !== undefined) this.#retention?.used(known.path)
  }

  #count(digest: Buffer): void {
    for (const known of this.#handprints.owners(digest)) {
      known.score++
      if (known.score < SCORE_MIN || known.loaded?.withBlocks === true) continue
      this.#planTimer ??= setTimeout(() => {
        this.#planTimer = undefined
        this.#plan()
      }, CATALOG_PLAN_MS).unref()
    }
  }

  // ---- when migrations come and go ---------------------------------------------------------------------------

  /**
   * Takes in the images that `list` gives when its turn comes, apart from the contents of `busy` (which are being received): of
   * those only what a map says. Resolves when the scans have begun; their end is not waited for.
   * @param first come before others that nobody has asked for yet
   */
  async refresh(list: ListImages, busy: ReadonlySet<string>, first: readonly string[] = []): Promise<void> {
    await this.#inTurn(async () => await this.#refresh(await list(), busy, first))
  }

  /** One at a time: of two migrations that begin at once, each would take what the other one found for gone. */
  async #inTurn(work: () => Promise<void>): Promise<void> {
    const turn = this.#refreshing.then(async () => {
      if (!this.#closed) await work()
    })
    this.#refreshing = turn.catch(() => undefined)
    await turn
  }

  async #refresh(
    files: readonly ImageFile[],
    busy: ReadonlySet<string>,
    first: readonly string[],
  ): Promise<void> {
    await this.#list(files)
    for (const path of first) {
      const known = this.#known.get(path)
      if (known !== undefined) known.score = Math.max(known.score, SCORE_MIN)
    }
    this.#inUse = true
    for (const known of this.#ranked()) {
      if (this.images.length >= this.#options.imagesMax) break
      await this.#open(known)
    }
    await Promise.all([...this.#known.values()].map((known) => this.#peek(known)))
    const scan = (guessed: boolean): void => {
      for (const known of this.#ranked()) {
        if (busy.has(known.path) || known.source === undefined || this.#isExact(known)) continue
        if ((known.map !== undefined || known.loaded !== undefined) !== guessed) continue
        const insert = this.#hasRoom(known)
        if (known.scan !== undefined) known.scan.hurry()
        else if (!insert && this.#mapBytesMax(known) === 0) continue
        else if (!guessed || this.#isAtRest(known)) this.#scan(known, { insert })
      }
    }
    // What nothing is known of cannot be found otherwise; of the others the old maps come first.
    scan(false)
    this.#plan()
    await this.#planning
    scan(true)
  }

  /**
   * Closes every image, and keeps what is known of it, if nobody needs one when its turn comes. A scan that is under way
   * goes on.
   */
  async rest(unused: () => boolean): Promise<void> {
    await this.#inTurn(async () => {
      if (!unused()) return
      this.#inUse = false
      for (const known of this.#known.values()) {
        known.score = 0
        await this.#shut(known)
      }
    })
  }

  /**
   * Makes the maps that are missing, or old although their image is at rest or they are very old, one after the other. Resolves
   * when that is done. Where there is no room for maps it scans nothing: without a map it would all be read again in the next round.
   */
  async tend(list: ListImages, options: TendOptions): Promise<void> {
    let files: readonly ImageFile[] = []
    await this.#inTurn(async () => {
      files = await list()
      await this.#list(files)
    })
    for (const { path } of files) {
      const known = this.#known.get(path)
      if (this.#closed || known === undefined || options.busy().has(path)) continue
      if (known.scan === undefined) {
        await this.#peek(known)
        if (this.#closed || this.#known.get(path) !== known || known.map?.exact === true) continue
        const old = Date.now() - (known.map?.madeAtMs ?? 0) > IMAGE_RESCAN_MS
        if (!old && !this.#isAtRest(known)) continue
        if (known.scan === undefined && this.#mapBytesMax(known) > 0) {
          if (!this.#hasRoomForMaps()) return
          this.#scan(known, { insert: false, bytesPerSecond: options.bytesPerSecond })
        }
      }
      const scan = known.scan as Scan | undefined
      if (scan === undefined) continue
      await scan.done
      // Only now is it known what its map takes.
      if (this.#retention?.isTight === true) await this.#inTurn(() => this.#sweep())
    }
  }

  /** What `tend` does before it scans: forgets what is gone, and what has had its time. */
  async look(list: ListImages): Promise<void> {
    await this.#inTurn(async () => await this.#list(await list()))
  }

  /** Of the map of this image; 0: it is to have none. */
  #mapBytesMax({ path }: Known): number {
    return this.#retention?.bytesMaxOf(path) ?? 0
  }

  /** Maps that have to go do. @param files all that are here; without: those that were listed last */
  async #sweep(files?: readonly ImageFile[]): Promise<void> {
    const inUse = new Set<string>()
    for (const { path, scan, source, loaded } of this.#known.values()) {
      const used = this.#inUse && (source !== undefined || loaded !== undefined)
      if (scan !== undefined || used) inUse.add(path)
    }
    try {
      for (const map of (await this.#retention?.sweep(inUse, files)) ?? []) {
        const known = this.#known.get(map.path)
        if (known !== undefined) {
          known.map = undefined
          this.#handprints.delete(known)
        }
        this.#options.onForgotten?.(map)
      }
    } catch (error) {
      this.#options.onProblem?.(`maps in ${this.#options.catalog}: ${errorText(error)}`)
    }
  }

  #hasRoomForMaps(): boolean {
    const { catalog, freeBytesMin, onProblem } = this.#options
    const problem = catalog === undefined ? undefined : noRoomFor(catalog, freeBytesMin)
    if (problem !== undefined) onProblem?.(problem)
    return problem === undefined
  }

  /** Knows these files, and no others, by what they are now. */
  async #list(all: readonly ImageFile[]): Promise<void> {
    const files = all.slice(0, KNOWN_IMAGES_MAX)
    // Each change of an image takes a number for good: after years of them the index is made anew, and filled again.
    if (this.#nextNumber + files.length > this.#numbersMax) await this.#beginAnew()
    if (this.#closed) return
    const paths = new Set(files.map(({ path }) => path))
    for (const known of [...this.#known.values()]) if (!paths.has(known.path)) await this.#drop(known)
    await this.#sweep(files)
    if (this.#closed) return
    for (const { path, identity, format = 'raw' } of files) {
      const known = this.#known.get(path)
      if (known !== undefined && sameFile(known.identity, identity) && known.format === format) {
        known.identity = identity
        continue
      }
      if (known !== undefined) await this.#drop(known)
      const number = this.#takeNumber()
      if (number === undefined) return
      const image: Known = {
        path,
        format,
        identity,
        number,
        spent: false,
        source: undefined,
        map: undefined,
        loaded: undefined,
        scan: undefined,
        score: 0,
      }
      this.#known.set(path, image)
      this.#byNumber.set(number, image)
    }
  }

  #takeNumber(): number | undefined {
    return this.#nextNumber < this.#numbersMax ? this.#nextNumber++ : undefined
  }

  async #drop(known: Known): Promise<void> {
    this.#known.delete(known.path)
    known.scan?.abort.abort(new Error('the image is gone or changed'))
    this.#forget(known.number)
    this.#handprints.delete(known)
    await this.#shut(known)
  }

  async #beginAnew(): Promise<void> {
    for (const known of this.#known.values()) {
      known.scan?.abort.abort(new Error('the index is made anew'))
      this.#handprints.delete(known)
      await this.#shut(known)
    }
    this.#known.clear()
    this.#byNumber.clear()
    await this.#indexer.close()
    if (this.#closed) return
    this.#index = ChunkIndex.create({ bytesMax: this.#options.indexBytesMax })
    this.#blocks = ChunkIndex.create({ bytesMax: this.#options.blockIndexBytesMax })
    this.#indexer = this.#newIndexer()
    this.#nextNumber = 0
  }

  // ---- one image ---------------------------------------------------------------------------------------------

  #ref({ path, format }: Known): ImageRef {
    return { path, format, directories: this.#options.directories ?? [] }
  }

  async #open(known: Known): Promise<void> {
    if (known.source !== undefined) return
    const { path, format } = known
    if (format === 'qcow2' && !(await this.#hasExport(known))) return
    try {
      const onLost = (error: Error): void => {
        this.#options.onProblem?.(errorText(error))
        void this.#shut(known)
      }
      const source = await openImage(this.#ref(known), { onLost })
      if (!sameFile(source.identity, known.identity) || this.#closed || this.#known.get(path) !== known) {
        await source.close()
        return
      }
      known.source = source
      this.#opened = undefined
    } catch (error) {
      this.#options.onProblem?.(`open image ${path}: ${errorText(error)}`)
    }
  }

  /** Whether there may be one export more; what is asked for least gives way. */
  async #hasExport(known: Known): Promise<boolean> {
    const open = this.#ranked().filter(({ format, source }) => format === 'qcow2' && source !== undefined)
    if (open.length < STOCK_EXPORTS_MAX) return true
    const least = open.at(-1)!
    if (least.score >= known.score) return false
    await this.#shut(least)
    return true
  }

  async #shut(known: Known): Promise<void> {
    const { source } = known
    known.source = undefined
    this.#opened = undefined
    await source?.close()
  }

  /** What its map says, if there is one. */
  async #peek(known: Known): Promise<void> {
    if (this.#options.catalog === undefined) return
    try {
      const { summary, problem } = await this.#indexer.peekMap(this.#ref(known))
      if (problem !== undefined) this.#options.onProblem?.(`map of ${known.path}: ${problem}`)
      if (this.#known.get(known.path) !== known) return
      known.map = summary
      this.#handprints.set(known, summary?.handprint ?? [])
    } catch {
      // It went away, or cannot be read: whoever scans it says so.
    }
  }

  #isAtRest({ identity }: Known): boolean {
    return Date.now() - Number(identity.mtimeNs / 1_000_000n) >= (this.#options.restMs ?? IMAGE_REST_MS)
  }

  /** What is known of it is of what it is now. */
  #isExact({ map, loaded, identity }: Known): boolean {
    if (map?.exact === true) return true
    return loaded !== undefined && !loaded.stale && sameIdentity(loaded.identity, identity)
  }

  /** Begins a scan, which makes its map. @param insert into the index too, while it goes on */
  #scan(known: Known, options: { readonly insert: boolean; readonly bytesPerSecond?: number }): void {
    const { path } = known
    const number = options.insert ? this.#numberFor(known) : null
    if (number === undefined) return
    const abort = new AbortController()
    const { promise: hurry, resolve } = Promise.withResolvers<void>()
    const { bytesPerSecond = 0 } = options
    const done = this.#indexer
      .indexImage(this.#ref(known), number, {
        signal: abort.signal,
        bytesPerSecond,
        hurry,
        mapBytesMax: this.#mapBytesMax(known),
      })
      .then(async (image) => {
        if (image.tooLargeBytes > 0) await this.#retention?.tooLarge(known, image.tooLargeBytes)
        if (image.problem !== undefined) this.#options.onProblem?.(`map of ${path}: ${image.problem}`)
        await this.#peek(known)
        if (abort.signal.aborted || this.#closed) return
        if (number !== null) this.#setLoaded(known, number, image, true)
        this.#options.onIndexed?.(image)
      })
      .catch((error: unknown) => {
        if (!abort.signal.aborted && !this.#closed)
          this.#options.onProblem?.(`index ${path}: ${errorText(error)}`)
      })
      .finally(() => {
        known.scan = undefined
        if (number !== null && number !== known.number) this.#forget(number)
        if (!abort.signal.aborted) this.#plan()
      })
    known.scan = { number, abort, hurry: resolve, done }
  }

  /** For entries that do not lie in the indexes yet; those that do stay as they are until the others are whole. */
  #numberFor(known: Known): number | undefined {
    if (known.loaded === undefined && !known.spent) return known.number
    const number = this.#takeNumber()
    if (number !== undefined) this.#byNumber.set(number, known)
    return number
  }

  #setLoaded(known: Known, number: number, image: IndexedImage, withBlocks: boolean): void {
    const before = number === known.number ? known.loaded : undefined
    if (number !== known.number) {
      this.#forget(known.number)
      known.number = number
      known.spent = false
      this.#opened = undefined
    }
    const { identity, stale, progress } = image
    known.loaded = {
      identity,
      stale,
      withBlocks,
      madeAtMs: known.map?.madeAtMs ?? Date.now(),
      chunks: (before?.chunks ?? 0) + progress.inserted,
      blocks: (before?.blocks ?? 0) + progress.insertedBlocks,
    }
  }

  #forget(number: number): void {
    this.#index.forget(number)
    this.#blocks.forget(number)
    this.#byNumber.delete(number)
  }

  /** Its number stays its name for guesses. */
  #unload(known: Known): void {
    this.#index.forget(known.number)
    this.#blocks.forget(known.number)
    known.loaded = undefined
    known.spent = true
  }

  // ---- what finds room ---------------------------------------------------------------------------------------

  #ranked(): Known[] {
    return ranked([...this.#known.values()])
  }

  /** Whether all of an image that has no map would surely find room. */
  #hasRoom(known: Known): boolean {
    let chunks = 0
    let blocks = 0
    for (const { loaded, scan, source } of this.#known.values()) {
      const bytes = scan === undefined ? 0 : (source?.allocatedBytes ?? 0)
      chunks += loaded?.chunks ?? bytes / CHUNK_BYTES_MEAN
      blocks += loaded?.blocks ?? bytes / BLOCK_BYTES
    }
    const bytes = known.source?.allocatedBytes ?? known.identity.size
    const chunksFit = chunks + bytes / CHUNK_BYTES_MEAN <= this.#index.capacity
    return chunksFit && blocks + bytes / BLOCK_BYTES <= this.#blocks.capacity
  }

  /** Sees to it that the right images are in the indexes, now or when that is being done already, after it. */
  #plan(): void {
    this.#planAgain = true
    this.#planning ??= this.#planAll().finally(() => {
      this.#planning = undefined
    })
  }

  async #planAll(): Promise<void> {
    while (this.#planAgain && this.#inUse && !this.#closed) {
      this.#planAgain = false
      await this.#planOnce()
    }
  }

  async #planOnce(): Promise<void> {
    const wanted = this.#wanted()
    for (const known of this.#known.values()) {
      if (known.loaded === undefined || known.map === undefined) continue
      const tooMuch = known.loaded.withBlocks && wanted.get(known) === false
      if (tooMuch || !wanted.has(known)) this.#unload(known)
    }
    for (const [known, withBlocks] of wanted) {
      if (this.#closed || !this.#inUse) return
      const { loaded, map } = known
      const whole = loaded !== undefined && (loaded.withBlocks || !withBlocks)
      if (map === undefined || (whole && loaded.madeAtMs === map.madeAtMs)) continue
      await this.#load(known, withBlocks)
      // Another image may be wanted more by now.
      if (this.#planAgain) return
    }
  }

  #wanted(): Map<Known, boolean> {
    const { wanted, crowded } = choose(this.#ranked(), this.#index.capacity, this.#blocks.capacity)
    this.#crowded = crowded
    return wanted
  }

  async #load(known: Known, withBlocks: boolean): Promise<void> {
    await this.#open(known)
    // What a scan puts under this number is newer.
    if (known.source === undefined || known.scan?.number === known.number) return
    const same = known.loaded?.madeAtMs === known.map?.madeAtMs
    const number = same ? known.number : this.#numberFor(known)
    if (number === undefined) return
    this.#loading++
    try {
      const image = await this.#indexer.loadImage(this.#ref(known), number, { withBlocks })
      if (this.#known.get(known.path) !== known) {
        this.#forget(number)
        return
      }
      this.#setLoaded(known, number, image, withBlocks)
      this.#options.onIndexed?.(image)
    } catch (error) {
      if (this.#closed) return
      this.#options.onProblem?.(`map of ${known.path}: ${errorText(error)}`)
      // A map is proven at its end, so part of it may have been taken in.
      if (number === known.number) this.#unload(known)
      else this.#forget(number)
      known.map = undefined
      if (this.#known.get(known.path) === known && known.scan === undefined)
        this.#scan(known, { insert: this.#hasRoom(known) })
    } finally {
      this.#loading--
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    clearTimeout(this.#planTimer)
    await this.#indexer.close()
    for (const known of this.#known.values()) await this.#shut(known)
    this.#known.clear()
    this.#byNumber.clear()
  }
}

function stockImage({ number, path, format, source }: Known): StockImage[] {
  return source === undefined ? [] : [{ number, path, format, size: source.size, source }]
}
