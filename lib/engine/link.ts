/**
 * DiskLink: the disk messages of all disks of one migration over one bundle. It encodes, decodes and routes by disk
 * number; a message for a disk that nobody registered is a break of the protocol. When the bundle is lost every
 * endpoint hears of it once.
 */
import { errorText, LostError, ProtocolError } from '../core/errors.ts'
import { type DiskMessage, decodeDiskMessage, encodeDiskMessage } from '../wire/disk.ts'

/** Frame classes, highest first: a FLUSH never stands behind bulk data. */
export const CLASS_CONTROL = 0
export const CLASS_FINAL = 2
export const CLASS_BULK = 3
export type DiskClass = typeof CLASS_CONTROL | typeof CLASS_FINAL | typeof CLASS_BULK

/** What DiskLink needs of lib/peer/bundle.ts. */
export interface FrameChannel {
  send(type: number, payload: readonly Uint8Array[], cls: DiskClass): Promise<void>
  onFrame: ((type: number, payload: Buffer, cls: 0 | 1 | 2 | 3) => void) | undefined
  /** What both ends can do beyond the first version of the protocol. */
  readonly features: ReadonlySet<string>
  readonly rateBytesPerSecond: number
  /** The shortest lately seen; 0 while none is known. Milliseconds. */
  readonly roundTripMs: number
  /** For how long the far end gave no sign although it was asked for one; 0 while all is well. Milliseconds. */
  readonly silentMs: number
  readonly closed: Promise<Error | undefined>
  close(reason?: Error): Promise<void>
}

export interface DiskEndpoint {
  /** Buffers in the message belong to the endpoint. A throw ends the link. */
  onMessage(message: DiskMessage): void
  onLost(error: Error): void
}

export class DiskLink {
  readonly #channel: FrameChannel
  readonly #endpoints = new Map<number, DiskEndpoint>()
  readonly #onUnknown: ((message: DiskMessage) => DiskEndpoint | undefined) | undefined
  #lost: Error | undefined

  /** @param onUnknown is asked for an endpoint when a message comes for a disk that has none (a receiver's OPEN). */
  constructor(channel: FrameChannel, onUnknown?: (message: DiskMessage) => DiskEndpoint | undefined) {
    this.#channel = channel
    this.#onUnknown = onUnknown
    channel.onFrame = (type, payload) => this.#receive(type, payload)
    void channel.closed.then((error) =>
      this.#lose(error ?? new LostError('the peer closed the disk channel')),
    )
  }

  get features(): ReadonlySet<string> {
    return this.#channel.features
  }

  get rateBytesPerSecond(): number {
    return this.#channel.rateBytesPerSecond
  }

  get roundTripMs(): number {
    return this.#channel.roundTripMs
  }

  get silentMs(): number {
    return this.#channel.silentMs
  }

  register(disk: number, endpoint: DiskEndpoint): void {
    this.#endpoints.set(disk, endpoint)
    if (this.#lost !== undefined) endpoint.onLost(this.#lost)
  }

  unregister(disk: number, endpoint: DiskEndpoint): void {
    if (this.#endpoints.get(disk) === endpoint) this.#endpoints.delete(disk)
  }

  /** Resolves when the message has passed pacing; the bytes on the wire are returned for the account. */
  async send(message: DiskMessage, cls: DiskClass): Promise<number> {
    if (this.#lost !== undefined) throw this.#lost
    const { type, payload } = encodeDiskMessage(message)
    let bytes = 0
    for (const piece of payload) bytes += piece.length
    await this.#channel.send(type, payload, cls)
    return bytes
  }

  #receive(type: number, payload: Buffer): void {
    if (this.#lost !== undefined) return
    try {
      const message = decodeDiskMessage(type, payload)
      const endpoint = this.#endpoints.get(message.disk) ?? this.#onUnknown?.(message)
      if (endpoint === undefined) {
        // What a closed disk's peer had still in flight is no error; anything else is.
        if (message.type === 'open')
          throw new ProtocolError(`OPEN of disk ${message.disk} was not expected here`)
        return
      }
      endpoint.onMessage(message)
    } catch (error) {
      const reason = error instanceof Error ? error : new ProtocolError(errorText(error))
      this.#lose(reason)
      void this.#channel.close(reason)
    }
  }

  #lose(error: Error): void {
    if (this.#lost !== undefined) return
    this.#lost = error
    for (const endpoint of [...this.#endpoints.values()]) endpoint.onLost(error)
  }
}
