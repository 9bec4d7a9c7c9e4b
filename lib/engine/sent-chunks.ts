/**
 * What a sender has described and the far side has not applied: the chunks' memory, and what the far side asked of each. A
 * chunk goes through want, ask, parts and detail at most once each; anything else is a breach of the protocol. Nothing is
 * forgotten before it is applied, so that every want can be met.
 */
import { RangeBits } from '../block/range-bits.ts'
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab } from '../chunk/slab.ts'
import { ProtocolError } from '../core/errors.ts'
import { SENT_PARTS_MAX, SURVEY_CHUNKS_MAX } from '../core/limits.ts'
import { alignDown, alignUp, BLOCK_BYTES, blockCount, MIRRORED_BYTES } from '../core/units.ts'
import { DIGEST_BYTES, type DiskMessageBody, type SeqRun, type SourceName } from '../wire/disk.ts'
import type { ChunkSketches } from '../wire/disk-blocks.ts'
import type { DiskAccount } from './account.ts'
import { partsOf } from './chunk-blocks.ts'
import { differencesOf } from './pieces.ts'
import type { Room } from './room.ts'
import { type ChunkRecord, newRecord } from './sender-parts.ts'
import type { Change, SentVersions } from './sent-versions.ts'

export interface SentChunksOptions {
  /** Of the disk. */
  readonly size: number
  readonly account: DiskAccount
  readonly room: Room
  /** Of what is rewritten, where the far side takes what changed. */
  readonly versions?: SentVersions | undefined
  /** Wanted, as a whole or in parts; it leaves when the caller says so. */
  readonly onWanted: (record: ChunkRecord) => void
  readonly onAsked: (record: ChunkRecord) => void
  /** One whose hints went unasked is applied, and so much of it was sent. */
  readonly onHinted?: (bytes: number, sentBytes: number) => void
}

export class SentChunks {
  readonly #options: SentChunksOptions
  readonly #records = new Map<number, ChunkRecord>()
  readonly #data: RangeBits
  #nextSeq = 0
  /** Data bytes described and not yet applied; those among them that the far side wants; those that were sent unasked. */
  #bytes = 0
  #wantedBytes = 0
  #earlyBytes = 0

