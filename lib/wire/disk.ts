/**
 * The messages of one disk's transfer, between the sender (source host) and the receiver (destination host). Pure:
 * payload bytes in, one member of a discriminated union out, and back. docs/wire-protocol.md has the ladder.
 *
 * Every message begins with { u16 disk, u32 epoch }. A chunk is named by its sequence number, counted per disk from 0
 * in the order in which the sender settled the order of writes: of two that overlap, the higher number is the newer.
 * Numbers are big-endian. Ceilings are checked before anything is allocated.
 */
import { ProtocolError } from '../core/errors.ts'
import {
  CHUNK_BYTES_MAX,
  DESCRIBE_CHUNKS_MAX,
  EXPORT_NAME_BYTES_MAX,
  LITERAL_BYTES_MAX,
  LITERAL_CHUNKS_MAX,
  MIGRATION_DISKS_MAX,
  RUN_BYTES_MAX,
  SEQ_RUNS_MAX,
  SURVEY_CHUNKS_MAX,
  SURVEY_SEGMENTS_MAX,
} from '../core/limits.ts'
import { blockCount } from '../core/units.ts'
import { PayloadReader, PayloadWriter, readCount, varint } from './bytes.ts'
import { type BlockMessage, decodeBlocks, encodeBlocks } from './disk-blocks.ts'
import { decodeProof, encodeProof, type ProofMessage } from './disk-proof.ts'

export const DISK_OPEN: number = 16
export const DISK_OPENED: number = 17
export const DISK_DESCRIBE: number = 18
export const DISK_ZERO: number = 19
export const DISK_WANT: number = 20
export const DISK_LITERAL: number = 21
export const DISK_APPLIED: number = 22
export const DISK_FLUSH: number = 23
export const DISK_FLUSHED: number = 24
export const DISK_FAILED: number = 25
export const DISK_READ: number = 26
export const DISK_READ_REPLY: number = 27
export const DISK_CLOSE: number = 28
export const DISK_ASK: number = 29
// 30, 31, 36, 37: disk-blocks.ts.
export const DISK_SURVEY: number = 32
export const DISK_DETAIL: number = 33
export const DISK_DIGESTS: number = 34
export const DISK_HELD: number = 35
// 38 to 40: disk-proof.ts.
export const DISK_CHANGED: number = 41

export const DIGEST_BYTES: number = 32

/** In both HELLOs: a chunk that is missing may be asked for block by block (ASK, HINTS, PARTS). */
export const FEATURE_BLOCKS = 'blocks'
/** In both HELLOs: literals are zstd streams, two of frame class bulk and one of class final. */
export const FEATURE_STREAM = 'stream'
/** In both HELLOs, with FEATURE_STREAM: the window of a stream has up to 4 MiB instead of 2. */
export const FEATURE_WIDE = 'wide'
/** In both HELLOs: what was written together is described by one SURVEY, and an APPLIED run may go over zeroes. */
export const FEATURE_SURVEY = 'survey'
/**
 * In both HELLOs, with FEATURE_BLOCKS: of blocks that lie in place in an older version only what changed is sent (SKETCHES), and
 * BRIEF hints come unasked.
 */
export const FEATURE_DELTA = 'delta'
/** In both HELLOs, with FEATURE_DELTA: the sender may know itself what changed, and sends that unasked (CHANGED). */
export const FEATURE_CHANGED = 'changed'
/** What this end knows of these, for its HELLO on a disk bundle; FEATURE_PROOF (disk-proof.ts) where it keeps a map of the disk. */
export const ENGINE_FEATURES: readonly string[] = [
  FEATURE_BLOCKS,
  FEATURE_STREAM,
  FEATURE_SURVEY,
  FEATURE_DELTA,
  FEATURE_WIDE,
  FEATURE_CHANGED,
]

/** Chunks of a SURVEY that one root stands for. */
export const ROOT_CHUNKS: number = 32

/** Where the receiver found the bytes of a chunk. The order is part of the protocol. */
export const SOURCES = [
  'zero',
  'inPlace',
  'chunk',
  'block',
  'session',
  'neighbour',
  'delta',
  'literal',
] as const
export type SourceName = (typeof SOURCES)[number]

/** `bulk`, `bulk2`, `final`: the next piece of one of the disk's zstd streams, flushed. The order is part of the protocol. */
const CODECS = ['raw', 'zstd', 'bulk', 'final', 'bulk2'] as const
export type LiteralCodec = (typeof CODECS)[number]

