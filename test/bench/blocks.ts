/**
 * An image's 4 KiB blocks that are not zero, in order, and what an image is: size, non-zero bytes, SHA-256. Of node's own
 * modules only: what measures the engine shares nothing with it.
 */
import { createHash, type Hash } from 'node:crypto'
import { open, stat } from 'node:fs/promises'

export const BLOCK_BYTES = 4096
const READ_BYTES = 1 << 20

export interface Block {
  /** In bytes, a multiple of BLOCK_BYTES. */
  readonly offset: number
  /** A view that holds until the next block is asked for. */
  readonly bytes: Buffer
}

export interface ImageFacts {
  readonly size: number
  /** In blocks of 4 KiB that are not zero. */
  readonly dataBytes: number
  readonly sha256: string
}

/** Rejects when the image cannot be read or its size is no multiple of BLOCK_BYTES. `hash` gets every byte, zeroes too. */
export async function* dataBlocks(path: string, hash?: Hash): AsyncGenerator<Block> {
  const { size } = await stat(path)
  if (size % BLOCK_BYTES !== 0)
    throw new Error(`read blocks of ${path}: expected a multiple of ${BLOCK_BYTES} bytes, found ${size}`)
  const zero = Buffer.alloc(READ_BYTES)
  const buffer = Buffer.alloc(READ_BYTES)
  await using file = await open(path)
  for (let start = 0; start < size; start += READ_BYTES) {
    const wanted = Math.min(READ_BYTES, size - start)
    const { bytesRead } = await file.read(buffer, 0, wanted, start)
    if (bytesRead !== wanted)
      throw new Error(`read ${path} at ${start}: expected ${wanted} bytes, found ${bytesRead}`)
    const part = buffer.subarray(0, wanted)
    hash?.update(part)
    if (part.equals(zero.subarray(0, wanted))) continue
    for (let at = 0; at < wanted; at += BLOCK_BYTES) {
      const bytes = part.subarray(at, at + BLOCK_BYTES)
      if (!bytes.equals(zero.subarray(0, BLOCK_BYTES))) yield { offset: start + at, bytes }
    }
  }
}

/** Reads the whole image once. */
export async function imageFacts(path: string): Promise<ImageFacts> {
  const hash = createHash('sha256')
  let dataBytes = 0
  for await (const { bytes } of dataBlocks(path, hash)) dataBytes += bytes.length
  return { size: (await stat(path)).size, dataBytes, sha256: hash.digest('hex') }
}
