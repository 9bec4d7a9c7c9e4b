/**
 * DiskReceiver: the destination's end of one disk. It puts together every described chunk from what lies here, asks
 * for the rest, verifies each against the sender's SHA-256 and only then writes it, through the destination QEMU's own
 * NBD export (I3).
 *
 * Order: of two chunks that overlap, the newer one begins only when the older is applied. `#latest` maps every
 * range to the newest unfinished task on it, so a new task waits for exactly those that it would overwrite.
 * Zeroes are pending state: they are applied when a FLUSH settles them, so that a zeroing pass over the whole disk
 * does not erase the old version lying in place, the best source there is.
 * A FLUSH is answered when everything below its barrier is applied, pending zeroes are settled and the device flushed.
 */
import type { BlockDevice } from '../block/device.ts'
import { IntervalMap } from '../block/extents.ts'
import { sha256 } from '../chunk/digest.ts'
import { decompress } from '../chunk/zstd.ts'
import { errorText, ProtocolError, RefusedError } from '../core/errors.ts'
import {
  KNOWN_ZEROES_MAX,
  MIGRATION_EAGER_BYTES_MAX,
  MIGRATION_TASKS_MAX,
  PENDING_ZEROES_MAX,
  RECEIVER_FLUSHES_MAX,
  RECEIVER_OUTSTANDING_BYTES_MAX,
  RECEIVER_READS_MAX,
  RECEIVER_TASKS_MAX,
  RESOLVING_CHUNKS_MAX,
  SEQ_RUNS_MAX,
} from '../core/limits.ts'
import { GIB } from '../core/units.ts'
import {
  type AppliedRun,
  DIGEST_BYTES,
  type DiskMessage,
  type DiskMessageBody,
  type SeqRun,
  type SourceName,
} from '../wire/disk.ts'
import type { DiskAccount } from './account.ts'
import { CLASS_CONTROL, type DiskEndpoint, type DiskLink } from './link.ts'
import { RunWriter } from './seams.ts'
import { type ChunkQuery, type ChunkSource, readBytes, SessionSource, SourceRouter } from './sources.ts'

/** What all disks of one migration hold together: a far side that lies may have many of them. */
export interface ReceiverBudget {
  tasks: number
  eagerBytes: number
}

export interface ReceiverOptions {
  readonly link: DiskLink
  readonly disk: number
  readonly epoch: number
  readonly device: BlockDevice
  readonly account: DiskAccount
  /** Beyond the target itself: catalog, neighbours. */
  readonly sources: readonly ChunkSource[]
  readonly sessionEntriesMax: number
  /** Shared by the disks of one migration. */
  readonly budget?: ReceiverBudget
  readonly onEnd?: (error: Error | undefined) => void
}

interface Task {
  readonly seq: number
  readonly start: number
  readonly end: number
  readonly digest: Buffer | undefined
  readonly writer: RunWriter | undefined
  /** Resolves when the task is applied; never rejects. */
  readonly done: Promise<void>
  readonly finish: () => void
  /** Resolves with the verified bytes, for a later chunk with the same digest; undefined when the session failed. */
  readonly bytes: Promise<Buffer | undefined>
  readonly gotBytes: (bytes: Buffer | undefined) => void
  /** Set while a literal is asked for. */
  literal: ((bytes: Buffer) => void) | undefined
  /** A literal that came before it was asked for; not verified yet. */
  eager: Buffer | undefined
  /** Its bytes are known and are being written. */
  taken: boolean
}

const EIO = 5

