/**
 * A sender that takes no time: it tells a DiskReceiver of what a real one told of, as fast as that one applies it, and gives it each
 * chunk that it wants, packed as a sender packs them before the clock runs.
 */
import { sha256 } from '../../lib/chunk/digest.ts'
import { LostError } from '../../lib/core/errors.ts'
import { KIB } from '../../lib/core/units.ts'
import type { FrameChannel } from '../../lib/engine/link.ts'
import { LiteralPacker } from '../../lib/engine/literal-stream.ts'
import {
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
} from '../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../lib/wire/disk-proof.ts'
import { placed, type Read } from './far-end.ts'

/** Chunks and runs of zeroes that are told of and not applied: as many as an honest sender has on a fast link. */
const UNDER_WAY_MAX = 4096
const LITERAL_BYTES = 192 * KIB

interface Frame {
  readonly type: number
  readonly payload: Buffer
}

interface Told extends Frame {
  readonly count: number
}

interface Literal extends Frame {
  readonly seqs: readonly number[]
}

export class NearEnd implements FrameChannel {
  readonly features: ReadonlySet<string> = new Set([...ENGINE_FEATURES, FEATURE_PROOF])
  readonly rateBytesPerSecond = 1e9
  readonly roundTripMs = 0
  readonly silentMs = 0
  readonly closed: Promise<Error | undefined> = new Promise(() => undefined)
  onFrame: ((type: number, payload: Buffer, cls: 0 | 1 | 2 | 3) => void) | undefined
  readonly #told: readonly Told[]
  readonly #literals: readonly Literal[]
  readonly #twins: ReadonlyMap<number, Buffer>
  #nextLiteral = 0
  readonly #wanted = new Set<number>()
  readonly #flushed = Promise.withResolvers<void>()
  #moved = Promise.withResolvers<void>()
  #applied = 0

  private constructor(
    told: readonly Told[],
    literals: readonly Literal[],
    twins: ReadonlyMap<number, Buffer>,
  ) {
    this.#told = told
    this.#twins = twins
    this.#literals = literals
  }

  /** @param messages of a sender: what it told of, whatever else is among them */
  static async of(messages: readonly DiskMessage[], read: Read): Promise<NearEnd> {
    const told: Told[] = []
    const packer = new Packer()
    const known = new Set<string>()
    const twins = new Map<number, Buffer>()
    let seq = 0
    for (const message of messages) {
      const runs = placed(message)
      if (runs.length === 0) continue
      told.push({ ...frameOf(message), count: runs.reduce((sum, run) => sum + run.count, 0) })
      for (const { zero, offset, lengths, count } of runs) {
        let at = offset
        for (const [index, length] of zero ? [] : [...lengths].entries()) {
          const bytes = read(at, length)
          at += length
          const digest = sha256(bytes).toString('latin1')
          // The receiver mostly waits for the first one of the same content, and never wants the others.
          if (known.has(digest)) twins.set(seq + index, bytes)
          else await packer.add(seq + index, bytes)
          known.add(digest)
        }
        seq += count
      }
    }
    return new NearEnd(told, await packer.done(), twins)
  }

  async close(reason?: Error): Promise<void> {
    this.#flushed.reject(reason ?? new LostError('closed'))
    this.#moved.reject(reason ?? new LostError('closed'))
  }

  /** Resolves when all of it is applied and flushed. */
  async say(): Promise<void> {
    let told = 0
    for (const frame of this.#told) {
      told += frame.count
      this.#say(frame)
      while (told - this.#applied > UNDER_WAY_MAX) await this.#moved.promise
      await new Promise((resolve) => setImmediate(resolve))
    }
    this.#say(frameOf({ type: 'prove', disk: 0, epoch: 1, id: 1, barrier: told, read: false, open: [] }))
    await this.#flushed.promise
  }

  #say({ type, payload }: Frame): void {
    this.onFrame?.(type, payload, 0)
  }

  #want(seq: number): void {
    this.#wanted.add(seq)
    const data = this.#twins.get(seq)
    if (data === undefined) return
    const chunks = [{ seq, length: data.length }]
    setImmediate(() => this.#say(frameOf({ type: 'literal', disk: 0, epoch: 1, chunks, codec: 'raw', data })))
  }

  /** They are one stream: each goes when all of its chunks are wanted, and those before it have gone. */
  #sayLiterals(): void {
    for (;;) {
      const literal = this.#literals[this.#nextLiteral]
      if (literal?.seqs.every((seq) => this.#wanted.has(seq)) !== true) return
      this.#nextLiteral++
      this.#say(literal)
    }
  }

  async send(type: number, payload: readonly Uint8Array[]): Promise<void> {
    const message: DiskMessageBody = decodeDiskMessage(type, Buffer.concat(payload))
    if (message.type === 'want') {
      for (const { first, count } of message.runs)
        for (let seq = first; seq < first + count; seq++) this.#want(seq)
      setImmediate(() => this.#sayLiterals())
    } else if (message.type === 'applied') {
      for (const { count } of message.runs) this.#applied += count
    } else if (message.type === 'flushed' || message.type === 'proved') this.#flushed.resolve()
    else if (message.type === 'failed')
      void this.close(new Error(`bench: the receiver failed: ${message.text}`))
    else if (message.type !== 'held')
      throw new Error(`the near end of the bench: ${message.type} was not expected`)
    this.#moved.resolve()
    this.#moved = Promise.withResolvers()
    this.#moved.promise.catch(() => undefined)
  }
}

/** Packs literals as a sender does: pieces of one stream. */
class Packer {
  readonly #packer = new LiteralPacker(new Set(ENGINE_FEATURES))
  readonly #literals: Literal[] = []
  #chunks: { seq: number; length: number }[] = []
  #parts: Buffer[] = []
  #bytes = 0

  async add(seq: number, bytes: Buffer): Promise<void> {
    this.#chunks.push({ seq, length: bytes.length })
    this.#parts.push(bytes)
    this.#bytes += bytes.length
    if (this.#bytes >= LITERAL_BYTES) await this.#pack()
  }

  async #pack(): Promise<void> {
    const chunks = this.#chunks
    const data = await this.#packer.pack(Buffer.concat(this.#parts))
    const frame = frameOf({ type: 'literal', disk: 0, epoch: 1, chunks, codec: 'bulk', data })
    this.#literals.push({ ...frame, seqs: chunks.map(({ seq }) => seq) })
    this.#chunks = []
    this.#parts = []
    this.#bytes = 0
  }

  async done(): Promise<readonly Literal[]> {
    if (this.#parts.length > 0) await this.#pack()
    this.#packer.close()
    return this.#literals
  }
}

function frameOf(message: DiskMessage): Frame {
  const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 1 })
  return { type, payload: Buffer.concat(payload) }
}
