/**
 * DiskReceiver: the destination's end of one disk. It puts together every described chunk from what lies here, in place
 * (root-level.ts too), as a whole, or from its blocks (block-level.ts), asks for the rest, verifies each against the sender's
 * SHA-256 and only then writes it, through the destination QEMU's own NBD export (I3).
 *
 * Order: of two chunks that overlap, the newer one begins only when the older is applied. `#latest` maps every range to the
 * newest unfinished task on it, so a new task waits for exactly those that it would overwrite.
 * Zeroes are pending state until a FLUSH settles them (target-zeroes.ts). A FLUSH is answered when everything below its barrier
 * is applied, pending zeroes are settled and the device flushed.
 *
 * Memory: a chunk's bytes are held only with a place in `memory`, which all disks of the daemon share: it is taken before
 * the chunk is looked for, so that no more is asked for than may be held, and given back when the device has the bytes.
 * Nobody waits for room while he holds some that another one needs: waits for older chunks, for the same content (here,
 * same-chunks.ts, or in another session, arrivals.ts) and for seams come before or after. What the sender sends unasked
 * has a bound of its own (EARLY_BYTES_MAX).
 */
import type { BlockDevice } from '../block/device.ts'
import { IntervalMap } from '../block/extents.ts'
import { readBytes } from '../block/read-bytes.ts'
import { sha256 } from '../chunk/digest.ts'
import type { ByteShare } from '../core/byte-budget.ts'
import { errorText, ProtocolError, RefusedError } from '../core/errors.ts'
import {
  HURRIED_CHUNKS_MAX,
  RECEIVER_FLUSHES_MAX,
  RESOLVING_CHUNKS_MAX,
  SESSION_BLOCKS_BYTES_MAX,
} from '../core/limits.ts'
import { Turns } from '../core/turns.ts'
import {
  DIGEST_BYTES,
  type DiskMessage,
  type DiskMessageBody,
  FEATURE_BLOCKS,
  FEATURE_CHANGED,
  FEATURE_DELTA,
  FEATURE_SURVEY,
  ROOT_CHUNKS,
  type SourceName,
} from '../wire/disk.ts'
import { FEATURE_PROOF } from '../wire/disk-proof.ts'
import type { DiskAccount } from './account.ts'
import { type ArrivalSession, Arrivals } from './arrivals.ts'
import { Barriers } from './barriers.ts'
import { BlockLevel } from './block-level.ts'
import { FlushAhead } from './flush-ahead.ts'
import { IncomingLiterals, misfit } from './incoming-literals.ts'
import { IncomingReads } from './incoming-reads.ts'
import { CLASS_CONTROL, type DiskEndpoint } from './link.ts'
import type { ReceiverOptions } from './receiver-parts.ts'
import { disproved, type Prove, type ReceiverProof } from './receiver-proof.ts'
import { Reports } from './reports.ts'
import { RootLevel } from './root-level.ts'
import { SameChunks } from './same-chunks.ts'
import { RunWriter } from './seams.ts'
import { type ChunkQuery, SessionSource, SourceRouter, unlessRefused } from './sources.ts'
import { runsOf, type Survey } from './survey.ts'
import { TargetZeroes } from './target-zeroes.ts'
import { checkCount, checkPlace, newTask, type ReceiverBudget, type Task } from './task.ts'

const EIO = 5

export class DiskReceiver implements DiskEndpoint {
  readonly account: DiskAccount
  readonly #options: ReceiverOptions
  readonly #device: BlockDevice
  readonly #session: SessionSource
  readonly #router: SourceRouter
  readonly #tasks = new Map<number, Task>()
  readonly #latest = new IntervalMap<Task | Promise<void>>()
  readonly #same: SameChunks
  readonly #others: ArrivalSession
  readonly #zeroes: TargetZeroes
  readonly #budget: ReceiverBudget
  #nextSeq = 0
  #flushes = 0
  readonly #share: ByteShare
  readonly #resolving: Turns
  readonly #reports: Reports
  readonly #literals: IncomingLiterals
  readonly #reads: IncomingReads
  /** Undefined where the far end does not know it. */
  readonly #blocks: BlockLevel | undefined
  readonly #roots: RootLevel
  readonly #ahead: FlushAhead
  readonly #barriers = new Barriers()
  readonly #proof: ReceiverProof | undefined
  #failed: Error | undefined
  #closed = false
  readonly #ended = (): boolean => this.#failed !== undefined
  readonly #onError = (error: unknown): void => this.#fail(error)

