/**
 * Which image holds which chunk: an open-addressing table in shared memory, written by one thread (the indexer's) and
 * read by any. An entry is 20 bytes: the first 8 bytes of the digest, image number, offset and length. What it says
 * is a hint: the image may have changed and 8 bytes are no digest, so whoever uses a hit reads and verifies SHA-256.
 * The table has a fixed size; when it is full it refuses more and counts that. A forgotten image's entries are no
 * longer found; new ones take their places where they come across them, and when the table is full all of them are swept out.
 *
 * A new entry is published by its length, stored last: a reader that sees a length sees the entry. One that takes a
 * forgotten one's place may be seen half written, and while its neighbours are swept out one may not be seen at all: then more
 * is sent than need be, and as said, what is found is verified.
 */
import { randomBytes } from 'node:crypto'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { CHUNK_LOCATIONS_MAX, IMAGE_NUMBER_MAX } from '../core/limits.ts'

export interface ChunkLocation {
  readonly image: number
  readonly offset: number
  readonly length: number
}

/** What a thread needs to attach to a table. */
export interface SharedChunkIndex {
  readonly buffer: SharedArrayBuffer
}

const OFFSET_MAX = 2 ** 48 - 1
/** Linear probing is fast up to here. */
const FILL_MAX = 0.8

const COUNT = 0
const REFUSED = 1
const REPEATED = 2
/** Images that were forgotten. */
const FORGETS = 3
/** Four words of chance, drawn when the table is made. */
const SEED = 4
/** One bit for each image number. */
const FORGOTTEN = 8
const HEADER_WORDS = FORGOTTEN + (IMAGE_NUMBER_MAX + 1) / 32

const ENTRY_WORDS = 5
const KEY_A = 0
const KEY_B = 1
const OFFSET_LOW = 2
/** Image number in the high half, the upper 16 bits of the offset in the low half. */
const IMAGE_OFFSET = 3
const LENGTH = 4

/** keyA, keyB, offsetLow, imageOffset, length */
type Entry = readonly [number, number, number, number, number]

export class ChunkIndex {
  readonly shared: SharedChunkIndex
  readonly #words: Uint32Array
  readonly #slotCount: number
  readonly #countMax: number
  readonly #seed: readonly [number, number, number, number]
  /** Of the thread that inserts: how many images were forgotten when it last swept. */
  #sweptForgets = 0

  /** A table of at most `bytesMax` bytes; the memory is taken from the system as the table fills. */
  static create(options: { readonly bytesMax: number }): ChunkIndex {
    const slotCount = Math.floor((options.bytesMax / 4 - HEADER_WORDS) / ENTRY_WORDS)
    if (!(slotCount >= 2)) throw new RangeError(`chunk index: ${options.bytesMax} bytes hold no entry`)
    const buffer = new SharedArrayBuffer((HEADER_WORDS + slotCount * ENTRY_WORDS) * 4)
    new Uint8Array(buffer, SEED * 4, 16).set(randomBytes(16))
    return new ChunkIndex({ buffer })
  }

  /** Another thread's table. */
  static attach(shared: SharedChunkIndex): ChunkIndex {
    return new ChunkIndex(shared)
  }

  private constructor(shared: SharedChunkIndex) {
    this.shared = shared
    this.#words = new Uint32Array(shared.buffer)
    this.#seed = [this.#words[SEED]!, this.#words[SEED + 1]!, this.#words[SEED + 2]!, this.#words[SEED + 3]!]
    this.#slotCount = Math.floor((this.#words.length - HEADER_WORDS) / ENTRY_WORDS)
    this.#countMax = Math.max(1, Math.floor(this.#slotCount * FILL_MAX))
  }

  get bytes(): number {
    return this.shared.buffer.byteLength
  }

