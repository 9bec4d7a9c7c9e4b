/**
 * The NBD client's handshake: greets, lists and describes exports, and turns the connection into a block device.
 * Fixed newstyle with structured replies and base:allocation where the server offers them; a server without GO is asked
 * with EXPORT_NAME. Nothing is dialled here: the caller brings a connected stream, from which bytes may have been peeked
 * and unshifted. One option is under way at a time. TLS and extended headers are not asked for.
 */
import type { Duplex } from 'node:stream'
import type { BlockDevice, BlockSizes, DeviceFeatures } from '../block/device.ts'
import { LostError, ProtocolError, RefusedError } from '../core/errors.ts'
import { NBD_EXPORTS_MAX, NBD_OPTIONS_MAX, NBD_PAYLOAD_BYTES_MAX } from '../core/limits.ts'
import { ClientDevice } from './client-device.ts'
import { deviceFeatures } from './features.ts'
import * as nbd from './protocol/constants.ts'
import {
  encodeClientFlags,
  encodeOption,
  ServerHandshakeDecoder,
  type ServerMessage,
} from './protocol/handshake.ts'
import { optionName, optionReplyName } from './protocol/names.ts'
import {
  encodeInfoRequest,
  encodeMetaRequest,
  parseInfo,
  parseMetaReply,
  parseServerReply,
} from './protocol/options.ts'
import { MessagePump } from './pump.ts'

export interface NbdClientOptions {
  /** Default true. Without them there is no base:allocation, and the text of an error is not known. */
  readonly structuredReplies?: boolean
  /** Default true: select base:allocation where it is offered. */
  readonly allocation?: boolean
  /** Aborting breaks the connection; whatever waits is rejected with LostError. */
  readonly signal?: AbortSignal
}

export interface ExportInfo {
  readonly name: string
  readonly description: string | undefined
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
}

export interface NbdNegotiation {
  list(): Promise<string[]>
  info(name: string): Promise<ExportInfo>
  /** The device owns the stream from then on. */
  go(name: string): Promise<BlockDevice>
  /** Leaves without an export. */
  abort(): Promise<void>
}

type OptionReply = Extract<ServerMessage, { type: 'optionReply' }>

/** What a server without NBD_INFO_BLOCK_SIZE is taken to allow ("Block size constraints"). */
const DEFAULT_BLOCK_SIZES: BlockSizes = { minimum: 1, preferred: 4096, maximum: NBD_PAYLOAD_BYTES_MAX }

export async function negotiateNbd(stream: Duplex, options: NbdClientOptions = {}): Promise<NbdNegotiation> {
  const { signal } = options
  const abort = (): void => {
    stream.destroy(new LostError('NBD client: aborted', { cause: signal?.reason }))
  }
  if ('setNoDelay' in stream && typeof stream.setNoDelay === 'function') stream.setNoDelay(true)
  stream.on('error', () => {})
  signal?.addEventListener('abort', abort, { once: true })
  stream.once('close', () => signal?.removeEventListener('abort', abort))
  if (signal?.aborted === true) abort()
  const negotiation = new Negotiation(stream, options)
  return await negotiation.guard(async () => {
    await negotiation.greet()
    return negotiation
  })
}

class Negotiation implements NbdNegotiation {
  readonly #stream: Duplex
  readonly #options: NbdClientOptions
  readonly #decoder: ServerHandshakeDecoder = new ServerHandshakeDecoder()
  readonly #pump: MessagePump<ServerMessage>
  #fixed = false
  #noZeroes = false
  #structured = false
  #contextId: number | undefined
  #over = false

  constructor(stream: Duplex, options: NbdClientOptions) {
    this.#stream = stream
    this.#options = options
    this.#pump = new MessagePump(stream, this.#decoder, 'NBD handshake')
  }

