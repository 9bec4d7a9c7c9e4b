/**
 * One request of the client that waits for its reply: gathers the chunks of a structured reply, judges what only the
 * whole reply shows (chunks that overlap, data that are missing, a status that came twice), and settles the promise.
 */
import { ProtocolError } from '../core/errors.ts'
import { NBD_READ_PIECES_MAX } from '../core/limits.ts'
import { NBD_CMD_BLOCK_STATUS, NBD_CMD_READ, NBD_CMD_WRITE } from './protocol/constants.ts'
import type { WireExtent } from './protocol/encode.ts'
import { allowedErrno, refused } from './protocol/errno.ts'
import { commandName } from './protocol/names.ts'
import type { Expectation, NbdReply } from './protocol/replies.ts'

/** What a request holds in memory while it is in flight. */
export function payloadBytes(command: number, length: number): number {
  return command === NBD_CMD_READ || command === NBD_CMD_WRITE ? length : 0
}

export class PendingReply {
  readonly promise: Promise<PendingReply>
  readonly expectation: Expectation
  readonly bytes: number
  readonly #what: string
  #resolve!: (value: PendingReply) => void
  #reject!: (error: Error) => void
  #error: Error | undefined
  #extents: readonly WireExtent[] | undefined
  /** What has arrived of a READ: separate ranges in no order. */
  readonly #pieces: { start: number; end: number }[] = []

  constructor(name: string, command: number, offset: number, length: number, target: Buffer | undefined) {
    const kind = command === NBD_CMD_READ ? 'read' : command === NBD_CMD_BLOCK_STATUS ? 'status' : 'other'
    this.expectation = { kind, offset, length, target }
    this.bytes = payloadBytes(command, length)
    this.#what = `${commandName(command)} of ${length} bytes at ${offset} of '${name}'`
    this.promise = new Promise((resolve, reject) => {
      this.#resolve = resolve
      this.#reject = reject
    })
  }

  get extents(): readonly WireExtent[] | undefined {
    return this.#extents
  }

  /** True when this was the last part of the reply. Throws where the server contradicts itself. */
  take(reply: NbdReply, contextId: number | undefined): boolean {
    switch (reply.type) {
      case 'simple':
        if (reply.errno !== 0) this.#error = refused(allowedErrno(reply.errno), this.#what)
        else this.#add(this.expectation.offset, this.expectation.length)
        return true
      case 'none':
        this.#complete()
        return true
      case 'data':
      case 'hole':
        this.#add(reply.offset, reply.length)
        break
      case 'status':
        if (reply.contextId !== contextId || this.#extents !== undefined) {
          throw new ProtocolError(`${this.#what}: unexpected status of context ${reply.contextId}`)
        }
        this.#extents = reply.extents
        break
      case 'error': {
        const text = reply.message === '' ? '' : `: ${reply.message}`
        const place = reply.offset === undefined ? '' : `: failed at ${reply.offset}`
        this.#error ??= refused(allowedErrno(reply.errno), `${this.#what}${place}${text}`)
        break
      }
      default:
        return reply satisfies never
    }
    if (reply.done) this.#complete()
    return reply.done
  }

  settle(): void {
    if (this.#error === undefined) this.#resolve(this)
    else this.#reject(this.#error)
  }

  reject(error: Error): void {
    this.#reject(error)
  }

  #complete(): void {
    if (this.#error !== undefined) return
    const { kind, offset, length } = this.expectation
    if (kind === 'status' && this.#extents === undefined) {
      throw new ProtocolError(`${this.#what}: the reply ended without a status`)
    }
    if (kind !== 'read') return
    const piece = this.#pieces[0]
    if (this.#pieces.length !== 1 || piece?.start !== offset || piece.end !== offset + length) {
      throw new ProtocolError(`${this.#what}: the reply ended before all data had come`)
    }
  }

  #add(offset: number, length: number): void {
    if (this.expectation.kind !== 'read') return
    let start = offset
    let end = offset + length
    const pieces = this.#pieces
    for (let index = pieces.length - 1; index >= 0; index--) {
      const piece = pieces[index]
      if (piece === undefined || piece.end < start || piece.start > end) continue
      if (piece.end > start && piece.start < end) {
        throw new ProtocolError(`${this.#what}: the server sent ${length} bytes at ${offset} twice`)
      }
      start = Math.min(start, piece.start)
      end = Math.max(end, piece.end)
      pieces.splice(index, 1)
    }
    pieces.push({ start, end })
    if (pieces.length > NBD_READ_PIECES_MAX)
      throw new ProtocolError(`${this.#what}: more than ${NBD_READ_PIECES_MAX} scattered chunks`)
  }
}
