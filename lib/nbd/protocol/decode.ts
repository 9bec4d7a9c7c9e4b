/**
 * The transmission phase as the server receives it: bytes in, requests out. Pure and incremental; a generator, so that
 * the caller can stop taking requests in the middle of a chunk (backpressure) and go on later.
 * The payload of a WRITE is copied once, into a buffer that belongs to the request from then on. Only what breaks the
 * framing throws, and then throws again: a request that makes no sense is yielded, and the server answers it with an error.
 */
import { ProtocolError } from '../../core/errors.ts'
import {
  NBD_CMD_BLOCK_STATUS,
  NBD_CMD_CACHE,
  NBD_CMD_DISC,
  NBD_CMD_FLUSH,
  NBD_CMD_READ,
  NBD_CMD_TRIM,
  NBD_CMD_WRITE,
  NBD_CMD_WRITE_ZEROES,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
} from './constants.ts'
import type { Cookie } from './encode.ts'

export interface RequestFields {
  readonly command: number
  readonly flags: number
  readonly cookie: Cookie
  /** An offset that is no safe integer is rounded, and so always lies beyond the end of any device. */
  readonly offset: number
  readonly length: number
}

type RangeRequest = RequestFields & {
  readonly type: 'read' | 'flush' | 'trim' | 'cache' | 'writeZeroes' | 'blockStatus' | 'disc' | 'unknown'
}
type WriteRequest = RequestFields & { readonly type: 'write'; readonly data: Buffer }
export type NbdRequest = RangeRequest | WriteRequest

const TYPES: ReadonlyMap<number, RangeRequest['type']> = new Map([
  [NBD_CMD_READ, 'read'],
  [NBD_CMD_DISC, 'disc'],
  [NBD_CMD_FLUSH, 'flush'],
  [NBD_CMD_TRIM, 'trim'],
  [NBD_CMD_CACHE, 'cache'],
  [NBD_CMD_WRITE_ZEROES, 'writeZeroes'],
  [NBD_CMD_BLOCK_STATUS, 'blockStatus'],
])

const EMPTY = Buffer.alloc(0)

export class RequestDecoder {
  readonly #payloadBytesMax: number
  readonly #header: Buffer = Buffer.allocUnsafeSlow(NBD_REQUEST_BYTES)
  #headerFilled = 0
  #fields: RequestFields | undefined
  #payload: Buffer = EMPTY
  #payloadFilled = 0
  #failure: unknown

  constructor(options: { readonly payloadBytesMax: number }) {
    this.#payloadBytesMax = options.payloadBytesMax
  }

  /** True between the first and the last byte of a request: an end of the stream here is no clean end. */
  get partial(): boolean {
    return this.#headerFilled > 0 || this.#fields !== undefined
  }

  /** `bytes` must stay unchanged until the generator is done, and only then may the next push come. */
  *push(bytes: Buffer): Generator<NbdRequest, void, undefined> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      yield* this.#take(bytes)
    } catch (error) {
      this.#failure = error
      throw error
    }
  }

  *#take(bytes: Buffer): Generator<NbdRequest, void, undefined> {
    let at = 0
    while (at < bytes.length) {
      if (this.#fields === undefined) {
        const taken = Math.min(NBD_REQUEST_BYTES - this.#headerFilled, bytes.length - at)
        bytes.copy(this.#header, this.#headerFilled, at, at + taken)
        this.#headerFilled += taken
        at += taken
        if (this.#headerFilled < NBD_REQUEST_BYTES) return
        this.#headerFilled = 0
        const fields = this.#parse()
        if (fields.command !== NBD_CMD_WRITE) {
          yield { ...fields, type: TYPES.get(fields.command) ?? 'unknown' }
        } else if (fields.length === 0) {
          yield { ...fields, type: 'write', data: EMPTY }
        } else {
          this.#fields = fields
          this.#payload = Buffer.allocUnsafeSlow(fields.length)
          this.#payloadFilled = 0
        }
      } else {
        const taken = Math.min(this.#payload.length - this.#payloadFilled, bytes.length - at)
        bytes.copy(this.#payload, this.#payloadFilled, at, at + taken)
        this.#payloadFilled += taken
        at += taken
        if (this.#payloadFilled < this.#payload.length) return
        const request: WriteRequest = { ...this.#fields, type: 'write', data: this.#payload }
        this.#fields = undefined
        this.#payload = EMPTY
        yield request
      }
    }
  }

  #parse(): RequestFields {
    const header = this.#header
    const magic = header.readUInt32BE(0)
    if (magic !== NBD_REQUEST_MAGIC) {
      throw new ProtocolError(
        `NBD request: expected magic 0x${NBD_REQUEST_MAGIC.toString(16)}, got 0x${magic.toString(16)}`,
      )
    }
    const command = header.readUInt16BE(6)
    const length = header.readUInt32BE(24)
    const offset = header.readUInt32BE(16) * 0x100000000 + header.readUInt32BE(20)
    if (command === NBD_CMD_WRITE && length > this.#payloadBytesMax) {
      throw new ProtocolError(
        `NBD_CMD_WRITE at ${offset}: payload of ${length} bytes, at most ${this.#payloadBytesMax} allowed`,
      )
    }
    return { command, flags: header.readUInt16BE(4), cookie: header.readBigUInt64BE(8), offset, length }
  }
}