export interface SeqRun {
  readonly first: number
  readonly count: number
}

export interface AppliedRun extends SeqRun {
  readonly source: SourceName
}

/** A run of a SURVEY: zeroes, or the lengths of its chunks. */
export type SurveyedRun =
  | { readonly zero: true; readonly length: number }
  | { readonly zero: false; readonly lengths: Uint32Array }

interface Head {
  readonly disk: number
  readonly epoch: number
}

export type DiskMessage = Head & DiskMessageBody

export type DiskMessageBody =
  | { readonly type: 'open'; readonly port: number; readonly exportName: string }
  | { readonly type: 'opened'; readonly errno: number; readonly text: string }
  | {
      readonly type: 'describe'
      readonly firstSeq: number
      /** Where the run lies on the disk; its chunks follow one another without a gap. */
      readonly offset: number
      readonly lengths: Uint32Array
      /** 32 bytes a chunk. */
      readonly digests: Uint8Array
    }
  /** A DESCRIBE of chunks whose older versions lie in place, and in which of their blocks something differs. */
  | {
      readonly type: 'changed'
      readonly firstSeq: number
      readonly offset: number
      readonly lengths: Uint32Array
      readonly digests: Uint8Array
      /** For each chunk a bit for each of its blocks, as in PARTS; none: it is the same. */
      readonly missing: readonly Buffer[]
    }
  | { readonly type: 'zero'; readonly seq: number; readonly offset: number; readonly length: number }
  | { readonly type: 'want'; readonly runs: readonly SeqRun[] }
  | {
      readonly type: 'literal'
      readonly chunks: readonly { readonly seq: number; readonly length: number }[]
      readonly codec: LiteralCodec
      /** The chunks' bytes one after another, coded. */
      readonly data: Buffer
    }
  | { readonly type: 'applied'; readonly runs: readonly AppliedRun[] }
  | {
      readonly type: 'survey'
      /** Every chunk and every run of zeroes has a number. */
      readonly firstSeq: number
      readonly offset: number
      readonly runs: readonly SurveyedRun[]
      /** Whether `digests` has the root of ROOT_CHUNKS chunks each (engine/survey.ts), or every chunk's own. */
      readonly roots: boolean
      readonly digests: Uint8Array
    }
  /** What of the target does not read as zero, as far as it is known. */
  | { readonly type: 'held'; readonly bytes: number }
  | { readonly type: 'detail'; readonly runs: readonly SeqRun[] }
  | { readonly type: 'digests'; readonly firstSeq: number; readonly digests: Uint8Array }
  | { readonly type: 'ask'; readonly runs: readonly SeqRun[] }
  | BlockMessage
  | { readonly type: 'flush'; readonly id: number; readonly barrier: number }
  | { readonly type: 'flushed'; readonly id: number }
  | ProofMessage
  | { readonly type: 'failed'; readonly errno: number; readonly text: string }
  | { readonly type: 'read'; readonly id: number; readonly offset: number; readonly length: number }
  | { readonly type: 'readReply'; readonly id: number; readonly errno: number; readonly data: Buffer }
  | { readonly type: 'close' }

export interface EncodedMessage {
  readonly type: number
  /** Pieces that follow one another on the wire. */
  readonly payload: readonly Uint8Array[]
}

function text(value: string): Buffer {
  const bytes = Buffer.from(value, 'utf8')
  return bytes.length <= EXPORT_NAME_BYTES_MAX ? bytes : bytes.subarray(0, EXPORT_NAME_BYTES_MAX)
}

const RUN_TYPES = { want: DISK_WANT, ask: DISK_ASK, detail: DISK_DETAIL }