  /** A refusal leaves the connection usable; anything else ends it. */
  async guard<Result>(work: () => Promise<Result>): Promise<Result> {
    if (this.#over) throw new LostError('NBD handshake: the negotiation is over')
    try {
      return await work()
    } catch (error) {
      if (!(error instanceof RefusedError)) {
        this.#over = true
        this.#stream.destroy()
      }
      throw error
    }
  }

  async greet(): Promise<void> {
    const greeting = await this.#next('the greeting')
    if (greeting.type !== 'greeting') throw unexpected(greeting, 'the greeting')
    this.#fixed = (greeting.flags & nbd.NBD_FLAG_FIXED_NEWSTYLE) !== 0
    this.#noZeroes = (greeting.flags & nbd.NBD_FLAG_NO_ZEROES) !== 0
    this.#stream.write(
      encodeClientFlags(
        (this.#fixed ? nbd.NBD_FLAG_C_FIXED_NEWSTYLE : 0) | (this.#noZeroes ? nbd.NBD_FLAG_C_NO_ZEROES : 0),
      ),
    )
    if (this.#fixed && this.#options.structuredReplies !== false) {
      this.#stream.write(encodeOption(nbd.NBD_OPT_STRUCTURED_REPLY))
      const reply = await this.#reply(nbd.NBD_OPT_STRUCTURED_REPLY)
      this.#structured = reply.reply === nbd.NBD_REP_ACK
      if (reply.reply === nbd.NBD_REP_ERR_TLS_REQD) throw refusal(reply, 'structured replies')
    }
  }

  list(): Promise<string[]> {
    return this.guard(async () => {
      this.#requireFixed('list exports')
      this.#stream.write(encodeOption(nbd.NBD_OPT_LIST))
      const names: string[] = []
      for (;;) {
        const reply = await this.#reply(nbd.NBD_OPT_LIST)
        if (reply.reply === nbd.NBD_REP_ACK) return names
        if (reply.reply !== nbd.NBD_REP_SERVER) throw refusal(reply, 'list of exports')
        if (names.length >= NBD_EXPORTS_MAX) {
          throw new ProtocolError(`NBD_OPT_LIST: more than ${NBD_EXPORTS_MAX} exports`)
        }
        names.push(parseServerReply(reply.data))
      }
    })
  }

  info(name: string): Promise<ExportInfo> {
    return this.guard(async () => {
      this.#requireFixed('describe an export')
      await this.#selectAllocation(name)
      return await this.#describe(nbd.NBD_OPT_INFO, name)
    })
  }

  go(name: string): Promise<BlockDevice> {
    return this.guard(async () => {
      const info = await this.#choose(name)
      this.#over = true
      return new ClientDevice(this.#stream, {
        info,
        structured: this.#structured,
        contextId: this.#contextId,
        rest: this.#pump.detach(),
      })
    })
  }

