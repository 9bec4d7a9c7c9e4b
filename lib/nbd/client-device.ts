/**
 * A block device at the far end of an NBD connection. Requests leave in the order of the calls, so many of them, and so
 * many bytes, at a time; the rest waits here. A request longer than the server takes is split. An error reply rejects
 * its request with RefusedError and nothing else; bytes that make no sense reject all with ProtocolError, an end of the
 * connection with LostError, and from then on every call. A READ is gathered in one buffer, into which the decoder
 * writes. Never retries or reconnects.
 */
import type { Duplex } from 'node:stream'
import type { BlockDevice, BlockSizes, DeviceFeatures, StatusExtent } from '../block/device.ts'
import { LostError, ProtocolError, type SwamError } from '../core/errors.ts'
import {
  NBD_CLIENT_IN_FLIGHT_BYTES_MAX,
  NBD_CLIENT_REQUESTS_MAX,
  NBD_RANGE_BYTES_MAX,
} from '../core/limits.ts'
import type { ExportInfo } from './client.ts'
import { PendingReply, payloadBytes } from './pending-reply.ts'
import * as nbd from './protocol/constants.ts'
import { encodeRequestHeader, type WireExtent } from './protocol/encode.ts'
import { refused } from './protocol/errno.ts'
import { commandName } from './protocol/names.ts'
import { ReplyDecoder } from './protocol/replies.ts'

export interface Connection {
  readonly info: ExportInfo
  readonly structured: boolean
  /** The id of base:allocation, where it was selected. */
  readonly contextId: number | undefined
  /** What arrived behind the handshake. */
  readonly rest: Buffer
}

interface Request {
  readonly command: number
  readonly offset: number
  readonly length: number
  readonly flags?: number
  readonly payload?: Buffer
  readonly target?: Buffer
}

interface Waiting {
  readonly request: Request
  readonly resolve: (pending: Promise<PendingReply>) => void
  readonly reject: (error: Error) => void
}

