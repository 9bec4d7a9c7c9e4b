/**
 * Walks one image and reports its chunks: the same cut as the sender's (zero blocks out, Rabin, SHA-256), but
 * over runs of any length, because the file is read in order: the unfinished chunk at the end of a piece is carried
 * over to the next one. The next piece is read while this one is cut. Synchronous work comes in pieces of a few
 * milliseconds. Holes are left out where the file system tells of them, and count as zero.
 */
import { type Chunker, RUN_WORDS } from '../chunk/chunker.ts'
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX, SCAN_PIECE_BYTES } from '../core/limits.ts'
import { alignDown, alignUp, BLOCK_BYTES } from '../core/units.ts'
import type { DataExtent } from './data-extents.ts'
import type { ExtentSource } from './extent-source.ts'

const ZEROES = Buffer.alloc(BLOCK_BYTES)

/** An unfinished chunk, from the start of the block in which it begins. */
const CARRY_BYTES = CHUNK_BYTES_MAX + BLOCK_BYTES

/** What a scan has reported already, as places in the image: the end of the last chunk, and of the last block, behind it. */
export interface ScanStart {
  readonly chunksEnd: number
  readonly blocksEnd: number
  /** Of what lies before. */
  readonly zeroBytes: number
}

export interface ScanOptions {
  /** It goes on there. */
  readonly from?: ScanStart
  readonly onChunk: (offset: number, length: number, digests: Uint8Array, digestOffset: number) => void
  /** Each whole 4 KiB block that is not all zero, in the order of the image; `bytes` are good until it returns. */
  readonly onBlock?: (offset: number, bytes: Uint8Array) => void
  /** After each piece: how far the file is read, and how many bytes of it were zero blocks. */
  readonly onProgress?: (bytesDone: number, zeroBytes: number) => void
  readonly signal?: AbortSignal
}

export async function scanImage(source: ExtentSource, chunker: Chunker, options: ScanOptions): Promise<void> {
  const { size } = source
  const buffers: PieceBuffers = [
    new Uint8Array(CARRY_BYTES + SCAN_PIECE_BYTES),
    new Uint8Array(CARRY_BYTES + SCAN_PIECE_BYTES),
  ]
  const { from = { chunksEnd: 0, blocksEnd: 0, zeroBytes: 0 } } = options
  let { zeroBytes } = from
  let done = from.chunksEnd
  for (const whole of await source.extents(options.signal)) {
    if (whole.end <= from.chunksEnd) continue
    // A chunk may end within a block.
    const offset = Math.max(whole.offset, alignDown(from.chunksEnd, BLOCK_BYTES))
    const extent = { offset, end: whole.end, skip: Math.max(0, from.chunksEnd - offset) }
    zeroBytes += Math.max(0, offset - done)
    const zeroBefore = zeroBytes
    zeroBytes += await scanExtent(source, chunker, extent, buffers, {
      ...options,
      onProgress: (bytesDone, zeroInExtent) => options.onProgress?.(bytesDone, zeroBefore + zeroInExtent),
    })
    done = extent.end
  }
  options.signal?.throwIfAborted()
  zeroBytes += size - done
  options.onProgress?.(size, zeroBytes)
}

type PieceBuffers = readonly [Uint8Array, Uint8Array]

/** Returns how many bytes of the extent were zero blocks. */
async function scanExtent(
  source: ExtentSource,
  chunker: Chunker,
  extent: DataExtent & { readonly skip: number },
  buffers: PieceBuffers,
  options: ScanOptions,
): Promise<number> {
  let buffer = buffers[0]
  // What lies in front of the piece: `carry` bytes, the first `skip` of them belong to a finished chunk.
  let carry = 0
  let { skip } = extent
  let zeroBytes = 0
  let pieceOffset = extent.offset
  const readPiece = (target: Uint8Array, offset: number): Promise<number> => {
    const length = Math.min(SCAN_PIECE_BYTES, extent.end - offset)
    return source.readInto(target.subarray(CARRY_BYTES, CARRY_BYTES + length), offset)
  }
  let reading = readPiece(buffer, pieceOffset)
  for (;;) {
    const bytesRead = await reading
    options.signal?.throwIfAborted()
    const nextOffset = pieceOffset + bytesRead
    // At the end, or the file is shorter than it was when it was opened.
    const last = bytesRead < SCAN_PIECE_BYTES || nextOffset >= extent.end
    const nextBuffer = buffer === buffers[0] ? buffers[1] : buffers[0]
    if (!last) {
      reading = readPiece(nextBuffer, nextOffset)
      // If this pass throws, nobody awaits the read that was begun.
      reading.catch(() => {})
    }

    if (options.onBlock !== undefined) {
      const piece = buffer.subarray(CARRY_BYTES, CARRY_BYTES + bytesRead)
      visitBlocks(piece, pieceOffset, options.from?.blocksEnd ?? 0, options.onBlock)
    }
    const bytes = buffer.subarray(CARRY_BYTES - carry, CARRY_BYTES + bytesRead)
    const open = visitChunks(chunker, bytes, skip, last, pieceOffset - carry, options)
    zeroBytes += open.zeroBytes
    options.onProgress?.(nextOffset, zeroBytes)
    if (last) return zeroBytes

    const from = alignDown(open.offset, BLOCK_BYTES)
    skip = open.offset - from
    carry = bytes.length - from
    nextBuffer.set(bytes.subarray(from), CARRY_BYTES - carry)
    buffer = nextBuffer
    pieceOffset = nextOffset
  }
}

/** Reports the finished chunks of `bytes`; returns where the unfinished one begins (at the end if there is none). */
function visitChunks(
  chunker: Chunker,
  bytes: Uint8Array,
  skip: number,
  last: boolean,
  base: number,
  options: ScanOptions,
): { offset: number; zeroBytes: number } {
  const { runs, lengths, digests } = chunker.describe(bytes, skip)
  let zeroBytes = 0
  let chunk = 0
  for (let at = 0; at < runs.length; at += RUN_WORDS) {
    let offset = runs[at]!
    const length = runs[at + 1]!
    if (runs[at + 2] === 1) zeroBytes += length
    const chunkEnd = chunk + runs[at + 3]!
    for (; chunk < chunkEnd; chunk++) {
      const chunkLength = lengths[chunk]!
      // The last chunk of the piece ended because the bytes did; it is cut again with what follows.
      if (!last && offset + chunkLength === bytes.length) return { offset, zeroBytes }
      options.onChunk(base + offset, chunkLength, digests, chunk * DIGEST_BYTES)
      offset += chunkLength
    }
  }
  return { offset: bytes.length, zeroBytes }
}

/** @param from where in the image those begin that are reported */
function visitBlocks(
  bytes: Uint8Array,
  base: number,
  from: number,
  onBlock: NonNullable<ScanOptions['onBlock']>,
): void {
  for (
    let at = alignUp(Math.max(base, from), BLOCK_BYTES) - base;
    at + BLOCK_BYTES <= bytes.length;
    at += BLOCK_BYTES
  ) {
    const block = bytes.subarray(at, at + BLOCK_BYTES)
    if (ZEROES.compare(block) !== 0) onBlock(base + at, block)
  }
}
