/**
 * ImageStock: the images that lie on this host, as a source of chunks and blocks. It keeps one index of each over the configured
 * directories and the open files behind it. `refresh` (when a migration is announced) scans what is new or changed;
 * nobody waits for it, lookups use what is there so far. An image is known by its identity: a file that changed gets
 * a new number, and entries of the old one only cost a failed verification. Files are open only while somebody may read
 * them (`rest`): an image that is deleted meanwhile must not keep its blocks on the disk because we hold it.
 *
 * Deliberately not here: qcow2, and any trust in what is found.
 */
import { errorText } from '../core/errors.ts'
import { IMAGE_NUMBER_MAX } from '../core/limits.ts'
import { ChunkIndex } from './chunk-index.ts'
import { type ImageFile, type ImageIdentity, ImageSource, listImages, sameIdentity } from './image-files.ts'
import { ImageIndexer, type IndexedImage } from './image-index.ts'
import { dropMaps } from './image-map.ts'

export interface StockImage {
  readonly number: number
  readonly path: string
  readonly size: number
  readonly source: ImageSource
}

/** An image that is indexed, and not open. */
interface RestingImage {
  readonly number: number
  readonly path: string
  readonly identity: ImageIdentity
}

export interface StockOptions {
  readonly indexBytesMax: number
  /** The same for the index of 4 KiB blocks. */
  readonly blockIndexBytesMax: number
  /** Images that are kept open at once. */
  readonly imagesMax: number
  /** Where maps of what was found lie (image-map.ts); without it every image is scanned again by the next daemon. */
  readonly catalog?: string
  /** Numbers of images in one index; tests have fewer. */
  readonly numbersMax?: number
  readonly onProblem?: (text: string) => void
  /** An image is known, from its map or from a scan. */
  readonly onIndexed?: (image: IndexedImage) => void
}

export class ImageStock {
  readonly #options: StockOptions
  #index: ChunkIndex
  #blocks: ChunkIndex
  #indexer: ImageIndexer
  readonly #images = new Map<number, StockImage>()
  readonly #resting = new Map<number, RestingImage>()
  #nextNumber = 0
  readonly #scanning = new Map<number, AbortController>()
  #refreshing: Promise<void> = Promise.resolve()
  #closed = false

  constructor(options: StockOptions) {
    this.#options = options
    this.#index = ChunkIndex.create({ bytesMax: options.indexBytesMax })
    this.#blocks = ChunkIndex.create({ bytesMax: options.blockIndexBytesMax })
    this.#indexer = this.#newIndexer()
  }

