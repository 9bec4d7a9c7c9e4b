/**
 * What was found of an image, in one flat file below the state directory, so that the next daemon need not read the image
 * again: a header with the image's identity, sections, a trailer with their contents' numbers and a SHA-256 of all before it.
 * Numbers are big-endian.
 *
 *   "SWAMMAP\0", u32 version, u32 path length, u64 device, inode, size, i64 mtime in ns, path
 *   u8 1, u32 count; count times: 8 bytes of the digest, u48 offset, u24 length               chunks
 *   u8 2, u32 count; u48 offset; count times: 8 bytes of the digest                           a run of 4 KiB blocks
 *   "SWAMEND\0", u64 chunks, u64 blocks, SHA-256
 *
 * Chunks stand in the order of the image, and so do blocks. 0.2% of the image's data.
 *
 * A map is written beside its place and renamed; one that is torn, changed, of another version or of another image is not
 * believed, and the image is scanned. It proves nothing: whatever is found through it is verified by digest (I3).
 * Synchronous, for the thread of low priority that scans. Deliberately not here: handprints.
 */
import { createHash, type Hash, hash } from 'node:crypto'
import {
  closeSync,
  constants,
  fchownSync,
  fstatSync,
  fsyncSync,
  lstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import { RefusedError } from '../core/errors.ts'
import {
  CHUNK_BYTES_MAX,
  IMAGE_BYTES_MAX,
  MAP_PIECE_CHUNKS_MAX,
  MAP_RUN_BLOCKS_MAX,
  PATH_BYTES_MAX,
} from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import type { ImageIdentity } from './image-files.ts'

const VERSION = 2
const MAGIC = Buffer.from('SWAMMAP\0', 'latin1')
const END = Buffer.from('SWAMEND\0', 'latin1')
const FIXED_BYTES = MAGIC.length + 4 + 4 + 4 * 8
const KEY_BYTES = 8
const CHUNKS = 1
const BLOCKS = 2
const SECTION_BYTES = 5
const OFFSET_BYTES = 6
const CHUNK_ENTRY_BYTES = KEY_BYTES + OFFSET_BYTES + 3
const COUNTS_BYTES = 2 * 8
const SHA256_BYTES = 32
const TRAILER_BYTES = END.length + COUNTS_BYTES + SHA256_BYTES

export interface MappedChunk {
  /** The first 8 bytes of the digest. */
  readonly key: Buffer
  readonly offset: number
  readonly length: number
}

/** Neighbouring blocks of 4 KiB. */
export interface MappedBlocks {
  /** Of the first one. */
  readonly offset: number
  /** The first 8 bytes of the SHA-256 of each. */
  readonly hints: Buffer
}

/** Where the map of the image at that path lies. */
export function mapPath(directory: string, path: string): string {
  return join(directory, `${hash('sha256', path, 'hex').slice(0, 32)}.map`)
}

/** Removes what belongs to none of the images; `.new` files that a killed daemon left too. */
export function dropMaps(directory: string, paths: readonly string[]): void {
  const kept = new Set(paths.map((path) => mapPath('', path)))
  let names: string[] = []
  try {
    names = readdirSync(directory)
  } catch {
    // There is none yet.
  }
  for (const name of names) {
    if (/^[0-9a-f]{32}\.map(\.new)?$/.test(name) && !kept.has(name.replace(/\.new$/, '')))
      rmSync(join(directory, name), { force: true })
  }
}

function header(path: string, { dev, ino, size, mtimeNs }: ImageIdentity): Buffer {
  const name = Buffer.from(path, 'utf8')
  if (name.length > PATH_BYTES_MAX) throw new RangeError(`image map: a path of ${name.length} bytes`)
  const bytes = Buffer.alloc(FIXED_BYTES + name.length)
  let at = MAGIC.copy(bytes)
  at = bytes.writeUInt32BE(VERSION, at)
  at = bytes.writeUInt32BE(name.length, at)
  at = bytes.writeBigUInt64BE(BigInt.asUintN(64, dev), at)
  at = bytes.writeBigUInt64BE(BigInt.asUintN(64, ino), at)
  at = bytes.writeBigUInt64BE(BigInt(size), at)
  at = bytes.writeBigInt64BE(BigInt.asIntN(64, mtimeNs), at)
  name.copy(bytes, at)
  return bytes
}

/** Who a map shall belong to. */
export interface MapOwner {
  readonly uid: number
  readonly gid: number
}

/** A map as bytes, piece by piece, while its image is scanned. */
export class ImageMapEncoder {
  readonly #sink: (bytes: Buffer) => void
  readonly #hash: Hash = createHash('sha256')
  readonly #chunks = Buffer.alloc(MAP_PIECE_CHUNKS_MAX * CHUNK_ENTRY_BYTES)
  #chunksFilled = 0
  #chunkCount = 0
  readonly #hints = Buffer.alloc(MAP_RUN_BLOCKS_MAX * KEY_BYTES)
  #hintsFilled = 0
  #runOffset = 0
  #blockCount = 0

  /** @param sink is given all but the digest; it must not keep the bytes */
  constructor(sink: (bytes: Buffer) => void, path: string, identity: ImageIdentity) {
    this.#sink = sink
    this.#put(header(path, identity))
  }

  /** In the order of the image. @param digestOffset where in `digests` the chunk's digest begins */
  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    const entries = this.#chunks
    entries.set(digests.subarray(digestOffset, digestOffset + KEY_BYTES), this.#chunksFilled)
    entries.writeUIntBE(offset, this.#chunksFilled + KEY_BYTES, OFFSET_BYTES)
    entries.writeUIntBE(length, this.#chunksFilled + KEY_BYTES + OFFSET_BYTES, 3)
    this.#chunksFilled += CHUNK_ENTRY_BYTES
    this.#chunkCount++
    if (this.#chunksFilled === entries.length) this.#flushChunks()
  }

  /** In the order of the image. @param hint the first 8 bytes of the block's SHA-256 */
  addBlock(offset: number, hint: Buffer): void {
    const next = this.#runOffset + (this.#hintsFilled / KEY_BYTES) * BLOCK_BYTES
    if (offset !== next || this.#hintsFilled === this.#hints.length) {
      this.#flushBlocks()
      this.#runOffset = offset
    }
    hint.copy(this.#hints, this.#hintsFilled, 0, KEY_BYTES)
    this.#hintsFilled += KEY_BYTES
    this.#blockCount++
  }

  /** The digest that follows what the sink was given. */
  end(): Buffer {
    this.#flushChunks()
    this.#flushBlocks()
    this.#put(counts(this.#chunkCount, this.#blockCount))
    return this.#hash.digest()
  }

  #flushChunks(): void {
    if (this.#chunksFilled === 0) return
    this.#put(sectionHead(CHUNKS, this.#chunksFilled / CHUNK_ENTRY_BYTES))
    this.#put(this.#chunks.subarray(0, this.#chunksFilled))
    this.#chunksFilled = 0
  }

  #flushBlocks(): void {
    if (this.#hintsFilled === 0) return
    const offset = Buffer.alloc(OFFSET_BYTES)
    offset.writeUIntBE(this.#runOffset, 0, OFFSET_BYTES)
    this.#put(Buffer.concat([sectionHead(BLOCKS, this.#hintsFilled / KEY_BYTES), offset]))
    this.#put(this.#hints.subarray(0, this.#hintsFilled))
    this.#hintsFilled = 0
  }

  #put(bytes: Buffer): void {
    this.#hash.update(bytes)
    this.#sink(bytes)
  }
}

/** Writes a map while its image is scanned. Nothing is at the map's place before `finish`. */
export class ImageMapWriter {
  readonly #place: string
  readonly #encoder: ImageMapEncoder
  #fd: number | undefined

  /**
   * @param owner when it is made by root for a folder of somebody else's: given to the open file, never to a name, which that
   * one could make a link of
   * @throws when the directory cannot be written
   */
  constructor(directory: string, path: string, identity: ImageIdentity, owner?: MapOwner) {
    this.#place = mapPath(directory, path)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    // Of a daemon that was killed.
    rmSync(`${this.#place}.new`, { force: true })
    this.#fd = openSync(`${this.#place}.new`, 'wx', 0o600)
    if (owner !== undefined) fchownSync(this.#fd, owner.uid, owner.gid)
    this.#encoder = new ImageMapEncoder((bytes) => this.#write(bytes), path, identity)
  }

  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    this.#encoder.add(digests, digestOffset, offset, length)
  }

  addBlock(offset: number, hint: Buffer): void {
    this.#encoder.addBlock(offset, hint)
  }

  /** The map is at its place, and durable, when this returns. */
  finish(): void {
    this.#write(this.#encoder.end())
    const fd = this.#open()
    fsyncSync(fd)
    closeSync(fd)
    this.#fd = undefined
    renameSync(`${this.#place}.new`, this.#place)
  }

  /** Idempotent; after `finish` nothing. */
  abort(): void {
    if (this.#fd === undefined) return
    closeSync(this.#fd)
    this.#fd = undefined
    rmSync(`${this.#place}.new`, { force: true })
  }

  #open(): number {
    if (this.#fd === undefined) throw new RangeError(`image map ${this.#place}: it is closed`)
    return this.#fd
  }

  #write(bytes: Buffer): void {
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#open(), bytes, at)
  }
}

function sectionHead(kind: number, count: number): Buffer {
  const bytes = Buffer.alloc(SECTION_BYTES)
  bytes.writeUInt32BE(count, bytes.writeUInt8(kind, 0))
  return bytes
}

function counts(chunks: number, blocks: number): Buffer {
  const bytes = Buffer.alloc(END.length + COUNTS_BYTES)
  const at = bytes.writeBigUInt64BE(BigInt(chunks), END.copy(bytes))
  bytes.writeBigUInt64BE(BigInt(blocks), at)
  return bytes
}

/** A whole map of just this image. */
export class ImageMap {
  readonly place: string
  readonly count: number
  readonly blockCount: number
  /** Of all before it: two maps with the same one are the same. */
  readonly digest: Buffer
  readonly #fd: number
  readonly #start: number
  readonly #end: number

  private constructor(place: string, fd: number, start: number, whole: Whole) {
    this.place = place
    this.#fd = fd
    this.#start = start
    this.#end = whole.end
    this.count = whole.chunks
    this.blockCount = whole.blocks
    this.digest = whole.digest
  }

  /**
   * `undefined` when there is none, or one of what the image was before.
   * @throws RefusedError for a file that is not believed: whoever scans then writes another one in its place
   */
  static open(directory: string, path: string, identity: ImageIdentity): ImageMap | undefined {
    const place = mapPath(directory, path)
    let fd: number
    try {
      fd = openSync(place, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined
      throw error
    }
    try {
      const expected = header(path, identity)
      const found = readAt(fd, 0, expected.length)
      const kind = MAGIC.length + 4
      if (found?.subarray(0, kind).equals(expected.subarray(0, kind)) !== true) {
        throw new RefusedError(`${place}: expected a map of version ${VERSION}, found another file`)
      }
      if (found.equals(expected))
        return new ImageMap(place, fd, expected.length, checkWhole(place, fd, expected, identity.size))
    } catch (error) {
      closeSync(fd)
      throw error
    }
    closeSync(fd)
    return undefined
  }

  /**
   * As `open`, but also the map of what the same file held at another time: a good guess of what it holds now.
   * `madeAt`: milliseconds since 1970. @throws RefusedError, as `open` does
   */
  static openOld(
    directory: string,
    path: string,
    { dev, ino, size }: ImageIdentity,
  ): { readonly map: ImageMap; readonly madeAt: number } | undefined {
    const place = mapPath(directory, path)
    const madeAt = lstatSync(place, { throwIfNoEntry: false })?.mtimeMs
    if (madeAt === undefined) return undefined
    const { map, identity } = ImageMap.at(place)
    if (identity.dev === dev && identity.ino === ino && identity.size === size)
      return { map, madeAt: Math.round(madeAt) }
    map.close()
    return undefined
  }

  /**
   * Whichever map lies there, and of which image it is.
   * @throws RefusedError for a file that is not believed; what opening it throws
   */
  static at(place: string): {
    readonly map: ImageMap
    readonly path: string
    readonly identity: ImageIdentity
  } {
    const fd = openSync(place, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    try {
      const fixed = readAt(fd, 0, FIXED_BYTES)
      const known = Buffer.concat([MAGIC, Buffer.from([0, 0, 0, VERSION])])
      if (fixed?.subarray(0, known.length).equals(known) !== true)
        throw new RefusedError(`${place}: expected a map of version ${VERSION}, found another file`)
      const length = fixed.readUInt32BE(known.length)
      const name = length > PATH_BYTES_MAX ? undefined : readAt(fd, FIXED_BYTES, length)
      const [dev, ino, size] = [4, 12, 20].map((at) => fixed.readBigUInt64BE(known.length + at))
      const path = name?.toString('utf8') ?? ''
      if (name === undefined || basename(place) !== mapPath('', path) || size! > BigInt(IMAGE_BYTES_MAX))
        throw new RefusedError(`${place}: it is the map of another image`)
      const mtimeNs = fixed.readBigInt64BE(known.length + 28)
      const identity: ImageIdentity = { dev: dev!, ino: ino!, size: Number(size), mtimeNs }
      const head = Buffer.concat([fixed, name])
      return {
        map: new ImageMap(place, fd, head.length, checkWhole(place, fd, head, identity.size)),
        path,
        identity,
      }
    } catch (error) {
      closeSync(fd)
      throw error
    }
  }

  /** All chunks and all blocks, each in the order of the image, in pieces of at most MAP_…_MAX. */
  *pieces(): Generator<MappedChunk[] | MappedBlocks> {
    for (const { kind, entries } of sections(this.place, this.#fd, this.#start, this.#end)) {
      if (kind === CHUNKS) yield chunksOf(entries)
      else yield blocksOf(entries)
    }
  }

  close(): void {
    closeSync(this.#fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

interface Section {
  readonly kind: typeof CHUNKS | typeof BLOCKS
  /** Its head. */
  readonly head: Buffer
  readonly entries: Buffer
}

/** @throws RefusedError where they do not end at `end`, or are no sections */
function* sections(place: string, fd: number, start: number, end: number): Generator<Section> {
  for (let at = start; at < end; ) {
    const head = at + SECTION_BYTES > end ? undefined : readAt(fd, at, SECTION_BYTES)
    const kind = head?.readUInt8(0)
    const count = head?.readUInt32BE(1) ?? 0
    const most = kind === CHUNKS ? MAP_PIECE_CHUNKS_MAX : MAP_RUN_BLOCKS_MAX
    if (head === undefined || (kind !== CHUNKS && kind !== BLOCKS) || count < 1 || count > most)
      throw new RefusedError(`${place}: a section of kind ${kind} with ${count} entries at ${at}`)
    const bytes = kind === CHUNKS ? count * CHUNK_ENTRY_BYTES : OFFSET_BYTES + count * KEY_BYTES
    at += SECTION_BYTES
    const entries = at + bytes > end ? undefined : readAt(fd, at, bytes)
    if (entries === undefined) throw new RefusedError(`${place}: cut off in a section at ${at}`)
    at += bytes
    yield { kind, head, entries }
  }
}

function chunksOf(entries: Buffer): MappedChunk[] {
  return Array.from({ length: entries.length / CHUNK_ENTRY_BYTES }, (_, index) => {
    const at = index * CHUNK_ENTRY_BYTES
    return {
      key: entries.subarray(at, at + KEY_BYTES),
      offset: entries.readUIntBE(at + KEY_BYTES, OFFSET_BYTES),
      length: entries.readUIntBE(at + KEY_BYTES + OFFSET_BYTES, 3),
    }
  })
}

function blocksOf(entries: Buffer): MappedBlocks {
  return { offset: entries.readUIntBE(0, OFFSET_BYTES), hints: entries.subarray(OFFSET_BYTES) }
}

interface Whole {
  readonly chunks: number
  readonly blocks: number
  /** Where the sections end. */
  readonly end: number
  readonly digest: Buffer
}

/** Reads all of it once. @throws RefusedError */
function checkWhole(place: string, fd: number, head: Buffer, imageBytes: number): Whole {
  const refused = (what: string): RefusedError => new RefusedError(`${place}: ${what}`)
  const size = fstatSync(fd).size
  const end = size - TRAILER_BYTES
  if (end < head.length) throw refused(`${size} bytes are no map`)
  const trailer = readAt(fd, end, TRAILER_BYTES)
  const sum = createHash('sha256').update(head)
  const countMax = Math.ceil(imageBytes / BLOCK_BYTES)
  let chunks = 0
  let blocks = 0
  let chunksEnd = 0
  let blocksEnd = 0
  for (const section of sections(place, fd, head.length, end)) {
    sum.update(section.head).update(section.entries)
    if (section.kind === CHUNKS) {
      for (const { offset, length } of chunksOf(section.entries)) {
        const fits = offset >= chunksEnd && length >= 1 && length <= CHUNK_BYTES_MAX
        chunksEnd = offset + length
        if (!fits || chunksEnd > imageBytes) throw refused(`a chunk of ${length} bytes at ${offset}`)
        // Most are much longer: a map is smaller than its image.
        if (++chunks > countMax) throw refused(`more than ${countMax} chunks`)
      }
    } else {
      const { offset, hints } = blocksOf(section.entries)
      const fits = offset >= blocksEnd && offset % BLOCK_BYTES === 0
      blocksEnd = offset + (hints.length / KEY_BYTES) * BLOCK_BYTES
      if (!fits || blocksEnd > imageBytes) throw refused(`blocks from ${offset} to ${blocksEnd}`)
      blocks += hints.length / KEY_BYTES
    }
  }
  const expected = counts(chunks, blocks)
  const digest = sum.update(expected).digest()
  if (trailer?.equals(Buffer.concat([expected, digest])) !== true) throw refused('its digest does not fit')
  return { chunks, blocks, end, digest }
}

/** `undefined` when the file is shorter. */
function readAt(fd: number, at: number, length: number): Buffer | undefined {
  const bytes = Buffer.alloc(length)
  let filled = 0
  while (filled < length) {
    const got = readSync(fd, bytes, filled, length - filled, at + filled)
    if (got === 0) return undefined
    filled += got
  }
  return bytes
}
