/**
 * The transmission phase as the client receives it: bytes in, simple replies and structured chunks out. Pure and
 * incremental. A reply only makes sense next to its request, so the decoder asks its owner what a cookie stands for;
 * the data of a READ lands in the request's own buffer, and lengths are judged by type before anything is allocated.
 * Throws ProtocolError for all that the specification answers with a hard disconnect, and from then on always. That
 * chunks do not overlap and that a reply is complete is judged by the owner, who sees all chunks of a request.
 */
import { ProtocolError } from '../../core/errors.ts'
import { NBD_ERROR_CHUNK_BYTES_MAX, NBD_STATUS_EXTENTS_MAX } from '../../core/limits.ts'
import {
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR_OFFSET,
  NBD_REPLY_TYPE_FLAG_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.ts'
import type { Cookie, WireExtent } from './encode.ts'
import { chunkName } from './names.ts'

/** The request that a cookie stands for. */
export interface Expectation {
  readonly kind: 'read' | 'status' | 'other'
  readonly offset: number
  readonly length: number
  /** Where the data of a READ goes; `length` bytes. */
  readonly target: Buffer | undefined
}

export type NbdReply =
  | { readonly type: 'simple'; readonly cookie: Cookie; readonly errno: number }
  | { readonly type: 'none'; readonly cookie: Cookie; readonly done: true }
  /** Data and holes: the bytes already stand in the target. */
  | {
      readonly type: 'data' | 'hole'
      readonly cookie: Cookie
      readonly offset: number
      readonly length: number
      readonly done: boolean
    }
  | {
      readonly type: 'status'
      readonly cookie: Cookie
      readonly contextId: number
      readonly extents: readonly WireExtent[]
      readonly done: boolean
    }
  | {
      readonly type: 'error'
      readonly cookie: Cookie
      readonly errno: number
      readonly message: string
      readonly offset: number | undefined
      readonly done: boolean
    }

interface Chunk {
  readonly cookie: Cookie
  readonly expectation: Expectation
  readonly type: number
  readonly done: boolean
  readonly length: number
}

type State =
  | { readonly at: 'head' }
  | { readonly at: 'chunkLength' }
  | { readonly at: 'simpleData'; readonly cookie: Cookie }
  | { readonly at: 'body'; readonly chunk: Chunk }
  | { readonly at: 'dataOffset'; readonly chunk: Chunk }
  | { readonly at: 'data'; readonly chunk: Chunk; readonly offset: number }

const HEAD: State = { at: 'head' }
const CHUNK_LENGTH: State = { at: 'chunkLength' }

export class ReplyDecoder {
  readonly #structured: boolean
  readonly #expect: (cookie: Cookie) => Expectation | undefined
  readonly #head: Buffer = Buffer.allocUnsafeSlow(NBD_STRUCTURED_REPLY_BYTES)
  readonly #offset: Buffer = Buffer.allocUnsafeSlow(8)
  #state: State = HEAD
  #piece: Buffer
  #filled = 0
  #failure: unknown

  constructor(options: {
    readonly structured: boolean
    readonly expect: (cookie: Cookie) => Expectation | undefined
  }) {
    this.#structured = options.structured
    this.#expect = options.expect
    this.#piece = this.#head.subarray(0, NBD_SIMPLE_REPLY_BYTES)
  }

  /** True inside a reply: an end of the stream here cuts a message. */
  get partial(): boolean {
    return this.#state !== HEAD || this.#filled > 0
  }

  *push(bytes: Buffer): Generator<NbdReply, void, undefined> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      yield* this.#take(bytes)
    } catch (error) {
      this.#failure = error
      throw error
    }
  }

  *#take(bytes: Buffer): Generator<NbdReply, void, undefined> {
    let at = 0
    while (at < bytes.length) {
      const taken = Math.min(this.#piece.length - this.#filled, bytes.length - at)
      bytes.copy(this.#piece, this.#filled, at, at + taken)
      this.#filled += taken
      at += taken
      if (this.#filled < this.#piece.length) return
      this.#filled = 0
      const reply = this.#step()
      if (reply !== undefined) yield reply
    }
  }

  #step(): NbdReply | undefined {
    const state = this.#state
    switch (state.at) {
      case 'head':
        return this.#headComplete()
      case 'chunkLength':
        return this.#chunkHeaderComplete()
      case 'simpleData':
        this.#next(HEAD)
        return { type: 'simple', cookie: state.cookie, errno: 0 }
      case 'body':
        return this.#bodyComplete(state.chunk, this.#piece)
      case 'dataOffset':
        return this.#dataOffsetComplete(state.chunk)
      case 'data': {
        const { cookie, length, done } = state.chunk
        this.#next(HEAD)
        return { type: 'data', cookie, offset: state.offset, length: length - 8, done }
      }
      default:
        return state satisfies never
    }
  }

  #next(state: State, piece: Buffer = this.#head.subarray(0, NBD_SIMPLE_REPLY_BYTES)): undefined {
    this.#state = state
    this.#piece = piece
    return undefined
  }

  #headComplete(): NbdReply | undefined {
    const magic = this.#head.readUInt32BE(0)
    if (magic === NBD_STRUCTURED_REPLY_MAGIC && this.#structured) {
      return this.#next(CHUNK_LENGTH, this.#head.subarray(NBD_SIMPLE_REPLY_BYTES))
    }
    if (magic !== NBD_SIMPLE_REPLY_MAGIC) {
      const wanted = this.#structured ? 'a simple or structured reply' : 'a simple reply'
      throw new ProtocolError(`NBD reply: expected the magic of ${wanted}, got 0x${magic.toString(16)}`)
    }
    const cookie = this.#head.readBigUInt64BE(8)
    const errno = this.#head.readUInt32BE(4)
    const expectation = this.#expectation(cookie)
    if (expectation.kind !== 'other' && this.#structured) {
      throw new ProtocolError(
        `NBD reply: simple reply to a ${expectation.kind} at ${expectation.offset} although structured replies were agreed`,
      )
    }
    if (expectation.target !== undefined && errno === 0 && expectation.target.length > 0) {
      return this.#next({ at: 'simpleData', cookie }, expectation.target)
    }
    this.#next(HEAD)
    return { type: 'simple', cookie, errno }
  }

  #expectation(cookie: Cookie): Expectation {
    const expectation = this.#expect(cookie)
    if (expectation === undefined) {
      throw new ProtocolError(`NBD reply: no request in flight has the cookie ${cookie}`)
    }
    return expectation
  }

  #chunkHeaderComplete(): NbdReply | undefined {
    const cookie = this.#head.readBigUInt64BE(8)
    const chunk: Chunk = {
      cookie,
      expectation: this.#expectation(cookie),
      type: this.#head.readUInt16BE(6),
      done: (this.#head.readUInt16BE(4) & NBD_REPLY_FLAG_DONE) !== 0,
      length: this.#head.readUInt32BE(16),
    }
    this.#checkLength(chunk)
    if (chunk.type === NBD_REPLY_TYPE_NONE) {
      if (!chunk.done) throw new ProtocolError('NBD_REPLY_TYPE_NONE without NBD_REPLY_FLAG_DONE')
      this.#next(HEAD)
      return { type: 'none', cookie, done: true }
    }
    if (chunk.type === NBD_REPLY_TYPE_OFFSET_DATA)
      return this.#next({ at: 'dataOffset', chunk }, this.#offset)
    return this.#next({ at: 'body', chunk }, Buffer.allocUnsafe(chunk.length))
  }

  #checkLength(chunk: Chunk): void {
    const { type, length, expectation } = chunk
    let fits: boolean
    if (type === NBD_REPLY_TYPE_NONE) fits = length === 0
    else if (type === NBD_REPLY_TYPE_OFFSET_DATA) fits = length > 8 && length - 8 <= expectation.length
    else if (type === NBD_REPLY_TYPE_OFFSET_HOLE) fits = length === 12
    else if (type === NBD_REPLY_TYPE_BLOCK_STATUS) {
      fits = length >= 12 && length % 8 === 4 && length <= 4 + 8 * NBD_STATUS_EXTENTS_MAX
    } else if ((type & NBD_REPLY_TYPE_FLAG_ERROR) !== 0) {
      fits = length >= (type === NBD_REPLY_TYPE_ERROR_OFFSET ? 14 : 6) && length <= NBD_ERROR_CHUNK_BYTES_MAX
    } else throw new ProtocolError(`NBD reply: unknown ${chunkName(type)} of ${length} bytes`)
    if (!fits) {
      throw new ProtocolError(
        `${chunkName(type)}: impossible length ${length} in a reply to a ${expectation.kind} of ${expectation.length} bytes`,
      )
    }
    const kind =
      type === NBD_REPLY_TYPE_OFFSET_DATA || type === NBD_REPLY_TYPE_OFFSET_HOLE
        ? 'read'
        : type === NBD_REPLY_TYPE_BLOCK_STATUS
          ? 'status'
          : expectation.kind
    if (expectation.kind !== kind) {
      throw new ProtocolError(`${chunkName(type)}: in a reply to a ${expectation.kind}`)
    }
  }

  #dataOffsetComplete(chunk: Chunk): undefined {
    const offset = readUint64(this.#offset, 0)
    const start = this.#within(chunk, offset, chunk.length - 8)
    const target = chunk.expectation.target as Buffer
    return this.#next({ at: 'data', chunk, offset }, target.subarray(start, start + chunk.length - 8))
  }

  /** The place of a content chunk inside the request's buffer. */
  #within(chunk: Chunk, offset: number, length: number): number {
    const { expectation, type } = chunk
    const start = offset - expectation.offset
    if (length === 0 || start < 0 || start + length > expectation.length) {
      throw new ProtocolError(
        `${chunkName(type)}: ${length} bytes at ${offset} in a reply to a read of ${expectation.length} at ${expectation.offset}`,
      )
    }
    return start
  }

  #bodyComplete(chunk: Chunk, body: Buffer): NbdReply {
    this.#next(HEAD)
    const { cookie, done, type } = chunk
    if (type === NBD_REPLY_TYPE_OFFSET_HOLE) {
      const offset = readUint64(body, 0)
      const length = body.readUInt32BE(8)
      const start = this.#within(chunk, offset, length)
      chunk.expectation.target?.fill(0, start, start + length)
      return { type: 'hole', cookie, offset, length, done }
    }
    if (type === NBD_REPLY_TYPE_BLOCK_STATUS) {
      const extents: WireExtent[] = []
      for (let at = 4; at < body.length; at += 8) {
        const extent = { length: body.readUInt32BE(at), flags: body.readUInt32BE(at + 4) }
        if (extent.length === 0) throw new ProtocolError('NBD_REPLY_TYPE_BLOCK_STATUS: an extent of length 0')
        extents.push(extent)
      }
      return { type: 'status', cookie, contextId: body.readUInt32BE(0), extents, done }
    }
    const errno = body.readUInt32BE(0)
    const messageBytes = body.readUInt16BE(4)
    const placeBytes = type === NBD_REPLY_TYPE_ERROR_OFFSET ? 8 : 0
    if (errno === 0 || 6 + messageBytes + placeBytes > body.length) {
      throw new ProtocolError(
        `${chunkName(type)}: error ${errno} and a message of ${messageBytes} bytes in ${body.length} bytes`,
      )
    }
    const message = body.toString('utf8', 6, 6 + messageBytes)
    const offset = placeBytes === 0 ? undefined : readUint64(body, 6 + messageBytes)
    return { type: 'error', cookie, errno, message, offset, done }
  }
}

/** 64 bits as a number; what is no safe integer is rounded and so lies outside of every range it is compared with. */
function readUint64(bytes: Buffer, at: number): number {
  return bytes.readUInt32BE(at) * 0x100000000 + bytes.readUInt32BE(at + 4)
}
