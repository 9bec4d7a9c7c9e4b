/**
 * A bundle: several byte channels joined into one reliable, ordered stream of frames in both directions. Frames wait
 * in the sender by class, get their sequence when the pacing lets them go, travel on whichever channel has least
 * outstanding, and are put in order again at the far end. The receiver acknowledges what it delivered; that is both the
 * backpressure and the measure of the path.
 *
 * When one channel is lost, or a PING goes unanswered, the link is broken, all of it. Without the feature `resume` the
 * bundle is lost then. With it the sender keeps what is not acknowledged, the dialing end makes a new link (resume.ts),
 * both ends tell how much they delivered, and what follows is sent again, in order, with the same sequences: nothing is
 * delivered twice or missed. A far end that does not know the bundle any more has lost it, and so have we.
 * It does not know what the frames mean.
 */
import { errorText, LostError, ProtocolError } from '../core/errors.ts'
import {
  ABORT_REASON_BYTES_MAX,
  BREAK_MS,
  CHANNEL_END_MS,
  CLOSE_MS_MAX,
  CONTROL_EXTRA_BYTES,
  CONTROL_EXTRA_FRAMES,
  CONTROL_QUEUE_BYTES_MAX,
  CONTROL_QUEUE_FRAMES_MAX,
  FRAME_PAYLOAD_BYTES_MAX,
  IN_FLIGHT_BYTES_MAX,
  IN_FLIGHT_FRAMES_MAX,
  PING_INTERVAL_MS,
  RESUME_MS,
  SILENCE_MS_MAX,
} from '../core/limits.ts'
import { KIB } from '../core/units.ts'
import {
  APPLICATION_TYPE_MIN,
  decodeU48,
  encodeU48,
  FRAME_ABORT,
  FRAME_ACK,
  FRAME_BULK,
  FRAME_CLOSE,
  FRAME_CONTROL,
  FRAME_HEADER_BYTES,
  FRAME_PING,
  FRAME_PONG,
  type Frame,
  type FrameClass,
  isSequenced,
} from '../wire/frame.ts'
import { type BundleKind, FEATURE_RESUME } from '../wire/hello.ts'
import { Carrier } from './carrier.ts'
import { Delivery } from './delivery.ts'
import { Keepalive } from './keepalive.ts'
import { type KeptFrame, KeptFrames } from './kept.ts'
import type { BundleConnection, BundleOptions, FrameHandler, ResumedLink } from './options.ts'
import { Pacing } from './pacing.ts'
import { frameBytes, type QueuedFrame, SendQueue } from './queue.ts'
import type { RateLimit } from './rate-limit.ts'
import { reconnect } from './resume.ts'

// Reached only at rates at which one turn of the event loop reads more than this.
const ACK_BYTES = 512 * KIB
const SENT: Promise<void> = Promise.resolve()

/** A link that broke and is not resumed yet. */
interface Break {
  readonly reason: Error
  readonly silentSince: number
  readonly timer: NodeJS.Timeout
  readonly controller: AbortController
}

export class Bundle {
  readonly id: string
  readonly kind: BundleKind
  readonly peer: string
  readonly migrationId: string
  readonly features: ReadonlySet<string>
  readonly dialed: boolean
  /** Which start of the far daemon this is; empty when it did not tell. */
  readonly peerInstance: string
  /** What this end may hold undelivered, and has told the far end. */
  readonly windowBytes: number
  /** Resolves when the bundle ended: with nothing when either end closed it well, else with what went wrong. */
  readonly closed: Promise<Error | undefined>

  readonly #options: BundleOptions
  readonly #resumable: boolean
  readonly #carrier: Carrier
  readonly #kept = new KeptFrames()
  #broken: Break | undefined
  #attempt = 0
  #resumes = 0
  #onBroken: ((reason: Error) => void) | undefined
  readonly #pacing: Pacing
  readonly #rateLimit: RateLimit | undefined
  #rateTimer: NodeJS.Timeout | undefined
  readonly #queue = new SendQueue()
  readonly #delivery: Delivery
  readonly #keepalive: Keepalive
  readonly #closeMs: number
  #resolveClosed: (error: Error | undefined) => void = () => undefined

  #sequence = 0
  #acknowledgedBytes = 0
  #turnScheduled = false
  #closing = false
  #ended = false
  #closeTimer: NodeJS.Timeout | undefined
  #goneTimer: NodeJS.Timeout | undefined