  /** Entries in the table, those of forgotten images that still lie there included. */
  get count(): number {
    return Atomics.load(this.#words, COUNT)
  }

  /** Entries that find room. */
  get capacity(): number {
    return this.#countMax
  }

  /** Inserts that found the table full. */
  get refused(): number {
    return Atomics.load(this.#words, REFUSED)
  }

  /** Inserts of a digest that had its candidates already. */
  get repeated(): number {
    return Atomics.load(this.#words, REPEATED)
  }

  /**
   * Adds a place where the chunk lies whose digest is in `digests` at `digestOffset`. False if it was left out: the
   * table is full, or the digest has candidates enough. Only one thread may insert.
   */
  insert(digests: Uint8Array, digestOffset: number, location: ChunkLocation): boolean {
    const { image, offset, length } = location
    checkLocation(location)
    const words = this.#words
    const keyA = keyAt(digests, digestOffset)
    const keyB = keyAt(digests, digestOffset + 4)
    const offsetLow = offset % 2 ** 32
    const imageOffset = image * 2 ** 16 + Math.floor(offset / 2 ** 32)
    let candidates = 0
    let reusable = 0
    let at = this.#firstEntry(keyA, keyB)
    while (words[at + LENGTH] !== 0) {
      if (this.isForgotten(words[at + IMAGE_OFFSET]! >>> 16)) {
        if (reusable === 0) reusable = at
      } else if (words[at + KEY_A] === keyA && words[at + KEY_B] === keyB) {
        // Found again by a second scan of the same image.
        const same = words[at + OFFSET_LOW] === offsetLow && words[at + IMAGE_OFFSET] === imageOffset
        if (same || ++candidates >= CHUNK_LOCATIONS_MAX) {
          Atomics.add(words, REPEATED, 1)
          return false
        }
      }
      at = this.#nextEntry(at)
    }
    if (reusable !== 0) at = reusable
    else if (words[COUNT]! >= this.#countMax) {
      if (this.#sweep()) return this.insert(digests, digestOffset, location)
      Atomics.add(words, REFUSED, 1)
      return false
    } else Atomics.add(words, COUNT, 1)
    this.#put(at, keyA, keyB, offsetLow, imageOffset, length)
    return true
  }

  #put(at: number, keyA: number, keyB: number, offsetLow: number, imageOffset: number, length: number): void {
    const words = this.#words
    words[at + KEY_A] = keyA
    words[at + KEY_B] = keyB
    words[at + OFFSET_LOW] = offsetLow
    words[at + IMAGE_OFFSET] = imageOffset
    Atomics.store(words, at + LENGTH, length)
  }

  /**
   * Frees the places of forgotten entries: each run of taken places that has some is emptied, and what is not forgotten goes
   * in again, in its order. False if nothing was forgotten since the last time.
   */
  #sweep(): boolean {
    const words = this.#words
    const forgets = Atomics.load(words, FORGETS)
    if (forgets === this.#sweptForgets) return false
    this.#sweptForgets = forgets
    let free = HEADER_WORDS
    while (words[free + LENGTH] !== 0) free = this.#nextEntry(free)
    const last = free
    do {
      const begin = this.#nextEntry(free)
      const kept: number[] = []
      let taken = 0
      for (free = begin; words[free + LENGTH] !== 0; free = this.#nextEntry(free)) {
        taken++
        if (!this.isForgotten(words[free + IMAGE_OFFSET]! >>> 16)) kept.push(free)
      }
      if (kept.length < taken) this.#rehash(begin, free, kept)
    } while (free !== last)
    return true
  }

  /** Of the run from `begin` to the free place at `end` only these entries stay. */
  #rehash(begin: number, end: number, kept: readonly number[]): void {
    const words = this.#words
    const entries = kept.map((at) => words.slice(at, at + ENTRY_WORDS))
    let gone = -kept.length
    for (let at = begin; at !== end; at = this.#nextEntry(at), gone++) Atomics.store(words, at + LENGTH, 0)
    for (const [keyA, keyB, offsetLow, imageOffset, length] of entries as unknown as Entry[]) {
      let at = this.#firstEntry(keyA, keyB)
      while (words[at + LENGTH] !== 0) at = this.#nextEntry(at)
      this.#put(at, keyA, keyB, offsetLow, imageOffset, length)
    }
    Atomics.sub(words, COUNT, gone)
  }

  /** From now on nothing of this image is found. Any thread may call it; the number must not be used again. */
  forget(image: number): void {
    checkLocation({ image, offset: 0, length: 1 })
    const bit = 1 << (image & 31)
    const before = Atomics.or(this.#words, FORGOTTEN + (image >>> 5), bit)
    if ((before & bit) === 0) Atomics.add(this.#words, FORGETS, 1)
  }

  isForgotten(image: number): boolean {
    return (Atomics.load(this.#words, FORGOTTEN + (image >>> 5)) & (1 << (image & 31))) !== 0
  }

  /** Where the chunk with this digest may lie, in the order of insertion; hints only. */
  lookup(digests: Uint8Array, digestOffset = 0): ChunkLocation[] {
    const words = this.#words
    const keyA = keyAt(digests, digestOffset)
    const keyB = keyAt(digests, digestOffset + 4)
    const found: ChunkLocation[] = []
    let at = this.#firstEntry(keyA, keyB)
    for (;;) {
      const length = Atomics.load(words, at + LENGTH)
      if (length === 0) return found
      if (words[at + KEY_A] === keyA && words[at + KEY_B] === keyB) {
        const imageOffset = words[at + IMAGE_OFFSET]!
        const image = imageOffset >>> 16
        const offset = (imageOffset & 0xffff) * 2 ** 32 + words[at + OFFSET_LOW]!
        if (!this.isForgotten(image)) found.push({ image, offset, length })
        if (found.length >= CHUNK_LOCATIONS_MAX) return found
      }
      at = this.#nextEntry(at)
    }
  }

  /**
   * The slot comes from the key and from chance (multilinear hashing): SHA-256 alone is uniform, but a guest can search for
   * contents whose digests begin alike, fill a disk with them, and make every probe walk through all of them.
   * There is always a free slot, so probing ends.
   */
  #firstEntry(keyA: number, keyB: number): number {
    const [seed0, seed1, seed2, seed3] = this.#seed
    const hash = (Math.imul(keyA ^ seed0, seed1 | 1) + Math.imul(keyB ^ seed2, seed3 | 1)) >>> 0
    return HEADER_WORDS + Math.floor((hash / 2 ** 32) * this.#slotCount) * ENTRY_WORDS
  }

  #nextEntry(at: number): number {
    const next = at + ENTRY_WORDS
    return next < HEADER_WORDS + this.#slotCount * ENTRY_WORDS ? next : HEADER_WORDS
  }
}

function keyAt(digests: Uint8Array, at: number): number {
  if (at < 0 || at + 4 > digests.length) {
    throw new RangeError(
      `chunk index: a digest of ${DIGEST_BYTES} bytes expected, only ${digests.length} there`,
    )
  }
  return (digests[at]! | (digests[at + 1]! << 8) | (digests[at + 2]! << 16) | (digests[at + 3]! << 24)) >>> 0
}

function checkLocation({ image, offset, length }: ChunkLocation): void {
  const fits =
    Number.isInteger(image) &&
    image >= 0 &&
    image <= IMAGE_NUMBER_MAX &&
    Number.isSafeInteger(offset) &&
    offset >= 0 &&
    offset <= OFFSET_MAX &&
    Number.isInteger(length) &&
    length >= 1 &&
    length < 2 ** 32
  if (!fits)
    throw new RangeError(`chunk index: image ${image}, offset ${offset}, length ${length} do not fit`)
}