  async abort(): Promise<void> {
    if (this.#over) return
    this.#over = true
    if (this.#fixed) this.#stream.write(encodeOption(nbd.NBD_OPT_ABORT))
    const stream = this.#stream
    if (stream.destroyed) return
    // Servers may answer or just close ("NBD_OPT_ABORT"): neither is waited for.
    await new Promise<void>((resolve) => {
      stream.once('close', resolve)
      stream.end(resolve)
    })
    stream.destroy()
  }

  async #choose(name: string): Promise<ExportInfo> {
    if (!this.#fixed) return await this.#exportName(name)
    await this.#selectAllocation(name)
    try {
      return await this.#describe(nbd.NBD_OPT_GO, name)
    } catch (error) {
      if (error instanceof UnsupportedError) return await this.#exportName(name)
      throw error
    }
  }

  /** For servers from before GO; they answer an unknown name by closing the connection. */
  async #exportName(name: string): Promise<ExportInfo> {
    this.#decoder.expectExport(this.#noZeroes)
    this.#stream.write(encodeOption(nbd.NBD_OPT_EXPORT_NAME, encodeName(name)))
    const message = await this.#pump.next()
    if (message === undefined) {
      this.#over = true
      throw new RefusedError(`NBD_OPT_EXPORT_NAME '${name}': the server closed the connection`)
    }
    if (message.type !== 'export') throw unexpected(message, 'the export')
    const features = deviceFeatures(message.transmissionFlags, this.#contextId !== undefined)
    return { name, description: undefined, size: message.size, blockSizes: DEFAULT_BLOCK_SIZES, features }
  }

  async #selectAllocation(name: string): Promise<void> {
    this.#contextId = undefined
    if (!this.#structured || this.#options.allocation === false) return
    const queries = [nbd.NBD_CONTEXT_BASE_ALLOCATION]
    encodeName(name)
    this.#stream.write(encodeOption(nbd.NBD_OPT_SET_META_CONTEXT, encodeMetaRequest({ name, queries })))
    for (;;) {
      const reply = await this.#reply(nbd.NBD_OPT_SET_META_CONTEXT)
      if (reply.reply === nbd.NBD_REP_META_CONTEXT) {
        const context = parseMetaReply(reply.data)
        if (context.name !== nbd.NBD_CONTEXT_BASE_ALLOCATION || this.#contextId !== undefined) {
          throw new ProtocolError(`NBD_OPT_SET_META_CONTEXT: unasked context '${context.name}'`)
        }
        this.#contextId = context.contextId
      } else {
        // An error here means: no contexts. What is wrong with the export will be said by GO.
        if (reply.reply !== nbd.NBD_REP_ACK) this.#contextId = undefined
        return
      }
    }
  }

  async #describe(
    option: typeof nbd.NBD_OPT_INFO | typeof nbd.NBD_OPT_GO,
    name: string,
  ): Promise<ExportInfo> {
    encodeName(name)
    const infos = [nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION, nbd.NBD_INFO_BLOCK_SIZE]
    this.#stream.write(encodeOption(option, encodeInfoRequest({ name, infos })))
    let size: number | undefined
    let flags = 0
    let blockSizes = DEFAULT_BLOCK_SIZES
    let description: string | undefined
    let canonicalName = name
    for (let replies = 0; replies < NBD_OPTIONS_MAX; replies++) {
      const reply = await this.#reply(option)
      if (reply.reply === nbd.NBD_REP_ACK) {
        if (size === undefined) throw new ProtocolError(`${optionName(option)} '${name}': no NBD_INFO_EXPORT`)
        const features = deviceFeatures(flags, this.#contextId !== undefined)
        return { name: canonicalName, description, size, blockSizes, features }
      }
      if (reply.reply !== nbd.NBD_REP_INFO) throw refusal(reply, `export '${name}'`)
      const info = parseInfo(reply.data)
      if (info.type === 'export') {
        size = info.size
        flags = info.transmissionFlags
      } else if (info.type === 'blockSize') blockSizes = usableBlockSizes(info)
      else if (info.type === 'name') canonicalName = info.text
      else if (info.type === 'description') description = info.text
    }
    throw new ProtocolError(`${optionName(option)} '${name}': more than ${NBD_OPTIONS_MAX} replies`)
  }

  async #reply(option: number): Promise<OptionReply> {
    const message = await this.#next(optionName(option))
    if (message.type !== 'optionReply' || message.option !== option)
      throw unexpected(message, optionName(option))
    return message
  }

  async #next(what: string): Promise<ServerMessage> {
    const message = await this.#pump.next()
    if (message === undefined)
      throw new LostError(`NBD handshake: the server closed the connection before ${what}`)
    return message
  }

  #requireFixed(what: string): void {
    if (!this.#fixed) throw new RefusedError(`NBD server without the fixed newstyle cannot ${what}`)
  }
}

/** NBD_REP_ERR_UNSUP: a RefusedError that GO treats in its own way. */
class UnsupportedError extends RefusedError {}

function refusal(reply: OptionReply, what: string): RefusedError | ProtocolError {
  if ((reply.reply & nbd.NBD_REP_FLAG_ERROR) === 0) return unexpected(reply, what)
  const text = reply.data.toString('utf8', 0, nbd.NBD_STRING_BYTES_MAX)
  const message = `NBD ${what}: ${optionReplyName(reply.reply)}${text === '' ? '' : `: ${text}`}`
  return reply.reply === nbd.NBD_REP_ERR_UNSUP ? new UnsupportedError(message) : new RefusedError(message)
}

function unexpected(message: ServerMessage, what: string): ProtocolError {
  const found =
    message.type === 'optionReply'
      ? `${optionReplyName(message.reply)} to ${optionName(message.option)}`
      : message.type
  return new ProtocolError(`NBD handshake: expected an answer to ${what}, got ${found}`)
}

/** An export's name as bytes; one that the protocol cannot carry is refused before anything is sent. */
function encodeName(name: string): Buffer {
  const bytes = Buffer.from(name, 'utf8')
  if (bytes.length > nbd.NBD_STRING_BYTES_MAX) {
    throw new RefusedError(
      `NBD export name of ${bytes.length} bytes: at most ${nbd.NBD_STRING_BYTES_MAX} allowed`,
    )
  }
  return bytes
}

/** A server may allow more than this client wants to hold. */
function usableBlockSizes(sizes: BlockSizes): BlockSizes {
  const { minimum, preferred } = sizes
  return { minimum, preferred, maximum: Math.min(sizes.maximum, DEFAULT_BLOCK_SIZES.maximum) }
}
