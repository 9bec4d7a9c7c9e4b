/**
 * DiskReceiver with a sender that lies: descriptions, literals, zeroes and flushes in any order, digests that nothing
 * fits, literals of other bytes, messages that are no messages. The oracle knows what each chunk should be: nothing else
 * may be written (I3), nothing is confirmed after a loss (I2), and when the rest is honest the disk must be as described.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { zstdCompressSync } from 'node:zlib'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { LostError, ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { LITERAL_BYTES_MAX } from '../../../lib/core/limits.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import type { DiskMessage } from '../../../lib/wire/disk.ts'
import { DurableDevice } from '../../unit/engine/rig.ts'
import type { FuzzTarget } from '../target.ts'
import { EPOCH, Liar } from './liar.ts'
import { anySteps, Script, turn, until } from './script.ts'

const BLOCK = 512
const SIZE = 128 * 1024
const STEPS_MAX = 200
const ADMITTED = [ProtocolError, RefusedError, LostError]

interface Chunk {
  readonly seq: number
  readonly start: number
  /** Undefined: nothing has this digest. Zeroes have no digest. */
  readonly bytes: Buffer | undefined
  readonly zero: boolean
}

function pattern(kind: number, length: number): Buffer {
  const bytes = Buffer.alloc(length, kind)
  // The same kind gives the same bytes at each place, so that chunks are found elsewhere.
  if (kind % 2 === 1) for (let at = 0; at < length; at++) bytes[at] = (at * (kind + 2)) & 0xff
  return bytes
}

/** Everything that may lie on the disk, by what was described: a write of anything else breaks I3. */
class Model {
  readonly chunks: Chunk[] = []
  readonly #runs: { start: number; bytes: Buffer; known: boolean[] }[] = []
  readonly disk: Buffer
  /** A chunk that nothing fits was described: the end cannot be reached. */
  unreachable = false

  constructor(contents: Buffer) {
    this.disk = Buffer.from(contents)
  }

  run(firstSeq: number, start: number, chunks: readonly (Buffer | number)[]): void {
    const bytes = Buffer.concat(
      chunks.map((chunk) => (typeof chunk === 'number' ? Buffer.alloc(chunk) : chunk)),
    )
    const known = chunks.flatMap((chunk) =>
      typeof chunk === 'number'
        ? new Array<boolean>(chunk).fill(false)
        : new Array<boolean>(chunk.length).fill(true),
    )
    this.#runs.push({ start, bytes, known })
    let at = start
    let seq = firstSeq
    for (const chunk of chunks) {
      const length = typeof chunk === 'number' ? chunk : chunk.length
      const content = typeof chunk === 'number' ? undefined : chunk
      this.chunks.push({ seq: seq++, start: at, bytes: content, zero: false })
      if (content === undefined) this.unreachable = true
      else content.copy(this.disk, at)
      at += length
    }
  }

  zeroes(seq: number, start: number, length: number): void {
    this.chunks.push({ seq, start, bytes: Buffer.alloc(length), zero: true })
    this.disk.fill(0, start, start + length)
  }

  checkWrite(offset: number, data: Buffer): void {
    const fits = this.#runs.some(({ start, bytes, known }) => {
      const from = offset - start
      if (from < 0 || from + data.length > bytes.length) return false
      for (let at = 0; at < data.length; at++) {
        if (known[from + at] !== true || bytes[from + at] !== data[at]) return false
      }
      return true
    })
    assert.ok(fits, `I3: ${data.length} bytes were written at ${offset} that no digest stood for`)
  }

  checkZeroes(offset: number, length: number): void {
    const end = offset + length
    const covered = this.chunks.some(
      ({ zero, start, bytes }) => zero && start <= offset && end <= start + bytes!.length,
    )
    // Pending zeroes that touch are settled together: each byte must lie in one of them.
    const each = (at: number): boolean =>
      this.chunks.some(({ zero, start, bytes }) => zero && start <= at && at < start + bytes!.length)
    assert.ok(
      covered || Array.from({ length: length / BLOCK }, (_v, index) => offset + index * BLOCK).every(each),
      `zeroes at ${offset} of ${length} bytes that nobody asked for`,
    )
  }
}