  constructor(options: ReceiverOptions) {
    this.#options = options
    this.#device = options.device
    this.#budget = options.budget ?? { tasks: 0, eagerBytes: 0 }
    this.account = options.account
    this.#share = options.memory.share({ bytesMax: options.memory.bytesMax / 2 })
    this.#session = new SessionSource(options.device, options.sessionEntriesMax)
    this.#others = (options.arrivals ?? new Arrivals()).join(this.#session, (task) => this.#tryHold(task))
    this.#router = new SourceRouter([this.#session, this.#others.chunks, ...options.sources])
    this.#resolving = new Turns(RESOLVING_CHUNKS_MAX, this.#onError)
    this.#same = new SameChunks({ hold: (task) => this.#hold(task), letGo: (task) => this.#letGo(task) })
    this.#zeroes = new TargetZeroes({
      device: options.device,
      ended: this.#ended,
      // What was described meanwhile may be written at any moment.
      untouched: (start, end) => this.#nextSeq === 0 && !this.#latest.overlaps(start, end),
      inTurn: (start, end, work) => this.#inTurn(start, end, work),
    })
    const { features } = options.link
    this.#proof = features.has(FEATURE_PROOF) && features.has(FEATURE_SURVEY) ? options.proof : undefined
    this.#proof?.attach({
      busy: (start, end) => this.#latest.overlaps(start, end),
      applyZeroes: (bytes, offset) => this.#zeroes.applyTo(bytes, offset),
      ended: this.#ended,
      fail: this.#onError,
    })
    this.#reports = new Reports((message) => this.#send(message), options.link.features.has(FEATURE_SURVEY))
    this.#roots = this.#rootLevel()
    this.#ahead = new FlushAhead({ device: options.device, fail: this.#onError, clock: options.clock })
    this.#literals = new IncomingLiterals({
      features: options.link.features,
      budget: this.#budget,
      tasks: this.#tasks,
      nextSeq: () => this.#nextSeq,
      ended: this.#ended,
      fail: this.#onError,
    })
    this.#reads = new IncomingReads({
      device: options.device,
      zeroes: this.#zeroes,
      settled: async (start, end) => {
        for (const claim of this.#claims(start, end)) await claim.done
      },
      ended: this.#ended,
      reply: async (id, data) => {
        const { link, disk, epoch } = options
        await link.send({ type: 'readReply', id, errno: 0, data, disk, epoch }, CLASS_CONTROL)
      },
      fail: this.#onError,
    })
    if (options.link.features.has(FEATURE_BLOCKS)) {
      this.#blocks = this.#blockLevel()
      this.#others.offerBlocks(this.#blocks.session)
    }
    options.link.register(options.disk, this)
  }

  #rootLevel(): RootLevel {
    return new RootLevel({
      device: this.#device,
      reports: this.#reports,
      ended: this.#ended,
      mayHold: (start, end) => !this.#zeroes.isKnown(start, end),
      hold: (task) => this.#hold(task),
      letGo: (task) => this.#letGo(task),
      saw: (offset, bytes) => this.#proof?.lies(offset, bytes),
      inPlace: (task) => void this.#inPlace(task).catch(this.#onError),
      resolve: (task) => this.#resolve(task, [], this.#same.olderThan(task)),
      fail: this.#onError,
    })
  }

  #blockLevel(): BlockLevel {
    return new BlockLevel({
      device: this.#device,
      places: [...(this.#options.blockPlaces ?? []), this.#others.blocks],
      sessionBytesMax: SESSION_BLOCKS_BYTES_MAX,
      reports: this.#reports,
      mayHold: (start, end) => !this.#zeroes.isKnown(start, end),
      ended: this.#ended,
      deltas: this.#options.link.features.has(FEATURE_DELTA),
      apply: (task, bytes) => this.#apply(task, bytes, 'block'),
      take: (task, bytes) => this.#take(task, bytes),
      want: (task) => this.#want(task),
      early: (task) => {
        const bytes = task.eager
        this.#literals.keep(task, undefined)
        return bytes
      },
      fail: this.#onError,
    })
  }

  /** Learns which ranges of the target read as zero already. */
  async scanTarget(): Promise<void> {
    const bytes = await this.#zeroes.scan()
    if (bytes === undefined || this.#failed !== undefined || this.#closed) return
    if (this.#options.link.features.has(FEATURE_SURVEY)) this.#send({ type: 'held', bytes })
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
      case 'changed':
        if (this.#blocks === undefined || !this.#options.link.features.has(FEATURE_CHANGED))
          throw new ProtocolError('CHANGED: it was not agreed on')
        this.#describe(message.firstSeq, message.offset, message.lengths, message.digests, message.missing)
        return
      case 'zero':
        this.#zero(message.seq, message.offset, message.length)
        return
      case 'literal':
        this.#literals.receive(message)
        return
      case 'survey':
        this.#survey(message)
        return
      case 'digests':
        this.#roots.digests(this.#tasks, message.firstSeq, message.digests)
        return
      case 'hints':
      case 'brief':
        for (const { seq, hints } of message.chunks) this.#hints(message.type, seq, hints)
        return
      case 'flush':
      case 'prove':
        if (++this.#flushes > RECEIVER_FLUSHES_MAX)
          throw new ProtocolError(`disk ${message.disk}: ${this.#flushes} FLUSHes wait already`)
        void this.#flush(message, message.type === 'prove' ? message : undefined)
          .catch(this.#onError)
          .finally(() => this.#flushes--)
        return
      case 'disproved':
        this.#end(disproved(this.account.target, message.root))
        return
      case 'read':
        this.#reads.read(message.id, message.offset, message.length)
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
    checkPlace(what, this.#device, offset, length)
    checkCount(what, this.#tasks.size, this.#budget)
  }

  /** @param changed of each chunk */
  #describe(
    firstSeq: number,
    offset: number,
    lengths: Uint32Array,
    digests: Uint8Array,
    changed?: readonly Buffer[],
  ): void {
    let total = 0
    for (const length of lengths) total += length
    this.#expect('DESCRIBE', firstSeq, offset, total)
    const writer = new RunWriter(this.#device, offset, offset + total, this.#ended)
    const before = this.#claims(offset, offset + total)
    let at = offset
    let firstClaim = 0
    for (let i = 0; i < lengths.length; i++) {
      const length = lengths[i]!
      const digest = Buffer.from(digests.subarray(i * DIGEST_BYTES, (i + 1) * DIGEST_BYTES))
      const task = this.#task(at, at + length, digest, writer)
      if (changed !== undefined) this.#blocks?.changed(task, changed[i]!)
      const same = this.#same.olderThan(task)
      // Both are in order of their places.
      while (firstClaim < before.length && before[firstClaim]!.end <= task.start) firstClaim++
      const waits: Promise<void>[] = []
      for (let k = firstClaim; k < before.length && before[k]!.start < task.end; k++)
        waits.push(before[k]!.done)
      this.#resolving.add(() => this.#resolve(task, waits, same))
      at += length
    }
  }

  #survey(survey: Survey): void {
    if (!this.#options.link.features.has(FEATURE_SURVEY))
      throw new ProtocolError('SURVEY: it was not agreed on')
    const rooted: { task: Task; waits: Promise<void>[] }[] = []
    for (const run of runsOf(survey)) {
      if (run.zero) this.#zero(run.seq, run.offset, run.length)
      else if (survey.roots) rooted.push(...this.#rooted(run.seq, run.offset, run.lengths))
      else this.#describe(run.seq, run.offset, run.lengths, run.digests)
    }
    for (let at = 0; at < rooted.length; at += ROOT_CHUNKS) {
      const digestAt = (at / ROOT_CHUNKS) * DIGEST_BYTES
      const root = Buffer.from(survey.digests.subarray(digestAt, digestAt + DIGEST_BYTES))
      this.#resolving.add(() => this.#roots.compare(rooted.slice(at, at + ROOT_CHUNKS), root))
    }
  }

  /** The tasks of one run, whose digests are not known yet, and what each must wait for. */
  #rooted(firstSeq: number, offset: number, lengths: Uint32Array): { task: Task; waits: Promise<void>[] }[] {
    const end = lengths.reduce((sum, length) => sum + length, offset)
    this.#expect('SURVEY', firstSeq, offset, end - offset)
    const writer = new RunWriter(this.#device, offset, end, this.#ended)
    let at = offset
    return Array.from(lengths, (length) => {
      const waits = this.#claims(at, at + length).map(({ done }) => done)
      const task = this.#task(at, at + length, undefined, writer)
      at += length
      return { task, waits }
    })
  }

  #task(start: number, end: number, digest: Buffer | undefined, writer: RunWriter | undefined): Task {
    const task = newTask(this.#nextSeq++, start, end, digest, writer)
    this.#tasks.set(task.seq, task)
    this.#budget.tasks++
    this.#latest.set(start, end, task)
    this.#proof?.began(task.seq, start, end)
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

  async #hold(task: Task): Promise<void> {
    await this.#share.take(task.end - task.start)
    task.holding = true
  }

  #tryHold(task: Task): boolean {
    task.holding = this.#share.tryTake(task.end - task.start)
    return task.holding
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
    if (task.changed !== undefined && this.#blocks !== undefined) return await this.#blocks.rebuild(task)
    const digest = task.digest!
    const length = task.end - task.start
    const verify = (bytes: Buffer): boolean => bytes.length === length && sha256(bytes).equals(digest)
    let old: Buffer | undefined
    if (!this.#zeroes.isKnown(task.start, task.end)) {
      old = await unlessRefused(readBytes(this.#device, task.start, length))
      if (old !== undefined && verify(old)) return this.#apply(task, old, 'inPlace')
    }
    if (task.eager !== undefined) {
      this.#take(task, task.eager)
      return
    }
    if (same !== undefined) {
      // The same content is under way for another place: no need to ask for it twice, nor to hold up the queue.
      void this.#same
        .until(task, same)
        .then(() => this.#reuse(task, same.bytes, verify))
        .catch(this.#onError)
      return
    }
    await this.#search(task, verify, old)
  }

  /** @param bytes what another chunk with this digest has, if it has it still */
  async #reuse(task: Task, bytes: Buffer | undefined, verify: ChunkQuery['verify']): Promise<void> {
    if (this.#failed === undefined && bytes !== undefined && verify(bytes))
      this.#apply(task, bytes, 'session')
    else await this.#search(task, verify)
  }

  /** @param old what was read in its place just now, if anything */
  async #search(task: Task, verify: ChunkQuery['verify'], old?: Buffer): Promise<void> {
    if (this.#failed !== undefined) return
    const length = task.end - task.start
    const found = await this.#router.find({ digest: task.digest!, offset: task.start, length, verify })
    if (this.#failed !== undefined) return
    if (found !== undefined) {
      this.#apply(task, found.data, found.source)
      return
    }
    if (task.eager !== undefined) {
      this.#take(task, task.eager)
      return
    }
    this.#ask(task, verify, old)
  }

  /** It lies nowhere here: another session that has asked for it is waited for, or it is asked for. */
  #ask(task: Task, verify: ChunkQuery['verify'], old?: Buffer): void {
    const flushWaits = this.#barriers.any
    const arrival = flushWaits ? undefined : this.#others.wait(task)
    if (arrival === undefined) {
      this.#others.asked(task)
      // While a FLUSH waits a round trip is downtime, unless what lies before it takes longer than that anyway.
      const hurried = flushWaits && task.hints === undefined && this.#tasks.size <= HURRIED_CHUNKS_MAX
      if (hurried || this.#blocks?.ask(task, old) !== true) this.#want(task)
      return
    }
    this.#letGo(task)
    void arrival
      .then(async (arrived) => {
        if (!task.holding) await this.#hold(task)
        if (this.#failed !== undefined) return
        if (arrived !== undefined) await this.#reuse(task, arrived(), verify)
        else if (task.eager !== undefined) this.#take(task, task.eager)
        else this.#ask(task, verify)
      })
      .catch(this.#onError)
  }

  #want(task: Task): void {
    task.came = false
    task.literal = (bytes) => this.#take(task, bytes)
    this.#reports.want(task.seq)
  }

  #hints(type: 'hints' | 'brief', seq: number, hints: Buffer): void {
    const task = this.#tasks.get(seq)
    if (seq >= this.#nextSeq || this.#blocks === undefined)
      throw new ProtocolError(`HINTS: chunk ${seq} was not asked for`)
    // Else it came unasked, and is applied already.
    if (task !== undefined && !task.taken) this.#blocks.hints(type, task, hints)
  }

  /** I3: nothing that does not match the sender's digest is ever written. */
  #take(task: Task, bytes: Buffer): void {
    task.literal = undefined
    this.#literals.keep(task, undefined)
    if (bytes.length !== task.end - task.start || !sha256(bytes).equals(task.digest!))
      throw misfit(task, bytes)
    this.#apply(task, bytes, 'literal')
  }

  /** The bytes are verified: write what is not in place, then report. */
  #apply(task: Task, bytes: Buffer, source: SourceName): void {
    task.taken = true
    this.#literals.keep(task, undefined)
    task.bytes = bytes
    task.finding()
    if (source === 'inPlace') this.#proof?.lies(task.start, bytes)
    this.#others.arrived(task, bytes)
    void this.#write(task, bytes, source).catch(this.#onError)
  }

  /** The device holds it, by its root. */
  async #inPlace(task: Task): Promise<void> {
    task.taken = true
    task.finding()
    this.#zeroes.writing(task.start, task.end)
    await task.writer!.inPlace(task.start, task.end - task.start)
    if (this.#failed !== undefined) return
    this.#zeroes.written(task.start, task.end)
    this.#session.delivered(task.digest!, task.start)
    this.#finish(task, 'inPlace')
  }

  async #write(task: Task, bytes: Buffer, source: SourceName): Promise<void> {
    this.#zeroes.writing(task.start, task.end)
    await task.writer!.chunk(task.start, bytes, source === 'inPlace', () => {
      task.bytes = undefined
      this.#others.taken(task)
      this.#letGo(task)
    })
    if (this.#failed !== undefined) return
    this.#zeroes.written(task.start, task.end)
    this.#session.delivered(task.digest!, task.start)
    this.#same.applied(task)
    this.#others.applied(task)
    this.#blocks?.delivered(task)
    this.#finish(task, source)
  }

  #finish(task: Task, source: SourceName): void {
    if (source !== 'inPlace') this.#ahead.wrote()
    this.#literals.keep(task, undefined)
    if (this.#tasks.delete(task.seq)) this.#budget.tasks--
    this.#latest.deleteValue(task.start, task.end, task)
    task.finish()
    this.account.applied(source, task.end - task.start, task.literalBytes, task.deltaBytes)
    this.#reports.applied(task.seq, source)
    this.#barriers.check(this.#tasks, this.#nextSeq)
  }

  // ---- zeroes and flushes ------------------------------------------------------------------------------------

  #zero(seq: number, offset: number, length: number): void {
    this.#expect('ZERO', seq, offset, length)
    const before = this.#claims(offset, offset + length)
    const task = this.#task(offset, offset + length, undefined, undefined)
    void (async () => {
      for (const claim of before) await claim.done
      if (this.#failed !== undefined) return
      const many = this.#zeroes.add(task.start, task.end)
      this.#proof?.zeroed(task.start, task.end)
      this.#finish(task, 'zero')
      if (many) await this.#zeroes.settle()
    })().catch(this.#onError)
  }

  async #inTurn(start: number, end: number, work: () => Promise<void>): Promise<void> {
    const before = this.#claims(start, end)
    const { promise: done, resolve: finish } = Promise.withResolvers<void>()
    this.#latest.set(start, end, done)
    for (const claim of before) await claim.done
    try {
      await work()
    } finally {
      this.#latest.deleteValue(start, end, done)
      finish()
    }
  }

  async #flush({ id, barrier }: { id: number; barrier: number }, prove?: Prove): Promise<void> {
    if (prove !== undefined && !this.#options.link.features.has(FEATURE_PROOF))
      throw new ProtocolError('PROVE: it was not agreed on')
    const asked = prove === undefined ? undefined : this.#proof?.asked(prove, this.#nextSeq)
    const applied = this.#barriers.wait(barrier, this.#tasks, this.#nextSeq)
    if (this.#barriers.any) this.#others.hurry()
    await applied
    if (this.#failed !== undefined) return
    await this.#zeroes.settle()
    if (this.#failed !== undefined) return
    const proving = asked === undefined ? undefined : this.#proof?.answer(asked)
    const [proved] = await Promise.all([proving, this.#device.flush()])
    if (this.#failed !== undefined) return
    // The account of what was applied goes first, so that both ends agree on it when the FLUSH is answered.
    this.#reports.now()
    if (proved === undefined) this.#proof?.unproved()
    this.#send(proved === undefined ? { type: 'flushed', id } : { type: 'proved', id, ...proved })
    this.#ahead.start()
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
      this.#literals.keep(task, undefined)
      task.finding()
      task.finish()
    }
    this.#tasks.clear()
    this.#others.end()
    this.#share.close()
    this.#reports.close()
    this.#ahead.stop()
    this.#literals.close()
    this.#barriers.end()
    this.#proof?.close()
    this.#resolving.clear()
    void this.#device.close().catch(() => undefined)
    this.#options.onEnd?.(error)
  }
}