export class DiskReceiver implements DiskEndpoint {
  readonly account: DiskAccount
  readonly #options: ReceiverOptions
  readonly #device: BlockDevice
  readonly #session: SessionSource
  readonly #router: SourceRouter
  readonly #tasks = new Map<number, Task>()
  readonly #latest = new IntervalMap<Task | Promise<void>>()
  readonly #byDigest = new Map<string, Task>()
  /** Ranges that must read as zero and are not yet zeroed on the device. */
  readonly #pendingZeroes = new IntervalMap<true>()
  /** Ranges that are known to read as zero on the device. */
  readonly #knownZeroes = new IntervalMap<true>()
  readonly #budget: ReceiverBudget
  #nextSeq = 0
  #outstandingBytes = 0
  #reads = 0
  #reading: Promise<void> = Promise.resolve()
  #flushes = 0
  #queue: (() => Promise<void>)[] = []
  #queueHead = 0
  #resolving = 0
  #wants: number[] = []
  #applied: { seq: number; source: SourceName }[] = []
  #reporting = false
  #barriers: { barrier: number; resolve: () => void }[] = []
  #failed: Error | undefined
  #closed = false

  constructor(options: ReceiverOptions) {
    this.#options = options
    this.#device = options.device
    this.#budget = options.budget ?? { tasks: 0, eagerBytes: 0 }
    this.account = options.account
    this.#session = new SessionSource(options.device, options.sessionEntriesMax)
    this.#router = new SourceRouter([this.#session, ...options.sources])
    options.link.register(options.disk, this)
  }

  /** Learns which ranges of the target read as zero already; until then nothing is assumed of them. */
  async scanTarget(): Promise<void> {
    if (!this.#device.features.blockStatus) return
    let at = 0
    while (at < this.#device.size && this.#failed === undefined) {
      const extents = await this.#device.blockStatus(at, Math.min(GIB, this.#device.size - at))
      for (const extent of extents) {
        const end = Math.min(this.#device.size, at + extent.length)
        // What was described meanwhile may be written at any moment: its state is no longer what the device said.
        if (extent.zero && at < end && !this.#latest.overlaps(at, end) && this.#nextSeq === 0) {
          this.#knownZeroes.set(at, end, true)
        }
        at = end
      }
      if (extents.length === 0) return
    }
  }

  onMessage(message: DiskMessage): void {
    if (this.#failed !== undefined || this.#closed) return
    if (message.epoch !== this.#options.epoch) {
      throw new ProtocolError(
        `disk ${message.disk}: epoch ${message.epoch}, this session is ${this.#options.epoch}`,
      )
    }
    switch (message.type) {
      case 'describe':
        this.#describe(message.firstSeq, message.offset, message.lengths, message.digests)
        return
      case 'zero':
        this.#zero(message.seq, message.offset, message.length)
        return
      case 'literal':
        void this.#literal(message.chunks, message.codec, message.data).catch((error: unknown) =>
          this.#fail(error),
        )
        return
      case 'flush':
        if (++this.#flushes > RECEIVER_FLUSHES_MAX)
          throw new ProtocolError(`disk ${message.disk}: ${this.#flushes} FLUSHes wait already`)
        void this.#flush(message.id, message.barrier)
          .catch((error: unknown) => this.#fail(error))
          .finally(() => this.#flushes--)
        return
      case 'read':
        this.#enqueueRead(message.id, message.offset, message.length)
        return
      case 'close':
        this.#end(undefined)
        return
      default:
        throw new ProtocolError(`disk ${message.disk}: ${message.type} is not for a receiver`)
    }
  }

  // ---- chunks ------------------------------------------------------------------------------------------------

  #expect(what: string, seq: number, offset: number, length: number): void {
    if (seq !== this.#nextSeq) {
      throw new ProtocolError(`${what}: sequence ${seq}, expected ${this.#nextSeq}`)
    }
    if (offset + length > this.#device.size) {
      throw new ProtocolError(`${what}: ${length} bytes at ${offset}, the disk has ${this.#device.size}`)
    }
    const unit = this.#device.blockSizes.minimum
    if (offset % unit !== 0 || (length % unit !== 0 && offset + length !== this.#device.size)) {
      throw new ProtocolError(
        `${what}: ${length} bytes at ${offset} are no multiple of the block size ${unit}`,
      )
    }
    if (this.#tasks.size >= RECEIVER_TASKS_MAX || this.#outstandingBytes > RECEIVER_OUTSTANDING_BYTES_MAX) {
      throw new ProtocolError(
        `${what}: ${this.#tasks.size} chunks, ${this.#outstandingBytes} bytes are under way already`,
      )
    }
    if (this.#budget.tasks >= MIGRATION_TASKS_MAX)
      throw new ProtocolError(`${what}: ${this.#budget.tasks} chunks of all disks are under way already`)
  }

  #describe(firstSeq: number, offset: number, lengths: Uint32Array, digests: Uint8Array): void {
    let total = 0
    for (const length of lengths) total += length
    this.#expect('DESCRIBE', firstSeq, offset, total)
    const writer = new RunWriter(this.#device, offset, offset + total)
    const before = this.#claims(offset, offset + total)
    let at = offset
    for (let i = 0; i < lengths.length; i++) {
      const length = lengths[i]!
      const digest = Buffer.from(digests.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES))
      const task = this.#task(at, at + length, digest, writer)
      const key = digest.toString('latin1')
      const same = this.#byDigest.get(key)
      if (same === undefined) this.#byDigest.set(key, task)
      const waits = before.filter((claim) => claim.start < task.end && claim.end > task.start)
      this.#enqueue(() => this.#resolve(task, waits, same))
      at += length
    }
  }

  #task(start: number, end: number, digest: Buffer | undefined, writer: RunWriter | undefined): Task {
    const { promise: done, resolve: finish } = Promise.withResolvers<void>()
    const { promise: bytes, resolve: gotBytes } = Promise.withResolvers<Buffer | undefined>()
    const task: Task = {
      seq: this.#nextSeq++,
      start,
      end,
      digest,
      writer,
      done,
      finish,
      bytes,
      gotBytes,
      literal: undefined,
      eager: undefined,
      taken: false,
    }
    this.#tasks.set(task.seq, task)
    this.#budget.tasks++
    this.#latest.set(start, end, task)
    // What the source was asked for and superseded before it was sent is not known here.
    this.account.askedBytes += end - start
    if (digest !== undefined) this.#outstandingBytes += end - start
    return task
  }

  /** What must be applied before [start, end) may be looked at or changed. */
  #claims(start: number, end: number): { start: number; end: number; done: Promise<void> }[] {
    return this.#latest.overlapping(start, end).map((range) => ({
      start: range.start,
      end: range.end,
      done: range.value instanceof Promise ? range.value : range.value.done,
    }))
  }

