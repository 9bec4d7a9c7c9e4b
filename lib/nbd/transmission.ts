/**
 * The transmission phase, server side. Requests go to the device in the order of the wire and all at once; answers go
 * back as they come. A FLUSH therefore reaches the device after every WRITE that was received before it.
 *
 *   socket ─ chunk ─► RequestDecoder ─ request ─► validate ─► device ─► reply ─ cork, one writev a tick ─► socket
 *                     (suspended while too much is in flight; the socket is paused then)
 *
 * Bounded by requests and by bytes (WRITE payloads, READ replies until the socket took them). What is not done: no
 * read of holes as hole chunks, no merging or reordering; the device decides on those.
 */
import type { Duplex } from 'node:stream'
import type { BlockDevice, StatusExtent } from '../block/device.ts'
import { errorText, LostError } from '../core/errors.ts'
import { NBD_PAYLOAD_BYTES_MAX, NBD_REPLY_EXTENTS_MAX } from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import * as nbd from './protocol/constants.ts'
import { type NbdRequest, RequestDecoder } from './protocol/decode.ts'
import {
  encodeDataChunkHeader,
  encodeErrorChunk,
  encodeSimpleReply,
  encodeStatusChunk,
  type WireExtent,
} from './protocol/encode.ts'
import { errnoOf } from './protocol/errno.ts'
import { commandName, errnoName } from './protocol/names.ts'
import { ALLOCATION_CONTEXT_ID, type ChosenExport } from './server-handshake.ts'
import { validateRequest } from './validate.ts'

export interface TransmissionLimits {
  readonly requestsMax: number
  readonly inFlightBytesMax: number
  readonly log: (message: string) => void
}

export class Transmission {
  readonly #stream: Duplex
  readonly #chosen: ChosenExport
  readonly #device: BlockDevice
  readonly #limits: TransmissionLimits
  readonly #decoder: RequestDecoder = new RequestDecoder({ payloadBytesMax: NBD_PAYLOAD_BYTES_MAX })
  /** Requests of the current chunk that are not taken yet. */
  #requests: Generator<NbdRequest, void, undefined> | undefined
  #inFlight = 0
  #inFlightBytes = 0
  #corked = false
  /** No more requests are taken: the client said DISC, left, or failed. */
  #stopped = false
  #failure: unknown
  #finish: () => void = () => {}
  readonly #goOn = (): void => this.#take()

  constructor(stream: Duplex, chosen: ChosenExport, limits: TransmissionLimits) {
    this.#stream = stream
    this.#chosen = chosen
    this.#device = chosen.device
    this.#limits = limits
  }

