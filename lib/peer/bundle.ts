/**
 * A bundle: several byte channels joined into one reliable, ordered stream of frames in both directions. Frames wait
 * in the sender by class, get their sequence when the pacing lets them go, travel on whichever channel has least
 * outstanding, and are put in order again at the far end. The receiver acknowledges what it delivered; that is both the
 * backpressure and the measure of the path.
 *
 * All or nothing: when one channel is lost the bundle is lost. It does not reconnect and does not know what the
 * frames mean.
 */
import { errorText, LostError, ProtocolError } from '../core/errors.ts'
import {
  ABORT_REASON_BYTES_MAX,
  CLOSE_MS_MAX,
  CONTROL_EXTRA_BYTES,
  CONTROL_EXTRA_FRAMES,
  FRAME_PAYLOAD_BYTES_MAX,
  IN_FLIGHT_BYTES_MAX,
  IN_FLIGHT_FRAMES_MAX,
  PING_INTERVAL_MS,
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
import type { BundleKind } from '../wire/hello.ts'
import type { FrameChannel } from './channel.ts'
import { Keepalive } from './keepalive.ts'
import type { BundleConnection, BundleOptions, FrameHandler } from './options.ts'
import { Pacing } from './pacing.ts'
import { frameBytes, type QueuedFrame, SendQueue } from './queue.ts'
import type { RateLimit } from './rate-limit.ts'
import { Reorder } from './reorder.ts'

// Reached only at rates at which one turn of the event loop reads more than this.
const ACK_BYTES = 512 * KIB
const SENT: Promise<void> = Promise.resolve()

export class Bundle {
  readonly id: string
  readonly kind: BundleKind
  readonly peer: string
  readonly migrationId: string
  readonly features: ReadonlySet<string>
  readonly dialed: boolean
  readonly connections: readonly BundleConnection[]
  /** Resolves when the bundle ended: with nothing when either end closed it well, else with what went wrong. */
  readonly closed: Promise<Error | undefined>

  readonly #channels: readonly FrameChannel[]
  readonly #outstandingBytes: Float64Array
  readonly #pacing: Pacing
  readonly #rateLimit: RateLimit | undefined
  #rateTimer: NodeJS.Timeout | undefined
  readonly #queue = new SendQueue()
  readonly #reorder: Reorder
  readonly #dispose: (() => void) | undefined
  readonly #keepalive: Keepalive
  readonly #closeMs: number
  #resolveClosed: (error: Error | undefined) => void = () => undefined

  #sequence = 0
  #deliveredBytes = 0
  #acknowledgedBytes = 0
  #turnScheduled = false
  #onFrame: FrameHandler | undefined
  #paused = false
  #delivering = false
  #closing = false
  #ended = false
  #closeTimer: NodeJS.Timeout | undefined

  constructor(options: BundleOptions) {
    this.id = options.id
    this.kind = options.kind
    this.peer = options.peer
    this.migrationId = options.migrationId
    this.features = options.features
    this.dialed = options.dialed
    this.connections = options.connections
    this.#channels = options.channels
    this.#outstandingBytes = new Float64Array(options.channels.length)
    this.#dispose = options.dispose
    this.#closeMs = options.closeMs ?? CLOSE_MS_MAX
    this.#rateLimit = options.rateLimit
    this.#pacing = new Pacing({
      clock: () => performance.now(),
      ceilingBytes: Math.min(IN_FLIGHT_BYTES_MAX, options.peerWindowBytes),
    })
    this.#reorder = new Reorder({
      bytesMax: IN_FLIGHT_BYTES_MAX + CONTROL_EXTRA_BYTES + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX,
      framesMax: IN_FLIGHT_FRAMES_MAX + CONTROL_EXTRA_FRAMES,
    })
    this.closed = new Promise((resolve) => {
      this.#resolveClosed = resolve
    })
    const silenceMs = options.silenceMs ?? SILENCE_MS_MAX
    this.#keepalive = new Keepalive({
      pingIntervalMs: options.pingIntervalMs ?? PING_INTERVAL_MS,
      silenceMs,
      busy: () => this.#pacing.inFlightBytes > 0,
      ping: (token) => this.#sendOwn(FRAME_PING, encodeU48(token)),
      roundTrip: (ms) => {
        this.#pacing.roundTrip(ms)
        this.#pump()
      },
      silent: (ms) => {
        const text = `nothing was heard for ${Math.round(ms)} ms, at most ${silenceMs} ms are allowed`
        this.#finish(new LostError(`${this.#name}: ${text}`))
      },
    })
    for (const [index, channel] of this.#channels.entries()) {
      channel.listen({
        frame: (frame) => this.#receive(frame),
        read: () => this.#afterRead(),
        gone: (error) => this.#channelGone(index, error),
      })
    }
    this.#keepalive.ping()
  }

  get onFrame(): FrameHandler | undefined {
    return this.#onFrame
  }

  /** Set once; frames that came before wait for it. An error that it throws ends the bundle. */
  set onFrame(handler: FrameHandler) {
    this.#onFrame = handler
    this.#deliver()
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

  get rttMs(): { readonly smoothed: number | undefined; readonly min: number | undefined } {
    return { smoothed: this.#pacing.smoothedRttMs, min: this.#pacing.minRttMs }
  }

  /** Bytes of frames, headers included, without what SSH adds. */
  get bytesSent(): number {
    return this.#channels.reduce((sum, channel) => sum + channel.bytesSent, 0)
  }

  get bytesReceived(): number {
    return this.#channels.reduce((sum, channel) => sum + channel.bytesReceived, 0)
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
    return new Promise((sent, failed) => {
      this.#queue.push({ type, cls, payload, bytes, sent, failed })
      this.#pump()
    })
  }

  /** Stops delivery: acknowledgements stop, and so does the far end, at the latest when its window is full. */
  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.#deliver()
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
    const index = this.#leastOutstanding()
    const bytes = this.#channels[index]!.write(type, cls, this.#sequence, payload)
    this.#sequence += 1
    this.#outstandingBytes[index]! += bytes
    this.#pacing.sent(bytes, index)
    this.#rateLimit?.sent(bytes)
  }

  #leastOutstanding(): number {
    let best = 0
    for (let index = 1; index < this.#outstandingBytes.length; index += 1) {
      if (this.#outstandingBytes[index]! < this.#outstandingBytes[best]!) best = index
    }
    return best
  }

  /** Frames of the bundle itself go where the least stands before them. */
  #sendOwn(type: number, payload: Uint8Array): void {
    this.#channels[this.#leastOutstanding()]!.write(type, FRAME_CONTROL, 0, [payload])
  }

  #acknowledge(): void {
    if (this.#acknowledgedBytes === this.#deliveredBytes) return
    this.#acknowledgedBytes = this.#deliveredBytes
    this.#sendOwn(FRAME_ACK, encodeU48(this.#deliveredBytes))
  }

  // ---- receiving ----

  #receive(frame: Frame): void {
    if (this.#ended) return
    try {
      if (isSequenced(frame.type)) this.#reorder.push(frame)
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
        this.#sendOwn(FRAME_PONG, frame.payload)
        return
      case FRAME_PONG:
        this.#keepalive.pong(decodeU48('PONG', frame.payload))
        return
      case FRAME_ABORT: {
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
    const settled = this.#pacing.acknowledged(delivered, (bytes, index) => {
      this.#outstandingBytes[index]! -= bytes
    })
    if (!settled) throw new ProtocolError(`ACK of ${delivered} bytes is not the end of a frame that was sent`)
    this.#pump()
    if (this.#closing && this.#queue.count === 0 && this.#pacing.inFlightBytes === 0) this.#finish(undefined)
  }

  #afterRead(): void {
    this.#keepalive.heard()
    this.#deliver()
  }

  #deliver(): void {
    if (this.#delivering) return
    this.#delivering = true
    try {
      while (!this.#ended) {
        const frame = this.#reorder.peek()
        if (frame === undefined) break
        // A close with nothing before it needs nobody to take it.
        if (frame.type !== FRAME_CLOSE && (this.#paused || this.#onFrame === undefined)) break
        this.#reorder.take()
        this.#deliveredBytes += FRAME_HEADER_BYTES + frame.payload.length
        if (frame.type === FRAME_CLOSE) {
          // On every channel: the end of another one must not overtake it.
          const ack = encodeU48(this.#deliveredBytes)
          for (const channel of this.#channels) channel.write(FRAME_ACK, FRAME_CONTROL, 0, [ack])
          this.#finish(undefined)
          return
        }
        this.#onFrame?.(frame.type, frame.payload, frame.cls)
        if (this.#deliveredBytes - this.#acknowledgedBytes >= ACK_BYTES) this.#acknowledge()
      }
    } catch (error) {
      this.#abort(error instanceof Error ? error : new Error(String(error)))
    } finally {
      this.#delivering = false
    }
    if (this.#deliveredBytes !== this.#acknowledgedBytes) this.#scheduleTurn()
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

  // ---- life ----

  #channelGone(index: number, error: Error): void {
    if (this.#ended) return
    if (error instanceof ProtocolError) this.#abort(error)
    else this.#finish(new LostError(`${this.#name}: channel ${index}: ${errorText(error)}`, { cause: error }))
  }

  /** Ends the bundle from outside because what carries it is gone, with a better reason than its channels know. */
  lost(error: Error): void {
    this.#finish(error instanceof LostError ? error : new LostError(errorText(error), { cause: error }))
  }

  #abort(reason: Error): void {
    if (this.#ended) return
    const text = Buffer.from(reason.message, 'utf8').subarray(0, ABORT_REASON_BYTES_MAX)
    // On every channel: the end of another one must not overtake the reason.
    for (const channel of this.#channels) channel.write(FRAME_ABORT, FRAME_CONTROL, 0, [text])
    this.#finish(reason)
  }

  #finish(error: Error | undefined): void {
    if (this.#ended) return
    this.#ended = true
    this.#keepalive.stop()
    clearTimeout(this.#closeTimer)
    clearTimeout(this.#rateTimer)
    for (const channel of this.#channels) channel.close()
    const loss = new LostError(
      `send to ${this.#name}: ${error === undefined ? 'the far end closed the bundle' : error.message}`,
      error === undefined ? undefined : { cause: error },
    )
    for (const frame of this.#queue.drain()) frame.failed(loss)
    this.#resolveClosed(error)
    if (this.#dispose !== undefined) setImmediate(this.#dispose)
  }
}
