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
 *
 * Memory: a chunk's bytes are held only with a place in `memory`, which all disks of the daemon share: it is taken before
 * the chunk is looked for, so that no more is asked for than may be held, and given back when the device has the bytes.
 * Nobody waits for room while he holds some that another one needs: waits for older chunks, for the same content and
 * for seams come before or after. What the sender sends unasked has a bound of its own (EARLY_BYTES_MAX).
 */
import type { BlockDevice } from '../block/device.ts'
import { IntervalMap } from '../block/extents.ts'
import { sha256 } from '../chunk/digest.ts'
import { decompress } from '../chunk/zstd.ts'
import type { ByteBudget, ByteShare } from '../core/byte-budget.ts'
import { errorText, ProtocolError, RefusedError } from '../core/errors.ts'
import {
  EARLY_BYTES_MAX,
  KNOWN_ZEROES_MAX,
  MIGRATION_EAGER_BYTES_MAX,
  MIGRATION_TASKS_MAX,
  PENDING_ZEROES_MAX,
  RECEIVER_FLUSHES_MAX,
  RECEIVER_READS_MAX,
  RECEIVER_TASKS_MAX,
  RESOLVING_CHUNKS_MAX,
  SCANNED_EXTENTS_MAX,
  SEQ_RUNS_MAX,
  SETTLING_ZEROES_MAX,
} from '../core/limits.ts'
import { GIB } from '../core/units.ts'
import { DIGEST_BYTES, type DiskMessage, type DiskMessageBody, type SourceName } from '../wire/disk.ts'
import type { DiskAccount } from './account.ts'
import { CLASS_CONTROL, type DiskEndpoint, type DiskLink } from './link.ts'
import { RunWriter } from './seams.ts'
import {
  type ChunkQuery,
  type ChunkSource,
  readBytes,
  SessionSource,
  SourceRouter,
  unlessRefused,
} from './sources.ts'
import { newTask, type ReceiverBudget, runsOfApplied, seqRuns, type Task } from './task.ts'

