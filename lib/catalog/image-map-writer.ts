/** Writes a map (image-map-format.ts) while its image is scanned: into bytes, or into a file beside its place that is then renamed. */
import { createHash, type Hash } from 'node:crypto'
import {
  closeSync,
  constants,
  fchownSync,
  fsyncSync,
  ftruncateSync,
  mkdirSync,
  openSync,
  renameSync,
  rmSync,
  writeSync,
} from 'node:fs'
import { MAP_PIECE_CHUNKS_MAX, MAP_RUN_BLOCKS_MAX } from '../core/limits.ts'
import { BLOCK_BYTES } from '../core/units.ts'
import { Handprint } from './handprint.ts'
import { type ImageIdentity, sameFile } from './image-files.ts'
import { type MapEntries, PartialMap } from './image-map.ts'
import {
  BLOCKS,
  CHUNK_ENTRY_BYTES,
  CHUNKS,
  encodeCounts,
  header,
  KEY_BYTES,
  type MappedDisk,
  mapPath,
  OFFSET_BYTES,
  SAMPLES,
  sectionHead,
  writeChunk,
} from './image-map-format.ts'

/** Who a map shall belong to. */
export interface MapOwner {
  readonly uid: number
  readonly gid: number
}

/** A map as bytes, piece by piece, while its image is scanned. */
export class ImageMapEncoder {
  readonly #sink: (bytes: Buffer) => unknown
  readonly #hash: Hash = createHash('sha256')
  readonly #chunks = Buffer.alloc(MAP_PIECE_CHUNKS_MAX * CHUNK_ENTRY_BYTES)
  #chunksFilled = 0
  #chunkCount = 0
  readonly #hints = Buffer.alloc(MAP_RUN_BLOCKS_MAX * KEY_BYTES)
  #hintsFilled = 0
  #runOffset = 0
  #blockCount = 0
  readonly #handprint = new Handprint()

  /** @param sink is given all but the digest; it must not keep the bytes */
  constructor(
    sink: (bytes: Buffer) => unknown,
    path: string,
    identity: ImageIdentity,
    disk: MappedDisk = { format: 'raw', bytes: identity.size },
  ) {
    this.#sink = sink
    this.#put(header(path, identity, disk))
  }

  /** What another one has put already: its head and its entries, without giving them to the sink. */
  replay({ kind, head, entries }: MapEntries & { readonly head: Buffer }): void {
    this.#hash.update(head).update(entries)
    if (kind === BLOCKS) this.#blockCount += (entries.length - OFFSET_BYTES) / KEY_BYTES
    else {
      for (let at = 0; at < entries.length; at += CHUNK_ENTRY_BYTES) this.#handprint.add(entries, at)
      this.#chunkCount += entries.length / CHUNK_ENTRY_BYTES
    }
  }

  /** In the order of the image. @param digestOffset where in `digests` the chunk's digest begins */
  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    const entries = this.#chunks
    this.#handprint.add(digests, digestOffset)
    writeChunk(entries, this.#chunksFilled, digests.subarray(digestOffset), offset, length)
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

  /** The digest that follows what the sink was given. @param changed the image was written to while it was read */
  end(changed: boolean): Buffer {
    this.#flushChunks()
    this.#flushBlocks()
    const samples = this.#handprint.samples()
    if (samples.length > 0) {
      this.#put(sectionHead(SAMPLES, samples.length))
      this.#put(Buffer.from(samples.join(''), 'latin1'))
    }
    const { length } = samples
    this.#put(encodeCounts({ chunks: this.#chunkCount, blocks: this.#blockCount, samples: length, changed }))
    return this.#hash.digest()
  }

  #flushChunks(): void {
    if (this.#chunksFilled === 0) return
    // Blocks first: whoever goes on behind the last whole section of chunks has all blocks up to there (PartialMap).
    this.#flushBlocks()
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

/**
 * Writes a map while its image is scanned. Nothing is at the map's place before `finish`. What lies beside it when a scan ends early
 * (the daemon does) is what `resume` goes on with.
 */
export class ImageMapWriter {
  readonly #place: string
  readonly #encoder: ImageMapEncoder
  #fd: number | undefined
  #bytes = 0

  /**
   * @param owner when it is made by root for a folder of somebody else's: given to the open file, never to a name, which that
   * one could make a link of
   * @throws when the directory cannot be written
   */
  constructor(
    directory: string,
    path: string,
    identity: ImageIdentity,
    options: {
      readonly owner?: MapOwner
      readonly disk?: MappedDisk
      /** What to go on with: `resume`. */
      readonly partial?: PartialMap
    } = {},
  ) {
    const { owner, disk, partial } = options
    this.#place = mapPath(directory, path)
    const beside = `${this.#place}.new`
    if (partial === undefined) {
      mkdirSync(directory, { recursive: true, mode: 0o700 })
      // Of a daemon that was killed.
      rmSync(beside, { force: true })
      this.#fd = openSync(beside, 'wx', 0o600)
      if (owner !== undefined) fchownSync(this.#fd, owner.uid, owner.gid)
    } else {
      this.#fd = openSync(beside, constants.O_WRONLY | constants.O_APPEND | constants.O_NOFOLLOW)
      ftruncateSync(this.#fd, partial.bytes)
      this.#bytes = partial.bytes
    }
    let replays = partial !== undefined
    this.#encoder = new ImageMapEncoder((bytes) => replays || this.#write(bytes), path, identity, disk)
    for (const section of partial?.sections() ?? []) this.#encoder.replay(section)
    replays = false
  }

  /**
   * Goes on where a scan of the same file stopped, if that was less than `ageMsMax` ago; the image may have been written to since.
   * The caller closes `partial`, which says what the map holds already.
   */
  static resume(
    directory: string,
    path: string,
    identity: ImageIdentity,
    options: { readonly disk: MappedDisk; readonly ageMsMax: number },
  ): { readonly writer: ImageMapWriter; readonly partial: PartialMap } | undefined {
    const { disk, ageMsMax } = options
    const partial = PartialMap.open(`${mapPath(directory, path)}.new`, path)
    if (partial === undefined) return undefined
    const same =
      sameFile(partial.identity, identity) &&
      partial.disk.format === disk.format &&
      partial.disk.bytes === disk.bytes &&
      Math.abs(Date.now() - partial.writtenAtMs) < ageMsMax
    try {
      if (same)
        return { writer: new ImageMapWriter(directory, path, partial.identity, { disk, partial }), partial }
    } catch {
      // It is begun anew.
    }
    partial.close()
    return undefined
  }

  /** What of it is written. */
  get bytes(): number {
    return this.#bytes
  }

  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    this.#encoder.add(digests, digestOffset, offset, length)
  }

  addBlock(offset: number, hint: Buffer): void {
    this.#encoder.addBlock(offset, hint)
  }

  /** The map is at its place, and durable, when this returns. @param changed the image was written to while it was read */
  finish(changed = false): void {
    this.#write(this.#encoder.end(changed))
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
    this.#bytes += bytes.length
  }
}
