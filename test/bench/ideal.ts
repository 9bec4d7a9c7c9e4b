/**
 * The ideal that SWAM is measured against: all 4 KiB blocks that the far side lacks, each once, in one stream of zstd -3.
 * Where the blocks belong is not counted: no protocol gets that for nothing. The stream is decompressed again, the image is put
 * together from it and from the far side's images, and its SHA-256 compared. Of node's own modules only.
 */
import { createHash, hash } from 'node:crypto'
import { createReadStream, createWriteStream, readSync } from 'node:fs'
import { type FileHandle, open, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { constants, createZstdCompress, createZstdDecompress } from 'node:zlib'
import { BLOCK_BYTES, dataBlocks } from './blocks.ts'

const BATCH_BYTES = 64 * BLOCK_BYTES
const ZEROES = Buffer.alloc(1 << 20)

export interface Ideal {
  /** Of the compressed stream. */
  readonly bytes: number
  /** How many blocks are in it. */
  readonly blocks: number
  /** Of the image as it was put together again. */
  readonly sha256: string
}

/** Where the content of a block can be read: a file, by number, and a byte offset. */
interface Place {
  readonly file: number
  readonly offset: number
}

/** What the target is put together from, in order of its own offsets. */
type Layout = (Place & { readonly targetOffset: number })[]

/** The stream is the first of the files that places name; the far side's images follow. */
const STREAM = 0

/** Works in `folder`, which must have room for what is missing, twice. Rejects when an image cannot be read. */
export async function idealBytes(target: string, have: readonly string[], folder: string): Promise<Ideal> {
  const known = await placesOf(have)
  const layout: Layout = []
  const packed = join(folder, 'ideal.zst')
  const unpacked = join(folder, 'ideal.blocks')
  const blocks = missingBlocks(target, known, layout)
  const level = { params: { [constants.ZSTD_c_compressionLevel]: 3 } }
  await pipeline(Readable.from(batches(blocks)), createZstdCompress(level), createWriteStream(packed))
  await pipeline(createReadStream(packed), createZstdDecompress(), createWriteStream(unpacked))
  const { size } = await stat(target)
  return {
    bytes: (await stat(packed)).size,
    blocks: (await stat(unpacked)).size / BLOCK_BYTES,
    sha256: await reassembledSha256(size, layout, [unpacked, ...have]),
  }
}

async function placesOf(images: readonly string[]): Promise<Map<string, Place>> {
  const places = new Map<string, Place>()
  for (const [number, path] of images.entries()) {
    for await (const { offset, bytes } of dataBlocks(path)) {
      const digest = hash('sha256', bytes, 'base64')
      if (!places.has(digest)) places.set(digest, { file: number + 1, offset })
    }
  }
  return places
}

/** Yields each block of the target that has no place yet; notes all its blocks in `layout`. */
async function* missingBlocks(
  target: string,
  known: Map<string, Place>,
  layout: Layout,
): AsyncGenerator<Buffer> {
  let streamBytes = 0
  for await (const { offset: targetOffset, bytes } of dataBlocks(target)) {
    const digest = hash('sha256', bytes, 'base64')
    let place = known.get(digest)
    if (place === undefined) {
      place = { file: STREAM, offset: streamBytes }
      known.set(digest, place)
      streamBytes += bytes.length
      yield bytes
    }
    layout.push({ ...place, targetOffset })
  }
}

/** Copies, because the blocks' bytes hold only until the next one. */
async function* batches(blocks: AsyncGenerator<Buffer>): AsyncGenerator<Buffer> {
  let batch = Buffer.alloc(BATCH_BYTES)
  let used = 0
  for await (const block of blocks) {
    block.copy(batch, used)
    used += block.length
    if (used < BATCH_BYTES) continue
    yield batch
    batch = Buffer.alloc(BATCH_BYTES)
    used = 0
  }
  if (used > 0) yield batch.subarray(0, used)
}

async function reassembledSha256(size: number, layout: Layout, paths: readonly string[]): Promise<string> {
  const files: FileHandle[] = []
  try {
    for (const path of paths) files.push(await open(path))
    const sha256 = createHash('sha256')
    const block = Buffer.alloc(BLOCK_BYTES)
    let at = 0
    const zeroesTo = (end: number): void => {
      for (; at < end; at += Math.min(ZEROES.length, end - at))
        sha256.update(ZEROES.subarray(0, Math.min(ZEROES.length, end - at)))
    }
    for (const { file, offset, targetOffset } of layout) {
      zeroesTo(targetOffset)
      // Not through the thread pool: 4 KiB from the page cache are there sooner than a thread.
      const bytesRead = readSync(files[file]!.fd, block, 0, BLOCK_BYTES, offset)
      if (bytesRead !== BLOCK_BYTES)
        throw new Error(`read ${paths[file]} at ${offset}: expected ${BLOCK_BYTES} bytes, found ${bytesRead}`)
      sha256.update(block)
      at += BLOCK_BYTES
    }
    zeroesTo(size)
    return sha256.digest('hex')
  } finally {
    for (const file of files) await file.close()
  }
}
