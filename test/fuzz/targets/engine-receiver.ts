/**
 * DiskReceiver with a sender that lies: descriptions, literals, zeroes and flushes in any order, digests that nothing
 * fits, literals of other bytes, messages that are no messages. The oracle knows what each chunk should be: nothing else
 * may be written (I3), nothing is confirmed after a loss (I2), and when the rest is honest the disk must be as described.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { rm } from 'node:fs/promises'
import { zstdCompressSync } from 'node:zlib'
import { leafDigests } from '../../../lib/chunk/leaf-digests.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { LostError, ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { LITERAL_BYTES_MAX } from '../../../lib/core/limits.ts'
import {
  alignDown,
  BLOCK_BYTES,
  BRIEF_HINT_BYTES,
  blockCount,
  HINT_BYTES,
  LEAF_BYTES,
  SKETCH_BYTES,
} from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { blockBits, hintsOf, partsOf, setBlock } from '../../../lib/engine/chunk-blocks.ts'
import { LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { differencesOf, sketchOf, writeBody } from '../../../lib/engine/pieces.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import { ReceiverProof } from '../../../lib/engine/receiver-proof.ts'
import type { LeafMap } from '../../../lib/proof/leaf-map.ts'
import type { DiskMessage, DiskMessageBody, SurveyedRun } from '../../../lib/wire/disk.ts'
import { closeProofs, newMap, plainRoot } from '../../unit/engine/proof-rig.ts'
import { DurableDevice } from '../../unit/engine/rig.ts'
import type { FuzzTarget } from '../target.ts'
import { EPOCH, Liar } from './liar.ts'
import { anySteps, Script, turn, until } from './script.ts'

const BLOCK = 512
const SIZE = 128 * 1024
const STEPS_MAX = 200
/** The digest of nothing that is ever sent. */
const NOTHING = Buffer.alloc(32, 1)
const ADMITTED = [ProtocolError, RefusedError, LostError]

