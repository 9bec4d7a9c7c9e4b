/**
 * Option haggling, server side: answers options one at a time until the client chooses an export or leaves. The device
 * that a metadata query, an INFO or a GO opened is kept for the next option that names the same export, so that a
 * client's usual three options open it once. Not done, and refused as the specification asks: STARTTLS (by policy),
 * EXTENDED_HEADERS and whatever else is unknown (unsupported).
 */
import type { Duplex } from 'node:stream'
import type { BlockDevice, BlockSizes } from '../block/device.ts'
import { errorText, ProtocolError, TimeoutError } from '../core/errors.ts'
import { NBD_HANDSHAKE_MS, NBD_OPTIONS_MAX, NBD_PAYLOAD_BYTES_MAX } from '../core/limits.ts'
import { transmissionFlags } from './features.ts'
import * as nbd from './protocol/constants.ts'
import {
  ClientHandshakeDecoder,
  type ClientMessage,
  encodeExportReply,
  encodeGreeting,
  encodeOptionReply,
} from './protocol/handshake.ts'
import { infoName, optionName } from './protocol/names.ts'
import {
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeMetaReply,
  encodeText,
  encodeTextInfo,
  parseExportName,
  parseInfoRequest,
  parseMetaRequest,
} from './protocol/options.ts'
import { MessagePump } from './pump.ts'
import type { ExportProvider } from './server.ts'
import type { Agreement } from './validate.ts'

/** The metadata context id of base:allocation; any number but one of a kind. */
export const ALLOCATION_CONTEXT_ID = 1

export interface ChosenExport extends Agreement {
  readonly name: string
  readonly device: BlockDevice
  /** What arrived behind the handshake. */
  readonly rest: Buffer
}

/** What an option leads to: go on, leave, or the export is chosen. */
type Outcome = 'next' | 'leave' | Opened
interface Opened {
  readonly name: string
  readonly device: BlockDevice
}

const HANDSHAKE_FLAGS = nbd.NBD_FLAG_FIXED_NEWSTYLE | nbd.NBD_FLAG_NO_ZEROES

export class ServerHandshake {
  readonly #stream: Duplex
  readonly #exports: ExportProvider
  readonly #log: (message: string) => void
  readonly #pump: MessagePump<ClientMessage>
  #opened: Opened | undefined
  /** For the client, until it has chosen; what our side takes does not count. */
  #leftMs: number
  #noZeroes = false
  #structured = false
  /** The export whose base:allocation was selected; only for that one it holds. */
  #allocationOf: string | undefined

  constructor(
    stream: Duplex,
    exports: ExportProvider,
    log: (message: string) => void,
    deadlineMs: number = NBD_HANDSHAKE_MS,
  ) {
    this.#leftMs = deadlineMs
    this.#stream = stream
    this.#exports = exports
    this.#log = log
    this.#pump = new MessagePump(stream, new ClientHandshakeDecoder(), 'NBD handshake')
  }

  /** undefined: the client left without choosing. */
  async run(): Promise<ChosenExport | undefined> {
    this.#stream.write(encodeGreeting(HANDSHAKE_FLAGS))
    for (let options = 0; options <= NBD_OPTIONS_MAX; options++) {
      const message = await this.#next()
      if (message === undefined) return undefined
      if (message.type === 'clientFlags') {
        this.#clientFlags(message.flags)
        continue
      }
      const outcome = await this.#option(message.option, message.data)
      if (outcome === 'leave') return undefined
      if (outcome !== 'next') return this.#agreement(outcome)
    }
    throw new ProtocolError(`NBD handshake: more than ${NBD_OPTIONS_MAX} options without choosing an export`)
  }

  /** @throws TimeoutError when the client neither spoke nor read what it asked for in all the time that it has */
  async #next(): Promise<ClientMessage | undefined> {
    const stream = this.#stream
    const since = performance.now()
    let late = false
    const timer = setTimeout(() => {
      late = true
      stream.destroy()
    }, this.#leftMs)
    let message: ClientMessage | undefined
    try {
      // Answers pile up at a client that asks and does not read.
      if (stream.writableNeedDrain) await drained(stream)
      message = await this.#pump.next()
    } catch (error) {
      // When it was late, the loss of the connection was our own doing.
      if (!late) throw error
    } finally {
      clearTimeout(timer)
      this.#leftMs = Math.max(0, this.#leftMs - (performance.now() - since))
    }
    if (late) throw new TimeoutError('NBD handshake: the client took too long to choose an export')
    return message
  }

