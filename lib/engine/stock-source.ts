/**
 * StockSource: chunks from other images on this host. First by digest, through the chunk index; then, for clones, at
 * the same offset of an image that has been a good guess so far. The second way needs no index, so it works from the
 * first second on, and it finds chunks that were cut at another place than in the index.
 */
import { GUESS_IMAGES_MAX } from '../core/limits.ts'
import type { BlockPlace, BlockPlaces } from './block-finder.ts'
import type { ChunkQuery, ChunkSource } from './sources.ts'

/** An image that lies here. Its number is its name in the index; `read` gives exactly `length` bytes, or rejects. */
export interface StockedImage {
  readonly number: number
  readonly path: string
  readonly size: number
  readonly source: { read(offset: number, length: number): Promise<Buffer> }
}

/** Which images lie here, and where a chunk or a block may lie in them: ImageStock in the daemon. */
export interface ChunkStock {
  readonly images: readonly StockedImage[]
  image(number: number): StockedImage | undefined
  /** What was looked for was found there. */
  used?(number: number): void
  lookup(
    digest: Buffer,
  ): readonly { readonly image: number; readonly offset: number; readonly length: number }[]
  readonly blockCount: number
  /** Where a block of 4 KiB may lie whose hint (HINT_BYTES of its SHA-256) is in `hints` at `hintOffset`. */
  lookupBlock(
    hints: Buffer,
    hintOffset: number,
  ): readonly { readonly image: number; readonly offset: number }[]
}

/** The same images as places of single blocks. */
export class StockBlocks implements BlockPlaces {
  readonly #stock: ChunkStock
  readonly #isOwn: (path: string) => boolean

  /** @param isOwn images that this guest has brought, now or before */
  constructor(stock: ChunkStock, isOwn: (path: string) => boolean = () => false) {
    this.#stock = stock
    this.#isOwn = isOwn
  }

  get blockCount(): number {
    return this.#stock.blockCount
  }

  lookup(hints: Buffer, hintOffset: number): readonly BlockPlace[] {
    const places: BlockPlace[] = []
    for (const { image: number, offset } of this.#stock.lookupBlock(hints, hintOffset)) {
      const image = this.#stock.image(number)
      if (image === undefined) continue
      const read = (at: number, length: number): Promise<Buffer> => {
        this.#stock.used?.(number)
        return image.source.read(at, length)
      }
      places.push({ offset, size: image.size, isOwn: this.#isOwn(image.path), read })
    }
    return places
  }
}

/** An image is guessed at while it hits this often, or is still being tried, or now and then. */
const GUESS_HITS_MIN = 0.1
const GUESS_TRIES_FREE = 32
const GUESS_EVERY = 64

interface Guess {
  tries: number
  hits: number
}

export class StockSource implements ChunkSource {
  readonly name = 'chunk'
  readonly #stock: ChunkStock
  readonly #own: ReadonlySet<string>
  readonly #likely: (path: string) => boolean
  readonly #guesses = new Map<number, Guess>()
  #queries = 0

  /**
   * @param own paths that are being written by this very migration: what lies at the same place there is in place
   * @param likely images that are guessed at before others, as long as that is good: what this disk was before
   */
  constructor(stock: ChunkStock, own: ReadonlySet<string>, likely: (path: string) => boolean = () => false) {
    this.#stock = stock
    this.#own = own
    this.#likely = likely
  }

  async find(query: ChunkQuery): Promise<Buffer | undefined> {
    for (const place of this.#stock.lookup(query.digest)) {
      if (place.length !== query.length) continue
      const image = this.#stock.image(place.image)
      if (image === undefined) continue
      const bytes = await readFrom(image, place.offset, query)
      if (bytes === undefined) continue
      this.#stock.used?.(image.number)
      return bytes
    }
    return await this.#guess(query)
  }

  async #guess(query: ChunkQuery): Promise<Buffer | undefined> {
    this.#queries++
    const rank = ({ image, guess }: { image: StockedImage; guess: Guess }): number =>
      guess.hits / (guess.tries + 1) + (this.#likely(image.path) ? 1 : 0)
    const images = this.#stock.images
      .filter((image) => !this.#own.has(image.path) && image.size >= query.offset + query.length)
      .map((image) => ({ image, guess: this.#guessOf(image.number) }))
      .filter(
        ({ guess }) =>
          guess.tries < GUESS_TRIES_FREE ||
          guess.hits >= guess.tries * GUESS_HITS_MIN ||
          this.#queries % GUESS_EVERY === 0,
      )
      .sort((a, b) => rank(b) - rank(a))
      .slice(0, GUESS_IMAGES_MAX)
    for (const { image, guess } of images) {
      guess.tries++
      const bytes = await readFrom(image, query.offset, query)
      if (bytes === undefined) continue
      guess.hits++
      this.#stock.used?.(image.number)
      return bytes
    }
    return undefined
  }

  #guessOf(number: number): Guess {
    let guess = this.#guesses.get(number)
    if (guess === undefined) {
      guess = { tries: 0, hits: 0 }
      this.#guesses.set(number, guess)
    }
    return guess
  }
}

async function readFrom(image: StockedImage, offset: number, query: ChunkQuery): Promise<Buffer | undefined> {
  try {
    const bytes = await image.source.read(offset, query.length)
    return query.verify(bytes) ? bytes : undefined
  } catch {
    // Shorter than it was, or closed meanwhile: not found here.
    return undefined
  }
}
