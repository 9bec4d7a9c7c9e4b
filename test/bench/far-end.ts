/**
 * A far end that takes no time: it answers a DiskSender as one that has everything in place, everything elsewhere, or nothing, keeps
 * what it was sent, and is held against the image afterwards, when no clock runs: every byte told of, every digest, root and
 * literal. So what is measured is the sender alone.
 */
import { sha256 } from '../../lib/chunk/digest.ts'
import { isZero } from '../../lib/chunk/zero.ts'
import { LostError } from '../../lib/core/errors.ts'
import { loopTurn } from '../../lib/core/loop-turn.ts'
import { GIB } from '../../lib/core/units.ts'
import type { DiskClass, FrameChannel } from '../../lib/engine/link.ts'
import { LiteralReader } from '../../lib/engine/literal-stream.ts'
import { rootOf, runsOf } from '../../lib/engine/survey.ts'
import {
  DIGEST_BYTES,
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
  ROOT_CHUNKS,
} from '../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../lib/wire/disk-proof.ts'

export type Knowledge = 'unknown' | 'inPlace' | 'elsewhere'
/** Of the image: exactly `length` bytes. */
export type Read = (offset: number, length: number) => Buffer

export class FarEnd implements FrameChannel {
  readonly features: ReadonlySet<string> = new Set([...ENGINE_FEATURES, FEATURE_PROOF])
  readonly rateBytesPerSecond = 1e9
  readonly roundTripMs = 0
  readonly silentMs = 0
  readonly closed: Promise<Error | undefined>
  onFrame: ((type: number, payload: Buffer, cls: 0 | 1 | 2 | 3) => void) | undefined
  /** What came, in order. */
  readonly messages: DiskMessage[] = []
  /** Payloads of them. */
  bytes = 0
  readonly #knowledge: Knowledge
  readonly #close = Promise.withResolvers<Error | undefined>()
  #nextSeq = 0
  #applied = 0
  #flush: DiskMessage | undefined
  readonly #unanswered: DiskMessage[] = []
  /** What is kept of what comes, taken before a clock runs: memory that grows makes V8 collect, which the sender would be charged for. */
  readonly #kept: Buffer
  #keptBytes = 0

  /** @param keptBytes of payloads that can come */
  constructor(knowledge: Knowledge, keptBytes: number) {
    this.#knowledge = knowledge
    this.#kept = Buffer.alloc(keptBytes, 1)
    this.closed = this.#close.promise
  }

  async close(reason?: Error): Promise<void> {
    this.#close.resolve(reason ?? new LostError('the bench is over'))
  }

  async send(type: number, payload: readonly Uint8Array[], _cls: DiskClass): Promise<void> {
    const bytes = this.#keep(payload)
    this.bytes += bytes.length
    const message = decodeDiskMessage(type, bytes)
    this.messages.push(message)
    if (this.#unanswered.push(message) === 1) setImmediate(this.#answerAll)
  }

  #keep(payload: readonly Uint8Array[]): Buffer {
    const from = this.#keptBytes
    for (const part of payload) {
      if (part.length > this.#kept.length - this.#keptBytes)
        throw new Error(`bench: more than ${this.#kept.length} bytes came`)
      this.#kept.set(part, this.#keptBytes)
      this.#keptBytes += part.length
    }
    return this.#kept.subarray(from, this.#keptBytes)
  }

  /** As frames of a bundle are delivered: as many in a turn of the event loop as find time. */
  readonly #answerAll = (): void => {
    for (;;) {
      const [message] = this.#unanswered
      if (message === undefined) return
      if (loopTurn.over) {
        loopTurn.later(this.#answerAll)
        return
      }
      this.#answer(message)
      this.#unanswered.shift()
    }
  }

  #say(body: DiskMessageBody, { disk, epoch }: DiskMessage): void {
    const { type, payload } = encodeDiskMessage({ ...body, disk, epoch })
    this.onFrame?.(type, Buffer.concat(payload), 0)
  }