  async closeDevice(): Promise<void> {
    const opened = this.#opened
    this.#opened = undefined
    await opened?.device.close()
  }

  #clientFlags(flags: number): void {
    if ((flags & ~(nbd.NBD_FLAG_C_FIXED_NEWSTYLE | nbd.NBD_FLAG_C_NO_ZEROES)) !== 0) {
      throw new ProtocolError(`NBD handshake: unknown client flags 0x${flags.toString(16)}`)
    }
    this.#noZeroes = (flags & nbd.NBD_FLAG_C_NO_ZEROES) !== 0
  }

  async #option(option: number, data: Buffer): Promise<Outcome> {
    if (option === nbd.NBD_OPT_EXPORT_NAME) return await this.#exportName(data)
    try {
      return await this.#answer(option, data)
    } catch (error) {
      // What an option says wrongly concerns this option only.
      if (!(error instanceof ProtocolError)) throw error
      return this.#refuse(option, nbd.NBD_REP_ERR_INVALID, error.message)
    }
  }

  async #answer(option: number, data: Buffer): Promise<Outcome> {
    switch (option) {
      case nbd.NBD_OPT_ABORT:
        this.#reply(option, nbd.NBD_REP_ACK)
        return 'leave'
      case nbd.NBD_OPT_LIST:
        expectEmpty(option, data)
        for (const name of await this.#exports.list()) {
          this.#reply(option, nbd.NBD_REP_SERVER, encodeText(name))
        }
        return this.#reply(option, nbd.NBD_REP_ACK)
      case nbd.NBD_OPT_STARTTLS:
        expectEmpty(option, data)
        return this.#refuse(option, nbd.NBD_REP_ERR_POLICY, 'TLS is not offered here')
      case nbd.NBD_OPT_STRUCTURED_REPLY:
        expectEmpty(option, data)
        this.#structured = true
        return this.#reply(option, nbd.NBD_REP_ACK)
      case nbd.NBD_OPT_INFO:
      case nbd.NBD_OPT_GO:
        return await this.#info(option, data)
      case nbd.NBD_OPT_LIST_META_CONTEXT:
      case nbd.NBD_OPT_SET_META_CONTEXT:
        return await this.#metaContext(option, data)
      default:
        return this.#refuse(option, nbd.NBD_REP_ERR_UNSUP, `${optionName(option)} is not supported`)
    }
  }

  /** Has no way to say no: an unknown export ends the connection ("NBD_OPT_EXPORT_NAME"). */
  async #exportName(data: Buffer): Promise<Outcome> {
    const name = parseExportName(data)
    const opened = await this.#open(name)
    if (typeof opened === 'string') {
      this.#log(`NBD_OPT_EXPORT_NAME '${name}': ${opened}`)
      return 'leave'
    }
    const flags = transmissionFlags(opened.device.features, this.#structured)
    this.#stream.write(encodeExportReply(opened.device.size, flags, this.#noZeroes))
    return opened
  }

  async #info(option: number, data: Buffer): Promise<Outcome> {
    const { name, infos } = parseInfoRequest(data)
    const opened = await this.#open(name)
    if (typeof opened === 'string') return this.#refuse(option, nbd.NBD_REP_ERR_UNKNOWN, opened)
    const { device } = opened
    const flags = transmissionFlags(device.features, this.#structured)
    this.#reply(option, nbd.NBD_REP_INFO, encodeExportInfo(device.size, flags))
    // Sent unasked too: a client that does not read it is told by EINVAL what it may not do.
    this.#reply(option, nbd.NBD_REP_INFO, encodeBlockSizeInfo(wireBlockSizes(device.blockSizes)))
    if (infos.includes(nbd.NBD_INFO_NAME)) {
      this.#reply(option, nbd.NBD_REP_INFO, encodeTextInfo(nbd.NBD_INFO_NAME, name))
    }
    const description = this.#exports.description?.(name)
    if (infos.includes(nbd.NBD_INFO_DESCRIPTION) && description !== undefined) {
      this.#reply(option, nbd.NBD_REP_INFO, encodeTextInfo(nbd.NBD_INFO_DESCRIPTION, description))
    }
    this.#reply(option, nbd.NBD_REP_ACK)
    this.#log(`${optionName(option)} '${name}': ${device.size} bytes; asked ${infos.map(infoName).join(' ')}`)
    return option === nbd.NBD_OPT_GO ? opened : 'next'
  }

  async #metaContext(option: number, data: Buffer): Promise<Outcome> {
    const selects = option === nbd.NBD_OPT_SET_META_CONTEXT
    // Every SET replaces the earlier one, also when it fails.
    if (selects) this.#allocationOf = undefined
    const { name, queries } = parseMetaRequest(data)
    if (!this.#structured) {
      return this.#refuse(option, nbd.NBD_REP_ERR_INVALID, 'structured replies must be negotiated first')
    }
    const opened = await this.#open(name)
    if (typeof opened === 'string') return this.#refuse(option, nbd.NBD_REP_ERR_UNKNOWN, opened)
    const wanted = selects
      ? queries.includes(nbd.NBD_CONTEXT_BASE_ALLOCATION)
      : queries.length === 0 ||
        queries.some((query) => query === 'base:' || query === nbd.NBD_CONTEXT_BASE_ALLOCATION)
    if (wanted && opened.device.features.blockStatus) {
      if (selects) this.#allocationOf = name
      const contextId = selects ? ALLOCATION_CONTEXT_ID : 0
      this.#reply(
        option,
        nbd.NBD_REP_META_CONTEXT,
        encodeMetaReply(contextId, nbd.NBD_CONTEXT_BASE_ALLOCATION),
      )
    }
    return this.#reply(option, nbd.NBD_REP_ACK)
  }

  /** The device, or why there is none. */
  async #open(name: string): Promise<Opened | string> {
    if (this.#opened?.name === name) return this.#opened
    await this.closeDevice()
    let device: BlockDevice | undefined
    try {
      device = await this.#exports.open(name)
    } catch (error) {
      this.#log(`NBD export '${name}': ${errorText(error)}`)
      return `export '${name}' cannot be opened: ${errorText(error)}`
    }
    if (device === undefined) return `there is no export '${name}'`
    this.#opened = { name, device }
    return this.#opened
  }

  #agreement(chosen: Opened): ChosenExport {
    const { device, name } = chosen
    return {
      name,
      device,
      size: device.size,
      blockSizes: wireBlockSizes(device.blockSizes),
      features: device.features,
      structured: this.#structured,
      allocation: this.#allocationOf === name,
      rest: this.#pump.detach(),
    }
  }

  #reply(option: number, reply: number, data?: Buffer): 'next' {
    this.#stream.write(encodeOptionReply(option, reply, data))
    return 'next'
  }

  #refuse(option: number, reply: number, message: string): 'next' {
    this.#log(`${optionName(option)} refused: ${message}`)
    const text = Buffer.from(message, 'utf8').subarray(0, nbd.NBD_STRING_BYTES_MAX)
    return this.#reply(option, reply, text)
  }
}

function drained(stream: Duplex): Promise<void> {
  return new Promise((resolve) => {
    stream.once('drain', resolve)
    stream.once('close', resolve)
  })
}

function expectEmpty(option: number, data: Buffer): void {
  if (data.length > 0)
    throw new ProtocolError(`${optionName(option)}: ${data.length} bytes of data, expected none`)
}

/** A device's block sizes within what the protocol can say and this server can hold. */
function wireBlockSizes(sizes: BlockSizes): BlockSizes {
  const ceiling = Math.min(sizes.maximum, NBD_PAYLOAD_BYTES_MAX)
  return {
    minimum: sizes.minimum,
    preferred: Math.max(sizes.preferred, sizes.minimum, 512),
    maximum: Math.max(sizes.minimum, ceiling - (ceiling % sizes.minimum)),
  }
}
