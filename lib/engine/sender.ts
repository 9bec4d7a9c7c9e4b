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
 * A far side that lacks a chunk may ask for it block by block: ASK → HINTS → PARTS → LITERAL of the missing blocks.
 *
 * Order: runs get their sequence numbers when they are delivered (stage-drain.ts).
 * A break of the link is ridden out by the bundle, for as long as patience.ts has with what QEMU waits for.
 */
import {
  ALL_FEATURES,
  type BlockDevice,
  type BlockSizes,
  type DeviceFeatures,
  type StatusExtent,
} from '../block/device.ts'
import { errorText, LostError, ProtocolError, RefusedError, SwamError } from '../core/errors.ts'
import { HELD_BACK_BYTES_MAX, HELD_BACK_MS, SENDER_RECORDS_MAX } from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import {
  type DiskMessage,
  type DiskMessageBody,
  FEATURE_CHANGED,
  FEATURE_DELTA,
  FEATURE_SURVEY,
  type SeqRun,
} from '../wire/disk.ts'
import { FEATURE_PROOF } from '../wire/disk-proof.ts'
import type { DiskAccount } from './account.ts'
import { describeRun } from './describe-run.ts'
import { Describing } from './describing.ts'
import { FarReads } from './far-reads.ts'
import { Hinter } from './hinter.ts'
import { CLASS_CONTROL, CLASS_FINAL, type DiskClass, type DiskEndpoint } from './link.ts'
import { LiteralSender } from './literals.ts'
import { Patience } from './patience.ts'
import { Room } from './room.ts'
import type { WindowMember } from './send-window.ts'
import { checkAgreed, type SenderOptions, type Waiter } from './sender-parts.ts'
import { Disproved, type Proved, type SenderProof } from './sender-proof.ts'
import { SentChunks } from './sent-chunks.ts'
import { SentVersions } from './sent-versions.ts'
import { StageDrain } from './stage-drain.ts'
import { isSooner, Unasked } from './unasked.ts'

/** NBD errno values that reach QEMU. */
const EIO = 5
const ENOSPC = 28