  async run(signal: AbortSignal | undefined): Promise<void> {
    const stream = this.#stream
    const finished = new Promise<void>((resolve) => {
      this.#finish = resolve
    })
    const onAbort = (): void => {
      // A device that hangs must not hold an abort: what is in flight is abandoned.
      this.#stop(new LostError(`NBD server of '${this.#chosen.name}': aborted`, { cause: signal?.reason }))
      this.#finish()
    }
    const onData = (chunk: Buffer): void => {
      this.#requests = this.#decoder.push(chunk)
      this.#take()
    }
    const onDrain = (): void => this.#take()
    const onError = (error: Error): void => {
      this.#stop(new LostError(`NBD client of '${this.#chosen.name}': ${error.message}`, { cause: error }))
    }
    const onEnd = (): void => this.#ended()
    signal?.addEventListener('abort', onAbort)
    stream.on('drain', onDrain).on('error', onError).on('end', onEnd).on('close', onEnd)
    try {
      if (this.#chosen.rest.length > 0) onData(this.#chosen.rest)
      if (signal?.aborted === true) onAbort()
      else if (stream.readableEnded || stream.destroyed) this.#ended()
      else if (!this.#stopped) {
        stream.on('data', onData)
        if (this.#requests === undefined) stream.resume()
      }
      await finished
    } finally {
      signal?.removeEventListener('abort', onAbort)
      stream
        .off('data', onData)
        .off('drain', onDrain)
        .off('error', onError)
        .off('end', onEnd)
        .off('close', onEnd)
    }
    if (this.#failure !== undefined) throw this.#failure
  }

  /** Takes requests as long as the limits allow, else pauses the socket. */
  #take(): void {
    const requests = this.#requests
    if (requests === undefined || this.#stopped) return
    try {
      while (this.#admits()) {
        if (loopTurn.over) {
          // The socket waits too: what it read meanwhile would be decoded in the middle of this.
          this.#stream.pause()
          loopTurn.later(this.#goOn)
          return
        }
        const step = requests.next()
        if (step.done === true) {
          this.#requests = undefined
          this.#stream.resume()
          return
        }
        this.#handle(step.value)
        if (this.#stopped) return
      }
      this.#stream.pause()
    } catch (error) {
      this.#stop(error)
    }
  }

  #admits(): boolean {
    const { requestsMax, inFlightBytesMax } = this.#limits
    return (
      this.#inFlight < requestsMax && this.#inFlightBytes + this.#stream.writableLength < inFlightBytesMax
    )
  }

  #handle(request: NbdRequest): void {
    if (request.type === 'disc') {
      this.#stop(undefined)
      return
    }
    const verdict = validateRequest(request, this.#chosen)
    if (verdict.errno !== 0) {
      this.#fail(request, verdict.errno, verdict.reason)
      return
    }
    const bytes = request.type === 'write' || request.type === 'read' ? request.length : 0
    this.#inFlight++
    this.#inFlightBytes += bytes
    // #execute calls the device before it first waits: the order of the wire is the order of the calls.
    this.#execute(request).then(
      () => this.#settled(bytes),
      (error: unknown) => {
        this.#fail(request, replyErrno(request, error), errorText(error))
        this.#settled(bytes)
      },
    )
  }

  #settled(bytes: number): void {
    this.#inFlight--
    this.#inFlightBytes -= bytes
    if (this.#stopped) {
      if (this.#inFlight === 0) this.#finish()
    } else if (this.#requests !== undefined) this.#take()
  }

  async #execute(request: NbdRequest): Promise<void> {
    const device = this.#device
    const { cookie, offset, length, flags } = request
    const fua = (flags & nbd.NBD_CMD_FLAG_FUA) !== 0
    switch (request.type) {
      case 'read': {
        const data = await device.read(offset, length)
        if (data.length !== length) throw new Error(`read of ${length} bytes gave ${data.length}`)
        this.#sendData(cookie, offset, data)
        return
      }
      case 'write':
        await device.write(offset, request.data, fua ? { fua } : undefined)
        break
      case 'flush':
        await device.flush()
        break
      case 'trim':
        await device.trim(offset, length, { fua })
        break
      case 'cache':
        await device.cache(offset, length)
        break
      case 'writeZeroes': {
        const noHole = (flags & nbd.NBD_CMD_FLAG_NO_HOLE) !== 0
        const fastZero = (flags & nbd.NBD_CMD_FLAG_FAST_ZERO) !== 0
        await device.writeZeroes(offset, length, { fua, noHole, fastZero })
        break
      }
      case 'blockStatus': {
        const extents = await device.blockStatus(offset, length)
        const count = (flags & nbd.NBD_CMD_FLAG_REQ_ONE) !== 0 ? 1 : NBD_REPLY_EXTENTS_MAX
        const wire = wireExtents(extents, length, count)
        this.#send(encodeStatusChunk(cookie, ALLOCATION_CONTEXT_ID, wire, true))
        return
      }
      default:
        throw new Error(`${commandName(request.command)} has no handler`)
    }
    this.#send(encodeSimpleReply(cookie, 0))
  }

  #sendData(cookie: bigint, offset: number, data: Buffer): void {
    if (this.#chosen.structured) this.#send(encodeDataChunkHeader(cookie, offset, data.length, true))
    else this.#send(encodeSimpleReply(cookie, 0))
    this.#send(data)
  }

  /** Once structured replies are agreed READ and BLOCK_STATUS have no other; the rest may stay simple. */
  #fail(request: NbdRequest, errno: number, reason: string): void {
    this.#limits.log(
      `${commandName(request.command)} ${request.length} at ${request.offset}: ${errnoName(errno)}: ${reason}`,
    )
    const structured = this.#chosen.structured && (request.type === 'read' || request.type === 'blockStatus')
    if (structured) this.#send(encodeErrorChunk(request.cookie, errno, reason, true))
    else this.#send(encodeSimpleReply(request.cookie, errno))
  }

  /** All that is sent within one turn of the event loop leaves in one writev. */
  #send(bytes: Buffer): void {
    const stream = this.#stream
    if (!stream.writable) return
    if (!this.#corked) {
      this.#corked = true
      stream.cork()
      process.nextTick(() => {
        this.#corked = false
        stream.uncork()
      })
    }
    stream.write(bytes)
  }

  #ended(): void {
    if (this.#stopped) return
    const cut = this.#decoder.partial || this.#requests !== undefined
    this.#stop(
      cut
        ? new LostError(`NBD client of '${this.#chosen.name}': connection ended inside a request`)
        : undefined,
    )
  }

  /** Waits for what the device still holds, so that nothing runs behind the back of who closes the device. */
  #stop(failure: unknown): void {
    if (this.#stopped) return
    this.#stopped = true
    this.#failure = failure
    this.#stream.pause()
    if (failure !== undefined) this.#stream.destroy()
    if (this.#inFlight === 0) this.#finish()
  }
}

/** ENOTSUP and EOVERFLOW mean something for one request each; elsewhere clients do not expect them. */
function replyErrno(request: NbdRequest, error: unknown): number {
  const errno = errnoOf(error)
  if (errno === nbd.NBD_ENOTSUP && (request.flags & nbd.NBD_CMD_FLAG_FAST_ZERO) === 0) return nbd.NBD_EINVAL
  if (errno === nbd.NBD_EOVERFLOW && (request.flags & nbd.NBD_CMD_FLAG_DF) === 0) return nbd.NBD_EINVAL
  return errno
}

/** Neighbours of one kind become one extent; what lies beyond the request is cut off. */
function wireExtents(extents: readonly StatusExtent[], length: number, countMax: number): WireExtent[] {
  const wire: { length: number; flags: number }[] = []
  let left = length
  for (const extent of extents) {
    const bytes = Math.min(extent.length, left)
    if (bytes <= 0) break
    left -= bytes
    const flags = (extent.hole ? nbd.NBD_STATE_HOLE : 0) | (extent.zero ? nbd.NBD_STATE_ZERO : 0)
    const last = wire.at(-1)
    if (last !== undefined && last.flags === flags) last.length += bytes
    else if (wire.length === countMax) break
    else wire.push({ length: bytes, flags })
  }
  if (wire.length === 0) throw new Error('the device gave no extents')
  return wire
}
