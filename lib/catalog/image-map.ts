/**
 * Reads maps (image-map-format.ts): whole ones, or their two ends. What is torn, changed, of another version or another image is
 * refused; nothing is believed beyond what its SHA-256 says, and that proves nothing of the image. A map has up to 0.23% of its
 * image's bytes, and the maps of a stock are read in a row: so an unproven one is proven by the same reading that takes it in,
 * in one buffer.
 */
import { createHash, type Hash } from 'node:crypto'
import { closeSync, constants, fstatSync, openSync, readSync } from 'node:fs'
import { basename } from 'node:path'
import { RefusedError } from '../core/errors.ts'
import {
  CHUNK_BYTES_MAX,
  HANDPRINT_SAMPLES_MAX,
  IMAGE_BYTES_MAX,
  MAP_PIECE_CHUNKS_MAX,
  MAP_RUN_BLOCKS_MAX,
  PATH_BYTES_MAX,
} from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import { sampleAt } from './handprint.ts'
import { type ImageFormat, type ImageIdentity, sameContent, sameImage } from './image-files.ts'
import {
  BLOCKS,
  CHUNK_ENTRY_BYTES,
  CHUNKS,
  type Counts,
  decodeCounts,
  encodeCounts,
  FIXED_BYTES,
  FORMATS,
  KEY_BYTES,
  MAGIC,
  type MappedDisk,
  mapPath,
  OFFSET_BYTES,
  SAMPLES,
  SECTION_BYTES,
  SHA256_BYTES,
  TRAILER_BYTES,
  VERSION,
} from './image-map-format.ts'

export interface MappedChunk {
  /** The first 8 bytes of the digest. */
  readonly key: Buffer
  readonly offset: number
  readonly length: number
}

/** Entries as they stand in the file, until the next ones are asked for. */
export interface MapEntries {
  readonly kind: typeof CHUNKS | typeof BLOCKS
  /** Of chunks: digest, offset, length (`chunkAt`). Of blocks: the offset of the first, and the hints (`blocksOf`). */
  readonly entries: Buffer
}

/** Neighbouring blocks of 4 KiB. */
export interface MappedBlocks {
  /** Of the first one. */
  readonly offset: number
  /** The first 8 bytes of the SHA-256 of each. */
  readonly hints: Buffer
}

/** What a map says of itself without its contents. */
export interface MapSummary {
  /** Of just this image as it is now; else of what the same file was before. */
  readonly exact: boolean
  readonly chunks: number
  readonly blocks: number
  /** When the map was made. */
  readonly madeAtMs: number
  /** Samples of the chunks' digests (handprint.ts), ascending. */
  readonly handprint: readonly string[]
}

/** A whole map. */
export class ImageMap {
  readonly place: string
  /** Of what the image was when it was scanned. */
  readonly identity: ImageIdentity
  readonly disk: MappedDisk
  /** Of an image that nobody wrote to while it was scanned. */
  readonly changed: boolean
  readonly count: number
  readonly blockCount: number
  /** When it was made. */
  readonly madeAtMs: number
  /** Of all before it: two maps with the same one are the same. */
  readonly digest: Buffer
  readonly #file: MapFile
  readonly #trailer: Trailer

  private constructor(file: MapFile) {
    this.#file = file
    this.#trailer = trailerOf(file)
    const { counts, digest } = this.#trailer
    this.place = file.place
    this.identity = file.identity
    this.disk = file.disk
    this.changed = counts.changed
    this.count = counts.chunks
    this.blockCount = counts.blocks
    this.digest = digest
    this.madeAtMs = fstatSync(file.fd).mtimeMs
  }

  /**
   * The map of just this image. `undefined` when there is none, or one of another image or another time.
   * @throws RefusedError for a file that is not believed: whoever scans then writes another one in its place
   */
  static open(
    directory: string,
    path: string,
    identity: ImageIdentity,
    format: ImageFormat = 'raw',
  ): ImageMap | undefined {
    const map = ImageMap.openAny(directory, path, identity, format)
    if (map === undefined || map.isOf(identity)) return map
    map.close()
    return undefined
  }

