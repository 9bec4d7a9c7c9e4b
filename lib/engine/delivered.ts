/**
 * What other sessions of the daemon have delivered so far, as a source of chunks and of blocks: read back through their own
 * devices, and believed as little as any other place (I3).
 *
 * One disk that hangs must not stop another guest: such a read is waited for ARRIVAL_READ_MS, and while one is overdue its
 * session is no source. So what was given up and still comes is no more than was being read at once.
 */
import type { Clock } from '../core/clock.ts'
import { LostError } from '../core/errors.ts'
import { ARRIVAL_PLACES_MAX, ARRIVAL_READ_MS } from '../core/limits.ts'
import type { BlockPlace, BlockPlaces } from './block-finder.ts'
import type { ChunkQuery, ChunkSource } from './sources.ts'

export interface DeliveredChunks extends ChunkSource {
  has(digest: Buffer): boolean
}

/** One session, as the others see it. */
export class Offer {
  readonly chunks: DeliveredChunks
  blocks: BlockPlaces | undefined
  readonly #clock: Clock
  #reading = 0
  #overdue = 0

  constructor(chunks: DeliveredChunks, clock: Clock) {
    this.chunks = chunks
    this.#clock = clock
  }

  /** Reads of its device by others. */
  get reading(): number {
    return this.#reading
  }

  get hangs(): boolean {
    return this.#overdue > 0
  }

  /** What `read` gives; undefined when that fails or takes too long. */
  async read<T>(read: () => Promise<T | undefined>): Promise<T | undefined> {
    if (this.hangs) return undefined
    this.#reading++
    return await new Promise((resolve) => {
      let late = false
      const cancel = this.#clock.after(ARRIVAL_READ_MS, () => {
        late = true
        this.#overdue++
        resolve(undefined)
      })
      void read()
        .catch(() => undefined)
        .then((value) => {
          this.#reading--
          if (late) this.#overdue--
          cancel()
          resolve(value)
        })
    })
  }
}

export class DeliveredSource implements ChunkSource {
  readonly name = 'session'
  readonly #offers: ReadonlySet<Offer>
  readonly #own: Offer

  constructor(offers: ReadonlySet<Offer>, own: Offer) {
    this.#offers = offers
    this.#own = own
  }

  async find(query: ChunkQuery): Promise<Buffer | undefined> {
    const places: Offer[] = []
    for (const offer of this.#offers)
      if (offer !== this.#own && !offer.hangs && offer.chunks.has(query.digest)) places.push(offer)
    // What many have is not read from one alone.
    places.sort((a, b) => a.reading - b.reading)
    for (const offer of places.slice(0, ARRIVAL_PLACES_MAX)) {
      // It may have ended meanwhile.
      if (!this.#offers.has(offer)) continue
      const bytes = await offer.read(() => offer.chunks.find(query))
      if (bytes !== undefined) return bytes
    }
    return undefined
  }
}

export class OfferedBlocks implements BlockPlaces {
  readonly #offers: ReadonlySet<Offer>
  readonly #own: Offer

  constructor(offers: ReadonlySet<Offer>, own: Offer) {
    this.#offers = offers
    this.#own = own
  }

  get blockCount(): number {
    let count = 0
    for (const offer of this.#offers) if (offer !== this.#own) count += offer.blocks?.blockCount ?? 0
    return count
  }

  lookup(hints: Buffer, hintOffset: number): readonly BlockPlace[] {
    const places: BlockPlace[] = []
    for (const offer of this.#offers) {
      if (offer === this.#own || offer.hangs) continue
      for (const place of offer.blocks?.lookup(hints, hintOffset) ?? []) {
        if (places.length >= ARRIVAL_PLACES_MAX) return places
        const read = async (at: number, length: number): Promise<Buffer> => {
          const bytes = await offer.read(() => place.read(at, length))
          if (bytes === undefined) throw new LostError('the other session gives nothing now')
          return bytes
        }
        places.push({ ...place, read })
      }
    }
    return places
  }
}
