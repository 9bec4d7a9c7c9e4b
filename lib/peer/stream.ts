/**
 * Byte streams over one bundle: many TCP-like connections, each a Duplex, byte for byte and in order. Opening costs
 * no round trip, each direction ends on its own, and a stream that nobody reads holds up no other: it has a window of
 * its own, refilled by credits. Nothing here waits on a timer.
 *
 * OPEN and CREDIT are control frames, data is of class `ram`; END follows the data. Ids are odd from the end that
 * dialed, even from the other, and are not used again.
 */
import { Duplex } from 'node:stream'
import { errorText, LostError, ProtocolError, RefusedError } from '../core/errors.ts'
import {
  STREAM_CHUNK_BYTES_MAX,
  STREAM_META_BYTES_MAX,
  STREAM_WIDE_WINDOW_BYTES,
  STREAM_WINDOW_BYTES,
  STREAMS_MAX,
} from '../core/limits.ts'
import { FRAME_CONTROL, FRAME_RAM } from '../wire/frame.ts'
import { FEATURE_WIDE_STREAM } from '../wire/hello.ts'
import type { Bundle } from './bundle.ts'

/** u32 id, JSON meta. */
export const STREAM_OPEN: number = 48
/** u32 id, bytes. */
export const STREAM_DATA: number = 49
/** u32 id: no data follows. */
export const STREAM_END: number = 50
/** u32 id, UTF-8 reason: the stream is gone in both directions. */
export const STREAM_RESET: number = 51
/** u32 id, u32 bytes that may be sent beyond what was allowed before. */
export const STREAM_CREDIT: number = 52

export interface StreamMeta {
  readonly port: number
}

export type StreamHandler = (meta: StreamMeta, stream: Duplex) => void

/** Of a window: that much is given back at once. */
const CREDIT_PART = 4
/** The first id of either end. */
const FIRST_IDS = 2

export class StreamMux {
  readonly #bundle: Bundle
  readonly #onStream: StreamHandler | undefined
  readonly #streams = new Map<number, MuxStream>()
  #nextId: number
  #lastRemoteId = 0

