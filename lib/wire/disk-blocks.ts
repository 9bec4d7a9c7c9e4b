/**
 * The messages of a chunk that is put together from its blocks: hints of them (HINTS, BRIEF), and which are missing (PARTS, SKETCHES).
 * Pure, like disk.ts, which has their numbers' list.
 */
import { ProtocolError } from '../core/errors.ts'
import { CHUNK_BLOCKS_MAX, HINTS_CHUNKS_MAX, PARTS_CHUNKS_MAX, SKETCHES_CHUNKS_MAX } from '../core/limits.ts'
import { BRIEF_HINT_BYTES, HINT_BYTES, SKETCH_BYTES } from '../core/units.ts'
import { bitCount, type PayloadReader, PayloadWriter, readCount } from './bytes.ts'

export const DISK_HINTS: number = 30
export const DISK_PARTS: number = 31
export const DISK_SKETCHES: number = 36
export const DISK_BRIEF: number = 37

/** HINT_BYTES for each 4 KiB block of the disk that the chunk lies in; zeroes where a block is not whole in its run. */
export interface ChunkHints {
  readonly seq: number
  readonly hints: Buffer
}

/** Which of these blocks are to be sent, as far as they lie in the chunk: bit i % 8 of byte i / 8. */
export interface ChunkParts {
  readonly seq: number
  readonly blocks: number
  readonly missing: Buffer
}

/** The same, where older versions of some of these blocks lie in place. */
export interface ChunkSketches extends ChunkParts {
  /** Which of the missing blocks; a bit each, as in `missing`. */
  readonly old: Buffer
  /** SKETCH_BYTES for each of those (engine/pieces.ts). */
  readonly sketches: Buffer
}

export type BlockMessage =
  | { readonly type: 'hints'; readonly chunks: readonly ChunkHints[] }
  /** The same, unasked, with BRIEF_HINT_BYTES for each block. */
  | { readonly type: 'brief'; readonly chunks: readonly ChunkHints[] }
  | { readonly type: 'parts'; readonly chunks: readonly ChunkParts[] }
  | { readonly type: 'sketches'; readonly chunks: readonly ChunkSketches[] }

export function encodeBlocks(message: BlockMessage & { readonly disk: number; readonly epoch: number }): {
  readonly type: number
  readonly payload: readonly Uint8Array[]
} {
  const start = (length: number): PayloadWriter =>
    new PayloadWriter(6 + length).u16(message.disk).u32(message.epoch)
  switch (message.type) {
    case 'hints':
    case 'brief': {
      const [type, hintBytes] =
        message.type === 'hints' ? [DISK_HINTS, HINT_BYTES] : [DISK_BRIEF, BRIEF_HINT_BYTES]
      const bytes = message.chunks.reduce((sum, { hints }) => sum + 9 + hints.length, 0)
      const payload = start(2 + bytes).u16(message.chunks.length)
      for (const { seq, hints } of message.chunks)
        payload
          .u64(seq)
          .u8(hints.length / hintBytes)
          .raw(hints)
      return { type, payload: [payload.done()] }
    }
    case 'parts': {
      const bytes = message.chunks.reduce((sum, { missing }) => sum + 9 + missing.length, 0)
      const payload = start(2 + bytes).u16(message.chunks.length)
      for (const { seq, blocks, missing } of message.chunks) payload.u64(seq).u8(blocks).raw(missing)
      return { type: DISK_PARTS, payload: [payload.done()] }
    }
    case 'sketches': {
      const bytes = message.chunks.reduce(
        (sum, { missing, old, sketches }) => sum + 9 + missing.length + old.length + sketches.length,
        0,
      )
      const payload = start(2 + bytes).u16(message.chunks.length)
      for (const { seq, blocks, missing, old, sketches } of message.chunks)
        payload.u64(seq).u8(blocks).raw(missing).raw(old).raw(sketches)
      return { type: DISK_SKETCHES, payload: [payload.done()] }
    }
    default: {
      const never: never = message
      throw new TypeError(`encodeBlocks: ${JSON.stringify(never)}`)
    }
  }
}

function readBlocks(reader: PayloadReader, name: string): number {
  const value = reader.u8('block count')
  if (value === 0 || value > CHUNK_BLOCKS_MAX)
    throw new ProtocolError(`${name}: a chunk in ${value} blocks, expected 1 to ${CHUNK_BLOCKS_MAX}`)
  return value
}

function hints(reader: PayloadReader, name: string, hintBytes: number): ChunkHints[] {
  const chunks: ChunkHints[] = []
  for (let left = readCount(reader, name, HINTS_CHUNKS_MAX); left > 0; left--) {
    const seq = reader.u64('sequence')
    chunks.push({ seq, hints: reader.bytes('hints', readBlocks(reader, name) * hintBytes) })
  }
  return chunks
}

/** Undefined for a type that is none of these. @throws ProtocolError */
export function decodeBlocks(type: number, reader: PayloadReader): BlockMessage | undefined {
  switch (type) {
    case DISK_HINTS:
      return { type: 'hints', chunks: hints(reader, 'HINTS', HINT_BYTES) }
    case DISK_BRIEF:
      return { type: 'brief', chunks: hints(reader, 'BRIEF', BRIEF_HINT_BYTES) }
    case DISK_PARTS: {
      const chunks: ChunkParts[] = []
      for (let left = readCount(reader, 'PARTS', PARTS_CHUNKS_MAX); left > 0; left--) {
        const seq = reader.u64('sequence')
        const blocks = readBlocks(reader, 'PARTS')
        chunks.push({ seq, blocks, missing: reader.bytes('missing', Math.ceil(blocks / 8)) })
      }
      return { type: 'parts', chunks }
    }
    case DISK_SKETCHES: {
      const chunks: ChunkSketches[] = []
      for (let left = readCount(reader, 'SKETCHES', SKETCHES_CHUNKS_MAX); left > 0; left--) {
        const seq = reader.u64('sequence')
        const blocks = readBlocks(reader, 'SKETCHES')
        const missing = reader.bytes('missing', Math.ceil(blocks / 8))
        const old = reader.bytes('old', Math.ceil(blocks / 8))
        const sketched = bitCount(old)
        const beyond = blocks % 8 === 0 ? 0 : old.at(-1)! >> (blocks % 8)
        if (sketched === 0 || beyond !== 0 || old.some((bits, at) => (bits & ~missing[at]!) !== 0))
          throw new ProtocolError(
            `SKETCHES: ${sketched} sketches of a chunk in ${blocks} blocks, or of one that is there`,
          )
        chunks.push({
          seq,
          blocks,
          missing,
          old,
          sketches: reader.bytes('sketches', sketched * SKETCH_BYTES),
        })
      }
      return { type: 'sketches', chunks }
    }
    default:
      return undefined
  }
}
