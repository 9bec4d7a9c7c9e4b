/**
 * Adds up what a disk's chunks would cost, in the bytes that the wire protocol has for them (docs/wire-protocol.md). Pure. Both ends'
 * figures are as `swam analyze` counts them: frames both ways, without SSH; `digest` is what the sender says of its chunks.
 */
import { CHUNK_BYTES_MIN, RUN_BYTES_MAX } from '../../lib/core/limits.ts'
import { blockCount, HINT_BYTES } from '../../lib/core/units.ts'
import { LITERAL_TARGET_BYTES } from '../../lib/engine/literals.ts'
import { Room } from '../../lib/engine/room.ts'
import { DIGEST_BYTES } from '../../lib/wire/disk.ts'
import { CHUNK_ELSEWHERE, CHUNK_IN_PLACE } from './batch.ts'

/** A frame's header, the disk and the epoch. */
const MESSAGE_BYTES = 12 + 6
/** What a SURVEY has but for runs and digests; an acknowledgement of it. */
const SURVEY_BYTES = MESSAGE_BYTES + 19
const ACK_BYTES = 12 + 6
/** A run of zeroes or of chunks in it, without the lengths. */
const RUN_BYTES = 4
/** A run of numbers in a WANT, ASK or DETAIL, and in an APPLIED: mostly each chunk is applied by itself. */
const SEQ_RUN_BYTES = 12
const APPLIED_BYTES = 13
/** A chunk in a HINTS, PARTS and LITERAL, without the blocks. */
const CHUNK_HEAD_BYTES = 9
const LITERAL_CHUNK_BYTES = 12

export interface TalliedChunk {
  readonly offset: number
  readonly length: number
  /** The same chunk lies before it on this disk. */
  readonly repeated: boolean
  /** What the far side says: CHUNK_…. */
  readonly state: number
}

export type ChunkFate = 'inPlace' | 'session' | 'chunk' | 'lacking'

export function fateOf({ repeated, state }: TalliedChunk): ChunkFate {
  if (state === CHUNK_IN_PLACE) return 'inPlace'
  // What this disk got is looked into before other images are.
  if (repeated) return 'session'
  return state === CHUNK_ELSEWHERE ? 'chunk' : 'lacking'
}

export class Tally {
  /** Bytes by fate. */
  readonly bytes: Record<ChunkFate, number> = { inPlace: 0, session: 0, chunk: 0, lacking: 0 }
  lackingChunks = 0
  lackingBlocks = 0
  /** Of descriptions: from the sender, and of the far side's answers to them. */
  digestBytes = 0
  answerBytes = 0
  readonly #room = new Room({ windowBytes: 0, drainMs: 0 })
  #surveyed = 0
  #roots = false
  #end = -1

  /** @param heldBytes what the far side has at the disk's place */
  constructor(heldBytes: number) {
    this.#room.held(heldBytes)
    this.#roots = this.#room.isInPlace
  }

  /** Neighbours that stand behind one root. @param weight for how many such groups they stand */
  add(group: readonly TalliedChunk[], weight: number): void {
    const fates = group.map(fateOf)
    const roots = this.#roots
    for (const [index, chunk] of group.entries()) this.#chunk(chunk, fates[index]!, weight)
    const digests = group.length * DIGEST_BYTES
    if (!roots) this.digestBytes += weight * digests
    else {
      this.digestBytes += weight * DIGEST_BYTES
      if (fates.some((fate) => fate !== 'inPlace')) {
        this.digestBytes += weight * (digests + MESSAGE_BYTES + 8)
        this.answerBytes += weight * (SEQ_RUN_BYTES + MESSAGE_BYTES)
      }
    }
    for (const [index, { length }] of group.entries())
      this.#room.applied(length, fates[index] === 'lacking' ? length : 0, fates[index] === 'inPlace')
  }

  #chunk({ offset, length }: TalliedChunk, fate: ChunkFate, weight: number): void {
    this.bytes[fate] += weight * length
    this.digestBytes += weight * (length < CHUNK_BYTES_MIN ? 2 : 3)
    if (offset !== this.#end) this.digestBytes += weight * RUN_BYTES
    this.#end = offset + length
    this.answerBytes += weight * APPLIED_BYTES
    if (fate === 'lacking') {
      this.lackingChunks += weight
      this.lackingBlocks += weight * blockCount(offset, offset + length)
    }
    this.#surveyed += length
    if (this.#surveyed < RUN_BYTES_MAX) return
    this.#surveyed -= RUN_BYTES_MAX
    this.#roots = this.#room.isInPlace
    this.digestBytes += weight * SURVEY_BYTES
    this.answerBytes += weight * (ACK_BYTES + MESSAGE_BYTES)
  }

  get dataBytes(): number {
    return Object.values(this.bytes).reduce((sum, bytes) => sum + bytes, 0)
  }
}

/** What blocks of chunks were found to be, and how they compress. */
export interface Sampled {
  /** Of the bytes of chunks that the far side lacks, those in blocks that it has: 0 to 1. */
  readonly knownShare: number
  /** Compressed to plain bytes of the others. */
  readonly ratio: number
  /** Chunks are asked for block by block. */
  readonly hinted: boolean
}

export interface DiskFigures {
  readonly inPlace: number
  readonly chunk: number
  readonly block: number
  readonly session: number
  readonly literal: number
  readonly digest: number
  readonly wireBytes: number
}

/** @param dataBytes of the whole disk, of which the tally may have seen a part */
export function figuresOf(tally: Tally, sampled: Sampled, dataBytes: number): DiskFigures {
  const scale = tally.dataBytes === 0 ? 0 : dataBytes / tally.dataBytes
  const { inPlace, session, chunk, lacking } = tally.bytes
  const known = sampled.knownShare * lacking
  const literal = lacking - known
  const hints = sampled.hinted ? tally.lackingChunks * CHUNK_HEAD_BYTES + tally.lackingBlocks * HINT_BYTES : 0
  const parts = sampled.hinted ? tally.lackingChunks * CHUNK_HEAD_BYTES + tally.lackingBlocks / 8 : 0
  const frames = Math.ceil(literal / LITERAL_TARGET_BYTES)
  const literalWire =
    literal * sampled.ratio +
    frames * (MESSAGE_BYTES + 3 + ACK_BYTES) +
    (literal === 0 ? 0 : tally.lackingChunks * LITERAL_CHUNK_BYTES)
  const digest = SURVEY_BYTES + tally.digestBytes + hints
  const wire = digest + tally.answerBytes + parts + literalWire
  const whole = (bytes: number): number => Math.round(bytes * scale)
  const figures = {
    inPlace: whole(inPlace),
    chunk: whole(chunk),
    block: whole(known),
    session: whole(session),
    digest: whole(digest),
    wireBytes: whole(wire),
  }
  // What rounding leaves over: each byte has one source.
  const others = figures.inPlace + figures.chunk + figures.block + figures.session
  return { ...figures, literal: Math.max(0, dataBytes - others) }
}