  constructor(options: BundleOptions) {
    this.id = options.id
    this.kind = options.kind
    this.peer = options.peer
    this.migrationId = options.migrationId
    this.features = options.features
    this.dialed = options.dialed
    this.peerInstance = options.peerInstance ?? ''
    this.#options = options
    this.#resumable = options.features.has(FEATURE_RESUME)
    this.#closeMs = options.closeMs ?? CLOSE_MS_MAX
    this.#rateLimit = options.rateLimit
    this.windowBytes = options.window?.bytes ?? IN_FLIGHT_BYTES_MAX
    this.#pacing = new Pacing({
      clock: () => performance.now(),
      ceilingBytes: Math.min(this.windowBytes, options.peerWindowBytes),
    })
    this.#delivery = new Delivery(this.windowBytes, options.kind !== 'control', {
      delivered: () => {
        if (this.#delivery.deliveredBytes - this.#acknowledgedBytes >= ACK_BYTES) this.#acknowledge()
        else this.#scheduleTurn()
      },
      closed: () => {
        this.#carrier.writeToAll(FRAME_ACK, FRAME_CONTROL, encodeU48(this.#delivery.deliveredBytes))
        this.#finish(undefined)
      },
      failed: (error) => this.#abort(error),
    })
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    void this.closed.then(() => options.window?.release())
    const silenceMs = options.silenceMs ?? (this.#resumable ? BREAK_MS : SILENCE_MS_MAX)
    this.#keepalive = new Keepalive({
      pingIntervalMs: options.pingIntervalMs ?? PING_INTERVAL_MS,
      silenceMs,
      busy: () => this.#pacing.inFlightBytes > 0,
      ping: (token) => this.#carrier.writeOwn(FRAME_PING, FRAME_CONTROL, encodeU48(token)),
      roundTrip: (ms) => {
        this.#pacing.roundTrip(ms)
        this.#pump()
      },
      silent: (ms) => {
        const text = `nothing was heard for ${Math.round(ms)} ms, at most ${silenceMs} ms are allowed`
        this.#linkLost(new LostError(`${this.#name}: ${text}`))
      },
    })
    this.#carrier = new Carrier({
      frame: (frame) => this.#receive(frame),
      read: () => this.#afterRead(),
      gone: (error) => {
        this.#delivery.run(true)
        if (error instanceof ProtocolError) this.#abort(error)
        else this.#channelGone(new LostError(`${this.#name}: ${errorText(error)}`, { cause: error }))
      },
    })
    this.#carrier.take(options)
    this.#keepalive.ping()
  }

  /** Called when the link broke and the bundle waits to be resumed. Set once. */
  set onBroken(handler: (reason: Error) => void) {
    this.#onBroken = handler
    if (this.#broken !== undefined) handler(this.#broken.reason)
  }

  get broken(): boolean {
    return this.#broken !== undefined
  }

  /** How often its link was replaced. */
  get resumes(): number {
    return this.#resumes
  }

  /** All that carried it, the present ones last. */
  get connections(): readonly BundleConnection[] {
    return this.#carrier.connections
  }

  /** For how long the far end gave no sign although it was asked for one; 0 while all is well. Milliseconds. */
  get silentMs(): number {
    return this.#broken === undefined
      ? this.#keepalive.silentMs
      : performance.now() - this.#broken.silentSince
  }

  get onFrame(): FrameHandler | undefined {
    return this.#delivery.onFrame
  }

  /** Set once; frames that came before wait for it. An error that it throws ends the bundle. */
  set onFrame(handler: FrameHandler) {
    this.#delivery.take(handler)
  }

  get ended(): boolean {
    return this.#ended
  }

  get queuedBytes(): number {
    return this.#queue.bytes
  }

  get inFlightBytes(): number {
    return this.#pacing.inFlightBytes
  }

  get limitBytes(): number {
    return this.#pacing.limitBytes
  }

  get rateBytesPerSecond(): number {
    return this.#pacing.rateBytesPerSecond
  }

  /** 0 while none is known. */
  get roundTripMs(): number {
    return this.#pacing.minRttMs ?? 0
  }

  get rttMs(): { readonly smoothed: number | undefined; readonly min: number | undefined } {
    return { smoothed: this.#pacing.smoothedRttMs, min: this.#pacing.minRttMs }
  }

  /** Bytes of frames, headers included, without what SSH adds. */
  get bytesSent(): number {
    return this.#carrier.bytesSent
  }

  get bytesReceived(): number {
    return this.#carrier.bytesReceived
  }

  /**
   * Resolves when the frame was handed to a channel; await it, that is the backpressure. The payload belongs to the
   * bundle from the call on. Rejects with LostError once the bundle has ended.
   */
  send(type: number, payload: readonly Uint8Array[], cls: FrameClass): Promise<void> {
    if (!Number.isInteger(type) || type < APPLICATION_TYPE_MIN || type > 255) {
      throw new RangeError(`bundle send: type ${type}, expected ${APPLICATION_TYPE_MIN} to 255`)
    }
    const bytes = frameBytes(payload)
    if (bytes > FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX) {
      throw new RangeError(
        `bundle send: type ${type} of ${bytes} bytes, at most ${FRAME_PAYLOAD_BYTES_MAX} fit`,
      )
    }
    if (this.#closing || this.#ended) {
      return Promise.reject(new LostError(`send to ${this.#name}: the bundle has ended`))
    }
    this.#scheduleTurn()
    if (this.#queue.count === 0 && this.#passes(cls)) {
      this.#put(type, cls, payload)
      return SENT
    }
    const { controlBytes, controlCount } = this.#queue
    if (controlBytes > CONTROL_QUEUE_BYTES_MAX || controlCount > CONTROL_QUEUE_FRAMES_MAX) {
      const text = `${controlBytes} bytes in ${controlCount} frames of answers wait for a far end that does not read them`
      this.#abort(new ProtocolError(`${this.#name}: ${text}`))
      return Promise.reject(new LostError(`send to ${this.#name}: ${text}`))
    }
    return new Promise((sent, failed) => {
      this.#queue.push({ type, cls, payload, bytes, sent, failed })
      this.#pump()
    })
  }

  /** Stops delivery: acknowledgements stop, and so does the far end, at the latest when its window is full. */
  pause(): void {
    this.#delivery.pause()
  }

  resume(): void {
    this.#delivery.resume()
  }

  /**
   * Without a reason: sends what is queued, waits until it is acknowledged, and ends well at both ends. With a reason:
   * at once; what is queued is rejected, and the far end is told. Resolves when this end is done. Idempotent.
   */
  async close(reason?: Error): Promise<void> {
    if (this.#ended) return
    if (reason !== undefined) {
      this.#abort(reason)
      return
    }
    if (this.#broken !== undefined) {
      // Nobody can be told. The far end finds out when it tries to resume.
      this.#finish(this.#broken.reason)
      return
    }
    if (!this.#closing) {
      this.#closing = true
      this.#closeTimer = setTimeout(() => {
        this.#finish(
          new LostError(`${this.#name}: the last frames were not acknowledged in ${this.#closeMs} ms`),
        )
      }, this.#closeMs)
      const nothing = (): void => undefined
      this.#queue.push({
        type: FRAME_CLOSE,
        cls: FRAME_BULK,
        payload: [],
        bytes: FRAME_HEADER_BYTES,
        sent: nothing,
        failed: nothing,
      })
      this.#pump()
    }
    await this.closed
  }

  get #name(): string {
    return `${this.kind} bundle ${this.id.slice(0, 8)} with ${this.peer}`
  }

  // ---- sending ----

  #passes(cls: FrameClass): boolean {
    if (this.#broken !== undefined) return false
    const pacing = this.#pacing
    if (cls === FRAME_CONTROL) {
      return (
        pacing.inFlightBytes < pacing.ceilingBytes + CONTROL_EXTRA_BYTES &&
        pacing.inFlightFrames < IN_FLIGHT_FRAMES_MAX + CONTROL_EXTRA_FRAMES
      )
    }
    return pacing.open && pacing.inFlightFrames < IN_FLIGHT_FRAMES_MAX && this.#underRate()
  }

  /** False while the shared cap is used up; a timer then goes on where this stopped. */
  #underRate(): boolean {
    const waitMs = this.#rateLimit?.waitMs() ?? 0
    if (waitMs === 0) return true
    this.#rateTimer ??= setTimeout(() => {
      this.#rateTimer = undefined
      this.#pump()
    }, waitMs)
    return false
  }

  #pump(): void {
    for (;;) {
      const frame: QueuedFrame | undefined = this.#queue.peek()
      if (frame === undefined || this.#ended || !this.#passes(frame.cls)) return
      this.#queue.shift()
      this.#put(frame.type, frame.cls, frame.payload)
      frame.sent()
    }
  }

  #put(type: number, cls: FrameClass, payload: readonly Uint8Array[]): void {
    const frame = { sequence: this.#sequence, type, cls, payload }
    this.#sequence += 1
    if (this.#resumable) this.#kept.push(frame)
    this.#write(frame)
  }

  #write({ type, cls, sequence, payload }: KeptFrame): void {
    const { bytes, channel } = this.#carrier.write(type, cls, sequence, payload)
    this.#pacing.sent(bytes, channel)
    this.#rateLimit?.sent(bytes)
  }

  #acknowledge(): void {
    if (this.#acknowledgedBytes === this.#delivery.deliveredBytes || this.#broken !== undefined) return
    this.#acknowledgedBytes = this.#delivery.deliveredBytes
    this.#carrier.writeOwn(FRAME_ACK, FRAME_CONTROL, encodeU48(this.#delivery.deliveredBytes))
  }

  // ---- receiving ----

  #receive(frame: Frame): void {
    if (this.#ended) return
    try {
      if (isSequenced(frame.type)) this.#delivery.push(frame)
      else this.#receiveOwn(frame)
    } catch (error) {
      this.#abort(error instanceof Error ? error : new Error(String(error)))
    }
  }

  #receiveOwn(frame: Frame): void {
    switch (frame.type) {
      case FRAME_ACK:
        this.#receiveAck(decodeU48('ACK', frame.payload))
        return
      case FRAME_PING:
        if (frame.payload.length !== 6) {
          throw new ProtocolError(`PING: expected a payload of 6 bytes, got ${frame.payload.length}`)
        }
        this.#carrier.writeOwn(FRAME_PONG, FRAME_CONTROL, frame.payload)
        return
      case FRAME_PONG:
        this.#keepalive.pong(decodeU48('PONG', frame.payload))
        return
      case FRAME_ABORT: {
        this.#delivery.run(true)
        const text = frame.payload.toString('utf8', 0, ABORT_REASON_BYTES_MAX)
        this.#finish(new LostError(`${this.#name}: the far end gave it up: ${text}`))
        return
      }
      default:
        throw new ProtocolError(`frame of type ${frame.type} is not expected after the hello`)
    }
  }

  #receiveAck(delivered: number): void {
    // Acks travel on any channel and may overtake one another.
    if (delivered <= this.#pacing.deliveredBytes) return
    this.#settle('ACK', delivered)
    this.#pump()
    this.#closeIfDone()
  }

  #settle(what: string, delivered: number): void {
    const settled = this.#pacing.acknowledged(delivered, (bytes, channel) => {
      this.#carrier.acknowledged(bytes, channel)
      this.#kept.dropOldest()
    })
    if (!settled) {
      throw new ProtocolError(`${what} of ${delivered} bytes is not the end of a frame that was sent`)
    }
  }

  #closeIfDone(): void {
    if (this.#closing && this.#queue.count === 0 && this.#pacing.inFlightBytes === 0) this.#finish(undefined)
  }

  #afterRead(): void {
    this.#keepalive.heard()
    this.#delivery.run()
  }

  /** At the end of this turn of the event loop: acknowledge, and note whether there was nothing left to send. */
  #scheduleTurn(): void {
    if (this.#turnScheduled) return
    this.#turnScheduled = true
    setImmediate(() => {
      this.#turnScheduled = false
      if (this.#ended) return
      this.#acknowledge()
      if (this.#queue.count === 0) this.#pacing.idle()
    })
  }

  // ---- the link, and the next one ----

  /**
   * While this end closes, the far end most likely has heard it, and its last acknowledgement stands on every channel: one that
   * could not be written to any more is gone before it was read, which says nothing of the others.
   */
  #channelGone(reason: LostError): void {
    if (!this.#closing) this.#linkLost(reason)
    else this.#goneTimer ??= setTimeout(() => this.#linkLost(reason), CHANNEL_END_MS)
  }

  #linkLost(reason: LostError): void {
    if (this.#ended || this.#broken !== undefined) return
    if (!this.#resumable) {
      this.#finish(reason)
      return
    }
    const broken = this.#breakLink(reason)
    this.#onBroken?.(reason)
    if (this.#options.reconnect === undefined || this.#ended) return
    void reconnect({
      reconnect: this.#options.reconnect,
      nextAttempt: () => ++this.#attempt,
      deliveredBytes: this.#delivery.deliveredBytes,
      signal: broken.controller.signal,
    }).then(
      (link) => this.resumeOver(link),
      (error: unknown) => {
        const text = `${reason.message}; and it cannot be resumed: ${errorText(error)}`
        this.lost(new LostError(text, { cause: error }))
      },
    )
  }

  /** Nothing is sent or delivered from here on until there is another link. */
  #breakLink(reason: Error): Break {
    const silentMs = this.#keepalive.silentMs
    this.#keepalive.stop()
    clearTimeout(this.#goneTimer)
    this.#goneTimer = undefined
    const controller = new AbortController()
    const resumeMs = this.#options.resumeMs ?? RESUME_MS
    const timer = setTimeout(() => {
      this.#finish(new LostError(`${reason.message}; it was not resumed within ${resumeMs} ms`))
    }, resumeMs)
    this.#broken = { reason, silentSince: performance.now() - silentMs, timer, controller }
    this.#carrier.drop()
    this.#delivery.restart()
    return this.#broken
  }

  /**
   * The accepting end, when the dialing end came with a new link: the old one counts as broken from now on, even if
   * that was not noticed here yet. Gives the bytes delivered, which will not change until `resumeOver`.
   */
  suspend(): number {
    if (this.#ended) throw new LostError(`${this.#name}: it has ended`)
    if (!this.#resumable) throw new ProtocolError(`${this.#name}: it cannot be resumed`)
    if (this.#broken === undefined)
      this.#breakLink(new LostError(`${this.#name}: the far end gave up its link`))
    return this.#delivery.deliveredBytes
  }

  /** Goes on over a new link: what the far end did not deliver is sent again, in order. */
  resumeOver(link: ResumedLink): void {
    const broken = this.#broken
    if (this.#ended || broken === undefined) {
      for (const channel of link.channels) channel.destroy()
      link.dispose?.()
      return
    }
    clearTimeout(broken.timer)
    let breach: Error | undefined
    try {
      this.#settleResumed(link.peerDeliveredBytes)
    } catch (error) {
      breach = error as Error
    }
    this.#acknowledgedBytes = this.#delivery.deliveredBytes
    // It counts as broken until everything was sent again: what is sent meanwhile comes after it.
    this.#carrier.take(link)
    if (breach !== undefined) this.#abort(breach)
    if (this.#ended) return
    this.#pacing.restart()
    for (const frame of this.#kept) this.#write(frame)
    this.#broken = undefined
    this.#resumes += 1
    this.#keepalive.restart()
    this.#pump()
    this.#delivery.run()
    this.#closeIfDone()
  }

  #settleResumed(delivered: number): void {
    const known = this.#pacing.deliveredBytes
    if (delivered < known) {
      throw new ProtocolError(
        `resume: the far end says that it delivered ${delivered} bytes, it said ${known} before`,
      )
    }
    this.#settle('resume: delivery', delivered)
  }

  // ---- life ----

  /** Ends the bundle for ever because what it stands for is gone at the far end. */
  lost(error: Error): void {
    this.#finish(error instanceof LostError ? error : new LostError(errorText(error), { cause: error }))
  }

  #abort(reason: Error): void {
    if (this.#ended) return
    const text = Buffer.from(reason.message, 'utf8').subarray(0, ABORT_REASON_BYTES_MAX)
    this.#carrier.writeToAll(FRAME_ABORT, FRAME_CONTROL, text)
    this.#finish(reason)
  }

  #finish(error: Error | undefined): void {
    if (this.#ended) return
    this.#ended = true
    this.#delivery.stop()
    this.#keepalive.stop()
    clearTimeout(this.#closeTimer)
    clearTimeout(this.#goneTimer)
    clearTimeout(this.#rateTimer)
    clearTimeout(this.#broken?.timer)
    this.#broken?.controller.abort(error ?? new LostError('the bundle was closed'))
    this.#kept.clear()
    this.#carrier.close()
    const loss = new LostError(
      `send to ${this.#name}: ${error === undefined ? 'the far end closed the bundle' : error.message}`,
      error === undefined ? undefined : { cause: error },
    )
    for (const frame of this.#queue.drain()) frame.failed(loss)
    this.#resolveClosed(error)
  }
}