  #newIndexer(): ImageIndexer {
    const { catalog } = this.#options
    return new ImageIndexer({
      index: this.#index,
      blocks: this.#blocks,
      ...(catalog === undefined ? {} : { catalog }),
    })
  }

  get #numbersMax(): number {
    return this.#options.numbersMax ?? IMAGE_NUMBER_MAX + 1
  }

  get images(): StockImage[] {
    return [...this.#images.values()]
  }

  get chunkCount(): number {
    return this.#index.count
  }

  /** Images whose scan is not finished. */
  get scanning(): number {
    return this.#scanning.size
  }

  image(number: number): StockImage | undefined {
    return this.#images.get(number)
  }

  get blockCount(): number {
    return this.#blocks.count
  }

  lookupBlock(hints: Buffer, hintOffset: number): { image: number; offset: number }[] {
    return this.#blocks.lookup(hints, hintOffset)
  }

  lookup(digest: Buffer): { image: number; offset: number; length: number }[] {
    return this.#index.lookup(digest)
  }

  /**
   * Takes in what lies in the directories now, apart from `except` (images that are being received). Resolves when
   * the scans have begun; their end is not waited for.
   */
  async refresh(directories: readonly string[], except: ReadonlySet<string>): Promise<void> {
    // One at a time: of two migrations that begin at once, each would take what the other one found for gone.
    const turn = this.#refreshing.then(() => this.#refresh(directories, except))
    this.#refreshing = turn.catch(() => undefined)
    await turn
  }

  async #refresh(directories: readonly string[], except: ReadonlySet<string>): Promise<void> {
    const files = await listImages(directories)
    if (this.#closed) return
    if (this.#nextNumber + Math.min(files.length, this.#options.imagesMax) > this.#numbersMax)
      await this.#beginAnew()
    if (this.#closed) return
    if (this.#options.catalog !== undefined)
      dropMaps(
        this.#options.catalog,
        files.map(({ path }) => path),
      )
    const kept = new Set<number>()
    for (const file of files.slice(0, this.#options.imagesMax)) {
      if (except.has(file.path)) continue
      const known = this.images.find((image) => image.path === file.path)
      if (known !== undefined && sameIdentity(known.source.identity, file.identity)) kept.add(known.number)
      else {
        const number = (await this.#reopen(file)) ?? (await this.#add(file))
        if (number !== undefined) kept.add(number)
      }
    }
    for (const { number, path } of [...this.#resting.values()]) {
      // What is received now may be the same again when it rests.
      if (except.has(path)) continue
      this.#resting.delete(number)
      this.#forget(number)
    }
    for (const image of this.images) {
      if (kept.has(image.number)) continue
      this.#images.delete(image.number)
      this.#forget(image.number)
      await image.source.close()
    }
  }

  #forget(number: number): void {
    this.#scanning.get(number)?.abort(new Error('the image is gone or changed'))
    this.#index.forget(number)
    this.#blocks.forget(number)
  }

  /** An image that rested and is what it was: its entries in the index are good. */
  async #reopen(file: ImageFile): Promise<number | undefined> {
    const resting = [...this.#resting.values()].find(({ path }) => path === file.path)
    if (resting === undefined || !sameIdentity(resting.identity, file.identity)) return undefined
    const { number, path } = resting
    try {
      const source = await ImageSource.open(path)
      if (!sameIdentity(source.identity, resting.identity)) {
        await source.close()
        return undefined
      }
      this.#resting.delete(number)
      this.#images.set(number, { number, path, size: source.identity.size, source })
      return number
    } catch (error) {
      this.#options.onProblem?.(`open image ${path}: ${errorText(error)}`)
      return undefined
    }
  }

  /**
   * Closes every image, and keeps what is known of it, if nobody needs one when its turn comes. A scan that is under way
   * goes on.
   */
  async rest(unused: () => boolean): Promise<void> {
    const turn = this.#refreshing.then(async () => {
      if (this.#closed || !unused()) return
      const images = this.images
      this.#images.clear()
      for (const { number, path, source } of images) {
        this.#resting.set(number, { number, path, identity: source.identity })
        await source.close()
      }
    })
    this.#refreshing = turn.catch(() => undefined)
    await turn
  }

  /** Each change of an image takes a number for good: after years of them the index is made anew, and filled again. */
  async #beginAnew(): Promise<void> {
    const images = this.images
    this.#images.clear()
    this.#resting.clear()
    for (const scan of this.#scanning.values()) scan.abort(new Error('the index is made anew'))
    this.#scanning.clear()
    await this.#indexer.close()
    for (const image of images) await image.source.close()
    if (this.#closed) return
    this.#index = ChunkIndex.create({ bytesMax: this.#options.indexBytesMax })
    this.#blocks = ChunkIndex.create({ bytesMax: this.#options.blockIndexBytesMax })
    this.#indexer = this.#newIndexer()
    this.#nextNumber = 0
  }

  async #add(file: ImageFile): Promise<number | undefined> {
    if (this.#nextNumber >= this.#numbersMax) return undefined
    try {
      const source = await ImageSource.open(file.path)
      const number = this.#nextNumber++
      this.#images.set(number, { number, path: file.path, size: source.identity.size, source })
      const abort = new AbortController()
      this.#scanning.set(number, abort)
      void this.#indexer
        .indexImage(file.path, number, { signal: abort.signal })
        .then((image) => {
          if (image.problem !== undefined) this.#options.onProblem?.(`map of ${file.path}: ${image.problem}`)
          this.#options.onIndexed?.(image)
        })
        .catch((error: unknown) => {
          if (!abort.signal.aborted && !this.#closed) {
            this.#options.onProblem?.(`index ${file.path}: ${errorText(error)}`)
          }
        })
        .finally(() => {
          if (this.#scanning.get(number) === abort) this.#scanning.delete(number)
        })
      return number
    } catch (error) {
      this.#options.onProblem?.(`open image ${file.path}: ${errorText(error)}`)
      return undefined
    }
  }

  async close(): Promise<void> {
    if (this.#closed) return
    this.#closed = true
    await this.#indexer.close()
    for (const image of this.#images.values()) await image.source.close()
    this.#images.clear()
  }
}