  #answer(message: DiskMessage): void {
    switch (message.type) {
      case 'open':
        this.#say({ type: 'held', bytes: this.#knowledge === 'inPlace' ? GIB : 0 }, message)
        this.#say({ type: 'opened', errno: 0, text: '' }, message)
        return
      case 'describe':
      case 'survey':
      case 'zero':
        this.#described(message)
        return
      case 'literal':
        for (const { seq } of message.chunks)
          this.#say({ type: 'applied', runs: [{ first: seq, count: 1, source: 'literal' }] }, message)
        this.#applied += message.chunks.length
        this.#flushed()
        return
      case 'close':
        return
      case 'flush':
      case 'prove':
        this.#flush = message
        this.#flushed()
        return
      default:
        throw new Error(`the far end of the bench: ${message.type} was not expected`)
    }
  }

  #described(message: DiskMessage): void {
    for (const { zero, count } of placed(message)) {
      const run = { first: this.#nextSeq, count }
      this.#nextSeq += count
      if (!zero && this.#knowledge === 'unknown') {
        this.#say({ type: 'want', runs: [run] }, message)
        continue
      }
      this.#applied += count
      const source = this.#knowledge === 'inPlace' ? 'inPlace' : 'chunk'
      this.#say({ type: 'applied', runs: [{ ...run, source }] }, message)
    }
    this.#flushed()
  }

  /** A FLUSH is answered when everything before it is applied. */
  #flushed(): void {
    const flush = this.#flush
    if (flush?.type !== 'flush' && flush?.type !== 'prove') return
    if (this.#applied < flush.barrier) return
    this.#say({ type: 'flushed', id: flush.id }, flush)
    this.#flush = undefined
  }

  /** Throws unless what came is the image: each byte of it told of once, with digests, roots and literals that fit. */
  async verify(size: number, read: Read): Promise<void> {
    const chunks: { offset: number; length: number }[] = []
    let seq = 0
    let told = 0
    for (const message of this.messages) {
      const digests: Buffer[] = []
      for (const { zero, count, offset, lengths } of placed(message)) {
        if (zero) {
          told += lengths[0]!
          if (!isZeroIn(read, offset, lengths[0]!)) throw new Error(`bench: ${offset} is not zero`)
        } else {
          let at = offset
          for (const [index, length] of lengths.entries()) {
            chunks[seq + index] = { offset: at, length }
            digests.push(sha256(read(at, length)))
            told += length
            at += length
          }
        }
        seq += count
      }
      const expected = Buffer.concat(digests)
      if (message.type === 'describe') expectDigests(message.digests, expected)
      if (message.type === 'survey')
        expectDigests(message.digests, message.roots ? roots(expected) : expected)
    }
    if (told !== size) throw new Error(`bench: ${told} bytes were told of, the image has ${size}`)
    if (this.#knowledge === 'unknown') await this.#verifyLiterals(chunks, read)
  }

  async #verifyLiterals(chunks: readonly { offset: number; length: number }[], read: Read): Promise<void> {
    const reader = new LiteralReader(this.features)
    const missing = new Set(chunks.keys())
    for (const [seq, chunk] of chunks.entries()) if (chunk === undefined) missing.delete(seq)
    for (const message of this.messages) {
      if (message.type !== 'literal') continue
      const total = message.chunks.reduce((sum, { length }) => sum + length, 0)
      const bytes = await reader.read(message.codec, message.data, total)
      let at = 0
      for (const { seq, length } of message.chunks) {
        const chunk = chunks[seq]
        const same =
          chunk?.length === length && read(chunk.offset, length).equals(bytes.subarray(at, at + length))
        if (!same || !missing.delete(seq))
          throw new Error(`bench: the literal of chunk ${seq} is not the image's`)
        at += length
      }
    }
    reader.close()
    if (missing.size > 0) throw new Error(`bench: ${missing.size} chunks never came`)
  }
}

/** The runs that a message tells of; `count` sequence numbers each, and the lengths of their chunks or of the zeroes. */
export function placed(
  message: DiskMessage,
): { zero: boolean; count: number; offset: number; lengths: readonly number[] | Uint32Array }[] {
  if (message.type === 'zero')
    return [{ zero: true, count: 1, offset: message.offset, lengths: [message.length] }]
  if (message.type === 'describe') {
    const { offset, lengths } = message
    return [{ zero: false, count: lengths.length, offset, lengths }]
  }
  if (message.type !== 'survey') return []
  return [...runsOf(message)].map((run) =>
    run.zero
      ? { zero: true, count: 1, offset: run.offset, lengths: [run.length] }
      : { zero: false, count: run.lengths.length, offset: run.offset, lengths: run.lengths },
  )
}

function roots(digests: Buffer): Buffer {
  const bytes = ROOT_CHUNKS * DIGEST_BYTES
  const found: Buffer[] = []
  for (let at = 0; at < digests.length; at += bytes) found.push(rootOf(digests.subarray(at, at + bytes)))
  return Buffer.concat(found)
}

function expectDigests(found: Uint8Array, expected: Buffer): void {
  if (!expected.equals(found)) throw new Error("bench: a digest is not that of the image's bytes")
}

const PIECE = 1 << 20

function isZeroIn(read: Read, offset: number, length: number): boolean {
  for (let at = 0; at < length; at += PIECE) {
    if (!isZero(read(offset + at, Math.min(PIECE, length - at)))) return false
  }
  return true
}