export function encodeDiskMessage(message: DiskMessage): EncodedMessage {
  const start = (length: number): PayloadWriter =>
    new PayloadWriter(6 + length).u16(message.disk).u32(message.epoch)
  switch (message.type) {
    case 'open': {
      const name = text(message.exportName)
      const payload = start(4 + name.length)
        .u16(message.port)
        .u16(name.length)
        .raw(name)
      return { type: DISK_OPEN, payload: [payload.done()] }
    }
    case 'opened':
    case 'failed': {
      const reason = text(message.text)
      const payload = start(6 + reason.length)
        .u32(message.errno)
        .u16(reason.length)
        .raw(reason)
      return { type: message.type === 'opened' ? DISK_OPENED : DISK_FAILED, payload: [payload.done()] }
    }
    case 'describe':
    case 'changed': {
      const count = message.lengths.length
      const payload = start(18 + 4 * count)
        .u64(message.firstSeq)
        .u64(message.offset)
        .u16(count)
      for (const length of message.lengths) payload.u32(length)
      if (message.type === 'describe')
        return { type: DISK_DESCRIBE, payload: [payload.done(), message.digests] }
      return { type: DISK_CHANGED, payload: [payload.done(), message.digests, ...message.missing] }
    }
    case 'zero':
      return {
        type: DISK_ZERO,
        payload: [start(24).u64(message.seq).u64(message.offset).u64(message.length).done()],
      }
    case 'want':
    case 'ask':
    case 'detail': {
      const payload = start(2 + 12 * message.runs.length).u16(message.runs.length)
      for (const run of message.runs) payload.u64(run.first).u32(run.count)
      return { type: RUN_TYPES[message.type], payload: [payload.done()] }
    }
    case 'survey': {
      const runs = Buffer.from(
        message.runs.flatMap((run) =>
          run.zero
            ? varint(2 * run.length + 1)
            : [...varint(2 * run.lengths.length), ...Array.from(run.lengths).flatMap(varint)],
        ),
      )
      const payload = start(19 + runs.length)
        .u64(message.firstSeq)
        .u64(message.offset)
        .u8(message.roots ? 1 : 0)
        .u16(message.runs.length)
        .raw(runs)
      return { type: DISK_SURVEY, payload: [payload.done(), message.digests] }
    }
    case 'held':
      return { type: DISK_HELD, payload: [start(8).u64(message.bytes).done()] }
    case 'digests':
      return { type: DISK_DIGESTS, payload: [start(8).u64(message.firstSeq).done(), message.digests] }
    case 'hints':
    case 'brief':
    case 'parts':
    case 'sketches':
      return encodeBlocks(message)
    case 'literal': {
      const payload = start(3 + 12 * message.chunks.length)
        .u8(CODECS.indexOf(message.codec))
        .u16(message.chunks.length)
      for (const chunk of message.chunks) payload.u64(chunk.seq).u32(chunk.length)
      return { type: DISK_LITERAL, payload: [payload.done(), message.data] }
    }
    case 'applied': {
      const payload = start(2 + 13 * message.runs.length).u16(message.runs.length)
      for (const run of message.runs) payload.u64(run.first).u32(run.count).u8(SOURCES.indexOf(run.source))
      return { type: DISK_APPLIED, payload: [payload.done()] }
    }
    case 'flush':
      return { type: DISK_FLUSH, payload: [start(12).u32(message.id).u64(message.barrier).done()] }
    case 'flushed':
      return { type: DISK_FLUSHED, payload: [start(4).u32(message.id).done()] }
    case 'prove':
    case 'proved':
    case 'disproved':
      return encodeProof(message)
    case 'read': {
      const payload = start(16).u32(message.id).u64(message.offset).u32(message.length)
      return { type: DISK_READ, payload: [payload.done()] }
    }
    case 'readReply':
      return {
        type: DISK_READ_REPLY,
        payload: [start(8).u32(message.id).u32(message.errno).done(), message.data],
      }
    case 'close':
      return { type: DISK_CLOSE, payload: [start(0).done()] }
    default: {
      const never: never = message
      throw new TypeError(`encodeDiskMessage: ${JSON.stringify(never)}`)
    }
  }
}

function runCount(reader: PayloadReader, name: string): number {
  const value = reader.u32('run count')
  if (value === 0 || value > 0x100_0000) throw new ProtocolError(`${name}: a run of ${value} chunks`)
  return value
}

function seqRuns(reader: PayloadReader, name: string): SeqRun[] {
  const runs: SeqRun[] = []
  for (let left = readCount(reader, name, SEQ_RUNS_MAX); left > 0; left--) {
    runs.push({ first: reader.u64('first'), count: runCount(reader, name) })
  }
  return runs
}

type Described = Pick<
  Extract<DiskMessageBody, { type: 'describe' }>,
  'firstSeq' | 'offset' | 'lengths' | 'digests'
>