export class ClientDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
  readonly #name: string
  readonly #stream: Duplex
  readonly #contextId: number | undefined
  readonly #decoder: ReplyDecoder
  readonly #pending: Map<bigint, PendingReply> = new Map()
  /** Bytes of WRITE payloads and READ replies of what is pending. */
  #inFlightBytes = 0
  #waiting: Waiting[] = []
  #waitingHead = 0
  #lastCookie = 0n
  #corked = false
  #broken: SwamError | undefined
  readonly #closed: Promise<void>

  constructor(stream: Duplex, connection: Connection) {
    this.size = connection.info.size
    this.blockSizes = connection.info.blockSizes
    this.features = connection.info.features
    this.#name = connection.info.name
    this.#contextId = connection.contextId
    this.#stream = stream
    this.#decoder = new ReplyDecoder({
      structured: connection.structured,
      expect: (cookie) => this.#pending.get(cookie)?.expectation,
    })
    this.#closed = new Promise((resolve) => {
      if (stream.closed) resolve()
      else stream.once('close', resolve)
    })
    const lost = (): void => this.#break(new LostError(`NBD export '${this.#name}': connection ended`))
    stream.on('error', (cause) =>
      this.#break(new LostError(`NBD export '${this.#name}': connection lost: ${cause.message}`, { cause })),
    )
    stream.on('end', lost).on('close', lost)
    if (connection.rest.length > 0) this.#receive(connection.rest)
    if (stream.destroyed || stream.readableEnded) lost()
    stream.on('data', (bytes: Buffer) => this.#receive(bytes))
    stream.resume()
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.#check(nbd.NBD_CMD_READ, offset, length)
    const whole = Buffer.allocUnsafeSlow(length)
    await this.#split(offset, length, this.blockSizes.maximum, (at, bytes) => {
      const target = whole.subarray(at - offset, at - offset + bytes)
      return this.#request({ command: nbd.NBD_CMD_READ, offset: at, length: bytes, target })
    })
    return whole
  }

  async write(offset: number, data: Buffer, options: { readonly fua?: boolean } = {}): Promise<void> {
    this.#check(nbd.NBD_CMD_WRITE, offset, data.length)
    const { flags, flushAfter } = this.#durability(options.fua)
    await this.#split(offset, data.length, this.blockSizes.maximum, (at, length) => {
      const payload = length === data.length ? data : data.subarray(at - offset, at - offset + length)
      return this.#request({ command: nbd.NBD_CMD_WRITE, offset: at, length, flags, payload })
    })
    if (flushAfter) await this.flush()
  }

  async writeZeroes(
    offset: number,
    length: number,
    options: { readonly fua?: boolean; readonly noHole?: boolean; readonly fastZero?: boolean } = {},
  ): Promise<void> {
    const command = nbd.NBD_CMD_WRITE_ZEROES
    this.#require(this.features.writeZeroes, command)
    this.#require(options.fastZero !== true || this.features.fastZero, command)
    this.#check(command, offset, length)
    const durability = this.#durability(options.fua)
    const flags =
      durability.flags |
      (options.noHole === true ? nbd.NBD_CMD_FLAG_NO_HOLE : 0) |
      (options.fastZero === true ? nbd.NBD_CMD_FLAG_FAST_ZERO : 0)
    await this.#split(offset, length, NBD_RANGE_BYTES_MAX, (at, bytes) =>
      this.#request({ command, offset: at, length: bytes, flags }),
    )
    if (durability.flushAfter) await this.flush()
  }

  async trim(offset: number, length: number, options: { readonly fua?: boolean } = {}): Promise<void> {
    const command = nbd.NBD_CMD_TRIM
    this.#require(this.features.trim, command)
    this.#check(command, offset, length)
    const { flags, flushAfter } = this.#durability(options.fua)
    await this.#split(offset, length, NBD_RANGE_BYTES_MAX, (at, bytes) =>
      this.#request({ command, offset: at, length: bytes, flags }),
    )
    if (flushAfter) await this.flush()
  }

  async cache(offset: number, length: number): Promise<void> {
    const command = nbd.NBD_CMD_CACHE
    this.#require(this.features.cache, command)
    this.#check(command, offset, length)
    // QEMU's server holds CACHE to the ceiling of payloads.
    await this.#split(offset, length, this.blockSizes.maximum, (at, bytes) =>
      this.#request({ command, offset: at, length: bytes }),
    )
  }

  /** Without base:allocation everything is data: always true, never wrong. */
  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    this.#check(nbd.NBD_CMD_BLOCK_STATUS, offset, length)
    if (this.#contextId === undefined) return [{ length, hole: false, zero: false }]
    const asked = Math.min(length, NBD_RANGE_BYTES_MAX)
    const pending = await this.#request({ command: nbd.NBD_CMD_BLOCK_STATUS, offset, length: asked })
    return statusExtents(pending.extents ?? [], asked)
  }

  async flush(): Promise<void> {
    // To say done without having flushed would be a lie about durability.
    this.#require(this.features.flush, nbd.NBD_CMD_FLUSH)
    await this.#request({ command: nbd.NBD_CMD_FLUSH, offset: 0, length: 0 })
  }

  /** Requests still in flight are abandoned. */
  async close(): Promise<void> {
    const stream = this.#stream
    if (this.#broken === undefined) {
      const header = { command: nbd.NBD_CMD_DISC, flags: 0, cookie: 0n, offset: 0, length: 0 }
      const abandoned = this.#pending.size > 0
      const disconnect = encodeRequestHeader(header)
      this.#fail(new LostError(`NBD export '${this.#name}': closed`))
      if (abandoned) stream.destroy()
      // Only when the bytes are with the kernel may the socket go.
      else stream.end(disconnect, () => stream.destroy())
    }
    await this.#closed
  }

  #check(command: number, offset: number, length: number): void {
    const { minimum } = this.blockSizes
    const what = `${commandName(command)} of ${length} bytes at ${offset} of '${this.#name}'`
    if (!(length > 0 && offset >= 0 && offset + length <= this.size)) {
      throw refused(nbd.NBD_EINVAL, `${what}: outside of 0 to ${this.size}`)
    }
    if (offset % minimum !== 0 || length % minimum !== 0) {
      throw refused(nbd.NBD_EINVAL, `${what}: no multiple of the minimum block of ${minimum} bytes`)
    }
    const writes =
      command === nbd.NBD_CMD_WRITE || command === nbd.NBD_CMD_WRITE_ZEROES || command === nbd.NBD_CMD_TRIM
    if (writes && this.features.readOnly) throw refused(nbd.NBD_EPERM, `${what}: the export is read-only`)
  }

  #require(offered: boolean, command: number): void {
    if (!offered) throw refused(nbd.NBD_ENOTSUP, `${commandName(command)}: not offered by '${this.#name}'`)
  }

  /** A server without FUA gets a flush behind the write: more than was asked, but not less. */
  #durability(fua: boolean | undefined): { readonly flags: number; readonly flushAfter: boolean } {
    if (fua !== true) return { flags: 0, flushAfter: false }
    return this.features.fua
      ? { flags: nbd.NBD_CMD_FLAG_FUA, flushAfter: false }
      : { flags: 0, flushAfter: true }
  }

  /** Cuts at the largest multiple of the minimum block below the ceiling; the pieces travel at once. */
  async #split(
    offset: number,
    length: number,
    ceiling: number,
    send: (offset: number, length: number) => Promise<unknown>,
  ): Promise<void> {
    const step = Math.max(this.blockSizes.minimum, ceiling - (ceiling % this.blockSizes.minimum))
    if (length <= step) {
      await send(offset, length)
      return
    }
    const pieces: Promise<unknown>[] = []
    for (let at = offset; at < offset + length; at += step) {
      pieces.push(send(at, Math.min(step, offset + length - at)))
    }
    // All must be settled before the caller may reuse or drop the buffer that they share.
    for (const piece of await Promise.allSettled(pieces)) {
      if (piece.status === 'rejected') throw piece.reason
    }
  }

  #request(request: Request): Promise<PendingReply> {
    if (this.#broken !== undefined) return Promise.reject(this.#broken)
    if (this.#waitingHead === this.#waiting.length && this.#roomFor(request)) return this.#start(request)
    return new Promise((resolve, reject) => this.#waiting.push({ request, resolve, reject }))
  }

  #roomFor(request: Request): boolean {
    return (
      this.#pending.size === 0 ||
      (this.#pending.size < NBD_CLIENT_REQUESTS_MAX &&
        this.#inFlightBytes + payloadBytes(request.command, request.length) <= NBD_CLIENT_IN_FLIGHT_BYTES_MAX)
    )
  }

  #startWaiting(): void {
    while (this.#waitingHead < this.#waiting.length) {
      const { request, resolve } = this.#waiting[this.#waitingHead]!
      if (!this.#roomFor(request)) break
      this.#waitingHead++
      resolve(this.#start(request))
    }
    if (this.#waitingHead === this.#waiting.length || this.#waitingHead > 1024) {
      this.#waiting = this.#waiting.slice(this.#waitingHead)
      this.#waitingHead = 0
    }
  }

  #start(request: Request): Promise<PendingReply> {
    const cookie = ++this.#lastCookie
    const { command, offset, length, flags = 0, payload } = request
    const pending = new PendingReply(this.#name, command, offset, length, request.target)
    this.#pending.set(cookie, pending)
    this.#inFlightBytes += pending.bytes
    const stream = this.#stream
    if (!this.#corked) {
      this.#corked = true
      stream.cork()
      process.nextTick(() => {
        this.#corked = false
        stream.uncork()
      })
    }
    stream.write(encodeRequestHeader({ command, flags, cookie, offset, length }))
    if (payload !== undefined) stream.write(payload)
    return pending.promise
  }

  #receive(bytes: Buffer): void {
    if (this.#broken !== undefined) return
    try {
      for (const reply of this.#decoder.push(bytes)) {
        const pending = this.#pending.get(reply.cookie)
        if (pending === undefined) throw new ProtocolError(`NBD reply: unknown cookie ${reply.cookie}`)
        if (pending.take(reply, this.#contextId)) {
          this.#pending.delete(reply.cookie)
          this.#inFlightBytes -= pending.bytes
          pending.settle()
        }
      }
      this.#startWaiting()
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
      this.#break(error)
    }
  }

  #break(error: ProtocolError | LostError): void {
    this.#fail(error)
    this.#stream.destroy()
  }

  /** The first failure is the one that everybody hears of. */
  #fail(error: ProtocolError | LostError): void {
    if (this.#broken !== undefined) return
    this.#broken = error
    const waiting = [...this.#pending.values(), ...this.#waiting.slice(this.#waitingHead)]
    this.#pending.clear()
    this.#waiting = []
    this.#waitingHead = 0
    for (const one of waiting) one.reject(error)
  }
}

/** The last extent of a reply may reach beyond what was asked. */
function statusExtents(wire: readonly WireExtent[], length: number): StatusExtent[] {
  const extents: StatusExtent[] = []
  let left = length
  for (const extent of wire) {
    if (left === 0) break
    const bytes = Math.min(extent.length, left)
    left -= bytes
    const hole = (extent.flags & nbd.NBD_STATE_HOLE) !== 0
    extents.push({ length: bytes, hole, zero: (extent.flags & nbd.NBD_STATE_ZERO) !== 0 })
  }
  return extents
}
