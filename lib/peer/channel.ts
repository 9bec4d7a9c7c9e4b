/**
 * One byte channel as a channel of frames: decodes what comes, writes frames out, and says once when it is gone.
 * Works on any Duplex: an SSH channel, a unix socket, an in-memory pair. Frames that come before somebody listens wait
 * while the stream is paused. It knows nothing of bundles, order or pacing, and it never waits for 'drain': whoever
 * writes bounds what is in flight by acknowledgements, which is a tighter bound than the stream's own.
 */
import type { Duplex } from 'node:stream'
import { LostError, ProtocolError } from '../core/errors.ts'
import { CHANNEL_BACKLOG_BYTES_MAX, CHANNEL_BACKLOG_FRAMES_MAX, CHANNEL_END_MS } from '../core/limits.ts'
import { KIB } from '../core/units.ts'
import { encodeFrameHeader, type Frame, type FrameClass, FrameDecoder } from '../wire/frame.ts'

/** Below this a frame is copied into one buffer: cheaper than a second packet or a longer writev. */
const COPY_BYTES_MAX = 16 * KIB

export interface FrameChannelHandlers {
  frame(frame: Frame): void
  /** After the frames of one read were handed over. */
  read?(): void
  /** Once. An end of the stream is an error here: who expected it has closed the channel before. */
  gone(error: Error): void
}

export class FrameChannel {
  readonly #duplex: Duplex
  readonly #decoder = new FrameDecoder()
  #handlers: FrameChannelHandlers | undefined
  #waiting: Frame[] = []
  #gone: Error | undefined
  #closed = false
  #corked = false
  /** Frames that the stream has not taken yet. */
  #unsent = 0
  readonly #taken = (): void => {
    this.#unsent--
  }
  bytesReceived = 0
  bytesSent = 0
  /** The stream is closed, for SSH: by the far end too. */
  readonly closed: Promise<void>

  constructor(duplex: Duplex, first?: Buffer) {
    this.#duplex = duplex
    duplex.on('error', (error) => this.#lose(new LostError(`channel: ${error.message}`, { cause: error })))
    duplex.on('end', () =>
      this.#lose(
        new LostError(
          this.#decoder.atBoundary
            ? 'channel: the far end closed it'
            : 'channel: it ended in the middle of a frame',
        ),
      ),
    )
    duplex.on('close', () => this.#lose(new LostError('channel: closed')))
    this.closed = new Promise((resolve) => duplex.once('close', resolve))
    if (first !== undefined && first.length > 0) this.#take(first)
    duplex.on('data', (bytes: Buffer) => this.#take(bytes))
    duplex.pause()
  }

  get gone(): boolean {
    return this.#gone !== undefined || this.#closed
  }

  /** Takes over the channel; what waited is handed over at once. */
  listen(handlers: FrameChannelHandlers): void {
    this.#handlers = handlers
    const waiting = this.#waiting
    this.#waiting = []
    for (const [index, frame] of waiting.entries()) {
      // A handler may hand the channel on while it works.
      if (this.#handlers !== handlers) {
        this.#waiting = [...waiting.slice(index), ...this.#waiting]
        return
      }
      handlers.frame(frame)
    }
    if (waiting.length > 0) handlers.read?.()
    if (this.#handlers !== handlers) return
    if (this.#gone !== undefined) {
      const error = this.#gone
      process.nextTick(() => handlers.gone(error))
    } else {
      this.#duplex.resume()
    }
  }

  /** Frames wait again, until the next `listen`. */
  unlisten(): void {
    this.#handlers = undefined
    this.#duplex.pause()
  }

  /** Returns the bytes of the frame. The payload belongs to the channel from here on. */
  write(type: number, cls: FrameClass, sequence: number, payload: readonly Uint8Array[]): number {
    let payloadBytes = 0
    for (const part of payload) payloadBytes += part.length
    const header = encodeFrameHeader(type, cls, sequence, payloadBytes)
    const bytes = header.length + payloadBytes
    if (this.gone || this.#duplex.destroyed || this.#duplex.writableEnded) return bytes
    this.bytesSent += bytes
    const { writableLength } = this.#duplex
    if (writableLength > CHANNEL_BACKLOG_BYTES_MAX || this.#unsent > CHANNEL_BACKLOG_FRAMES_MAX) {
      const waits = `${this.#unsent} frames with ${writableLength} bytes wait for it`
      this.#duplex.destroy(new LostError(`the far end does not read: ${waits}`))
      return bytes
    }
    this.#cork()
    this.#unsent++
    if (bytes <= COPY_BYTES_MAX) {
      const frame = payload.length === 0 ? header : Buffer.concat([header, ...payload], bytes)
      this.#duplex.write(frame, this.#taken)
      return bytes
    }
    // Written in order, so the header's turn is close to that of its payload.
    this.#duplex.write(header, this.#taken)
    for (const part of payload) if (part.length > 0) this.#duplex.write(part)
    return bytes
  }

  /** Sends what was written, then closes; cut off if that takes longer than a second. Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    const duplex = this.#duplex
    if (duplex.destroyed) return
    duplex.resume()
    const timer = setTimeout(() => duplex.destroy(), CHANNEL_END_MS)
    timer.unref()
    duplex.once('close', () => clearTimeout(timer))
    duplex.end(() => {
      clearTimeout(timer)
      duplex.destroy()
    })
  }

  destroy(): void {
    this.#closed = true
    this.#duplex.destroy()
  }

  /** The frames of one turn of the event loop leave in one system call where the stream can do that. */
  #cork(): void {
    if (this.#corked) return
    this.#corked = true
    this.#duplex.cork()
    process.nextTick(() => {
      this.#corked = false
      this.#duplex.uncork()
    })
  }

  #take(bytes: Buffer): void {
    this.bytesReceived += bytes.length
    if (this.#closed || this.#gone !== undefined) return
    const frames: Frame[] = []
    let fault: ProtocolError | undefined
    try {
      for (const frame of this.#decoder.push(bytes)) frames.push(frame)
    } catch (error) {
      fault =
        error instanceof ProtocolError ? error : new ProtocolError('channel: not frames', { cause: error })
    }
    for (const frame of frames) {
      if (this.#closed) return
      if (this.#handlers === undefined) this.#waiting.push(frame)
      else this.#handlers.frame(frame)
    }
    this.#handlers?.read?.()
    if (fault === undefined) return
    // What stood before it was good: the far end's reason for giving up may be there.
    this.#lose(fault)
    this.#duplex.destroy()
  }

  #lose(error: Error): void {
    if (this.#gone !== undefined || this.#closed) return
    this.#gone = error
    const handlers = this.#handlers
    if (handlers !== undefined) handlers.gone(error)
  }
}