export interface ReceiverOptions {
  readonly link: DiskLink
  readonly disk: number
  readonly epoch: number
  readonly device: BlockDevice
  readonly account: DiskAccount
  /** Bytes that all receivers of the daemon may hold together. */
  readonly memory: ByteBudget
  /** Beyond the target itself: catalog, neighbours. */
  readonly sources: readonly ChunkSource[]
  readonly sessionEntriesMax: number
  /** Shared by the disks of one migration. */
  readonly budget?: ReceiverBudget
  readonly onEnd?: (error: Error | undefined) => void
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
  /** Bytes that came without having been asked for, and are still held. */
  #earlyBytes = 0
  #reads = 0
  #reading: Promise<void> = Promise.resolve()
  #flushes = 0
  readonly #share: ByteShare
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
    this.#share = options.memory.share({ bytesMax: options.memory.bytesMax / 2 })
    this.#session = new SessionSource(options.device, options.sessionEntriesMax)
    this.#router = new SourceRouter([this.#session, ...options.sources])
    options.link.register(options.disk, this)
  }

  /** Learns which ranges of the target read as zero already; of what it cannot learn nothing is assumed. */
  async scanTarget(): Promise<void> {
    if (!this.#device.features.blockStatus) return
    let at = 0
    let seen = 0
    while (at < this.#device.size && this.#failed === undefined) {
      const extents = await unlessRefused(this.#device.blockStatus(at, Math.min(GIB, this.#device.size - at)))
      if (extents === undefined) return
      for (const extent of extents) {
        const end = Math.min(this.#device.size, at + extent.length)
        // What was described meanwhile may be written at any moment: its state is no longer what the device said.
        const full = this.#knownZeroes.count >= KNOWN_ZEROES_MAX
        if (extent.zero && at < end && !full && !this.#latest.overlaps(at, end) && this.#nextSeq === 0) {
          this.#knownZeroes.set(at, end, true)
        }
        at = end
        // A fragmented image has a hundred thousand of them in one answer.
        if (++seen % SCANNED_EXTENTS_MAX === 0) await new Promise((resolve) => setImmediate(resolve))
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
    if (this.#tasks.size >= RECEIVER_TASKS_MAX) {
      throw new ProtocolError(`${what}: ${this.#tasks.size} chunks are under way already`)
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
    let firstClaim = 0
    for (let i = 0; i < lengths.length; i++) {
      const length = lengths[i]!
      const digest = Buffer.from(digests.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES))
      const task = this.#task(at, at + length, digest, writer)
      const key = digest.toString('latin1')
      const same = this.#byDigest.get(key)
      if (same === undefined) this.#byDigest.set(key, task)
      // Both are in order of their places.
      while (firstClaim < before.length && before[firstClaim]!.end <= task.start) firstClaim++
      const waits: Promise<void>[] = []
      for (let k = firstClaim; k < before.length && before[k]!.start < task.end; k++)
        waits.push(before[k]!.done)
      this.#enqueue(() => this.#resolve(task, waits, same))
      at += length
    }
  }

  #task(start: number, end: number, digest: Buffer | undefined, writer: RunWriter | undefined): Task {
    const task = newTask(this.#nextSeq++, start, end, digest, writer)
    this.#tasks.set(task.seq, task)
    this.#budget.tasks++
    this.#latest.set(start, end, task)
    // What the source was asked for and superseded before it was sent is not known here.
    this.account.askedBytes += end - start
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

  async #hold(task: Task): Promise<void> {
    await this.#share.take(task.end - task.start)
    task.holding = true
  }

  #letGo(task: Task): void {
    if (!task.holding) return
    task.holding = false
    this.#share.release(task.end - task.start)
  }

  /** Finds a chunk's bytes here, or asks for them. Holds one of the resolving places until then. */
  async #resolve(task: Task, waits: readonly Promise<void>[], same: Task | undefined): Promise<void> {
    for (const wait of waits) await wait
    await this.#hold(task)
    if (this.#failed !== undefined) return
    const digest = task.digest!
    const length = task.end - task.start
    const verify = (bytes: Buffer): boolean => bytes.length === length && sha256(bytes).equals(digest)
    if (!this.#knownZeroes.covers(task.start, task.end)) {
      const bytes = await unlessRefused(readBytes(this.#device, task.start, length))
      if (bytes !== undefined && verify(bytes)) return this.#apply(task, bytes, 'inPlace')
    }
    if (task.eager !== undefined) {
      this.#take(task, task.eager)
      return
    }
    if (same !== undefined && same !== task) {
      // The same content is under way for another place: no need to ask for it twice. Its literal may take a round
      // trip, so the places in the queue and in the budget are given back meanwhile.
      this.#letGo(task)
      void same.found
        .then(async () => {
          await this.#hold(task)
          // Written but for a block that it shares with a neighbour, which in its own run may be this very chunk.
          if (same.bytes === undefined && same.writer !== task.writer) {
            this.#letGo(task)
            await same.done
            await this.#hold(task)
          }
          if (this.#failed !== undefined) return
          if (same.bytes !== undefined && verify(same.bytes)) this.#apply(task, same.bytes, 'session')
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
    let early = 0
    for (const { seq, length } of chunks) {
      const task = this.#tasks.get(seq)
      if (seq >= this.#nextSeq || (task !== undefined && task.end - task.start !== length)) {
        throw new ProtocolError(`LITERAL: chunk ${seq} of ${length} bytes was not described`)
      }
      if (task?.came === true) throw new ProtocolError(`LITERAL: chunk ${seq} came twice`)
      if (task !== undefined) task.came = true
      total += length
      if (task?.literal === undefined) early += length
    }
    this.#earlyBytes += early
    if (this.#earlyBytes > EARLY_BYTES_MAX) {
      throw new ProtocolError(`LITERAL: ${this.#earlyBytes} bytes came that nobody asked for`)
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
    this.#earlyBytes -= early
  }

  #setEager(task: Task, bytes: Buffer | undefined): void {
    const more = (bytes?.length ?? 0) - (task.eager?.length ?? 0)
    this.#budget.eagerBytes += more
    this.#earlyBytes += more
    task.eager = bytes
  }

  /** The bytes are verified: write what is not in place, then report. */
  #apply(task: Task, bytes: Buffer, source: SourceName): void {
    task.taken = true
    this.#setEager(task, undefined)
    task.bytes = bytes
    task.finding()
    void this.#write(task, bytes, source).catch((error: unknown) => this.#fail(error))
  }

  async #write(task: Task, bytes: Buffer, source: SourceName): Promise<void> {
    this.#pendingZeroes.delete(task.start, task.end)
    this.#knownZeroes.delete(task.start, task.end)
    await task.writer!.chunk(task.start, bytes, source === 'inPlace', () => {
      task.bytes = undefined
      this.#letGo(task)
    })
    if (this.#failed !== undefined) return
    this.#session.delivered(task.digest!, task.start)
    const key = task.digest!.toString('latin1')
    if (this.#byDigest.get(key) === task) this.#byDigest.delete(key)
    this.#finish(task, source)
  }

  #finish(task: Task, source: SourceName): void {
    this.#setEager(task, undefined)
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
    for (let at = 0; at < ranges.length; at += SETTLING_ZEROES_MAX) {
      // A fragmented disk has tens of thousands: other work goes on in between.
      if (at > 0) await new Promise((resolve) => setImmediate(resolve))
      const some = ranges.slice(at, at + SETTLING_ZEROES_MAX)
      await Promise.all(some.map(({ start, end }) => this.#settleRange(start, end)))
      if (this.#failed !== undefined) return
    }
  }

  async #settleRange(start: number, end: number): Promise<void> {
    const before = this.#claims(start, end)
    const { promise: done, resolve: finish } = Promise.withResolvers<void>()
    this.#latest.set(start, end, done)
    for (const claim of before) await claim.done
    try {
      if (this.#failed !== undefined) return
      for (const pending of this.#pendingZeroes.overlapping(start, end)) {
        const from = Math.max(pending.start, start)
        const to = Math.min(pending.end, end)
        const gaps = this.#knownZeroes.gaps(from, to)
        for (const gap of gaps) await this.#device.writeZeroes(gap.start, gap.end - gap.start)
        if (this.#knownZeroes.count >= KNOWN_ZEROES_MAX) this.#knownZeroes.clear()
        if (gaps.length > 0) this.#knownZeroes.set(from, to, true)
        this.#pendingZeroes.delete(from, to)
      }
    } finally {
      this.#latest.deleteValue(start, end, done)
      finish()
    }
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
    const wantRuns = seqRuns(wants)
    for (let i = 0; i < wantRuns.length; i += SEQ_RUNS_MAX) {
      this.#send({ type: 'want', runs: wantRuns.slice(i, i + SEQ_RUNS_MAX) })
    }
    const applied = this.#applied.splice(0).sort((a, b) => a.seq - b.seq)
    const appliedRuns = runsOfApplied(applied)
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
      task.finding()
      task.finish()
    }
    this.#tasks.clear()
    this.#share.close()
    for (const { resolve } of this.#barriers.splice(0)) resolve()
    this.#queue = []
    this.#queueHead = 0
    void this.#device.close().catch(() => undefined)
    this.#options.onEnd?.(error)
  }
}
