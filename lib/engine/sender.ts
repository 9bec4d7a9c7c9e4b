/**
 * DiskSender: the source's end of one disk. Toward QEMU it is a BlockDevice behind the NBD server; toward the far side
 * it describes what was written and sends only what is wanted.
 *
 * Key idea: a WRITE is acknowledged when it is staged and the window has room; a FLUSH is acknowledged only when the far
 * side has applied and flushed everything staged before it (I1). Any loss is sticky (I2). Nothing is forgotten
 * before the far side says APPLIED, so every want can be met.
 *
 * stage → run (slab) → describe (worker) → DESCRIBE/ZERO → WANT? → LITERAL → APPLIED
 *
 * Order: runs are described by workers but delivered in the order in which they left the stage, and get their sequence
 * numbers then. Deliberately not here: deltas, 4 KiB blocks, hot-block hold-back (later issues).
 * A break of the link is ridden out by the bundle, for as long as patience.ts has with what QEMU waits for.
 */
import {
  ALL_FEATURES,
  type BlockDevice,
  type BlockSizes,
  type DeviceFeatures,
  type StatusExtent,
} from '../block/device.ts'
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab } from '../chunk/slab.ts'
import { compress } from '../chunk/zstd.ts'
import { errorText, LostError, ProtocolError, RefusedError, SwamError } from '../core/errors.ts'
import {
  DESCRIBING_RUNS_MAX,
  EAGER_OUTSTANDING_BYTES_MAX,
  EAGER_RUN_BYTES_MAX,
  EARLY_BYTES_MAX,
  EMITTED_RUNS_MAX,
  LITERAL_BYTES_MAX,
  LITERAL_CHUNKS_MAX,
  LITERALS_IN_FLIGHT_MAX,
  RUN_BYTES_MAX,
  SENDER_RECORDS_MAX,
  STAGE_BYTES_MAX,
  STAGE_IDLE_MS,
  STAGE_PIECES_MAX,
} from '../core/limits.ts'
import { KIB } from '../core/units.ts'
import type { DiskMessage, DiskMessageBody, SourceName } from '../wire/disk.ts'
import type { DiskAccount } from './account.ts'
import { CLASS_BULK, CLASS_CONTROL, CLASS_FINAL, type DiskClass, type DiskEndpoint } from './link.ts'
import { Patience } from './patience.ts'
import { Room } from './room.ts'
import type { WindowMember } from './send-window.ts'
import type { ChunkRecord, SenderOptions, Waiter } from './sender-parts.ts'
import { Stage, type StagedRun } from './stage.ts'

/** NBD errno values that reach QEMU. */
const EIO = 5
const ENOSPC = 28

/** A frame of about 100 KiB compressed: acknowledged often enough for the pacing. */
const LITERAL_TARGET_BYTES = 192 * KIB

export class DiskSender implements BlockDevice, DiskEndpoint, WindowMember {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures = ALL_FEATURES
  readonly account: DiskAccount
  readonly #options: SenderOptions
  readonly #stage = new Stage()
  readonly #records = new Map<number, ChunkRecord>()
  #nextSeq = 0
  #describing = 0
  #describingBytes = 0
  /** Data bytes described and not yet applied; and those among them that the far side wants. */
  #sentBytes = 0
  #wantedBytes = 0
  /** Sent unasked and not yet applied: the far side holds no more than EARLY_BYTES_MAX of it. */
  #earlyBytes = 0
  readonly #room: Room
  #wants: ChunkRecord[] = []
  #literals = 0
  /** Delivers descriptions in the order in which their runs left the stage. */
  #chain: Promise<void> = Promise.resolve()
  /** Everything that arrived before this number leaves the stage now. */
  #forceBefore = 0
  #idleTimer: NodeJS.Timeout | undefined
  #soon: NodeJS.Immediate | undefined
  #admissions: Waiter[] = []
  #settled: Waiter[] = []
  /** Counts accepted changes; a FLUSH that saw the same count as the last confirmed one has nothing to do. */
  #changes = 0
  #flushedChanges = 0
  #flushing: { changes: number; done: Promise<void> } | undefined
  #flushes = new Map<number, Waiter>()
  #reads = new Map<number, { resolve: (data: Buffer) => void; reject: (error: Error) => void }>()
  #nextId = 1
  #opened: Waiter | undefined
  readonly #patience: Patience
  #lost: RefusedError | undefined

