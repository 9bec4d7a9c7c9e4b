/**
 * The handshake, both directions, pure: the decoder of what a client sends (flags, options), the decoder of what a
 * server sends (greeting, option replies, the bare export reply), and the bytes of each message. Only the fixed
 * newstyle is spoken; an oldstyle server is recognised to be refused by name. What an option's data mean is in
 * options.ts.
 */
import { ProtocolError } from '../../core/errors.ts'
import { NBD_OPTION_BYTES_MAX, NBD_OPTION_REPLY_BYTES_MAX } from '../../core/limits.ts'
import {
  NBD_CLIENT_FLAGS_BYTES,
  NBD_CLISERV_MAGIC,
  NBD_EXPORT_REPLY_BYTES,
  NBD_EXPORT_REPLY_ZEROES_BYTES,
  NBD_GREETING_BYTES,
  NBD_INIT_MAGIC,
  NBD_OPTION_HEADER_BYTES,
  NBD_OPTION_REPLY_HEADER_BYTES,
  NBD_OPTS_MAGIC,
  NBD_REP_MAGIC,
} from './constants.ts'
import { writeUint64 } from './encode.ts'
import { optionName, optionReplyName } from './names.ts'

export type ClientMessage =
  | { readonly type: 'clientFlags'; readonly flags: number }
  | { readonly type: 'option'; readonly option: number; readonly data: Buffer }

export type ServerMessage =
  | { readonly type: 'greeting'; readonly flags: number }
  | { readonly type: 'optionReply'; readonly option: number; readonly reply: number; readonly data: Buffer }
  | { readonly type: 'export'; readonly size: number; readonly transmissionFlags: number }

const EMPTY = Buffer.alloc(0)

/**
 * Gathers pieces of known length out of chunks of any length; what the pieces mean is the subclass's part. Once it has
 * thrown it throws again.
 */
abstract class PieceDecoder<Message> {
  #piece: Buffer
  #filled = 0
  #rest: Buffer = EMPTY
  #failure: unknown

  constructor(firstBytes: number) {
    this.#piece = Buffer.allocUnsafeSlow(firstBytes)
  }

  /** A piece is complete: gives the message, if this was its end, and calls `want` for the next piece. */
  protected abstract complete(piece: Buffer): Message | undefined
  /** True where a message begins. */
  protected abstract get between(): boolean

  protected want(bytes: number): undefined {
    this.#piece = Buffer.allocUnsafeSlow(bytes)
    return undefined
  }

  get partial(): boolean {
    return this.#filled > 0 || !this.between
  }