  /** The same, and also one of what the same file was at another time. Throws as `open`. */
  static openAny(
    directory: string,
    path: string,
    identity: ImageIdentity,
    format: ImageFormat = 'raw',
  ): ImageMap | undefined {
    const map = ImageMap.openUnproven(directory, path, identity, format)
    try {
      map?.prove()
    } catch (error) {
      map?.close()
      throw error
    }
    return map
  }

  /**
   * The same of its two ends only: the rest is proven when `entries` or `pieces` has come to its end. Who takes it in before must
   * be able to take it back.
   * @throws RefusedError for a file that is not believed
   */
  static openUnproven(
    directory: string,
    path: string,
    identity: ImageIdentity,
    format: ImageFormat = 'raw',
  ): ImageMap | undefined {
    const file = openMap(mapPath(directory, path), path)
    if (file === undefined) return undefined
    try {
      if (sameImage(file.identity, identity) && file.disk.format === format) return new ImageMap(file)
    } catch (error) {
      closeSync(file.fd)
      throw error
    }
    closeSync(file.fd)
    return undefined
  }

  /**
   * What `openAny` would open, of its two ends only and so unproven: good enough to choose by.
   * @throws RefusedError for a file that is not believed
   */
  static peek(
    directory: string,
    path: string,
    identity: ImageIdentity,
    format: ImageFormat = 'raw',
  ): MapSummary | undefined {
    const file = openMap(mapPath(directory, path), path)
    if (file === undefined) return undefined
    try {
      if (!sameImage(file.identity, identity) || file.disk.format !== format) return undefined
      const { end, counts } = trailerOf(file)
      const { chunks, blocks, changed, samples } = counts
      const bytes = readAt(file.fd, end - samples * KEY_BYTES, samples * KEY_BYTES) ?? Buffer.alloc(0)
      const handprint = Array.from({ length: bytes.length / KEY_BYTES }, (_, index) =>
        sampleAt(bytes, index * KEY_BYTES),
      )
      const exact = !changed && sameContent(file.identity, identity)
      return { exact, chunks, blocks, handprint, madeAtMs: fstatSync(file.fd).mtimeMs }
    } finally {
      closeSync(file.fd)
    }
  }

  /**
   * Whichever map lies there, and of which image it is.
   * @throws RefusedError for a file that is not believed; what opening it throws
   */
  static at(place: string): { readonly map: ImageMap; readonly path: string } {
    const file = openMap(place)
    if (file === undefined) throw new RefusedError(`${place}: there is none`)
    try {
      const map = new ImageMap(file)
      map.prove()
      return { map, path: file.path }
    } catch (error) {
      closeSync(file.fd)
      throw error
    }
  }

  /** Whether it is of that image as it is. */
  isOf(identity: ImageIdentity): boolean {
    return !this.changed && sameContent(this.identity, identity)
  }

  /** Reads all of it. @throws RefusedError if it is not what its trailer says */
  prove(): void {
    for (const _ of this.entries());
  }