export class DiskSender implements BlockDevice, DiskEndpoint, WindowMember {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures = ALL_FEATURES
  readonly account: DiskAccount
  readonly #options: SenderOptions
  readonly #drain: StageDrain
  readonly #sent: SentChunks
  readonly #room: Room
  readonly #literals: LiteralSender
  readonly #hinter: Hinter
  readonly #describing: Describing
  #admissions: Waiter[] = []
  #settled: Waiter[] = []
  /** Counts accepted changes; a FLUSH that saw the same count as the last confirmed one has nothing to do. */
  #changes = 0
  #flushedChanges = 0
  #flushing: { changes: number; done: Promise<void> } | undefined
  #flushes = new Map<number, Waiter>()
  readonly #reads: FarReads
  readonly #proof: SenderProof | undefined
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
      onWaited: (ms) => this.account.waited(ms),
    })
    const { features } = options.link
    this.#proof = features.has(FEATURE_PROOF) && features.has(FEATURE_SURVEY) ? options.proof : undefined
    this.#reads = new FarReads({
      nextId: () => this.#nextId++,
      send: (id, offset, length) => this.#send({ type: 'read', id, offset, length }, CLASS_CONTROL),
      check: () => this.#check(),
    })
    const unasked = new Unasked(options.link)
    const remembers =
      options.versions !== undefined && features.has(FEATURE_CHANGED) && features.has(FEATURE_DELTA)
    const versions = remembers ? new SentVersions(options.versions) : undefined
    this.#sent = new SentChunks({
      size: options.size,
      account: options.account,
      room: this.#room,
      versions,
      onWanted: (record) => this.#literals.queue(record),
      onAsked: (record) => this.#hinter.queue(record),
      onHinted: (bytes, sentBytes) => unasked.applied(bytes, sentBytes),
    })
    this.#drain = new StageDrain({
      runBytesMax: options.slabs.bytesMax,
      describe: (run) => describeRun(run, options, this.#proof),
      bulkOnly: options.bulkOnly === true,
      clock: options.clock,
      heldBytesMax: () => this.#heldBytesMax(),
      deliver: async (offset, length, { slab, runs, leaves }) => {
        if (leaves !== undefined) await this.#proof?.described(offset, length, leaves)
        if (loopTurn.over) await loopTurn.next()
        await this.#describing.data(offset, slab, runs)
      },
      deliverZeroes: async (offset, length) => {
        await this.#proof?.zeroed(offset, length)
        await this.#describing.zeroes(offset, length)
      },
      onError: (error) => this.#fail(error),
    })
    const isNeeded = this.#sent.has.bind(this.#sent)
    this.#hinter = new Hinter({
      isNeeded,
      send: async (type, chunks) => {
        await this.#tell({ type, chunks })
      },
    })
    this.#literals = new LiteralSender({
      link: options.link,
      disk: options.disk,
      epoch: options.epoch,
      isNeeded,
      isUrgent: () => this.#flushes.size > 0,
      onSent: (plainBytes, packedBytes, wireBytes) => {
        this.#room.sent(plainBytes, packedBytes)
        this.account.literalWireBytes += wireBytes
      },
      onError: (error) => this.#fail(error),
    })
    this.#describing = new Describing({
      features,
      sent: this.#sent,
      room: this.#room,
      literals: this.#literals,
      hinter: this.#hinter,
      unasked,
      versions,
      bulkOnly: options.bulkOnly === true,
      flushing: () => this.#flushing !== undefined,
      lost: () => this.#lost !== undefined,
      tell: (message) => this.#tell(message),
      fail: (error) => this.#fail(error),
    })
    options.limits.window?.join(this)
    options.group?.join(this)
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
    this.#drain.put(offset, data)
    await this.#accepted(flags?.fua === true)
  }

  async writeZeroes(offset: number, length: number, flags?: { readonly fua?: boolean }): Promise<void> {
    this.#check()
    this.account.askedBytes += length
    this.#drain.putZeroes(offset, length)
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
    await this.settle()
    return await this.#reads.read(offset, length)
  }

  /** Resolves when everything that was written is applied; nobody waits for it as for a FLUSH, which it is none. */
  async settle(): Promise<void> {
    this.#check()
    await this.#drain.drain(() => this.#check())
    await this.#untilApplied()
    this.#check()
  }

  /** Never claims a hole: only what the far side confirmed could be called zero, and nobody needs it. */
  async blockStatus(_offset: number, length: number): Promise<readonly StatusExtent[]> {
    this.#check()
    return [{ length, hole: false, zero: false }]
  }

  /** I1: resolves when everything staged before is applied and flushed at the destination's QEMU. */
  async flush(): Promise<void> {
    this.#check()
    const answered = this.#options.group?.asked()
    const changes = this.#changes
    if (changes !== this.#flushedChanges) await this.#flushChanges(changes)
    answered?.()
    this.account.flushedAt = Date.now()
  }

  async #flushChanges(changes: number): Promise<void> {
    if (this.#flushing?.changes === changes) return await this.#flushing.done
    const done = this.#patience.run(this.#flushNow(changes))
    this.#flushing = { changes, done }
    this.#options.group?.flushing(this)
    try {
      await done
    } finally {
      if (this.#flushing?.done === done) this.#flushing = undefined
    }
  }

  async #flushNow(changes: number): Promise<void> {
    this.#sent.hurry((length) => isSooner(this.#options.link, this.#sent.earlyBytes + length))
    this.#literals.pump()
    await this.#drain.drain(() => this.#check(), true)
    await this.#askFlush()
    if (changes > this.#flushedChanges) this.#flushedChanges = changes
  }

  /** What is to be proved goes between two runs: so all of them are on one side of the barrier. */
  async #askFlush(): Promise<void> {
    const id = this.#nextId++
    const answered = Promise.withResolvers<void>()
    const ask = async (): Promise<void> => {
      this.#check()
      const proof = this.#proof
      const open = await proof?.ask(id)
      this.#check()
      // What is answered before it was asked is no answer.
      this.#flushes.set(id, answered)
      const at = { id, barrier: this.#sent.nextSeq }
      if (proof === undefined || open === undefined) await this.#send({ type: 'flush', ...at }, CLASS_CONTROL)
      else await this.#send({ type: 'prove', ...at, read: proof.read, open }, CLASS_CONTROL)
    }
    const asked = async (): Promise<void> => {
      try {
        await ask()
      } catch (error) {
        // I2: it was no FLUSH, and nobody knows what the far side heard of it.
        this.#fail(error)
        answered.reject(this.#lost!)
      }
    }
    if (this.#proof === undefined) void asked()
    else this.#drain.inTurn(asked)
    await answered.promise
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

  /** A write of QEMU waits for room, and not because it is meant to. */
  get waits(): boolean {
    return this.#admissions.length > 0 && !this.#throttled
  }

  /** Bytes acknowledged and not yet applied. */
  get unsettledBytes(): number {
    return this.#drain.bytes + this.#sent.bytes
  }

  // ---- the window --------------------------------------------------------------------------------------------

  async #accepted(fua: boolean): Promise<void> {
    this.#changes++
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
      return this.#sent.count < SENDER_RECORDS_MAX && this.unsettledBytes <= limits.windowBytes
    }
    return (
      this.#sent.count < SENDER_RECORDS_MAX &&
      limits.window?.hasRoomFor(this) !== false &&
      this.#room.allows(this.unsettledBytes, this.#sent.wantedBytes, link.rateBytesPerSecond, this.#throttled)
    )
  }

  /** What a mirror writes when it has copied the disk is what the guest dirties. */
  get #throttled(): boolean {
    return this.#options.limits.throttle === true && this.account.askedBytes >= this.size
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

  // ---- from the stage to the wire (stage-drain.ts) -----------------------------------------------------------

  /** What is held when the guest is paused has to be sent then. While a FLUSH waits nothing is held. */
  #heldBytesMax(): number {
    if (this.#flushing !== undefined) return 0
    return Math.min(HELD_BACK_BYTES_MAX, (this.#options.link.rateBytesPerSecond * HELD_BACK_MS) / 1000)
  }

  /** Every chunk sent so far is applied. */
  async #untilApplied(): Promise<void> {
    while (this.#sent.count > 0) {
      this.#check()
      await new Promise<void>((resolve, reject) => this.#settled.push({ resolve, reject }))
    }
  }

  /** What describes something. */
  async #tell(message: DiskMessageBody): Promise<void> {
    const bytes = await this.#send(message, CLASS_FINAL)
    this.account.bySource.digest += bytes
  }

  async #send(message: DiskMessageBody, cls: DiskClass): Promise<number> {
    const { link, disk, epoch } = this.#options
    return await link.send({ ...message, disk, epoch } as DiskMessage, cls)
  }

  // ---- from the far side -------------------------------------------------------------------------------------

  onMessage(message: DiskMessage): void {
    checkAgreed(message, this.#options.link.features)
    if (message.epoch !== this.#options.epoch || this.#lost !== undefined) return
    switch (message.type) {
      case 'opened':
        if (message.errno === 0) this.#opened?.resolve()
        else this.#opened?.reject(new RefusedError(`the far side: ${message.text}`, { errno: message.errno }))
        return
      case 'held':
        this.#room.held(message.bytes)
        return
      case 'want':
        for (const run of message.runs) this.#sent.want(run)
        this.#literals.pump()
        return
      case 'ask':
        for (const run of message.runs) this.#sent.ask(run)
        void this.#hinter.pump().catch((error: unknown) => this.#fail(error))
        return
      case 'detail':
        for (const run of message.runs)
          void this.#sendDetail(run).catch((error: unknown) => this.#fail(error))
        return
      case 'parts':
        for (const { seq, blocks, missing } of message.chunks) this.#sent.parts(seq, blocks, missing)
        this.#literals.pump()
        return
      case 'sketches':
        for (const chunk of message.chunks) this.#sent.sketches(chunk)
        this.#literals.pump()
        return
      case 'applied':
        for (const run of message.runs) this.#sent.applied(run, run.source)
        this.#settledSome()
        if (this.#sent.count === 0) for (const waiter of this.#settled.splice(0)) waiter.resolve()
        return
      case 'flushed':
        void this.#flushed(message.id, undefined)
        return
      case 'proved':
        void this.#flushed(message.id, message)
        return
      case 'failed':
        this.#fail(new RefusedError(`the far side failed: ${message.text}`, { errno: message.errno }))
        return
      case 'readReply':
        this.#reads.answered(message)
        return
      default:
        throw new ProtocolError(`disk ${message.disk}: ${message.type} is not for a sender`)
    }
  }

  /** I1: nothing is answered to QEMU before both ends have one root. */
  async #flushed(id: number, proved: Proved): Promise<void> {
    const waiter = this.#flushes.get(id)
    if (waiter === undefined) return
    // A second answer is none, also while the first is compared.
    this.#flushes.delete(id)
    try {
      await this.#proof?.answer(id, proved)
      this.#check()
      waiter.resolve()
    } catch (error) {
      if (error instanceof Disproved)
        void this.#send({ type: 'disproved', id, root: error.root }, CLASS_CONTROL).catch(() => undefined)
      this.#fail(error)
      waiter.reject(this.#lost!)
    }
  }

  async #sendDetail(run: SeqRun): Promise<void> {
    await this.#tell(this.#sent.detail(run))
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
    this.#patience.end(lost)
    this.#drain.end()
    this.#sent.clear()
    this.#literals.close()
    this.#hinter.close()
    this.#reads.fail(lost)
    this.#proof?.close()
    for (const { reject } of [...this.#admissions, ...this.#settled, ...this.#flushes.values()]) reject(lost)
    this.#opened?.reject(lost)
    this.#admissions = []
    this.#settled = []
    this.#flushes.clear()
    this.#options.link.unregister(this.#options.disk, this)
    this.#options.limits.window?.leave(this)
    this.#options.group?.leave(this)
    if (report) this.#options.onLost?.(cause instanceof SwamError ? cause : lost)
  }
}
