/**
 * Walks one image and reports its chunks: the same cut as the sender's (zero blocks out, Rabin, SHA-256), but
 * over runs of any length, because the file is read in order: the unfinished chunk at the end of a piece is carried
 * over to the next one. The next piece is read while this one is cut. Synchronous work comes in pieces of a few
 * milliseconds. Holes are left out where the file system tells of them, and count as zero; what another image's map says is
 * taken from there (known-parts.ts).
 */
import { type Chunker, RUN_WORDS } from '../chunk/chunker.ts'
import { DIGEST_BYTES, hintOf } from '../chunk/digest.ts'
import { CHUNK_BYTES_MAX, SCAN_PIECE_BYTES } from '../core/limits.ts'
import { alignDown, alignUp, BLOCK_BYTES, KIB } from '../core/units.ts'
import type { ExtentSource } from './extent-source.ts'
import type { FoundSink, KnownParts, ScanPlace } from './known-parts.ts'

const ZEROES = Buffer.alloc(BLOCK_BYTES)

/** An unfinished chunk, from the start of the block in which it begins. */
const CARRY_BYTES = CHUNK_BYTES_MAX + BLOCK_BYTES
/** One read where parts are known: what is read of them is read in vain. */
const KNOWN_PIECE_BYTES = 512 * KIB

/** What a scan has reported already, as places in the image: the end of the last chunk, and of the last block, behind it. */
export interface ScanStart extends ScanPlace {
  /** Of what lies before. */
  readonly zeroBytes: number
}

/**
 * `onChunk` is given at least the first 8 bytes of a digest. `onBlock` hears of each whole 4 KiB block that is not all zero, in
 * the order of the image: the hint is good until it returns.
 */
export interface ScanOptions extends FoundSink {
  /** It goes on there. */
  readonly from?: ScanStart
  /** What need not be read. */
  readonly known?: KnownParts
  /** After each piece: how far the file is read, and how many bytes of it were zero blocks. */
  readonly onProgress?: (bytesDone: number, zeroBytes: number) => void
}

export async function scanImage(source: ExtentSource, chunker: Chunker, options: ScanOptions): Promise<void> {
  const { size } = source
  const { from = { chunksEnd: 0, blocksEnd: 0, zeroBytes: 0 }, known, signal } = options
  const pieceBytes = known === undefined ? SCAN_PIECE_BYTES : KNOWN_PIECE_BYTES
  const pieces = [0, 1].map(() => new Uint8Array(CARRY_BYTES + pieceBytes)) as [Uint8Array, Uint8Array]
  let { zeroBytes } = from
  let done = from.chunksEnd
  for (const extent of await source.extents(signal)) {
    if (extent.end <= from.chunksEnd) continue
    let place: ScanPlace = {
      chunksEnd: Math.max(extent.offset, from.chunksEnd),
      blocksEnd: Math.max(extent.offset, from.blocksEnd),
    }
    zeroBytes += place.chunksEnd - done
    while (place.chunksEnd < extent.end) {
      const limit = known?.until(place, extent.end)
      const zeroBefore = zeroBytes
      const found =
        limit === undefined
          ? await scanExtent(source, chunker, { ...place, end: extent.end }, pieces, {
              ...options,
              onProgress: (bytesDone, zeroInExtent) =>
                options.onProgress?.(bytesDone, zeroBefore + zeroInExtent),
            })
          : await known!.take(place, limit, options)
      zeroBytes += found.zeroBytes
      if (limit !== undefined) options.onProgress?.(found.chunksEnd, zeroBytes)
      place = found
    }
    done = extent.end
  }
  signal?.throwIfAborted()
  zeroBytes += size - done
  options.onProgress?.(size, zeroBytes)
}

type PieceBuffers = readonly [Uint8Array, Uint8Array]