function describe(name: string, reader: PayloadReader): Described {
  const firstSeq = reader.u64('first sequence')
  const offset = reader.u64('offset')
  const chunks = readCount(reader, name, DESCRIBE_CHUNKS_MAX)
  const lengths = new Uint32Array(chunks)
  let total = 0
  for (let i = 0; i < chunks; i++) {
    const length = reader.u32('chunk length')
    if (length === 0 || length > CHUNK_BYTES_MAX) {
      throw new ProtocolError(`${name}: chunk ${i} has ${length} bytes, expected 1 to ${CHUNK_BYTES_MAX}`)
    }
    lengths[i] = length
    total += length
  }
  if (!Number.isSafeInteger(offset + total))
    throw new ProtocolError(`${name}: ${offset} + ${total} is beyond 2^53`)
  const digests = reader.bytes('digests', chunks * DIGEST_BYTES)
  return { firstSeq, offset, lengths, digests }
}

function changed(described: Described, reader: PayloadReader): Buffer[] {
  const missing: Buffer[] = []
  let at = described.offset
  for (const length of described.lengths) {
    const blocks = blockCount(at, at + length)
    at += length
    const bits = reader.bytes('missing', Math.ceil(blocks / 8))
    if (blocks % 8 !== 0 && bits.at(-1)! >> (blocks % 8) !== 0)
      throw new ProtocolError(`CHANGED: a block beyond the ${blocks} of a chunk of ${length} bytes`)
    missing.push(bits)
  }
  return missing
}

function survey(head: Head, reader: PayloadReader): DiskMessage {
  const firstSeq = reader.u64('first sequence')
  const offset = reader.u64('offset')
  const roots = reader.u8('roots')
  if (roots > 1) throw new ProtocolError(`SURVEY: roots is ${roots}, expected 0 or 1`)
  const runs: SurveyedRun[] = []
  let total = 0
  let chunks = 0
  const more = (length: number): void => {
    total += length
    if (length === 0 || total > RUN_BYTES_MAX)
      throw new ProtocolError(`SURVEY: ${total} bytes, expected 1 to ${RUN_BYTES_MAX}`)
  }
  for (let left = readCount(reader, 'SURVEY', SURVEY_SEGMENTS_MAX); left > 0; left--) {
    const head = reader.varint('run', 2 * RUN_BYTES_MAX + 1)
    if (head % 2 === 1) {
      const length = (head - 1) / 2
      more(length)
      runs.push({ zero: true, length })
      continue
    }
    const lengths = head / 2
    chunks += lengths
    if (lengths === 0 || chunks > SURVEY_CHUNKS_MAX)
      throw new ProtocolError(`SURVEY: ${chunks} chunks, expected 1 to ${SURVEY_CHUNKS_MAX}`)
    const run = new Uint32Array(lengths)
    for (let at = 0; at < lengths; at++) {
      run[at] = reader.varint('chunk length', CHUNK_BYTES_MAX)
      more(run[at]!)
    }
    runs.push({ zero: false, lengths: run })
  }
  if (!Number.isSafeInteger(offset + total))
    throw new ProtocolError(`SURVEY: ${offset} + ${total} is beyond 2^53`)
  const digests = reader.bytes(
    'digests',
    (roots === 1 ? Math.ceil(chunks / ROOT_CHUNKS) : chunks) * DIGEST_BYTES,
  )
  return { ...head, type: 'survey', firstSeq, offset, runs, roots: roots === 1, digests }
}

function literal(head: Head, reader: PayloadReader): DiskMessage {
  const codec = CODECS[reader.u8('codec')]
  if (codec === undefined) throw new ProtocolError('LITERAL: unknown codec')
  const chunks: { seq: number; length: number }[] = []
  let total = 0
  for (let left = readCount(reader, 'LITERAL', LITERAL_CHUNKS_MAX); left > 0; left--) {
    const chunk = { seq: reader.u64('sequence'), length: reader.u32('chunk length') }
    total += chunk.length
    if (chunk.length === 0 || total > LITERAL_BYTES_MAX) {
      throw new ProtocolError(`LITERAL: ${total} bytes, expected 1 to ${LITERAL_BYTES_MAX}`)
    }
    chunks.push(chunk)
  }
  const data = reader.bytes('data', reader.rest)
  if (codec === 'raw' && data.length !== total) {
    throw new ProtocolError(`LITERAL: ${data.length} bytes of data for chunks of ${total}`)
  }
  return { ...head, type: 'literal', chunks, codec, data }
}

/** Decodes one payload. Buffers in the result are views on it. @throws ProtocolError */
export function decodeDiskMessage(type: number, payload: Buffer): DiskMessage {
  const reader = new PayloadReader(`disk message ${type}`, payload)
  const head: Head = { disk: reader.u16('disk'), epoch: reader.u32('epoch') }
  if (head.disk >= MIGRATION_DISKS_MAX)
    throw new ProtocolError(`disk message ${type}: disk ${head.disk}, expected 0 to 63`)
  const message = decodeBody(type, head, reader)
  reader.end()
  return message
}