class CheckedDevice extends DurableDevice {
  readonly #model: Model
  fault: unknown
  constructor(contents: Buffer, model: Model) {
    super(contents, BLOCK)
    this.#model = model
  }
  override async write(offset: number, data: Buffer): Promise<void> {
    this.#note(() => this.#model.checkWrite(offset, data))
    await super.write(offset, data)
  }
  override async writeZeroes(offset: number, length: number): Promise<void> {
    this.#note(() => this.#model.checkZeroes(offset, length))
    await super.writeZeroes(offset, length)
  }
  #note(check: () => void): void {
    try {
      check()
    } catch (error) {
      this.fault ??= error
    }
  }
}

class LyingSender extends Liar {
  readonly wanted = new Set<number>()
  readonly applied = new Set<number>()
  readonly flushed = new Set<number>()
  /** Why it is over, once it is. */
  end: Error | undefined
  fault: unknown
  #over = false

  protected override heard(message: DiskMessage): void {
    try {
      assert.ok(!this.#over, `${message.type} after the session had failed`)
      if (message.type === 'want') this.#each(message.runs, (seq) => this.#once(this.wanted, seq, 'wanted'))
      else if (message.type === 'applied') {
        this.#each(message.runs, (seq) => this.#once(this.applied, seq, 'applied'))
      } else if (message.type === 'flushed') this.flushed.add(message.id)
      else if (message.type === 'failed') this.#over = true
    } catch (error) {
      this.fault ??= error
    }
  }

  #each(runs: readonly { first: number; count: number }[], act: (seq: number) => void): void {
    for (const { first, count } of runs) for (let seq = first; seq < first + count; seq++) act(seq)
  }

  #once(set: Set<number>, seq: number, what: string): void {
    assert.ok(!set.has(seq), `chunk ${seq} was ${what} twice`)
    set.add(seq)
  }
}

function digestOf(bytes: Buffer): Buffer {
  return createHash('sha256').update(bytes).digest()
}

export const diskReceiver: FuzzTarget = {
  name: 'disk-receiver',
  inputBytesMax: 1024,
  generate: (random) => anySteps(random, 300),
  allocationBytesMax: 16 * LITERAL_BYTES_MAX,
  async run(input) {
    const script = new Script(input)
    const contents = Buffer.alloc(SIZE)
    for (let at = 0; at < SIZE; at += 8192) pattern(script.below(4), 8192).copy(contents, at)
    const model = new Model(contents)
    const device = new CheckedDevice(contents, model)
    const liar = new LyingSender()
    const link = new DiskLink(liar.channel)
    new DiskReceiver({
      link,
      disk: 0,
      epoch: EPOCH,
      device,
      account: new DiskAccount('vda', SIZE),
      sources: [],
      memory: new ByteBudget({ bytesMax: 4 * SIZE }),
      sessionEntriesMax: 64,
      onEnd: (error) => {
        liar.end ??= error ?? new LostError('closed')
      },
    })
    let seq = 0
    let flush = 1
    for (let steps = 0; steps < STEPS_MAX && !script.over && liar.end === undefined; steps++) {
      const told = step(script, liar, model, seq, flush)
      seq += told.chunks
      flush += told.flushes
    }
    await finish(liar, device, model, seq, flush)
  },
}