  constructor(options: SenderOptions) {
    this.#options = options
    this.size = options.size
    this.blockSizes = options.blockSizes
    this.account = options.account
    this.#room = new Room(options.limits)
    const { flushDeadlineMs } = options.limits
    this.#patience = new Patience({
      deadlineMs: flushDeadlineMs,
      silentMs: () => options.link.silentMs,
      onExpired: (waitedMs, silentMs) =>
        this.#fail(
          new LostError(
            `a WRITE or FLUSH waited for ${Math.round(waitedMs)} ms while the link gave no sign for ` +
              `${Math.round(silentMs)} ms: flushDeadlineMs is ${flushDeadlineMs}`,
          ),
        ),
    })
    options.limits.window?.join(this)
    options.link.register(options.disk, this)
  }

  /** Opens the far end on the export that its QEMU listens with. @throws RefusedError, LostError */
  async open(port: number, exportName: string): Promise<void> {
    const opened = new Promise<void>((resolve, reject) => {
      this.#opened = { resolve, reject }
    })
    opened.catch(() => undefined)
    await this.#send({ type: 'open', port, exportName }, CLASS_CONTROL)
    await opened
  }

  // ---- toward QEMU -------------------------------------------------------------------------------------------

  async write(offset: number, data: Buffer, flags?: { readonly fua?: boolean }): Promise<void> {
    this.#check()
    this.account.askedBytes += data.length
    this.#stage.put(offset, data)
    await this.#accepted(flags?.fua === true)
  }

  async writeZeroes(offset: number, length: number, flags?: { readonly fua?: boolean }): Promise<void> {
    this.#check()
    this.account.askedBytes += length
    this.#stage.putZeroes(offset, length)
    await this.#accepted(flags?.fua === true)
  }

  /** A discarded range may read as anything: as zeroes it costs nothing on the wire and leaves a hole. */
  async trim(offset: number, length: number, flags?: { readonly fua?: boolean }): Promise<void> {
    await this.writeZeroes(offset, length, flags)
  }

  async cache(): Promise<void> {
    this.#check()
  }

  /** Rare (a mirror never reads its target): waits until what it would read is applied, then asks the far side. */
  async read(offset: number, length: number): Promise<Buffer> {
    this.#check()
    await this.#emitAll()
    await this.#untilApplied()
    const result = Buffer.allocUnsafe(length)
    for (let at = 0; at < length; at += LITERAL_BYTES_MAX) {
      const part = Math.min(LITERAL_BYTES_MAX, length - at)
      // Whoever begins to wait after the loss would wait for ever.
      this.#check()
      const id = this.#nextId++
      const reply = new Promise<Buffer>((resolve, reject) => this.#reads.set(id, { resolve, reject }))
      reply.catch(() => undefined)
      await this.#send({ type: 'read', id, offset: offset + at, length: part }, CLASS_CONTROL)
      const data = await reply
      if (data.length !== part)
        throw new ProtocolError(`READ ${offset + at}: ${data.length} bytes came for ${part}`)
      data.copy(result, at)
    }
    return result
  }

  /** Never claims a hole: only what the far side confirmed could be called zero, and nobody needs it. */
  async blockStatus(_offset: number, length: number): Promise<readonly StatusExtent[]> {
    this.#check()
    return [{ length, hole: false, zero: false }]
  }

  /** I1: resolves when everything staged before is applied and flushed at the destination's QEMU. */
  async flush(): Promise<void> {
    this.#check()
    const changes = this.#changes
    if (changes === this.#flushedChanges) return
    if (this.#flushing?.changes === changes) return await this.#flushing.done
    const done = this.#patience.run(this.#flushNow(changes))
    this.#flushing = { changes, done }
    try {
      await done
    } finally {
      if (this.#flushing?.done === done) this.#flushing = undefined
    }
  }

  async #flushNow(changes: number): Promise<void> {
    await this.#emitAll()
    const id = this.#nextId++
    const flushed = new Promise<void>((resolve, reject) => this.#flushes.set(id, { resolve, reject }))
    flushed.catch(() => undefined)
    await this.#send({ type: 'flush', id, barrier: this.#nextSeq }, CLASS_CONTROL)
    await flushed
    if (changes > this.#flushedChanges) this.#flushedChanges = changes
  }

  async close(): Promise<void> {
    if (this.#lost !== undefined) return
    const clean = this.#changes === this.#flushedChanges
    await this.#send({ type: 'close' }, CLASS_CONTROL).catch(() => undefined)
    this.#fail(
      new LostError(clean ? 'the disk was closed' : 'the disk was closed before everything was flushed'),
      false,
    )
  }

  get lost(): Error | undefined {
    return this.#lost
  }

  /** Bytes acknowledged and not yet applied. */
  get unsettledBytes(): number {
    return this.#stage.dataBytes + this.#describingBytes + this.#sentBytes
  }

  // ---- the window --------------------------------------------------------------------------------------------

  async #accepted(fua: boolean): Promise<void> {
    this.#changes++
    this.#pump()
    if (!this.#roomy()) {
      await this.#patience.run(
        new Promise<void>((resolve, reject) => this.#admissions.push({ resolve, reject })),
      )
    }
    if (fua) await this.flush()
  }

  #roomy(): boolean {
    const { link, limits, bulkOnly } = this.#options
    // No guest waits for it to drain, and what is staged leaves only when the stage is full: so far it must be let.
    if (bulkOnly === true) {
      return this.#records.size < SENDER_RECORDS_MAX && this.unsettledBytes <= limits.windowBytes
    }
    return (
      this.#records.size < SENDER_RECORDS_MAX &&
      limits.window?.hasRoomFor(this) !== false &&
      this.#room.allows(this.unsettledBytes, this.#wantedBytes, link.rateBytesPerSecond)
    )
  }

  /** The daemon's other disks may have room now, too. */
  #settledSome(): void {
    const { window } = this.#options.limits
    if (window === undefined) this.admit()
    else window.changed()
  }

  admit(): void {
    while (this.#admissions.length > 0 && this.#roomy()) this.#admissions.shift()!.resolve()
  }

  // ---- from the stage to the wire ----------------------------------------------------------------------------

  #pump(): void {
    let emitted = 0
    while (this.#describing < DESCRIBING_RUNS_MAX && this.#lost === undefined) {
      const oldest = this.#stage.oldestOrder
      if (oldest === undefined) break
      const full = this.#stage.dataBytes > STAGE_BYTES_MAX || this.#stage.count > STAGE_PIECES_MAX
      if (!full && oldest >= this.#forceBefore) break
      // Zeroes cost the workers nothing: thousands of small runs of them would be one long turn of the event loop.
      if (++emitted > EMITTED_RUNS_MAX) {
        this.#pumpSoon()
        break
      }
      this.#emit(this.#stage.takeOldest(Math.min(RUN_BYTES_MAX, this.#options.slabs.bytesMax))!)
    }
    if (this.#options.bulkOnly === true) return
    if (!this.#stage.empty && this.#idleTimer === undefined && this.#lost === undefined) {
      this.#idleTimer = setTimeout(() => {
        this.#idleTimer = undefined
        this.#forceBefore = this.#stage.nextOrder
        this.#pump()
      }, STAGE_IDLE_MS)
    }
  }

  #pumpSoon(): void {
    this.#soon ??= setImmediate(() => {
      this.#soon = undefined
      this.#pump()
    })
  }

  #emit(run: StagedRun): void {
    if (run.zero) {
      this.#follow(() => this.#sendZeroes(run.offset, run.length))
      return
    }
    this.#describing++
    this.#describingBytes += run.length
    const described = this.#describeRun(run)
    described.catch(() => undefined)
    this.#follow(async () => {
      const { slab, runs } = await described
      try {
        await this.#deliver(run.offset, slab, runs)
      } finally {
        slab.release()
        this.#describing--
        this.#describingBytes -= run.length
      }
      this.#pump()
    })
  }

  /** Runs a step after all earlier ones, also after a loss (it may hold memory); the first failure ends the session. */
  #follow(step: () => Promise<void>): void {
    this.#chain = this.#chain.then(async () => {
      try {
        await step()
      } catch (error) {
        this.#fail(error)
      }
    })
  }

  async #describeRun(run: StagedRun): Promise<{ slab: Slab; runs: DescribedRun[] }> {
    const slab = await this.#options.slabs.takeAsync(run.length)
    try {
      let at = 0
      for (const part of run.parts) {
        slab.bytes.set(part, at)
        at += part.length
      }
      return { slab, runs: await this.#options.describe(slab.bytes) }
    } catch (error) {
      slab.release()
      throw error
    }
  }

  async #deliver(offset: number, slab: Slab, runs: readonly DescribedRun[]): Promise<void> {
    for (const run of runs) {
      // What is recorded after a loss nobody would ever give back.
      if (this.#lost !== undefined) return
      if (run.zero) await this.#sendZeroes(offset + run.offset, run.length)
      else await this.#sendDescription(offset, slab, run)
    }
  }

  async #sendDescription(base: number, slab: Slab, run: DescribedRun): Promise<void> {
    const firstSeq = this.#nextSeq
    const eager = this.#isEager(run.length)
    let at = run.offset
    for (const length of run.lengths) {
      const seq = this.#nextSeq++
      slab.retain()
      this.#records.set(seq, { seq, length, slab, slabOffset: at, wanted: false, eager: false })
      this.#sentBytes += length
      at += length
    }
    const bytes = await this.#send(
      { type: 'describe', firstSeq, offset: base + run.offset, lengths: run.lengths, digests: run.digests },
      CLASS_FINAL,
    )
    this.account.bySource.digest += bytes
    if (!eager) return
    for (let seq = firstSeq; seq < firstSeq + run.lengths.length; seq++) {
      // It may have been found in place meanwhile.
      const record = this.#records.get(seq)
      if (record === undefined || record.wanted) continue
      record.eager = true
      this.#earlyBytes += record.length
      this.#queueLiteral(record)
    }
    this.#pumpLiterals()
  }

  /**
   * Whether a run is sent without asking first. Hash before send pays in the bulk; a small run while the link has
   * nothing else to do, or while a FLUSH waits for it, gains a whole round trip, which in the end is downtime.
   */
  #isEager(length: number): boolean {
    if (this.#options.bulkOnly === true) return false
    if (length > EAGER_RUN_BYTES_MAX || this.#earlyBytes + length > EARLY_BYTES_MAX) return false
    return this.#flushing !== undefined || this.#sentBytes + length <= EAGER_OUTSTANDING_BYTES_MAX
  }

  async #sendZeroes(offset: number, length: number): Promise<void> {
    if (this.#lost !== undefined) return
    const seq = this.#nextSeq++
    this.#records.set(seq, { seq, length, slab: undefined, slabOffset: 0, wanted: false, eager: false })
    const bytes = await this.#send({ type: 'zero', seq, offset, length }, CLASS_FINAL)
    this.account.bySource.digest += bytes
  }

  /** Everything staged now is described and handed to the link. */
  async #emitAll(): Promise<void> {
    this.#forceBefore = this.#stage.nextOrder
    const before = this.#forceBefore
    this.#pump()
    for (;;) {
      await this.#chain
      this.#check()
      const oldest = this.#stage.oldestOrder
      if (oldest === undefined || oldest >= before) break
      await new Promise((resolve) => setImmediate(resolve))
      this.#pump()
    }
    // The last pump may have put more on the chain.
    await this.#chain
    this.#check()
  }

  /** Every chunk sent so far is applied. */
  async #untilApplied(): Promise<void> {
    while (this.#records.size > 0) {
      this.#check()
      await new Promise<void>((resolve, reject) => this.#settled.push({ resolve, reject }))
    }
  }

  #pumpLiterals(): void {
    while (this.#literals < LITERALS_IN_FLIGHT_MAX && this.#wants.length > 0 && this.#lost === undefined) {
      const batch: ChunkRecord[] = []
      let bytes = 0
      while (
        this.#wants.length > 0 &&
        batch.length < LITERAL_CHUNKS_MAX &&
        bytes + this.#wants[0]!.length <= LITERAL_BYTES_MAX
      ) {
        const record = this.#wants.shift()!
        // Found at the far side before its turn came: its slab is gone.
        if (!this.#records.has(record.seq)) continue
        batch.push(record)
        bytes += record.length
        if (bytes >= LITERAL_TARGET_BYTES) break
      }
      if (batch.length === 0) continue
      this.#literals++
      void this.#sendLiteral(batch, bytes)
        .catch((error: unknown) => this.#fail(error))
        .finally(() => {
          this.#literals--
          this.#pumpLiterals()
        })
    }
  }

  async #sendLiteral(batch: readonly ChunkRecord[], bytes: number): Promise<void> {
    const raw = Buffer.allocUnsafe(bytes)
    let at = 0
    for (const record of batch) {
      raw.set(record.slab!.bytes.subarray(record.slabOffset, record.slabOffset + record.length), at)
      at += record.length
    }
    const packed = await compress(raw)
    const zstd = packed.length < raw.length
    const data = zstd ? packed : raw
    this.#room.sent(raw.length, data.length)
    const sent = await this.#send(
      {
        type: 'literal',
        chunks: batch.map(({ seq, length }) => ({ seq, length })),
        codec: zstd ? 'zstd' : 'raw',
        data,
      },
      this.#flushes.size > 0 ? CLASS_FINAL : CLASS_BULK,
    )
    this.account.literalWireBytes += sent
  }

  async #send(message: DiskMessageBody, cls: DiskClass): Promise<number> {
    const { link, disk, epoch } = this.#options
    return await link.send({ ...message, disk, epoch } as DiskMessage, cls)
  }

  // ---- from the far side -------------------------------------------------------------------------------------

  onMessage(message: DiskMessage): void {
    if (message.epoch !== this.#options.epoch || this.#lost !== undefined) return
    switch (message.type) {
      case 'opened':
        if (message.errno === 0) this.#opened?.resolve()
        else this.#opened?.reject(new RefusedError(`the far side: ${message.text}`, { errno: message.errno }))
        return
      case 'want':
        for (const run of message.runs) this.#want(run.first, run.count)
        this.#pumpLiterals()
        return
      case 'applied':
        for (const run of message.runs) {
          for (let i = 0; i < run.count; i++) this.#applied(run.first + i, run.source)
        }
        this.#settledSome()
        if (this.#records.size === 0) for (const waiter of this.#settled.splice(0)) waiter.resolve()
        return
      case 'flushed': {
        const waiter = this.#flushes.get(message.id)
        this.#flushes.delete(message.id)
        waiter?.resolve()
        return
      }
      case 'failed':
        this.#fail(new RefusedError(`the far side failed: ${message.text}`, { errno: message.errno }))
        return
      case 'readReply': {
        const waiter = this.#reads.get(message.id)
        this.#reads.delete(message.id)
        if (message.errno === 0) waiter?.resolve(message.data)
        else waiter?.reject(new RefusedError('READ failed at the far side', { errno: message.errno }))
        return
      }
      default:
        throw new ProtocolError(`disk ${message.disk}: ${message.type} is not for a sender`)
    }
  }

  #want(first: number, count: number): void {
    for (let seq = first; seq < first + count; seq++) {
      const record = this.#records.get(seq)
      if (record === undefined || record.slab === undefined) {
        throw new ProtocolError(`WANT of chunk ${seq}, which is not under way`)
      }
      if (record.eager) continue
      if (record.wanted) throw new ProtocolError(`WANT of chunk ${seq}, which was wanted before`)
      this.#queueLiteral(record)
    }
  }

  #queueLiteral(record: ChunkRecord): void {
    record.wanted = true
    this.#wantedBytes += record.length
    this.#wants.push(record)
  }

  #applied(seq: number, source: SourceName): void {
    const record = this.#records.get(seq)
    if (record === undefined) throw new ProtocolError(`APPLIED of chunk ${seq}, which is not under way`)
    this.#records.delete(seq)
    if (record.slab !== undefined) {
      this.#sentBytes -= record.length
      this.#room.applied(record.length, source === 'literal')
      if (record.wanted) this.#wantedBytes -= record.length
      if (record.eager) this.#earlyBytes -= record.length
      record.slab.release()
    }
    this.account.applied(source, record.length)
  }

  // ---- loss --------------------------------------------------------------------------------------------------

  onLost(error: Error): void {
    this.#fail(error)
  }

  #check(): void {
    if (this.#lost !== undefined) throw this.#lost
  }

  /** I2: from now on every request is answered with an error: ENOSPC stays ENOSPC, everything else is EIO. */
  #fail(cause: unknown, report = true): void {
    if (this.#lost !== undefined) return
    const errno = cause instanceof RefusedError && cause.errno === ENOSPC ? ENOSPC : EIO
    const lost = new RefusedError(errorText(cause), { cause, errno })
    this.#lost = lost
    clearTimeout(this.#idleTimer)
    this.#patience.end(lost)
    this.#stage.clear()
    for (const record of this.#records.values()) record.slab?.release()
    this.#records.clear()
    this.#wants = []
    const answers = [...this.#flushes.values(), ...this.#reads.values()]
    for (const { reject } of [...this.#admissions, ...this.#settled, ...answers]) reject(lost)
    this.#opened?.reject(lost)
    this.#admissions = []
    this.#settled = []
    this.#flushes.clear()
    this.#reads.clear()
    this.#options.link.unregister(this.#options.disk, this)
    this.#options.limits.window?.leave(this)
    if (report) this.#options.onLost?.(cause instanceof SwamError ? cause : lost)
  }
}
