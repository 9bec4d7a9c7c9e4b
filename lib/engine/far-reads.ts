/** READs of a sender's disk, which the far side answers: rare, since a mirror job never reads its target. */
import { ProtocolError, RefusedError } from '../core/errors.ts'
import { LITERAL_BYTES_MAX } from '../core/limits.ts'
import type { DiskMessage } from '../wire/disk.ts'

export interface FarReadsOptions {
  readonly nextId: () => number
  readonly send: (id: number, offset: number, length: number) => Promise<unknown>
  /** Throws what the session was lost to: whoever begins to wait after that would wait for ever. */
  readonly check: () => void
}

export class FarReads {
  readonly #options: FarReadsOptions
  readonly #waiting = new Map<number, { resolve: (data: Buffer) => void; reject: (error: Error) => void }>()

  constructor(options: FarReadsOptions) {
    this.#options = options
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const { nextId, send, check } = this.#options
    const result = Buffer.allocUnsafe(length)
    for (let at = 0; at < length; at += LITERAL_BYTES_MAX) {
      const part = Math.min(LITERAL_BYTES_MAX, length - at)
      check()
      const id = nextId()
      const reply = new Promise<Buffer>((resolve, reject) => this.#waiting.set(id, { resolve, reject }))
      reply.catch(() => undefined)
      await send(id, offset + at, part)
      const data = await reply
      if (data.length !== part)
        throw new ProtocolError(`READ ${offset + at}: ${data.length} bytes came for ${part}`)
      data.copy(result, at)
    }
    return result
  }

  answered({ id, errno, data }: Extract<DiskMessage, { type: 'readReply' }>): void {
    const waiter = this.#waiting.get(id)
    this.#waiting.delete(id)
    if (errno === 0) waiter?.resolve(data)
    else waiter?.reject(new RefusedError('READ failed at the far side', { errno }))
  }

  fail(error: Error): void {
    for (const { reject } of this.#waiting.values()) reject(error)
    this.#waiting.clear()
  }
}
