/**
 * What two daemons say to each other of an estimate, as bytes inside of JSON (base64). Pure. Numbers are big-endian.
 *
 *   chunks: count times: the first 8 bytes of the digest, u48 offset, u24 length; the answer is a byte each (CHUNK_…)
 *   blocks: runs of neighbouring blocks: u48 offset of the first, u8 count, count times 8 bytes of SHA-256;
 *           the answer is a bit each, bit i mod 8 of byte i / 8: it lies here
 *
 * Whatever decodes throws ProtocolError, before it allocates more than the text has.
 */
import { ProtocolError } from '../../lib/core/errors.ts'
import {
  CHUNK_BLOCKS_MAX,
  CHUNK_BYTES_MAX,
  ESTIMATE_CALL_BLOCKS_MAX,
  ESTIMATE_CALL_CHUNKS_MAX,
  IMAGE_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { BLOCK_BYTES, HINT_BYTES } from '../../lib/core/units.ts'

/** Nowhere here; in another image; where it belongs. */
export const CHUNK_LACKING: number = 0
export const CHUNK_ELSEWHERE: number = 1
export const CHUNK_IN_PLACE: number = 2

const OFFSET_BYTES = 6
const CHUNK_ENTRY_BYTES = HINT_BYTES + OFFSET_BYTES + 3
const RUN_BYTES = OFFSET_BYTES + 1

export interface AskedChunk {
  readonly key: Uint8Array
  readonly offset: number
  readonly length: number
}

/** Neighbouring blocks, the first one at `offset`; 1 to CHUNK_BLOCKS_MAX hints. */
export interface AskedBlocks {
  readonly offset: number
  readonly hints: Uint8Array
}

export function encodeChunks(chunks: readonly AskedChunk[]): string {
  const bytes = Buffer.alloc(chunks.length * CHUNK_ENTRY_BYTES)
  for (const [index, { key, offset, length }] of chunks.entries()) {
    const at = index * CHUNK_ENTRY_BYTES
    bytes.set(key, at)
    bytes.writeUIntBE(offset, at + HINT_BYTES, OFFSET_BYTES)
    bytes.writeUIntBE(length, at + HINT_BYTES + OFFSET_BYTES, 3)
  }
  return bytes.toString('base64')
}

export function decodeChunks(text: string): (AskedChunk & { readonly key: Buffer })[] {
  const bytes = decodeBase64('chunks', text, ESTIMATE_CALL_CHUNKS_MAX * CHUNK_ENTRY_BYTES)
  if (bytes.length % CHUNK_ENTRY_BYTES !== 0)
    throw new ProtocolError(`estimate: chunks: ${bytes.length} bytes are no whole entries`)
  return Array.from({ length: bytes.length / CHUNK_ENTRY_BYTES }, (_, index) => {
    const at = index * CHUNK_ENTRY_BYTES
    const offset = bytes.readUIntBE(at + HINT_BYTES, OFFSET_BYTES)
    const length = bytes.readUIntBE(at + HINT_BYTES + OFFSET_BYTES, 3)
    if (length < 1 || length > CHUNK_BYTES_MAX || offset + length > IMAGE_BYTES_MAX)
      throw new ProtocolError(`estimate: chunks: ${length} bytes at ${offset} are no chunk`)
    return { key: bytes.subarray(at, at + HINT_BYTES), offset, length }
  })
}

export function encodeBlocks(runs: readonly AskedBlocks[]): string {
  const parts: Uint8Array[] = []
  for (const { offset, hints } of runs) {
    const head = Buffer.alloc(RUN_BYTES)
    head.writeUInt8(hints.length / HINT_BYTES, head.writeUIntBE(offset, 0, OFFSET_BYTES))
    parts.push(head, hints)
  }
  return Buffer.concat(parts).toString('base64')
}

export function decodeBlocks(text: string): (AskedBlocks & { readonly hints: Buffer })[] {
  // Runs of one block each are the most bytes.
  const bytes = decodeBase64('blocks', text, ESTIMATE_CALL_BLOCKS_MAX * (RUN_BYTES + HINT_BYTES))
  const runs: (AskedBlocks & { readonly hints: Buffer })[] = []
  let blocks = 0
  for (let at = 0; at < bytes.length; ) {
    if (at + RUN_BYTES > bytes.length) throw new ProtocolError('estimate: blocks: cut off in a run')
    const offset = bytes.readUIntBE(at, OFFSET_BYTES)
    const count = bytes.readUInt8(at + OFFSET_BYTES)
    at += RUN_BYTES
    const end = at + count * HINT_BYTES
    blocks += count
    if (count < 1 || count > CHUNK_BLOCKS_MAX || end > bytes.length || blocks > ESTIMATE_CALL_BLOCKS_MAX)
      throw new ProtocolError(`estimate: blocks: a run of ${count}, ${blocks} in all`)
    if (offset % BLOCK_BYTES !== 0 || offset + count * BLOCK_BYTES > IMAGE_BYTES_MAX)
      throw new ProtocolError(`estimate: blocks: no blocks at ${offset}`)
    runs.push({ offset, hints: bytes.subarray(at, end) })
    at = end
  }
  return runs
}

/** Exactly `count` bytes CHUNK_…. */
export function decodeStates(text: string, count: number): Buffer {
  const bytes = decodeBase64('states', text, count)
  if (bytes.length !== count || bytes.some((state) => state > CHUNK_IN_PLACE))
    throw new ProtocolError(`estimate: states: expected ${count} of 0 to ${CHUNK_IN_PLACE}`)
  return bytes
}

/** The bits of `count` blocks. */
export function decodeBits(text: string, count: number): Buffer {
  const length = Math.ceil(count / 8)
  const bytes = decodeBase64('known', text, length)
  if (bytes.length !== length) throw new ProtocolError(`estimate: known: expected ${count} bits`)
  return bytes
}

function decodeBase64(what: string, text: string, bytesMax: number): Buffer {
  if (text.length > Math.ceil(bytesMax / 3) * 4 || !/^[A-Za-z0-9+/]*={0,2}$/.test(text))
    throw new ProtocolError(
      `estimate: ${what}: expected base64 of at most ${bytesMax} bytes, found ${text.length} characters`,
    )
  return Buffer.from(text, 'base64')
}
