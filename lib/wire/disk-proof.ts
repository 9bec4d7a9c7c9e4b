/**
 * The messages of a proof: PROVE and PROVED stand for FLUSH and FLUSHED, and say of which leaves (64 KiB of the disk, by
 * number) they do not speak; DISPROVED says that the sender has another root. Pure, like disk.ts, which has their numbers' list.
 */
import { ProtocolError } from '../core/errors.ts'
import { IMAGE_BYTES_MAX, PROOF_RUNS_MAX } from '../core/limits.ts'
import { LEAF_BYTES } from '../core/units.ts'
import { type PayloadReader, PayloadWriter, varint } from './bytes.ts'

export const DISK_PROVE: number = 38
export const DISK_PROVED: number = 39
export const DISK_DISPROVED: number = 40

/** In both HELLOs, with FEATURE_SURVEY, unless verify is "off" at either end: a FLUSH is answered when both ends have one root. */
export const FEATURE_PROOF = 'proof'

const ROOT_BYTES = 32
/** Of the largest disk. */
const LEAVES_MAX: number = IMAGE_BYTES_MAX / LEAF_BYTES

/** Leaves from `first` to before `end`. */
export interface LeafRange {
  readonly first: number
  readonly end: number
}

export type ProofMessage =
  | {
      /** A FLUSH; answered with PROVED, or with FLUSHED where the receiver can prove nothing. */
      readonly type: 'prove'
      readonly id: number
      readonly barrier: number
      /** What was written is to be read back. */
      readonly read: boolean
      /** Leaves of which the sender has no digest, ascending. */
      readonly open: readonly LeafRange[]
    }
  | {
      readonly type: 'proved'
      readonly id: number
      /** Of all leaves but those that were told as open, and these. */
      readonly root: Buffer
      /** Leaves that were to be read back and are not yet. */
      readonly unread: number
      readonly excluded: readonly LeafRange[]
    }
  /** The sender has another root: its guest stays where it is. */
  | { readonly type: 'disproved'; readonly id: number; readonly root: Buffer }

export function encodeProof(message: ProofMessage & { readonly disk: number; readonly epoch: number }): {
  readonly type: number
  readonly payload: readonly Uint8Array[]
} {
  const start = (length: number): PayloadWriter =>
    new PayloadWriter(10 + length).u16(message.disk).u32(message.epoch).u32(message.id)
  switch (message.type) {
    case 'prove': {
      const runs = rangeBytes(message.open)
      const payload = start(11 + runs.length)
        .u64(message.barrier)
        .u8(message.read ? 1 : 0)
        .u16(message.open.length)
        .raw(runs)
      return { type: DISK_PROVE, payload: [payload.done()] }
    }
    case 'proved': {
      const runs = rangeBytes(message.excluded)
      const payload = start(10 + ROOT_BYTES + runs.length)
        .raw(message.root)
        .u64(message.unread)
        .u16(message.excluded.length)
        .raw(runs)
      return { type: DISK_PROVED, payload: [payload.done()] }
    }
    case 'disproved':
      return { type: DISK_DISPROVED, payload: [start(ROOT_BYTES).raw(message.root).done()] }
    default: {
      const never: never = message
      throw new TypeError(`encodeProof: ${JSON.stringify(never)}`)
    }
  }
}

/** What follows the head. Undefined: it is none of these. @throws ProtocolError */
export function decodeProof(type: number, reader: PayloadReader): ProofMessage | undefined {
  switch (type) {
    case DISK_PROVE: {
      const [id, barrier, read] = [reader.u32('id'), reader.u64('barrier'), reader.u8('read')]
      if (read > 1) throw new ProtocolError(`PROVE: read is ${read}, expected 0 or 1`)
      return { type: 'prove', id, barrier, read: read === 1, open: ranges(reader, 'PROVE') }
    }
    case DISK_PROVED: {
      const id = reader.u32('id')
      const root = reader.bytes('root', ROOT_BYTES)
      const unread = reader.u64('unread')
      if (unread > LEAVES_MAX)
        throw new ProtocolError(`PROVED: ${unread} leaves are unread, at most ${LEAVES_MAX} can be`)
      return { type: 'proved', id, root, unread, excluded: ranges(reader, 'PROVED') }
    }
    case DISK_DISPROVED:
      return { type: 'disproved', id: reader.u32('id'), root: reader.bytes('root', ROOT_BYTES) }
    default:
      return undefined
  }
}

/** For each its distance from the one before, and its length. */
function rangeBytes(of: readonly LeafRange[]): Buffer {
  const bytes: number[] = []
  let at = 0
  for (const { first, end } of of) {
    bytes.push(...varint(first - at), ...varint(end - first))
    at = end
  }
  return Buffer.from(bytes)
}

function ranges(reader: PayloadReader, name: string): LeafRange[] {
  const count = reader.u16('run count')
  if (count > PROOF_RUNS_MAX)
    throw new ProtocolError(`${name}: ${count} runs of leaves, expected at most ${PROOF_RUNS_MAX}`)
  const found: LeafRange[] = []
  let at = 0
  while (found.length < count) {
    const distance = reader.varint('leaf', LEAVES_MAX)
    const leaves = reader.varint('leaf count', LEAVES_MAX)
    const first = at + distance
    at = first + leaves
    // Neighbours would be one run.
    if (leaves === 0 || at > LEAVES_MAX || (distance === 0 && found.length > 0))
      throw new ProtocolError(
        `${name}: a run of ${leaves} leaves at ${first}, behind one that ends at ${first - distance}`,
      )
    found.push({ first, end: at })
  }
  return found
}
