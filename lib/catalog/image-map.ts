/**
 * What was found of an image, in one flat file below the state directory, so that the next daemon need not read the image
 * again: a header with the image's identity, 17 bytes a chunk in the order of the image, a trailer with their number and a
 * SHA-256 of all before it. Numbers are big-endian.
 *
 *   "SWAMMAP\0", u32 version, u32 path length, u64 device, inode, size, i64 mtime in ns, path
 *   8 bytes of the digest, u48 offset, u24 length                                            for each chunk
 *   "SWAMEND\0", u64 chunks, SHA-256
 *
 * A map is written beside its place and renamed; one that is torn, changed, of another version or of another image is not
 * believed, and the image is scanned. It proves nothing: whatever is found through it is verified by digest (I3).
 * Synchronous, for the thread of low priority that scans. Deliberately not here: digests of 4 KiB blocks, handprints.
 */
import { createHash, type Hash, hash } from 'node:crypto'
import {
  closeSync,
  constants,
  fstatSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { RefusedError } from '../core/errors.ts'
import { CHUNK_BYTES_MAX, MAP_PIECE_CHUNKS_MAX, PATH_BYTES_MAX } from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import type { ImageIdentity } from './image-files.ts'

const VERSION = 1
const MAGIC = Buffer.from('SWAMMAP\0', 'latin1')
const END = Buffer.from('SWAMEND\0', 'latin1')
const FIXED_BYTES = MAGIC.length + 4 + 4 + 4 * 8
const ENTRY_BYTES = 17
const SHA256_BYTES = 32
const TRAILER_BYTES = END.length + 8 + SHA256_BYTES
const KEY_BYTES = 8
const PIECE_BYTES = MAP_PIECE_CHUNKS_MAX * ENTRY_BYTES

export interface MappedChunk {
  /** The first 8 bytes of the digest. */
  readonly key: Buffer
  readonly offset: number
  readonly length: number
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

/** Writes a map while its image is scanned. Nothing is at the map's place before `finish`. */
export class ImageMapWriter {
  readonly #place: string
  readonly #hash: Hash = createHash('sha256')
  readonly #piece = Buffer.alloc(PIECE_BYTES)
  #filled = 0
  #count = 0
  #fd: number | undefined

  /** @throws when the directory cannot be written */
  constructor(directory: string, path: string, identity: ImageIdentity) {
    this.#place = mapPath(directory, path)
    mkdirSync(directory, { recursive: true, mode: 0o700 })
    // Of a daemon that was killed.
    rmSync(`${this.#place}.new`, { force: true })
    this.#fd = openSync(`${this.#place}.new`, 'wx', 0o600)
    this.#put(header(path, identity))
  }

  /** In the order of the image. @param digestOffset where in `digests` the chunk's digest begins */
  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    const piece = this.#piece
    piece.set(digests.subarray(digestOffset, digestOffset + KEY_BYTES), this.#filled)
    piece.writeUIntBE(offset, this.#filled + KEY_BYTES, 6)
    piece.writeUIntBE(length, this.#filled + KEY_BYTES + 6, 3)
    this.#filled += ENTRY_BYTES
    this.#count++
    if (this.#filled === piece.length) this.#flush()
  }

  /** The map is at its place, and durable, when this returns. */
  finish(): void {
    this.#flush()
    const trailer = Buffer.alloc(END.length + 8)
    trailer.writeBigUInt64BE(BigInt(this.#count), END.copy(trailer))
    this.#put(trailer)
    const fd = this.#open()
    writeSync(fd, this.#hash.digest())
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

  #flush(): void {
    this.#put(this.#piece.subarray(0, this.#filled))
    this.#filled = 0
  }

  #put(bytes: Buffer): void {
    this.#hash.update(bytes)
    for (let at = 0; at < bytes.length; ) at += writeSync(this.#open(), bytes, at)
  }
}

/** A whole map of just this image. */
export class ImageMap {
  readonly place: string
  readonly count: number
  readonly #fd: number
  readonly #start: number

  private constructor(place: string, fd: number, start: number, count: number) {
    this.place = place
    this.#fd = fd
    this.#start = start
    this.count = count
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
      if (found.equals(expected)) {
        return new ImageMap(place, fd, expected.length, checkWhole(place, fd, expected.length, identity.size))
      }
    } catch (error) {
      closeSync(fd)
      throw error
    }
    closeSync(fd)
    return undefined
  }

  /** All chunks in the order of the image, in pieces of at most MAP_PIECE_CHUNKS_MAX. */
  *pieces(): Generator<MappedChunk[]> {
    for (let done = 0; done < this.count; done += MAP_PIECE_CHUNKS_MAX) {
      const some = Math.min(MAP_PIECE_CHUNKS_MAX, this.count - done)
      const bytes = readAt(this.#fd, this.#start + done * ENTRY_BYTES, some * ENTRY_BYTES)
      if (bytes === undefined) throw new RefusedError(`${this.place}: it was cut off while it was read`)
      yield Array.from({ length: some }, (_, index) => chunkAt(bytes, index * ENTRY_BYTES))
    }
  }

  close(): void {
    closeSync(this.#fd)
  }

  [Symbol.dispose](): void {
    this.close()
  }
}

function chunkAt(bytes: Buffer, at: number): MappedChunk {
  return {
    key: bytes.subarray(at, at + KEY_BYTES),
    offset: bytes.readUIntBE(at + KEY_BYTES, 6),
    length: bytes.readUIntBE(at + KEY_BYTES + 6, 3),
  }
}

/** Reads all of it once. Gives the number of chunks. @throws RefusedError */
function checkWhole(place: string, fd: number, start: number, imageBytes: number): number {
  const refused = (what: string): RefusedError => new RefusedError(`${place}: ${what}`)
  const size = fstatSync(fd).size
  const entryBytes = size - start - TRAILER_BYTES
  const count = entryBytes / ENTRY_BYTES
  const countMax = Math.ceil(imageBytes / BLOCK_BYTES)
  if (!Number.isInteger(count) || count < 0 || count > countMax) {
    throw refused(`${entryBytes} bytes of chunks, expected 0 to ${countMax} of ${ENTRY_BYTES}`)
  }
  const trailer = readAt(fd, size - TRAILER_BYTES, TRAILER_BYTES)
  const sum = createHash('sha256')
  let end = 0
  for (let at = 0; at < start + entryBytes; ) {
    // The header first, then whole chunks.
    const length = at === 0 ? start : Math.min(PIECE_BYTES, start + entryBytes - at)
    const bytes = readAt(fd, at, length)
    if (bytes === undefined) throw refused('it was cut off while it was read')
    sum.update(bytes)
    for (let entry = at === 0 ? length : 0; entry < length; entry += ENTRY_BYTES) {
      const chunk = chunkAt(bytes, entry)
      const fits = chunk.offset >= end && chunk.length >= 1 && chunk.length <= CHUNK_BYTES_MAX
      end = chunk.offset + chunk.length
      if (!fits || end > imageBytes) throw refused(`a chunk of ${chunk.length} bytes at ${chunk.offset}`)
    }
    at += length
  }
  const expected = Buffer.alloc(END.length + 8)
  expected.writeBigUInt64BE(BigInt(count), END.copy(expected))
  const digest = sum.update(expected).digest()
  if (trailer?.equals(Buffer.concat([expected, digest])) !== true) throw refused('its digest does not fit')
  return count
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