  #enqueue(step: () => Promise<void>): void {
    this.#queue.push(step)
    this.#pump()
  }

  #pump(): void {
    while (this.#resolving < RESOLVING_CHUNKS_MAX && this.#queueHead < this.#queue.length) {
      const step = this.#queue[this.#queueHead++]!
      if (this.#queueHead > 1024 && this.#queueHead * 2 > this.#queue.length) {
        this.#queue = this.#queue.slice(this.#queueHead)
        this.#queueHead = 0
      }
      this.#resolving++
      void step()
        .catch((error: unknown) => this.#fail(error))
        .finally(() => {
          this.#resolving--
          this.#pump()
        })
    }
  }

  /** Finds a chunk's bytes here, or asks for them. Holds one of the resolving places until then. */
  async #resolve(
    task: Task,
    waits: readonly { done: Promise<void> }[],
    same: Task | undefined,
  ): Promise<void> {
    for (const wait of waits) await wait.done
    if (this.#failed !== undefined) return
    const digest = task.digest!
    const length = task.end - task.start
    const verify = (bytes: Buffer): boolean => bytes.length === length && sha256(bytes).equals(digest)
    if (!this.#knownZeroes.covers(task.start, task.end)) {
      const bytes = await readBytes(this.#device, task.start, length)
      if (verify(bytes)) return this.#apply(task, bytes, 'inPlace')
    }
    if (task.eager !== undefined) {
      this.#take(task, task.eager)
      return
    }
    if (same !== undefined && same !== task) {
      // The same content is under way for another place: no need to ask for it twice. Its literal may take a round
      // trip, so the place in the queue is given back meanwhile.
      void same.bytes
        .then(async (bytes) => {
          if (bytes !== undefined && verify(bytes)) this.#apply(task, bytes, 'session')
          else await this.#search(task, digest, verify)
        })
        .catch((error: unknown) => this.#fail(error))
      return
    }
    await this.#search(task, digest, verify)
  }

  async #search(task: Task, digest: Buffer, verify: ChunkQuery['verify']): Promise<void> {
    if (this.#failed !== undefined) return
    const found = await this.#router.find({
      digest,
      offset: task.start,
      length: task.end - task.start,
      verify,
    })
    if (this.#failed !== undefined) return
    if (found !== undefined) {
      this.#apply(task, found.data, found.source)
      return
    }
    if (task.eager !== undefined) {
      this.#take(task, task.eager)
      return
    }
    task.literal = (bytes) => this.#take(task, bytes)
    this.#wants.push(task.seq)
    this.#report()
  }

  /** I3: nothing that does not match the sender's digest is ever written. */
  #take(task: Task, bytes: Buffer): void {
    task.literal = undefined
    this.#setEager(task, undefined)
    const digest = task.digest!
    if (bytes.length !== task.end - task.start || !sha256(bytes).equals(digest)) {
      throw new ProtocolError(
        `LITERAL of chunk ${task.seq} at ${task.start}: ${bytes.length} bytes do not match the digest ` +
          `${digest.toString('hex', 0, 8)}…`,
      )
    }
    this.#apply(task, bytes, 'literal')
  }

  /** Chunks that were asked for, or not yet (the sender guessed), or not any more (they were found here). */
  async #literal(
    chunks: readonly { seq: number; length: number }[],
    codec: 'raw' | 'zstd',
    data: Buffer,
  ): Promise<void> {
    let total = 0
    for (const { seq, length } of chunks) {
      const task = this.#tasks.get(seq)
      if (seq >= this.#nextSeq || (task !== undefined && task.end - task.start !== length)) {
        throw new ProtocolError(`LITERAL: chunk ${seq} of ${length} bytes was not described`)
      }
      total += length
    }
    const raw = codec === 'zstd' ? await decompress(data, total) : data
    if (raw.length !== total) throw new ProtocolError(`LITERAL: ${raw.length} bytes, expected ${total}`)
    let at = 0
    for (const { seq, length } of chunks) {
      if (this.#failed !== undefined) return
      const bytes = raw.subarray(at, at + length)
      at += length
      const task = this.#tasks.get(seq)
      // Applied already, or zeroes, which have no literal.
      if (task?.digest === undefined || task.taken) continue
      if (task.literal !== undefined) this.#take(task, bytes)
      else {
        // A copy: a few bytes must not keep a literal of a MiB alive.
        this.#setEager(task, Buffer.from(bytes))
        if (this.#budget.eagerBytes > MIGRATION_EAGER_BYTES_MAX)
          throw new ProtocolError(`LITERAL: ${this.#budget.eagerBytes} bytes came that nobody asked for yet`)
      }
    }
  }

  #setEager(task: Task, bytes: Buffer | undefined): void {
    this.#budget.eagerBytes += (bytes?.length ?? 0) - (task.eager?.length ?? 0)
    task.eager = bytes
  }

  /** The bytes are verified: write what is not in place, then report. */
  #apply(task: Task, bytes: Buffer, source: SourceName): void {
    task.taken = true
    this.#setEager(task, undefined)
    task.gotBytes(bytes)
    void this.#write(task, bytes, source).catch((error: unknown) => this.#fail(error))
  }

  async #write(task: Task, bytes: Buffer, source: SourceName): Promise<void> {
    this.#pendingZeroes.delete(task.start, task.end)
    this.#knownZeroes.delete(task.start, task.end)
    await task.writer!.chunk(task.start, bytes, source === 'inPlace')
    if (this.#failed !== undefined) return
    this.#session.delivered(task.digest!, task.start)
    const key = task.digest!.toString('latin1')
    if (this.#byDigest.get(key) === task) this.#byDigest.delete(key)
    this.#outstandingBytes -= task.end - task.start
    this.#finish(task, source)
  }

  #finish(task: Task, source: SourceName): void {
    if (this.#tasks.delete(task.seq)) this.#budget.tasks--
    this.#latest.deleteValue(task.start, task.end, task)
    task.finish()
    this.account.applied(source, task.end - task.start)
    this.#applied.push({ seq: task.seq, source })
    this.#report()
    this.#checkBarriers()
  }

  // ---- zeroes and flushes ------------------------------------------------------------------------------------

  #zero(seq: number, offset: number, length: number): void {
    this.#expect('ZERO', seq, offset, length)
    const before = this.#claims(offset, offset + length)
    const task = this.#task(offset, offset + length, undefined, undefined)
    void (async () => {
      for (const claim of before) await claim.done
      if (this.#failed !== undefined) return
      this.#pendingZeroes.set(task.start, task.end, true)
      this.#finish(task, 'zero')
      if (this.#pendingZeroes.count > PENDING_ZEROES_MAX) await this.#settleZeroes()
    })().catch((error: unknown) => this.#fail(error))
  }

  /** Makes pending zeroes real, where the device does not read as zero already. Newer data wins: it waits its turn. */
  async #settleZeroes(): Promise<void> {
    const ranges = [...this.#pendingZeroes.entries()]
    await Promise.all(
      ranges.map(async ({ start, end }) => {
        const before = this.#claims(start, end)
        const { promise: done, resolve: finish } = Promise.withResolvers<void>()
        this.#latest.set(start, end, done)
        for (const claim of before) await claim.done
        try {
          if (this.#failed !== undefined) return
          for (const pending of this.#pendingZeroes.overlapping(start, end)) {
            const from = Math.max(pending.start, start)
            const to = Math.min(pending.end, end)
            for (const gap of this.#knownZeroes.gaps(from, to)) {
              await this.#device.writeZeroes(gap.start, gap.end - gap.start)
            }
            if (this.#knownZeroes.count >= KNOWN_ZEROES_MAX) this.#knownZeroes.clear()
            this.#knownZeroes.set(from, to, true)
            this.#pendingZeroes.delete(from, to)
          }
        } finally {
          this.#latest.deleteValue(start, end, done)
          finish()
        }
      }),
    )
  }

  async #flush(id: number, barrier: number): Promise<void> {
    await new Promise<void>((resolve) => {
      this.#barriers.push({ barrier, resolve })
      this.#checkBarriers()
    })
    if (this.#failed !== undefined) return
    await this.#settleZeroes()
    if (this.#failed !== undefined) return
    await this.#device.flush()
    if (this.#failed !== undefined) return
    // The account of what was applied goes first, so that both ends agree on it when the FLUSH is answered.
    this.#reportNow()
    this.#send({ type: 'flushed', id })
  }

  #checkBarriers(): void {
    if (this.#barriers.length === 0) return
    // Tasks are in the map in the order of their numbers.
    let oldest = this.#nextSeq
    for (const seq of this.#tasks.keys()) {
      oldest = seq
      break
    }
    this.#barriers = this.#barriers.filter(({ barrier, resolve }) => {
      if (oldest < barrier) return true
      resolve()
      return false
    })
  }

  /** One after the other, each when the answer before it has left: what is asked for is not held in memory. */
  #enqueueRead(id: number, offset: number, length: number): void {
    if (++this.#reads > RECEIVER_READS_MAX) throw new ProtocolError(`READ: ${this.#reads} wait already`)
    this.#reading = this.#reading
      .then(() => this.#read(id, offset, length))
      .catch((error: unknown) => this.#fail(error))
      .finally(() => this.#reads--)
  }

  async #read(id: number, offset: number, length: number): Promise<void> {
    if (offset + length > this.#device.size) {
      throw new ProtocolError(`READ: ${length} bytes at ${offset}, the disk has ${this.#device.size}`)
    }
    for (const claim of this.#claims(offset, offset + length)) await claim.done
    const data = await readBytes(this.#device, offset, length)
    for (const zero of this.#pendingZeroes.overlapping(offset, offset + length)) {
      data.fill(0, Math.max(zero.start, offset) - offset, Math.min(zero.end, offset + length) - offset)
    }
    if (this.#failed !== undefined) return
    const { link, disk, epoch } = this.#options
    await link.send({ type: 'readReply', id, errno: 0, data, disk, epoch }, CLASS_CONTROL)
  }

  // ---- reports -----------------------------------------------------------------------------------------------

  /** Wants and applied chunks are gathered for one turn of the event loop: one message instead of hundreds. */
  #report(): void {
    if (this.#reporting) return
    this.#reporting = true
    setImmediate(() => this.#reportNow())
  }

  #reportNow(): void {
    this.#reporting = false
    if (this.#failed !== undefined || this.#closed) return
    const wants = this.#wants.splice(0).sort((a, b) => a - b)
    const wantRuns: SeqRun[] = []
    for (const seq of wants) {
      const last = wantRuns.at(-1)
      if (last !== undefined && last.first + last.count === seq) {
        wantRuns[wantRuns.length - 1] = { first: last.first, count: last.count + 1 }
      } else wantRuns.push({ first: seq, count: 1 })
    }
    for (let i = 0; i < wantRuns.length; i += SEQ_RUNS_MAX) {
      this.#send({ type: 'want', runs: wantRuns.slice(i, i + SEQ_RUNS_MAX) })
    }
    const applied = this.#applied.splice(0).sort((a, b) => a.seq - b.seq)
    const appliedRuns: AppliedRun[] = []
    for (const { seq, source } of applied) {
      const last = appliedRuns.at(-1)
      if (last !== undefined && last.first + last.count === seq && last.source === source) {
        appliedRuns[appliedRuns.length - 1] = { ...last, count: last.count + 1 }
      } else appliedRuns.push({ first: seq, count: 1, source })
    }
    for (let i = 0; i < appliedRuns.length; i += SEQ_RUNS_MAX) {
      this.#send({ type: 'applied', runs: appliedRuns.slice(i, i + SEQ_RUNS_MAX) })
    }
  }

  #send(message: DiskMessageBody): void {
    const { link, disk, epoch } = this.#options
    void link.send({ ...message, disk, epoch }, CLASS_CONTROL).catch((error: unknown) => {
      if (!this.#closed) this.#fail(error)
    })
  }

  // ---- end ---------------------------------------------------------------------------------------------------

  onLost(error: Error): void {
    this.#end(error)
  }

  /** I2: the sender hears of it, and nothing is written or confirmed any more. */
  #fail(cause: unknown): void {
    if (this.#failed !== undefined || this.#closed) return
    const errno = cause instanceof RefusedError && cause.errno !== undefined ? cause.errno : EIO
    this.#send({ type: 'failed', errno, text: errorText(cause) })
    this.#end(cause instanceof Error ? cause : new Error(errorText(cause)))
  }

  #end(error: Error | undefined): void {
    if (this.#closed) return
    this.#closed = true
    this.#failed = error ?? this.#failed
    this.#options.link.unregister(this.#options.disk, this)
    // Whoever waits for a task must not wait for ever; they look at #failed and #closed first.
    if (this.#failed === undefined) this.#failed = new ProtocolError('the disk was closed')
    this.#budget.tasks -= this.#tasks.size
    for (const task of this.#tasks.values()) {
      this.#setEager(task, undefined)
      task.gotBytes(undefined)
      task.finish()
    }
    this.#tasks.clear()
    for (const { resolve } of this.#barriers.splice(0)) resolve()
    this.#queue = []
    this.#queueHead = 0
    void this.#device.close().catch(() => undefined)
    this.#options.onEnd?.(error)
  }
}
