/**
 * What was found of an image, in one flat file below the state directory, so that the next daemon need not read the image
 * again: a header with the image's identity, sections, a trailer with their contents' numbers and a SHA-256 of all before it.
 * Numbers are big-endian.
 *
 *   "SWAMMAP\0", u32 version, u32 path length, u64 device, inode, size, i64 mtime in ns, u8 1 raw or 2 qcow2, u64 size of the disk, path
 *   u8 1, u32 count; count times: 8 bytes of the digest, u48 offset, u24 length               chunks
 *   u8 2, u32 count; u48 offset; count times: 8 bytes of the digest                           a run of 4 KiB blocks
 *   u8 3, u32 count; count times: 8 bytes of a digest                                         the handprint; last, if any
 *   "SWAMEND\0", u64 chunks, u64 blocks, u32 samples, u8 1 if the image was written to meanwhile, SHA-256
 *
 * Chunks stand in the order of the image, and so do blocks; samples ascend. 0.2% of the image's data.
 *
 * A map is written beside its place (`.new`) and renamed; blocks are written out before chunks, so that a scan which was cut short
 * can go on behind the last whole section of chunks. One that is torn, changed, of another version or of another image is not
 * believed, and the image is scanned. It proves nothing: whatever is found through it is verified by digest (I3). So one of
 * what the same file was before is a good guess, until there is a new one.
 * Synchronous, for the thread of low priority that scans.
 */
import { hash } from 'node:crypto'
import { join } from 'node:path'
import { HANDPRINT_SAMPLES_MAX, IMAGE_BYTES_MAX, PATH_BYTES_MAX } from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import type { ImageFormat, ImageIdentity } from './image-files.ts'

export const VERSION = 3
export const MAGIC: Buffer = Buffer.from('SWAMMAP\0', 'latin1')
export const END: Buffer = Buffer.from('SWAMEND\0', 'latin1')
export const FIXED_BYTES: number = MAGIC.length + 4 + 4 + 4 * 8 + 1 + 8
export const KEY_BYTES = 8
export const CHUNKS = 1
export const BLOCKS = 2
export const SAMPLES = 3
export const SECTION_BYTES: number = 5
export const OFFSET_BYTES = 6
export const CHUNK_ENTRY_BYTES: number = KEY_BYTES + OFFSET_BYTES + 3
export const COUNTS_BYTES: number = 2 * 8 + 4 + 1
export const SHA256_BYTES = 32
/** Of an image, and no fewer chunks. */
export const BLOCKS_MAX: number = IMAGE_BYTES_MAX / BLOCK_BYTES
export const TRAILER_BYTES: number = END.length + COUNTS_BYTES + SHA256_BYTES

/** Where the map of the image at that path lies. */
export function mapPath(directory: string, path: string): string {
  return join(directory, `${hash('sha256', path, 'hex').slice(0, 32)}.map`)
}

/** What of the file is described: itself, or the disk that it holds as a qcow2. */
export interface MappedDisk {
  readonly format: ImageFormat
  readonly bytes: number
}

export const FORMATS: readonly (ImageFormat | undefined)[] = [undefined, 'raw', 'qcow2']

export function header(path: string, { dev, ino, size, mtimeNs }: ImageIdentity, disk: MappedDisk): Buffer {
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
  at = bytes.writeUInt8(FORMATS.indexOf(disk.format), at)
  at = bytes.writeBigUInt64BE(BigInt(disk.bytes), at)
  name.copy(bytes, at)
  return bytes
}

export function sectionHead(kind: number, count: number): Buffer {
  const bytes = Buffer.alloc(SECTION_BYTES)
  bytes.writeUInt32BE(count, bytes.writeUInt8(kind, 0))
  return bytes
}

/** An entry of a section of chunks; of the digest only its beginning counts. */
export function writeChunk(
  target: Buffer,
  at: number,
  digest: Uint8Array,
  offset: number,
  length: number,
): void {
  target.set(digest.subarray(0, KEY_BYTES), at)
  target.writeUIntBE(offset, at + KEY_BYTES, OFFSET_BYTES)
  target.writeUIntBE(length, at + KEY_BYTES + OFFSET_BYTES, 3)
}

export interface Counts {
  readonly chunks: number
  readonly blocks: number
  readonly samples: number
  readonly changed: boolean
}

export function encodeCounts({ chunks, blocks, samples, changed }: Counts): Buffer {
  const bytes = Buffer.alloc(END.length + COUNTS_BYTES)
  let at = bytes.writeBigUInt64BE(BigInt(chunks), END.copy(bytes))
  at = bytes.writeBigUInt64BE(BigInt(blocks), at)
  at = bytes.writeUInt32BE(samples, at)
  bytes.writeUInt8(changed ? 1 : 0, at)
  return bytes
}

/** Of a trailer; `undefined` if it is none. */
export function decodeCounts(trailer: Buffer): Counts | undefined {
  const at = END.length
  const changed = trailer.readUInt8(at + 20)
  const chunks = Number(trailer.readBigUInt64BE(at))
  const blocks = Number(trailer.readBigUInt64BE(at + 8))
  const samples = trailer.readUInt32BE(at + 16)
  const fits = chunks <= BLOCKS_MAX && blocks <= BLOCKS_MAX && samples <= HANDPRINT_SAMPLES_MAX
  if (!trailer.subarray(0, at).equals(END) || !fits || changed > 1) return undefined
  return { chunks, blocks, samples, changed: changed === 1 }
}