  constructor(bundle: Bundle, onStream?: StreamHandler) {
    this.#bundle = bundle
    this.#onStream = onStream
    this.#nextId = bundle.dialed ? 1 : 2
    void bundle.closed.then((error) => {
      const loss = new LostError(
        error === undefined ? 'stream: the bundle was closed' : `stream: ${error.message}`,
      )
      for (const stream of [...this.#streams.values()]) stream.lost(loss)
    })
    bundle.onFrame = (type, payload) => this.#receive(type, payload)
  }

  get streams(): number {
    return this.#streams.size
  }

  /** Data may follow at once. A refusal by the far end destroys the stream with an error. */
  open(meta: StreamMeta): Duplex {
    if (this.#streams.size >= STREAMS_MAX) {
      throw new RefusedError(`stream to port ${meta.port}: ${STREAMS_MAX} streams are open already`)
    }
    const id = this.#nextId
    this.#nextId += 2
    const stream = this.#add(id)
    const payload = Buffer.from(JSON.stringify({ port: meta.port }), 'utf8')
    void this.#bundle
      .send(STREAM_OPEN, [idBytes(id), payload], FRAME_CONTROL)
      .catch((error: Error) => stream.lost(error))
    return stream
  }

  #add(id: number): MuxStream {
    const wide = id <= FIRST_IDS && this.#bundle.features.has(FEATURE_WIDE_STREAM)
    const windowBytes = wide ? STREAM_WIDE_WINDOW_BYTES : STREAM_WINDOW_BYTES
    const stream = new MuxStream(id, this.#bundle, windowBytes, () => this.#streams.delete(id))
    this.#streams.set(id, stream)
    return stream
  }

  #receive(type: number, payload: Buffer): void {
    if (payload.length < 4)
      throw new ProtocolError(`stream frame ${type}: ${payload.length} bytes hold no id`)
    const id = payload.readUInt32BE(0)
    const rest = payload.subarray(4)
    if (type === STREAM_OPEN) {
      this.#opened(id, rest)
      return
    }
    if (type < STREAM_OPEN || type > STREAM_CREDIT) {
      throw new ProtocolError(`stream: frame type ${type} is not expected on a ${this.#bundle.kind} bundle`)
    }
    const stream = this.#streams.get(id)
    if (stream === undefined) {
      if (!this.#wasOpen(id)) throw new ProtocolError(`stream frame ${type}: stream ${id} was never opened`)
      return
    }
    if (type === STREAM_DATA) stream.received(rest)
    else if (type === STREAM_END) stream.receivedEnd()
    else if (type === STREAM_RESET) {
      stream.lost(new LostError(`stream ${id}: the far end reset it: ${rest.toString('utf8', 0, 1024)}`))
    } else {
      if (rest.length !== 4) throw new ProtocolError(`stream credit: ${rest.length} bytes, expected 4`)
      stream.credited(rest.readUInt32BE(0))
    }
  }

  #opened(id: number, json: Buffer): void {
    const ours = this.#bundle.dialed ? 1 : 0
    if (id % 2 === ours || id <= this.#lastRemoteId) {
      throw new ProtocolError(
        `stream open: id ${id}, expected one above ${this.#lastRemoteId} of the far end's`,
      )
    }
    this.#lastRemoteId = id
    const meta = readMeta(json)
    const refused =
      this.#onStream === undefined
        ? 'no streams are taken here'
        : this.#streams.size >= STREAMS_MAX
          ? `${STREAMS_MAX} streams are open already`
          : undefined
    if (refused !== undefined) {
      void this.#bundle
        .send(STREAM_RESET, [idBytes(id), Buffer.from(refused)], FRAME_CONTROL)
        .catch(() => undefined)
      return
    }
    this.#onStream?.(meta, this.#add(id))
  }

  #wasOpen(id: number): boolean {
    const ours = id % 2 === (this.#bundle.dialed ? 1 : 0)
    return id > 0 && (ours ? id < this.#nextId : id <= this.#lastRemoteId)
  }
}

class MuxStream extends Duplex {
  readonly #id: number
  readonly #bundle: Bundle
  readonly #removed: () => void
  readonly #windowBytes: number
  #creditBytes: number
  #creditWait: (() => void) | undefined
  /** What the far end may still send, and what was read but not yet given back to it. */
  #allowedBytes: number
  #receivedBytes = 0
  #grantedBytes = 0
  #endedLocal = false
  #endedRemote = false
  #resetRemote = false

  constructor(id: number, bundle: Bundle, windowBytes: number, removed: () => void) {
    super({
      allowHalfOpen: true,
      readableHighWaterMark: windowBytes / CREDIT_PART,
      writableHighWaterMark: 2 * STREAM_CHUNK_BYTES_MAX,
    })
    this.#id = id
    this.#bundle = bundle
    this.#removed = removed
    this.#windowBytes = windowBytes
    this.#creditBytes = windowBytes
    this.#allowedBytes = windowBytes
    // The far end can reset a stream at any moment: that must not end the process because nobody listens yet.
    this.on('error', () => undefined)
  }

  received(bytes: Buffer): void {
    this.#allowedBytes -= bytes.length
    if (this.#allowedBytes < 0 || this.#endedRemote) {
      throw new ProtocolError(
        `stream ${this.#id}: ${bytes.length} bytes came ${this.#endedRemote ? 'after its end' : 'beyond its window'}`,
      )
    }
    this.#receivedBytes += bytes.length
    if (this.destroyed || bytes.length === 0) return
    this.push(bytes)
    this.#grant()
  }

  receivedEnd(): void {
    if (this.#endedRemote) throw new ProtocolError(`stream ${this.#id}: it ended twice`)
    this.#endedRemote = true
    if (!this.destroyed) this.push(null)
  }

  credited(bytes: number): void {
    this.#creditBytes += bytes
    if (this.#creditBytes > this.#windowBytes) {
      throw new ProtocolError(
        `stream ${this.#id}: credit for ${this.#creditBytes} bytes, at most ${this.#windowBytes}`,
      )
    }
    const wake = this.#creditWait
    this.#creditWait = undefined
    wake?.()
  }

  lost(error: Error): void {
    this.#resetRemote = true
    this.destroy(error)
  }

  override _read(): void {
    this.#grant()
  }

  /** Gives back what the reader took. Called when data comes and when the reader asks for more; see the test. */
  #grant(): void {
    const consumed = this.#receivedBytes - this.readableLength - this.#grantedBytes
    if (consumed < this.#windowBytes / CREDIT_PART || this.#endedRemote) return
    this.#grantedBytes += consumed
    this.#allowedBytes += consumed
    const payload = Buffer.allocUnsafe(8)
    payload.writeUInt32BE(this.#id, 0)
    payload.writeUInt32BE(consumed, 4)
    void this.#bundle.send(STREAM_CREDIT, [payload], FRAME_CONTROL).catch(() => undefined)
  }

  override _write(chunk: Buffer, _encoding: BufferEncoding, done: (error?: Error | null) => void): void {
    this.#sendAll([chunk]).then(() => done(), done)
  }

  override _writev(chunks: { chunk: Buffer }[], done: (error?: Error | null) => void): void {
    this.#sendAll(chunks.map(({ chunk }) => chunk)).then(() => done(), done)
  }

  override _final(done: (error?: Error | null) => void): void {
    this.#endedLocal = true
    this.#bundle.send(STREAM_END, [idBytes(this.#id)], FRAME_RAM).then(() => done(), done)
  }

  override _destroy(error: Error | null, done: (error?: Error | null) => void): void {
    this.#removed()
    const wake = this.#creditWait
    this.#creditWait = undefined
    wake?.()
    const endedWell = this.#endedLocal && this.#endedRemote
    if (!this.#resetRemote && !endedWell && !this.#bundle.ended) {
      const reason = Buffer.from(error === null ? 'closed' : errorText(error)).subarray(0, 1024)
      void this.#bundle.send(STREAM_RESET, [idBytes(this.#id), reason], FRAME_CONTROL).catch(() => undefined)
    }
    done(error)
  }

  /** Small chunks that waited together leave in one frame, large ones in several. */
  async #sendAll(chunks: readonly Buffer[]): Promise<void> {
    let parts: Buffer[] = []
    let partsBytes = 0
    for (const chunk of chunks) {
      let at = 0
      while (at < chunk.length) {
        if (this.#creditBytes === partsBytes) {
          await this.#sendData(parts, partsBytes)
          parts = []
          partsBytes = 0
          while (this.#creditBytes === 0) await this.#waitForCredit()
        }
        const take = Math.min(
          chunk.length - at,
          STREAM_CHUNK_BYTES_MAX - partsBytes,
          this.#creditBytes - partsBytes,
        )
        parts.push(chunk.subarray(at, at + take))
        partsBytes += take
        at += take
        if (partsBytes < STREAM_CHUNK_BYTES_MAX) continue
        await this.#sendData(parts, partsBytes)
        parts = []
        partsBytes = 0
      }
    }
    await this.#sendData(parts, partsBytes)
  }

  async #sendData(parts: readonly Buffer[], bytes: number): Promise<void> {
    if (bytes === 0) return
    if (this.destroyed) throw new LostError(`stream ${this.#id}: destroyed while it was written to`)
    this.#creditBytes -= bytes
    await this.#bundle.send(STREAM_DATA, [idBytes(this.#id), ...parts], FRAME_RAM)
  }

  async #waitForCredit(): Promise<void> {
    if (this.destroyed) throw new LostError(`stream ${this.#id}: destroyed while it waited for the far end`)
    await new Promise<void>((resolve) => {
      this.#creditWait = resolve
    })
  }
}

function idBytes(id: number): Buffer {
  const bytes = Buffer.allocUnsafe(4)
  bytes.writeUInt32BE(id, 0)
  return bytes
}

function readMeta(json: Buffer): StreamMeta {
  if (json.length > STREAM_META_BYTES_MAX) {
    throw new ProtocolError(`stream open: ${json.length} bytes of meta, at most ${STREAM_META_BYTES_MAX}`)
  }
  let port: unknown
  try {
    port = (JSON.parse(json.toString('utf8')) as { port?: unknown } | null)?.port
  } catch (error) {
    throw new ProtocolError('stream open: the meta is not JSON', { cause: error })
  }
  if (typeof port !== 'number' || !Number.isInteger(port) || port < 1 || port > 65_535) {
    throw new ProtocolError(`stream open: port ${JSON.stringify(port)}, expected 1 to 65535`)
  }
  return { port }
}