interface Chunk {
  readonly seq: number
  readonly start: number
  /** Undefined: nothing has this digest. Zeroes have no digest. */
  readonly bytes: Buffer | undefined
  readonly length: number
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
      this.chunks.push({ seq: seq++, start: at, bytes: content, length, zero: false })
      if (content === undefined) this.unreachable = true
      else content.copy(this.disk, at)
      at += length
    }
  }

  zeroes(seq: number, start: number, length: number): void {
    this.chunks.push({ seq, start, bytes: Buffer.alloc(length), length, zero: true })
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

/** What is asked for of a chunk: these blocks of it, and what of them lies there in an older version. */
interface Parted {
  readonly missing: Buffer
  readonly sketched?: { readonly old: Buffer; readonly sketches: Buffer }
}

class LyingSender extends Liar {
  readonly wanted = new Set<number>()
  readonly applied = new Set<number>()
  /** Chunks that were asked for block by block, those whose missing blocks were, and those whose digest was. */
  readonly asked = new Set<number>()
  readonly parted = new Map<number, Parted>()
  readonly detailed = new Set<number>()
  /** What of these has its answer. */
  readonly hinted = new Set<number>()
  readonly digested = new Set<number>()
  readonly filled = new Set<number>()
  readonly flushed = new Set<number>()
  readonly proved = new Map<number, Extract<DiskMessage, { type: 'proved' }>>()
  readonly proves: boolean
  /** Some of what it describes it says of what changed. */
  readonly changes: boolean
  /** Chunks of which what changed comes unasked. */
  readonly changed = new Set<number>()
  /** Why it is over, once it is. */
  end: Error | undefined
  fault: unknown
  #over = false

  constructor(proves: boolean, changes: boolean) {
    super(proves)
    this.proves = proves
    this.changes = changes
  }

  protected override heard(message: DiskMessage): void {
    try {
      assert.ok(!this.#over, `${message.type} after the session had failed`)
      if (message.type === 'want') this.#each(message.runs, (seq) => this.#once(this.wanted, seq, 'wanted'))
      else if (message.type === 'ask')
        this.#each(message.runs, (seq) => this.#once(this.asked, seq, 'asked for'))
      else if (message.type === 'detail')
        this.#each(message.runs, (seq) => this.#once(this.detailed, seq, 'detailed'))
      else if (message.type === 'parts') {
        for (const { seq, missing } of message.chunks) {
          assert.ok(this.hinted.has(seq) && !this.parted.has(seq), `PARTS of chunk ${seq} at a wrong time`)
          this.parted.set(seq, { missing })
        }
      } else if (message.type === 'sketches') {
        for (const { seq, missing, old, sketches } of message.chunks) {
          assert.ok(this.hinted.has(seq) && !this.parted.has(seq), `SKETCHES of chunk ${seq} at a wrong time`)
          this.parted.set(seq, { missing, sketched: { old, sketches } })
        }
      } else if (message.type === 'applied') {
        this.#each(message.runs, (seq) => this.#once(this.applied, seq, 'applied'))
      } else if (message.type === 'flushed') this.flushed.add(message.id)
      else if (message.type === 'proved') {
        this.flushed.add(message.id)
        this.proved.set(message.id, message)
      } else if (message.type === 'failed') this.#over = true
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
    // By what the input is as a whole, so that the steps of older ones stay what they were.
    const liar = new LyingSender(input.length % 2 === 1, input.length % 5 < 2)
    const link = new DiskLink(liar.channel)
    const map = liar.proves ? await newMap(SIZE) : undefined
    const proof = map === undefined ? undefined : proofOf(map, device, input.length % 3 === 0)
    new DiskReceiver({
      link,
      disk: 0,
      epoch: EPOCH,
      device: proof?.device ?? device,
      ...(proof === undefined ? {} : { proof }),
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
    if (map === undefined) return
    await map.close()
    await rm(map.path)
  },
  close: closeProofs,
}

/** @param narrow there is room for one leaf only, so most are read back */
function proofOf(map: LeafMap, device: CheckedDevice, narrow: boolean): ReceiverProof {
  return new ReceiverProof({
    device,
    map,
    target: 'vda',
    slots: new LeafSlots({ bytesMax: narrow ? LEAF_BYTES : SIZE }),
    digest: async (bytes) => leafDigests(bytes, { from: 0, to: bytes.length }),
    read: narrow,
  })
}

function step(
  script: Script,
  liar: LyingSender,
  model: Model,
  seq: number,
  flush: number,
): { chunks: number; flushes: number } {
  const nothing = { chunks: 0, flushes: 0 }
  switch (script.below(14)) {
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
      const described = { firstSeq: seq, offset: start, lengths, digests }
      if (liar.changes && script.once(2)) changed(script, liar, described)
      else liar.say({ type: 'describe', ...described })
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
      if (liar.changed.has(chunk.seq)) liar.filled.add(chunk.seq)
      // Most literals are true; some have a byte changed, or are of another length.
      if (script.once(8)) bytes[script.below(bytes.length)]! ^= 1 << script.below(8)
      literal(liar, chunk.seq, bytes, script.once(2))
      return nothing
    }
    case 5:
      if (liar.proves && script.once(2)) {
        const first = script.below(SIZE / LEAF_BYTES)
        const open = script.once(2) ? [{ first, end: first + 1 }] : []
        liar.say({ type: 'prove', id: flush, barrier: seq + script.below(3), read: script.once(2), open })
        return { chunks: 0, flushes: 1 }
      }
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
        16 + script.below(25),
        Buffer.concat([Buffer.from([0, 0, 0, 0, 0, EPOCH]), script.take(40)]),
      )
      // It may have been a chunk: what the oracle knows is not all any more.
      liar.cut()
      return nothing
    }
    case 8:
      if (script.once(16)) liar.say({ type: 'flush', id: flush, barrier: seq, epoch: EPOCH + 1 })
      return nothing
    case 9:
    case 10:
      return { chunks: survey(script, liar, model, seq), flushes: 0 }
    case 11: {
      const asked = [...liar.asked].filter((one) => !liar.hinted.has(one))
      // Or of one that was not asked for yet.
      const which = script.once(3) ? script.below(seq + 1) : (asked[script.below(asked.length + 1)] ?? -1)
      const chunk = model.chunks[which]
      if (chunk !== undefined && !chunk.zero && !liar.hinted.has(chunk.seq))
        hints(liar, chunk, script.once(6) ? script.take(8) : undefined)
      return nothing
    }
    case 12: {
      const open = [...liar.parted.keys()].filter((one) => !liar.filled.has(one))
      const chunk = model.chunks[open[script.below(open.length + 1)] ?? -1]
      if (chunk !== undefined) fill(liar, chunk, script.once(6))
      return nothing
    }
    case 13: {
      const open = [...liar.detailed].filter((one) => !liar.digested.has(one))
      const chunk = model.chunks[open[script.below(open.length + 1)] ?? -1]
      if (chunk === undefined) return nothing
      const lies = script.once(16)
      if (lies) model.unreachable = true
      digests(liar, chunk, lies)
      return nothing
    }
    default:
      return nothing
  }
}

/** What changed in some of them goes unasked, some time: by the pieces of what may lie there, or of what does not. */
function changed(
  script: Script,
  liar: LyingSender,
  described: Omit<Extract<DiskMessageBody, { type: 'changed' }>, 'type' | 'missing'>,
): void {
  const missing: Buffer[] = []
  let at = described.offset
  for (const [index, length] of described.lengths.entries()) {
    const blocks = blockCount(at, at + length)
    at += length
    const bits = blockBits(blocks)
    for (let block = 0; block < blocks; block++) if (script.once(2)) setBlock(bits, block)
    missing.push(bits)
    if (bits.every((byte) => byte === 0)) continue
    const seq = described.firstSeq + index
    const old = bits.reduce((sum, byte) => sum + [...byte.toString(2)].filter((bit) => bit === '1').length, 0)
    const sketches = Buffer.alloc(old * SKETCH_BYTES)
    // Pieces that are all the same: of one pattern nothing differs, of another everything.
    const block = pattern(script.below(6), BLOCK_BYTES)
    for (let each = 0; each < old; each++) sketchOf(block).copy(sketches, each * SKETCH_BYTES)
    liar.changed.add(seq)
    liar.parted.set(seq, { missing: bits, sketched: { old: bits, sketches } })
  }
  liar.say({ type: 'changed', ...described, missing })
}

/** Runs of chunks and of zeroes, described at once; gives their number. */
function survey(script: Script, liar: LyingSender, model: Model, firstSeq: number): number {
  const start = script.below(SIZE / BLOCK) * BLOCK
  const roots = script.once(2)
  const runs: SurveyedRun[] = []
  const all: Buffer[] = []
  let seq = firstSeq
  let at = start
  for (let count = 1 + script.below(5); count > 0 && at < SIZE; count--) {
    const length = Math.min(SIZE - at, (1 + script.below(60)) * BLOCK)
    if (script.once(3)) {
      model.zeroes(seq++, at, length)
      runs.push({ zero: true, length })
    } else {
      const parts = script.once(2) ? [length] : [Math.ceil(length / 3), length - Math.ceil(length / 3)]
      const chunks = parts.map((bytes) => (script.once(24) ? bytes : pattern(script.below(6), bytes)))
      all.push(...chunks.map((chunk) => (typeof chunk === 'number' ? NOTHING : digestOf(chunk))))
      model.run(seq, at, chunks)
      runs.push({ zero: false, lengths: Uint32Array.from(parts) })
      seq += parts.length
    }
    at += length
  }
  const told = roots && all.length > 0 ? digestOf(Buffer.concat(all)) : Buffer.concat(all)
  // A root that lies only costs its chunks' digests.
  if (roots && script.once(6)) told.fill(3)
  liar.say({ type: 'survey', firstSeq, offset: start, runs, roots, digests: told })
  return seq - firstSeq
}

/** @param lie in the place of the first block's hint */
function hints(liar: LyingSender, { seq, start, bytes, length }: Chunk, lie?: Buffer): void {
  liar.hinted.add(seq)
  const brief = !liar.asked.has(seq)
  const hintBytes = brief ? BRIEF_HINT_BYTES : HINT_BYTES
  const own = hintsOf(bytes ?? Buffer.alloc(length), start, start, start + length, hintBytes)
  if (lie !== undefined) lie.copy(own)
  liar.say({ type: brief ? 'brief' : 'hints', chunks: [{ seq, hints: own }] })
}

function fill(liar: LyingSender, { seq, start, bytes }: Chunk, lies: boolean): void {
  liar.filled.add(seq)
  if (bytes === undefined) return
  const { missing, sketched } = liar.parted.get(seq)!
  const end = start + bytes.length
  let sent: Buffer
  if (sketched === undefined) {
    sent = Buffer.concat(partsOf(start, end, missing).map(({ from, to }) => bytes.subarray(from, to)))
  } else {
    const first = alignDown(start, BLOCK_BYTES) - start
    const at = (index: number): number => first + index * BLOCK_BYTES
    const blocks = { start, end, missing, old: sketched.old }
    const { maps, bodyBytes } = differencesOf(blocks, sketched.sketches, (index) => {
      const block = Buffer.alloc(BLOCK_BYTES)
      const from = Math.max(0, at(index))
      bytes.copy(block, from - at(index), from, Math.min(bytes.length, at(index) + BLOCK_BYTES))
      return block
    })
    sent = Buffer.from(bytes)
    if (bodyBytes < bytes.length) {
      sent = Buffer.alloc(bodyBytes)
      writeBody(blocks, maps, bytes, sent, 0)
    }
  }
  if (lies) sent[0]! ^= 1
  literal(liar, seq, sent, false)
}

function digests(liar: LyingSender, { seq, bytes }: Chunk, lies: boolean): void {
  liar.digested.add(seq)
  liar.say({
    type: 'digests',
    firstSeq: seq,
    digests: lies || bytes === undefined ? NOTHING : digestOf(bytes),
  })
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
    for (const seq of liar.detailed) if (!liar.digested.has(seq)) digests(liar, model.chunks[seq]!, false)
    for (const seq of liar.asked) if (!liar.hinted.has(seq)) hints(liar, model.chunks[seq]!)
    for (const seq of liar.parted.keys()) if (!liar.filled.has(seq)) fill(liar, model.chunks[seq]!, false)
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
  if (liar.end === undefined) {
    if (liar.proves) liar.say({ type: 'prove', id: flush, barrier: seq, read: false, open: [] })
    else liar.say({ type: 'flush', id: flush, barrier: seq })
  }
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
  if (liar.proves) {
    const proved = liar.proved.get(flush)
    assert.deepEqual(proved?.excluded, [], 'nothing came behind the last PROVE')
    assert.equal(proved?.root.toString('hex'), plainRoot(model.disk), 'the root is that of the disk')
  }
  liar.cut()
  await turn()
}