function step(
  script: Script,
  liar: LyingSender,
  model: Model,
  seq: number,
  flush: number,
): { chunks: number; flushes: number } {
  const nothing = { chunks: 0, flushes: 0 }
  switch (script.below(10)) {
    case 0:
    case 1: {
      const start = script.below(SIZE / BLOCK) * BLOCK
      const chunks: (Buffer | number)[] = []
      let left = Math.min(SIZE - start, (1 + script.below(40)) * BLOCK)
      while (left > 0 && chunks.length < 12) {
        const most = chunks.length === 11 ? left : Math.min(left, 1 + script.below(9000))
        const length = left - most < 64 ? left : most
        // One in sixteen has a digest that nothing fits.
        chunks.push(script.once(16) ? length : pattern(script.below(6), length))
        left -= length
      }
      const lengths = Uint32Array.from(chunks, (chunk) => (typeof chunk === 'number' ? chunk : chunk.length))
      const digests = Buffer.concat(
        chunks.map((chunk) => (typeof chunk === 'number' ? Buffer.alloc(32, 1) : digestOf(chunk))),
      )
      model.run(seq, start, chunks)
      liar.say({ type: 'describe', firstSeq: seq, offset: start, lengths, digests })
      return { chunks: chunks.length, flushes: 0 }
    }
    case 2: {
      const start = script.below(SIZE / BLOCK) * BLOCK
      const length = Math.min(SIZE - start, (1 + script.below(256)) * BLOCK)
      model.zeroes(seq, start, length)
      liar.say({ type: 'zero', seq, offset: start, length })
      return { chunks: 1, flushes: 0 }
    }
    case 3:
    case 4: {
      const chunk = model.chunks[script.below(Math.max(1, model.chunks.length))]
      if (chunk === undefined || chunk.zero) return nothing
      const bytes = Buffer.from(chunk.bytes ?? pattern(3, 100))
      // Most literals are true; some have a byte changed, or are of another length.
      if (script.once(8)) bytes[script.below(bytes.length)]! ^= 1 << script.below(8)
      literal(liar, chunk.seq, bytes, script.once(2))
      return nothing
    }
    case 5:
      liar.say({ type: 'flush', id: flush, barrier: seq - Math.min(seq, script.below(4)) })
      return { chunks: 0, flushes: 1 }
    case 6:
      liar.say({
        type: 'read',
        id: flush,
        offset: script.below(SIZE / BLOCK) * BLOCK,
        length: 1 + script.below(9000),
      })
      return nothing
    case 7: {
      // Bytes that are no message, or one that nobody expects.
      if (!script.once(4)) return nothing
      liar.sayBytes(
        16 + script.below(14),
        Buffer.concat([Buffer.from([0, 0, 0, 0, 0, EPOCH]), script.take(40)]),
      )
      // It may have been a chunk: what the oracle knows is not all any more.
      liar.cut()
      return nothing
    }
    case 8:
      if (script.once(16)) liar.say({ type: 'flush', id: flush, barrier: seq, epoch: EPOCH + 1 })
      return nothing
    default:
      return nothing
  }
}

function literal(liar: LyingSender, seq: number, bytes: Buffer, packed: boolean): void {
  const data = packed ? zstdCompressSync(bytes) : bytes
  const chunks = [{ seq, length: bytes.length }]
  liar.say({ type: 'literal', chunks, codec: packed ? 'zstd' : 'raw', data })
}

/** The rest is honest: what is wanted is sent, then one more FLUSH; or it is over, and stays so. */
async function finish(
  liar: LyingSender,
  device: CheckedDevice,
  model: Model,
  seq: number,
  flush: number,
): Promise<void> {
  const judged = (): void => {
    if (liar.fault !== undefined) throw liar.fault
    if (device.fault !== undefined) throw device.fault
  }
  const sent = new Set<number>()
  const serve = (): void => {
    for (const wanted of liar.wanted) {
      if (sent.has(wanted)) continue
      sent.add(wanted)
      const chunk = model.chunks[wanted]
      assert.ok(chunk !== undefined, `WANT of chunk ${wanted}, which was never described`)
      if (chunk.bytes !== undefined) literal(liar, wanted, chunk.bytes, false)
    }
  }
  if (model.unreachable && liar.end === undefined) {
    for (let turns = 0; turns < 8; turns++) {
      serve()
      await turn()
    }
    liar.cut()
  }
  if (liar.end === undefined) liar.say({ type: 'flush', id: flush, barrier: seq })
  await until(() => {
    serve()
    return liar.end !== undefined || liar.flushed.has(flush)
  })
  await turn()
  judged()
  if (liar.end !== undefined) {
    assert.ok(
      ADMITTED.some((one) => liar.end instanceof one),
      liar.end,
    )
    return
  }
  assert.equal(liar.applied.size, seq, 'every chunk is applied')
  assert.ok(device.durable.equals(model.disk), 'the disk is as described, and durable')
  liar.cut()
  await turn()
}