function decodeBody(type: number, head: Head, reader: PayloadReader): DiskMessage {
  switch (type) {
    case DISK_OPEN:
      return {
        ...head,
        type: 'open',
        port: reader.u16('port'),
        exportName: reader.text('export name', EXPORT_NAME_BYTES_MAX),
      }
    case DISK_OPENED:
      return {
        ...head,
        type: 'opened',
        errno: reader.u32('errno'),
        text: reader.text('text', EXPORT_NAME_BYTES_MAX),
      }
    case DISK_FAILED:
      return {
        ...head,
        type: 'failed',
        errno: reader.u32('errno'),
        text: reader.text('text', EXPORT_NAME_BYTES_MAX),
      }
    case DISK_DESCRIBE:
      return { ...head, type: 'describe', ...describe('DESCRIBE', reader) }
    case DISK_CHANGED: {
      const described = describe('CHANGED', reader)
      return { ...head, type: 'changed', ...described, missing: changed(described, reader) }
    }
    case DISK_ZERO: {
      const message = {
        ...head,
        type: 'zero' as const,
        seq: reader.u64('sequence'),
        offset: reader.u64('offset'),
      }
      const length = reader.u64('length')
      if (length === 0 || !Number.isSafeInteger(message.offset + length)) {
        throw new ProtocolError(`ZERO: ${length} bytes at ${message.offset}`)
      }
      return { ...message, length }
    }
    case DISK_WANT:
      return { ...head, type: 'want', runs: seqRuns(reader, 'WANT') }
    case DISK_ASK:
      return { ...head, type: 'ask', runs: seqRuns(reader, 'ASK') }
    case DISK_DETAIL:
      return { ...head, type: 'detail', runs: seqRuns(reader, 'DETAIL') }
    case DISK_HELD:
      return { ...head, type: 'held', bytes: reader.u64('bytes') }
    case DISK_SURVEY:
      return survey(head, reader)
    case DISK_DIGESTS: {
      const firstSeq = reader.u64('first sequence')
      const chunks = reader.rest / DIGEST_BYTES
      if (!Number.isInteger(chunks) || chunks < 1 || chunks > SURVEY_CHUNKS_MAX)
        throw new ProtocolError(`DIGESTS: ${reader.rest} bytes, expected 1 to ${SURVEY_CHUNKS_MAX} digests`)
      return { ...head, type: 'digests', firstSeq, digests: reader.bytes('digests', reader.rest) }
    }
    case DISK_LITERAL:
      return literal(head, reader)
    case DISK_APPLIED: {
      const runs: AppliedRun[] = []
      for (let left = readCount(reader, 'APPLIED', SEQ_RUNS_MAX); left > 0; left--) {
        const run = { first: reader.u64('first'), count: runCount(reader, 'APPLIED') }
        const source = SOURCES[reader.u8('source')]
        if (source === undefined) throw new ProtocolError('APPLIED: unknown source')
        runs.push({ ...run, source })
      }
      return { ...head, type: 'applied', runs }
    }
    case DISK_FLUSH:
      return { ...head, type: 'flush', id: reader.u32('id'), barrier: reader.u64('barrier') }
    case DISK_FLUSHED:
      return { ...head, type: 'flushed', id: reader.u32('id') }
    case DISK_READ: {
      const message = { ...head, type: 'read' as const, id: reader.u32('id'), offset: reader.u64('offset') }
      const length = reader.u32('length')
      if (length === 0 || length > LITERAL_BYTES_MAX) {
        throw new ProtocolError(`READ: ${length} bytes, expected 1 to ${LITERAL_BYTES_MAX}`)
      }
      return { ...message, length }
    }
    case DISK_READ_REPLY: {
      const message = {
        ...head,
        type: 'readReply' as const,
        id: reader.u32('id'),
        errno: reader.u32('errno'),
      }
      return { ...message, data: reader.bytes('data', reader.rest) }
    }
    case DISK_CLOSE:
      return { ...head, type: 'close' }
    default: {
      const other = decodeBlocks(type, reader) ?? decodeProof(type, reader)
      if (other === undefined) throw new ProtocolError(`disk message of unknown type ${type}`)
      return { ...head, ...other }
    }
  }
}