  constructor(options: SentChunksOptions) {
    this.#options = options
    this.#data = new RangeBits(
      options.size,
      Math.max(MIRRORED_BYTES, alignUp(Math.ceil(options.size / SENT_PARTS_MAX), MIRRORED_BYTES)),
    )
  }

  get nextSeq(): number {
    return this.#nextSeq
  }

  get count(): number {
    return this.#records.size
  }

  get bytes(): number {
    return this.#bytes
  }

  get wantedBytes(): number {
    return this.#wantedBytes
  }

  get earlyBytes(): number {
    return this.#earlyBytes
  }

  has({ seq }: ChunkRecord): boolean {
    return this.#records.has(seq)
  }

  /** Whether any of it was described as data before. */
  wereSent(offset: number, length: number): boolean {
    return this.#data.overlaps(offset, length)
  }

  /** @param base where the slab's bytes lie on the disk @param detailed whether the digests can still be asked for */
  addRun(base: number, slab: Slab, run: DescribedRun, detailed = false): void {
    let at = run.offset
    // What is described for the first time is nobody's older version, as a rule.
    if (this.wereSent(base + at, run.length))
      this.#options.versions?.put(base + at, slab.bytes.subarray(at, at + run.length))
    this.#data.set(base + at, run.length)
    for (const [index, length] of run.lengths.entries()) {
      slab.retain()
      const record = newRecord(this.#nextSeq++, base + at, length, { slab, slabOffset: at, base, run })
      if (detailed) record.digest = run.digests.subarray(index * DIGEST_BYTES, (index + 1) * DIGEST_BYTES)
      this.#records.set(record.seq, record)
      this.#bytes += length
      at += length
    }
  }

  addZeroes(offset: number, length: number): number {
    const seq = this.#nextSeq++
    this.#options.versions?.forget(offset, length)
    this.#records.set(seq, newRecord(seq, offset, length))
    return seq
  }

  /** These go unasked. */
  sendEarly(first: number, end: number): void {
    for (let seq = first; seq < end; seq++) {
      // It may have been found in place meanwhile.
      const record = this.#records.get(seq)
      if (record === undefined || record.wanted) continue
      record.eager = true
      this.#early(record, record.length)
      this.#wantWhole(record)
    }
  }

  /** What changed in these goes unasked. @param changes of each, in order; of one without nothing goes */
  sendChanged(first: number, changes: readonly Change[]): void {
    for (const [index, { missing, differences }] of changes.entries()) {
      const record = this.#records.get(first + index)
      const { maps, bodyBytes, literalBytes, deltaBytes } = differences
      if (record === undefined || bodyBytes === 0) continue
      record.missing = missing
      record.differences = { old: missing, maps }
      record.partsBytes = literalBytes
      record.deltaBytes = deltaBytes
      this.#early(record, bodyBytes)
      this.#wantPart(record, bodyBytes)
    }
  }

  #early(record: ChunkRecord, bytes: number): void {
    record.earlyBytes = bytes
    this.#earlyBytes += bytes
  }

  /** A FLUSH has come: what was hinted, and is not answered yet, goes as it is as far as it is told to. */
  hurry(goes: (length: number) => boolean): void {
    for (const record of this.#records.values()) {
      if (!record.hinted || record.wanted || record.missing !== undefined) continue
      if (!goes(record.length)) return
      this.sendEarly(record.seq, record.seq + 1)
    }
  }

  // ---- from the far side; all throw a ProtocolError -------------------------------------------------------------

  #wantable(what: string, seq: number): ChunkRecord {
    const record = this.#records.get(seq)
    if (record?.slab === undefined) throw new ProtocolError(`${what} of chunk ${seq}, which is not under way`)
    if (record.wanted && !record.eager)
      throw new ProtocolError(`${what} of chunk ${seq}, which was wanted before`)
    return record
  }

  /** Also of one that could not be put together from its blocks. */
  want({ first, count }: SeqRun): void {
    for (let seq = first; seq < first + count; seq++) {
      const record = this.#wantable('WANT', seq)
      if (!record.eager) this.#wantWhole(record)
    }
  }

  #wantWhole(record: ChunkRecord): void {
    record.wanted = true
    record.missing = undefined
    record.differences = undefined
    record.partsBytes = 0
    record.deltaBytes = 0
    this.#wantedBytes += record.length - record.wantedBytes
    record.wantedBytes = record.length
    this.#options.onWanted(record)
  }

  ask({ first, count }: SeqRun): void {
    for (let seq = first; seq < first + count; seq++) {
      const record = this.#wantable('ASK', seq)
      if (record.asked) throw new ProtocolError(`ASK of chunk ${seq}, which was asked for before`)
      record.asked = true
      if (!record.eager && !record.hinted) this.#options.onAsked(record)
    }
  }

  /** The hints of these go unasked. */
  hintEarly(first: number, end: number): void {
    for (let seq = first; seq < end; seq++) {
      const record = this.#records.get(seq)
      if (record?.slab === undefined || record.wanted || record.asked || record.hinted) continue
      record.hinted = true
      this.#options.onAsked(record)
    }
  }

  parts(seq: number, blocks: number, missing: Buffer): void {
    const record = this.#wantable('PARTS', seq)
    if (record.eager) return
    const bytes = checkParts('PARTS', record, blocks, missing)
    // The message's buffer is much larger.
    record.missing = Buffer.from(missing)
    record.partsBytes = bytes
    this.#wantPart(record, bytes)
  }

  /** PARTS of a chunk of which older versions of blocks lie at the far side. */
  sketches({ seq, blocks, missing, old, sketches }: ChunkSketches): void {
    const record = this.#wantable('SKETCHES', seq)
    if (record.eager) return
    checkParts('SKETCHES', record, blocks, missing)
    const { offset, length, slab, slabOffset, runStart, runEnd } = record
    const blockAt = (index: number): Uint8Array => {
      const start = alignDown(offset, BLOCK_BYTES) + index * BLOCK_BYTES
      // No hint of such a one was told, so that nobody can have looked for it.
      if (start < runStart || start + BLOCK_BYTES > runEnd)
        throw new ProtocolError(`SKETCHES of chunk ${seq}: block ${index} is not whole in its run`)
      const at = slabOffset + start - offset
      return slab!.bytes.subarray(at, at + BLOCK_BYTES)
    }
    const sketched = { start: offset, end: offset + length, missing, old }
    const { maps, bodyBytes, literalBytes, deltaBytes } = differencesOf(sketched, sketches, blockAt)
    // By its length the far side knows what it is.
    if (bodyBytes >= length) {
      this.#wantWhole(record)
      return
    }
    record.missing = Buffer.from(missing)
    record.differences = { old: Buffer.from(old), maps }
    record.partsBytes = literalBytes
    record.deltaBytes = deltaBytes
    this.#wantPart(record, bodyBytes)
  }

  #wantPart(record: ChunkRecord, bytes: number): void {
    record.wantedBytes = bytes
    this.#wantedBytes += bytes
    this.#options.onWanted(record)
  }

  /** The digests of chunks of which only a root was told. */
  detail({ first, count }: SeqRun): DiskMessageBody {
    if (count > SURVEY_CHUNKS_MAX) throw new ProtocolError(`DETAIL of ${count} chunks`)
    const digests: Uint8Array[] = []
    for (let seq = first; seq < first + count; seq++) {
      const record = this.#records.get(seq)
      if (record?.digest === undefined)
        throw new ProtocolError(`DETAIL of chunk ${seq}, whose digest is not to be told`)
      digests.push(record.digest)
      record.digest = undefined
    }
    return { type: 'digests', firstSeq: first, digests: Buffer.concat(digests) }
  }

  /** Zeroes may stand in a run of data, and are what they are. */
  applied({ first, count }: SeqRun, source: SourceName): void {
    for (let seq = first; seq < first + count; seq++) this.#appliedOne(seq, source)
  }

  #appliedOne(seq: number, given: SourceName): void {
    const { account, room } = this.#options
    const record = this.#records.get(seq)
    if (record === undefined) throw new ProtocolError(`APPLIED of chunk ${seq}, which is not under way`)
    this.#records.delete(seq)
    const { slab, length } = record
    if (slab === undefined) {
      account.applied('zero', length)
      return
    }
    const [literalBytes, deltaBytes] = given === 'block' ? [record.partsBytes, record.deltaBytes] : [0, 0]
    account.applied(given, length, literalBytes, deltaBytes)
    room.applied(length, given === 'literal' ? length : literalBytes, given === 'inPlace')
    this.#bytes -= length
    this.#wantedBytes -= record.wantedBytes
    this.#earlyBytes -= record.earlyBytes
    // Of one that went as it is nobody knows what its hints would have spared.
    if (record.hinted && !record.eager) this.#options.onHinted?.(length, record.wantedBytes)
    slab.release()
  }

  /** After a loss. */
  clear(): void {
    for (const { slab } of this.#records.values()) slab?.release()
    this.#records.clear()
    this.#options.versions?.close()
  }
}

/** Bytes of the chunk in these blocks. @throws ProtocolError */
function checkParts(what: string, record: ChunkRecord, blocks: number, missing: Buffer): number {
  const { seq, offset, length } = record
  const asked = record.asked || record.hinted
  const count = blockCount(offset, offset + length)
  const parts = partsOf(offset, offset + length, missing)
  const bytes = parts.reduce((sum, { from, to }) => sum + to - from, 0)
  if (asked && record.missing === undefined && blocks === count && bytes > 0) return bytes
  const much = `${what} of chunk ${seq}: ${bytes} bytes in ${blocks} blocks`
  throw new ProtocolError(`${much} of a chunk in ${count}${asked ? '' : ', which was not asked for'}`)
}