/** Goes on from a place to the end of its extent, or to where more is known; gives how many bytes of that were zero blocks. */
async function scanExtent(
  source: ExtentSource,
  chunker: Chunker,
  from: ScanPlace & { readonly end: number },
  buffers: PieceBuffers,
  options: ScanOptions,
): Promise<ScanPlace & { readonly zeroBytes: number }> {
  const { end, blocksEnd } = from
  const pieceBytes = buffers[0].length - CARRY_BYTES
  let buffer = buffers[0]
  // What lies in front of the piece: `carry` bytes, the first `skip` of them belong to a finished chunk.
  let carry = 0
  // A chunk may end within a block.
  let pieceOffset = alignDown(from.chunksEnd, BLOCK_BYTES)
  let skip = from.chunksEnd - pieceOffset
  let zeroBytes = 0
  const readPiece = (target: Uint8Array, offset: number): Promise<number> => {
    const length = Math.min(pieceBytes, end - offset)
    return source.readInto(target.subarray(CARRY_BYTES, CARRY_BYTES + length), offset)
  }
  let reading = readPiece(buffer, pieceOffset)
  for (;;) {
    const bytesRead = await reading
    options.signal?.throwIfAborted()
    const nextOffset = pieceOffset + bytesRead
    // At the end, or the file is shorter than it was when it was opened.
    const last = bytesRead < pieceBytes || nextOffset >= end
    const nextBuffer = buffer === buffers[0] ? buffers[1] : buffers[0]
    if (!last) {
      reading = readPiece(nextBuffer, nextOffset)
      // If this pass throws, nobody awaits the read that was begun.
      reading.catch(() => {})
    }

    if (options.onBlock !== undefined) {
      const piece = buffer.subarray(CARRY_BYTES, CARRY_BYTES + bytesRead)
      visitBlocks(piece, pieceOffset, blocksEnd, options.onBlock)
    }
    const bytes = buffer.subarray(CARRY_BYTES - carry, CARRY_BYTES + bytesRead)
    const base = pieceOffset - carry
    const open = visitChunks(chunker, bytes, skip, last, base, {
      onChunk: options.onChunk,
      isKnown: (chunksEnd) =>
        options.known?.until({ chunksEnd, blocksEnd: Math.max(blocksEnd, nextOffset) }, end) !== undefined,
    })
    zeroBytes += open.zeroBytes
    if (open.known) {
      // Its buffer is used again.
      await reading
      return { chunksEnd: base + open.offset, blocksEnd: Math.max(blocksEnd, nextOffset), zeroBytes }
    }
    options.onProgress?.(nextOffset, zeroBytes)
    if (last) return { chunksEnd: end, blocksEnd: end, zeroBytes }

    const at = alignDown(open.offset, BLOCK_BYTES)
    skip = open.offset - at
    carry = bytes.length - at
    nextBuffer.set(bytes.subarray(at), CARRY_BYTES - carry)
    buffer = nextBuffer
    pieceOffset = nextOffset
  }
}

/**
 * Reports the finished chunks of `bytes`, up to one behind which more is known; returns where the unfinished one begins (at the
 * end if there is none).
 */
function visitChunks(
  chunker: Chunker,
  bytes: Uint8Array,
  skip: number,
  last: boolean,
  base: number,
  options: Pick<ScanOptions, 'onChunk'> & { readonly isKnown: (chunksEnd: number) => boolean },
): { offset: number; zeroBytes: number; known: boolean } {
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
      if (!last && offset + chunkLength === bytes.length) return { offset, zeroBytes, known: false }
      options.onChunk(base + offset, chunkLength, digests, chunk * DIGEST_BYTES)
      offset += chunkLength
      // What is left of a piece is not worth it.
      if (!last && options.isKnown(base + offset)) return { offset, zeroBytes, known: true }
    }
  }
  return { offset: bytes.length, zeroBytes, known: false }
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
    if (ZEROES.compare(block) !== 0) onBlock(base + at, hintOf(block))
  }
}
