/**
 * The frame: what every message between two swamds travels in. Pure codec, no I/O.
 *
 *   0        4      5       6            12
 *   | length | type | class | sequence   | payload …      (big-endian; length is the payload's, without the header)
 *
 * The sequence counts the frames of one bundle in the order in which they left the sender, over all its channels.
 * Types below APPLICATION_TYPE_MIN belong to the bundle itself; of them only CLOSE carries a sequence, the others are
 * acted on as they arrive and have sequence 0. What a payload means is not decided here.
 */
import { ProtocolError } from '../core/errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../core/limits.ts'

export const FRAME_HEADER_BYTES: number = 12
export const SEQUENCE_MAX: number = 2 ** 48 - 1

/** First frame of each channel, both ways. See hello.ts. */
export const FRAME_HELLO: number = 1
/** Answer to a hello that cannot be accepted; the channel ends after it. */
export const FRAME_REFUSE: number = 2
/** u48: bytes of sequenced frames (headers included) that were delivered in order, cumulative. */
export const FRAME_ACK: number = 3
/** u48 token, sent back as it is in a PONG. */
export const FRAME_PING: number = 4
export const FRAME_PONG: number = 5
/** Sequenced: nothing follows it; the bundle ended well. */
export const FRAME_CLOSE: number = 6
/** UTF-8 text: the sender gives the bundle up, for this reason. */
export const FRAME_ABORT: number = 7
/** Types from here on belong to those who use a bundle. */
export const APPLICATION_TYPE_MIN: number = 16

/** The order is the order of precedence in the sender. */
export const FRAME_CLASSES = ['control', 'ram', 'final', 'bulk'] as const
export const FRAME_CONTROL = 0
export const FRAME_RAM = 1
export const FRAME_FINAL = 2
export const FRAME_BULK = 3
export type FrameClass = 0 | 1 | 2 | 3

export interface Frame {
  readonly type: number
  readonly cls: FrameClass
  readonly sequence: number
  /** Contiguous, copied once out of what was pushed: it belongs to the receiver. */
  readonly payload: Buffer
}

export function isSequenced(type: number): boolean {
  return type >= APPLICATION_TYPE_MIN || type === FRAME_CLOSE
}

/** The header of a frame that is followed by `payloadBytes` bytes. */
export function encodeFrameHeader(
  type: number,
  cls: FrameClass,
  sequence: number,
  payloadBytes: number,
): Buffer {
  if (payloadBytes > FRAME_PAYLOAD_BYTES_MAX) {
    throw new RangeError(
      `frame of type ${type}: a payload of ${payloadBytes} bytes, at most ${FRAME_PAYLOAD_BYTES_MAX} fit`,
    )
  }
  const header = Buffer.allocUnsafe(FRAME_HEADER_BYTES)
  header.writeUInt32BE(payloadBytes, 0)
  header.writeUInt8(type, 4)
  header.writeUInt8(cls, 5)
  header.writeUIntBE(sequence, 6, 6)
  return header
}

/** A whole frame in one buffer, for small ones. */
export function encodeFrame(type: number, cls: FrameClass, sequence: number, payload: Uint8Array): Buffer {
  return Buffer.concat([encodeFrameHeader(type, cls, sequence, payload.length), payload])
}

export function encodeU48(value: number): Buffer {
  const bytes = Buffer.allocUnsafe(6)
  bytes.writeUIntBE(value, 0, 6)
  return bytes
}

export function decodeU48(message: string, payload: Buffer): number {
  if (payload.length !== 6) {
    throw new ProtocolError(`${message}: expected a payload of 6 bytes, got ${payload.length}`)
  }
  return payload.readUIntBE(0, 6)
}

/**
 * Takes bytes as they come and gives whole frames, also those that stand before a fault. The bytes pushed may be reused
 * by the caller once the generator is done. Once it has thrown it throws again: a stream that lost its framing cannot be
 * picked up.
 */
export class FrameDecoder {
  readonly #payloadBytesMax: number
  readonly #header = Buffer.alloc(FRAME_HEADER_BYTES)
  #headerBytes = 0
  #payload: Buffer | undefined
  #payloadBytes = 0
  #failure: ProtocolError | undefined

  constructor(options?: { readonly payloadBytesMax?: number }) {
    this.#payloadBytesMax = options?.payloadBytesMax ?? FRAME_PAYLOAD_BYTES_MAX
  }

  /** True between two frames: an end of the stream here cuts nothing off. */
  get atBoundary(): boolean {
    return this.#headerBytes === 0
  }

  *push(bytes: Uint8Array): Generator<Frame, void, undefined> {
    if (this.#failure !== undefined) throw this.#failure
    let at = 0
    while (at < bytes.length || (this.#payload !== undefined && this.#payload.length === 0)) {
      if (this.#payload === undefined) {
        const take = Math.min(FRAME_HEADER_BYTES - this.#headerBytes, bytes.length - at)
        this.#header.set(bytes.subarray(at, at + take), this.#headerBytes)
        this.#headerBytes += take
        at += take
        if (this.#headerBytes < FRAME_HEADER_BYTES) break
        this.#payload = Buffer.allocUnsafe(this.#checkHeader())
        this.#payloadBytes = 0
      }
      const take = Math.min(this.#payload.length - this.#payloadBytes, bytes.length - at)
      this.#payload.set(bytes.subarray(at, at + take), this.#payloadBytes)
      this.#payloadBytes += take
      at += take
      if (this.#payloadBytes < this.#payload.length) break
      const frame = {
        type: this.#header.readUInt8(4),
        cls: this.#header.readUInt8(5) as FrameClass,
        sequence: this.#header.readUIntBE(6, 6),
        payload: this.#payload,
      }
      this.#payload = undefined
      this.#headerBytes = 0
      yield frame
    }
  }

  /** The payload's length, once every field of the header is known to be good. */
  #checkHeader(): number {
    const header = this.#header
    const length = header.readUInt32BE(0)
    const type = header.readUInt8(4)
    const cls = header.readUInt8(5)
    if (length > this.#payloadBytesMax) {
      this.#fail(
        `frame header: a payload of ${length} bytes, expected at most ${this.#payloadBytesMax} (it begins with ${printable(header)})`,
      )
    }
    if (type === 0 || (type > FRAME_ABORT && type < APPLICATION_TYPE_MIN)) {
      this.#fail(`frame header: type ${type} is not known`)
    }
    if (cls > FRAME_BULK)
      this.#fail(`frame header: class ${cls} of type ${type}, expected 0 to ${FRAME_BULK}`)
    const sequence = header.readUIntBE(6, 6)
    if (!isSequenced(type) && sequence !== 0) {
      this.#fail(`frame header: sequence ${sequence} on type ${type}, expected 0`)
    }
    return length
  }

  #fail(message: string): never {
    this.#failure = new ProtocolError(message)
    throw this.#failure
  }
}

/** What came instead of a header, as text where it is text: it is often the refusal of some other program. */
function printable(bytes: Buffer): string {
  return JSON.stringify(bytes.toString('latin1').replace(/[^\x20-\x7e]/g, '.'))
}