  /** The generator may be left after any message; then `rest` has what it did not look at. */
  *push(bytes: Buffer): Generator<Message, void, undefined> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      yield* this.#take(bytes)
    } catch (error) {
      this.#failure = error
      throw error
    }
  }

  *#take(bytes: Buffer): Generator<Message, void, undefined> {
    this.#rest = bytes
    while (this.#rest.length > 0) {
      const taken = Math.min(this.#piece.length - this.#filled, this.#rest.length)
      this.#rest.copy(this.#piece, this.#filled, 0, taken)
      this.#filled += taken
      this.#rest = this.#rest.subarray(taken)
      if (this.#filled < this.#piece.length) return
      this.#filled = 0
      const message = this.complete(this.#piece)
      if (message !== undefined) yield message
    }
  }

  /** The bytes after the last message that was yielded: they belong to the next phase. */
  rest(): Buffer {
    return this.#rest
  }
}

/** What the server decodes. */
export class ClientHandshakeDecoder extends PieceDecoder<ClientMessage> {
  #state: 'flags' | 'header' | 'data' = 'flags'
  #option = 0

  constructor() {
    super(NBD_CLIENT_FLAGS_BYTES)
  }

  protected override get between(): boolean {
    return this.#state !== 'data'
  }

  protected override complete(piece: Buffer): ClientMessage | undefined {
    if (this.#state === 'flags') {
      this.#state = 'header'
      this.want(NBD_OPTION_HEADER_BYTES)
      return { type: 'clientFlags', flags: piece.readUInt32BE(0) }
    }
    if (this.#state === 'data') return this.#done(piece)
    const magic = piece.readBigUInt64BE(0)
    if (magic !== NBD_OPTS_MAGIC) {
      throw new ProtocolError(`NBD option: expected magic IHAVEOPT, got 0x${magic.toString(16)}`)
    }
    this.#option = piece.readUInt32BE(8)
    const length = piece.readUInt32BE(12)
    if (length > NBD_OPTION_BYTES_MAX) {
      throw new ProtocolError(
        `${optionName(this.#option)}: ${length} bytes of data, at most ${NBD_OPTION_BYTES_MAX} allowed`,
      )
    }
    if (length === 0) return this.#done(EMPTY)
    this.#state = 'data'
    return this.want(length)
  }

  #done(data: Buffer): ClientMessage {
    this.#state = 'header'
    this.want(NBD_OPTION_HEADER_BYTES)
    return { type: 'option', option: this.#option, data }
  }
}

/** What the client decodes. */
export class ServerHandshakeDecoder extends PieceDecoder<ServerMessage> {
  #state: 'greeting' | 'header' | 'data' | 'export' = 'greeting'
  #option = 0
  #reply = 0

  constructor() {
    super(NBD_GREETING_BYTES)
  }

  /** NBD_OPT_EXPORT_NAME was sent: its answer has no frame. */
  expectExport(noZeroes: boolean): void {
    this.#state = 'export'
    this.want(NBD_EXPORT_REPLY_BYTES + (noZeroes ? 0 : NBD_EXPORT_REPLY_ZEROES_BYTES))
  }

  protected override get between(): boolean {
    return this.#state !== 'data'
  }

  protected override complete(piece: Buffer): ServerMessage | undefined {
    switch (this.#state) {
      case 'greeting':
        return this.#greeting(piece)
      case 'header':
        return this.#header(piece)
      case 'data':
        return this.#done(piece)
      case 'export': {
        const size = safeSize(piece, 0)
        return { type: 'export', size, transmissionFlags: piece.readUInt16BE(8) }
      }
      default:
        return this.#state satisfies never
    }
  }

  #greeting(piece: Buffer): ServerMessage {
    const init = piece.readBigUInt64BE(0)
    if (init !== NBD_INIT_MAGIC) {
      throw new ProtocolError(`NBD greeting: expected NBDMAGIC, got 0x${init.toString(16)}`)
    }
    const style = piece.readBigUInt64BE(8)
    if (style === NBD_CLISERV_MAGIC) {
      throw new ProtocolError(
        'NBD greeting: the server speaks the oldstyle handshake; only newstyle is supported',
      )
    }
    if (style !== NBD_OPTS_MAGIC) {
      throw new ProtocolError(`NBD greeting: expected magic IHAVEOPT, got 0x${style.toString(16)}`)
    }
    this.#state = 'header'
    this.want(NBD_OPTION_REPLY_HEADER_BYTES)
    return { type: 'greeting', flags: piece.readUInt16BE(16) }
  }

  #header(piece: Buffer): ServerMessage | undefined {
    const magic = piece.readBigUInt64BE(0)
    if (magic !== NBD_REP_MAGIC) {
      throw new ProtocolError(`NBD option reply: wrong magic 0x${magic.toString(16)}`)
    }
    this.#option = piece.readUInt32BE(8)
    this.#reply = piece.readUInt32BE(12)
    const length = piece.readUInt32BE(16)
    if (length > NBD_OPTION_REPLY_BYTES_MAX) {
      throw new ProtocolError(
        `${optionReplyName(this.#reply)} to ${optionName(this.#option)}: ${length} bytes, at most ${NBD_OPTION_REPLY_BYTES_MAX} allowed`,
      )
    }
    if (length === 0) return this.#done(EMPTY)
    this.#state = 'data'
    return this.want(length)
  }

  #done(data: Buffer): ServerMessage {
    this.#state = 'header'
    this.want(NBD_OPTION_REPLY_HEADER_BYTES)
    return { type: 'optionReply', option: this.#option, reply: this.#reply, data }
  }
}

/** The size of an export; disks beyond 2^53 bytes do not exist. */
export function safeSize(bytes: Buffer, at: number): number {
  const size = bytes.readBigUInt64BE(at)
  if (size > BigInt(Number.MAX_SAFE_INTEGER)) {
    throw new ProtocolError(`NBD export: size ${size} is larger than ${Number.MAX_SAFE_INTEGER}`)
  }
  return Number(size)
}

export function encodeGreeting(flags: number): Buffer {
  const target = Buffer.allocUnsafe(NBD_GREETING_BYTES)
  target.writeBigUInt64BE(NBD_INIT_MAGIC, 0)
  target.writeBigUInt64BE(NBD_OPTS_MAGIC, 8)
  target.writeUInt16BE(flags, 16)
  return target
}

export function encodeClientFlags(flags: number): Buffer {
  const target = Buffer.allocUnsafe(NBD_CLIENT_FLAGS_BYTES)
  target.writeUInt32BE(flags, 0)
  return target
}

export function encodeOption(option: number, data: Buffer = EMPTY): Buffer {
  const target = Buffer.allocUnsafe(NBD_OPTION_HEADER_BYTES + data.length)
  target.writeBigUInt64BE(NBD_OPTS_MAGIC, 0)
  target.writeUInt32BE(option, 8)
  target.writeUInt32BE(data.length, 12)
  data.copy(target, NBD_OPTION_HEADER_BYTES)
  return target
}

export function encodeOptionReply(option: number, reply: number, data: Buffer = EMPTY): Buffer {
  const target = Buffer.allocUnsafe(NBD_OPTION_REPLY_HEADER_BYTES + data.length)
  target.writeBigUInt64BE(NBD_REP_MAGIC, 0)
  target.writeUInt32BE(option, 8)
  target.writeUInt32BE(reply, 12)
  target.writeUInt32BE(data.length, 16)
  data.copy(target, NBD_OPTION_REPLY_HEADER_BYTES)
  return target
}

/** The answer to NBD_OPT_EXPORT_NAME. */
export function encodeExportReply(size: number, transmissionFlags: number, noZeroes: boolean): Buffer {
  const target = Buffer.alloc(NBD_EXPORT_REPLY_BYTES + (noZeroes ? 0 : NBD_EXPORT_REPLY_ZEROES_BYTES))
  writeUint64(target, size, 0)
  target.writeUInt16BE(transmissionFlags, 8)
  return target
}