  /**
   * All chunks and all blocks, each in the order of the image, at most MAP_…_MAX at once, in one buffer.
   * @throws RefusedError where something does not fit, at the latest at the end
   */
  *entries(): Generator<MapEntries> {
    const { counts, digest, end } = this.#trailer
    const check = new MapCheck(this.#file)
    for (const section of sections(this.#file, end)) {
      check.take(section)
      if (section.kind !== SAMPLES) yield { kind: section.kind, entries: section.entries }
    }
    check.end(counts, digest)
  }

  /** The same as objects, which stay. */
  *pieces(): Generator<MappedChunk[] | MappedBlocks> {
    for (const { kind, entries } of this.entries())
      yield kind === CHUNKS ? chunksOf(Buffer.from(entries)) : blocksOf(Buffer.from(entries))
  }

  close(): void {
    closeSync(this.#file.fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

/** What a scan that did not come to its end left of a map: all chunks up to one place, and all blocks up to the same or one behind it. */
export class PartialMap {
  /** Of what the image was when that scan began. */
  readonly identity: ImageIdentity
  readonly disk: MappedDisk
  /** When it was written to last. */
  readonly writtenAtMs: number
  /** Of the file; what is behind it is not whole. */
  readonly bytes: number
  /** In the image: where the last chunk ends, and the last block. */
  readonly chunksEnd: number
  readonly blocksEnd: number
  readonly #file: MapFile

  private constructor(file: MapFile, whole: { bytes: number; chunksEnd: number; blocksEnd: number }) {
    this.#file = file
    this.identity = file.identity
    this.disk = file.disk
    this.writtenAtMs = fstatSync(file.fd).mtimeMs
    this.bytes = whole.bytes
    this.chunksEnd = whole.chunksEnd
    this.blocksEnd = whole.blocksEnd
  }

  /** `undefined` when there is none, or none that is good for anything. */
  static open(place: string, path: string): PartialMap | undefined {
    let file: MapFile | undefined
    try {
      file = openMap(place, path)
      const whole = file && wholeOf(file)
      if (file === undefined || whole === undefined) {
        if (file !== undefined) closeSync(file.fd)
        return undefined
      }
      return new PartialMap(file, whole)
    } catch {
      if (file !== undefined) closeSync(file.fd)
      return undefined
    }
  }

  /** As `ImageMap.entries`, each with its head. */
  *sections(): Generator<MapEntries & { readonly head: Buffer }> {
    for (const { kind, head, entries } of sections(this.#file, this.bytes))
      if (kind !== SAMPLES) yield { kind, head, entries }
  }

  close(): void {
    closeSync(this.#file.fd)
  }
}

/** Up to the last section of chunks: blocks are written before them. */
function wholeOf(file: MapFile): { bytes: number; chunksEnd: number; blocksEnd: number } | undefined {
  const check = new MapCheck(file)
  let at = file.head.length
  let whole: { bytes: number; chunksEnd: number; blocksEnd: number } | undefined
  try {
    for (const section of sections(file, fstatSync(file.fd).size)) {
      check.take(section)
      at += section.head.length + section.entries.length
      const { chunksEnd, blocksEnd } = check
      if (section.kind === SAMPLES) break
      if (section.kind === CHUNKS && chunksEnd <= blocksEnd) whole = { bytes: at, chunksEnd, blocksEnd }
    }
  } catch (error) {
    if (!(error instanceof RefusedError)) throw error
  }
  return whole
}

/** An open file with the head of a map. */
interface MapFile {
  readonly place: string
  readonly fd: number
  readonly head: Buffer
  readonly path: string
  readonly identity: ImageIdentity
  readonly disk: MappedDisk
}

/** `undefined` when there is none. @param path of the image that it must be of @throws RefusedError, or what opening throws */
function openMap(place: string, path?: string): MapFile | undefined {
  let fd: number
  try {
    fd = openSync(place, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
    throw error
  }
  try {
    const fixed = readAt(fd, 0, FIXED_BYTES)
    const known = Buffer.concat([MAGIC, Buffer.from([0, 0, 0, VERSION])])
    if (fixed?.subarray(0, known.length).equals(known) !== true)
      throw new RefusedError(`${place}: expected a map of version ${VERSION}, found another file`)
    const length = fixed.readUInt32BE(known.length)
    const name = length > PATH_BYTES_MAX ? undefined : readAt(fd, FIXED_BYTES, length)
    const [dev, ino, size] = [4, 12, 20].map((at) => fixed.readBigUInt64BE(known.length + at))
    const found = name?.toString('utf8') ?? ''
    const another = path !== undefined ? found !== path : basename(place) !== mapPath('', found)
    const format = FORMATS[fixed.readUInt8(known.length + 36)]
    const bytes = fixed.readBigUInt64BE(known.length + 37)
    const fits = size! <= BigInt(IMAGE_BYTES_MAX) && bytes <= BigInt(IMAGE_BYTES_MAX)
    if (name === undefined || another || format === undefined || !fits)
      throw new RefusedError(`${place}: it is the map of another image`)
    const mtimeNs = fixed.readBigInt64BE(known.length + 28)
    const disk: MappedDisk = { format, bytes: Number(bytes) }
    const identity: ImageIdentity = { dev: dev!, ino: ino!, size: Number(size), mtimeNs }
    return { place, fd, head: Buffer.concat([fixed, name]), path: found, identity, disk }
  } catch (error) {
    closeSync(fd)
    throw error
  }
}

/** Of which image the map at `place` is, by its head alone; undefined: it is none that can be believed. @throws what opening throws */
export function mapHead(
  place: string,
): { readonly path: string; readonly identity: ImageIdentity } | undefined {
  try {
    const file = openMap(place)
    if (file === undefined) return undefined
    closeSync(file.fd)
    return { path: file.path, identity: file.identity }
  } catch (error) {
    if (error instanceof RefusedError) return undefined
    throw error
  }
}

interface Trailer {
  /** Where the sections end. */
  readonly end: number
  readonly counts: Counts
  /** Of all before it. */
  readonly digest: Buffer
}

/** @throws RefusedError */
function trailerOf({ place, fd, head }: MapFile): Trailer {
  const size = fstatSync(fd).size
  const end = size - TRAILER_BYTES
  const trailer = end < head.length ? undefined : readAt(fd, end, TRAILER_BYTES)
  const counts = trailer && decodeCounts(trailer)
  if (trailer === undefined || counts === undefined || counts.samples * KEY_BYTES > end - head.length)
    throw new RefusedError(`${place}: ${size} bytes are no map`)
  return { end, counts, digest: trailer.subarray(-SHA256_BYTES) }
}

interface Section {
  readonly kind: typeof CHUNKS | typeof BLOCKS | typeof SAMPLES
  /** Its head. */
  readonly head: Buffer
  readonly entries: Buffer
}

const SECTIONS: ReadonlyMap<
  number | undefined,
  { readonly most: number; readonly entryBytes: number; readonly before: number }
> = new Map([
  [CHUNKS, { most: MAP_PIECE_CHUNKS_MAX, entryBytes: CHUNK_ENTRY_BYTES, before: 0 }],
  [BLOCKS, { most: MAP_RUN_BLOCKS_MAX, entryBytes: KEY_BYTES, before: OFFSET_BYTES }],
  [SAMPLES, { most: HANDPRINT_SAMPLES_MAX, entryBytes: KEY_BYTES, before: 0 }],
])

/** What the largest section holds. */
const LARGEST_SECTION_BYTES = Math.max(
  ...[...SECTIONS.values()].map(({ most, entryBytes, before }) => before + most * entryBytes),
)

/** Each in the place of the one before. @throws RefusedError where they do not end at `end`, or are no sections */
function* sections({ place, fd, head: { length: start } }: MapFile, end: number): Generator<Section> {
  const space = Buffer.allocUnsafe(Math.min(LARGEST_SECTION_BYTES, end - start))
  for (let at = start; at < end; ) {
    const head = at + SECTION_BYTES > end ? undefined : readAt(fd, at, SECTION_BYTES)
    const kind = head?.readUInt8(0)
    const count = head?.readUInt32BE(1) ?? 0
    const known = SECTIONS.get(kind)
    if (head === undefined || known === undefined || count < 1 || count > known.most)
      throw new RefusedError(`${place}: a section of kind ${kind} with ${count} entries at ${at}`)
    const bytes = known.before + count * known.entryBytes
    at += SECTION_BYTES
    const entries = at + bytes > end ? undefined : readInto(fd, at, space.subarray(0, bytes))
    if (entries === undefined) throw new RefusedError(`${place}: cut off in a section at ${at}`)
    at += bytes
    yield { kind: kind as Section['kind'], head, entries }
  }
}

/** Number `index` of a section's chunks: where it lies, and how long it is. */
export function chunkAt(
  entries: Buffer,
  index: number,
): { readonly offset: number; readonly length: number } {
  const at = index * CHUNK_ENTRY_BYTES + KEY_BYTES
  return { offset: entries.readUIntBE(at, OFFSET_BYTES), length: entries.readUIntBE(at + OFFSET_BYTES, 3) }
}

function chunksOf(entries: Buffer): MappedChunk[] {
  return Array.from({ length: entries.length / CHUNK_ENTRY_BYTES }, (_, index) => {
    const at = index * CHUNK_ENTRY_BYTES
    return { key: entries.subarray(at, at + KEY_BYTES), ...chunkAt(entries, index) }
  })
}

export function blocksOf(entries: Buffer): MappedBlocks {
  return { offset: entries.readUIntBE(0, OFFSET_BYTES), hints: entries.subarray(OFFSET_BYTES) }
}

/** Holds what stands in a map against its image's size, and all of it against its trailer. */
class MapCheck {
  readonly #place: string
  readonly #imageBytes: number
  readonly #countMax: number
  readonly #sum: Hash
  #chunks = 0
  #blocks = 0
  #samples = 0
  chunksEnd = 0
  blocksEnd = 0

  constructor({ place, head, disk }: MapFile) {
    this.#place = place
    this.#imageBytes = disk.bytes
    this.#countMax = Math.ceil(disk.bytes / BLOCK_BYTES)
    this.#sum = createHash('sha256').update(head)
  }

  /** @throws RefusedError */
  take({ kind, head, entries }: Section): void {
    this.#sum.update(head).update(entries)
    if (this.#samples > 0) throw this.#refused('a section after the handprint')
    if (kind === SAMPLES) this.#samples = entries.length / KEY_BYTES
    else if (kind === CHUNKS) this.#takeChunks(entries)
    else this.#takeBlocks(entries)
  }

  #takeChunks(entries: Buffer): void {
    const count = entries.length / CHUNK_ENTRY_BYTES
    for (let index = 0; index < count; index++) {
      const { offset, length } = chunkAt(entries, index)
      const fits = offset >= this.chunksEnd && length >= 1 && length <= CHUNK_BYTES_MAX
      this.chunksEnd = offset + length
      if (!fits || this.chunksEnd > this.#imageBytes)
        throw this.#refused(`a chunk of ${length} bytes at ${offset}`)
    }
    // Most are much longer: a map is smaller than its image.
    this.#chunks += count
    if (this.#chunks > this.#countMax) throw this.#refused(`more than ${this.#countMax} chunks`)
  }

  #takeBlocks(entries: Buffer): void {
    const { offset, hints } = blocksOf(entries)
    const fits = offset >= this.blocksEnd && offset % BLOCK_BYTES === 0
    this.blocksEnd = offset + (hints.length / KEY_BYTES) * BLOCK_BYTES
    if (!fits || this.blocksEnd > this.#imageBytes)
      throw this.#refused(`blocks from ${offset} to ${this.blocksEnd}`)
    this.#blocks += hints.length / KEY_BYTES
  }

  /** @throws RefusedError */
  end(counts: Counts, digest: Buffer): void {
    const found = { chunks: this.#chunks, blocks: this.#blocks, samples: this.#samples }
    const expected = encodeCounts({ ...found, changed: counts.changed })
    const same = expected.equals(encodeCounts(counts)) && this.#sum.update(expected).digest().equals(digest)
    if (!same) throw this.#refused('its digest does not fit')
  }

  #refused(what: string): RefusedError {
    return new RefusedError(`${this.#place}: ${what}`)
  }
}

/** `undefined` when the file is shorter. */
function readAt(fd: number, at: number, length: number): Buffer | undefined {
  return readInto(fd, at, Buffer.alloc(length))
}

function readInto(fd: number, at: number, bytes: Buffer): Buffer | undefined {
  let filled = 0
  while (filled < bytes.length) {
    const got = readSync(fd, bytes, filled, bytes.length - filled, at + filled)
    if (got === 0) return undefined
    filled += got
  }
  return bytes
}
