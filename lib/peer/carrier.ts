/**
 * What carries a bundle: the channels of one link, until that breaks, then those of the next. A frame goes to the channel
 * with least outstanding. What a link says after it was dropped is not heard any more; its counters are kept.
 * It knows nothing of order, acknowledgement or of how a new link is made.
 */
import { LostError } from '../core/errors.ts'
import { CHANNEL_END_MS } from '../core/limits.ts'
import type { Frame, FrameClass } from '../wire/frame.ts'
import type { FrameChannel } from './channel.ts'
import type { BundleConnection, BundleLink } from './options.ts'

export interface CarrierHandlers {
  frame(frame: Frame): void
  /** After the frames of one read were handed over. */
  read(): void
  /** A channel, or the connection of all of them, is gone. */
  gone(error: Error): void
}

const NOTHING: BundleLink = { channels: [], connections: [] }

export class Carrier {
  readonly #handlers: CarrierHandlers
  #link: BundleLink = NOTHING
  #outstandingBytes: Float64Array = new Float64Array()
  readonly #pastConnections: BundleConnection[] = []
  #pastSentBytes = 0
  #pastReceivedBytes = 0

  constructor(handlers: CarrierHandlers) {
    this.#handlers = handlers
  }

  /** All that carried it, the present ones last. */
  get connections(): readonly BundleConnection[] {
    return [...this.#pastConnections, ...this.#link.connections]
  }

  get bytesSent(): number {
    return this.#channels.reduce((sum, channel) => sum + channel.bytesSent, this.#pastSentBytes)
  }

  get bytesReceived(): number {
    return this.#channels.reduce((sum, channel) => sum + channel.bytesReceived, this.#pastReceivedBytes)
  }

  get #channels(): readonly FrameChannel[] {
    return this.#link.channels
  }

  take(link: BundleLink): void {
    this.#link = link
    this.#outstandingBytes = new Float64Array(link.channels.length)
    for (const [index, channel] of link.channels.entries()) {
      channel.listen({
        frame: (frame) => {
          if (this.#link === link) this.#handlers.frame(frame)
        },
        read: () => {
          if (this.#link === link) this.#handlers.read()
        },
        gone: (error) => {
          if (this.#link !== link) return
          this.#handlers.gone(
            error instanceof LostError
              ? new LostError(`channel ${index}: ${error.message}`, { cause: error })
              : error,
          )
        },
      })
    }
    link.failed?.catch((error: Error) => {
      if (this.#link === link) this.#handlers.gone(error)
    })
  }

  /** The link is broken: nothing goes out or comes in until `take`. */
  drop(): void {
    const link = this.#link
    this.#link = NOTHING
    for (const channel of link.channels) {
      this.#pastSentBytes += channel.bytesSent
      this.#pastReceivedBytes += channel.bytesReceived
      channel.destroy()
    }
    this.#pastConnections.push(...link.connections)
    if (link.dispose !== undefined) setImmediate(link.dispose)
  }

  /**
   * What was written leaves first, and arrives: an sshd that reads our goodbye drops what its processes have not taken yet,
   * such as the last acknowledgements, so that waits until the far end has closed the channels too.
   */
  close(): void {
    const { channels, dispose } = this.#link
    for (const channel of channels) channel.close()
    if (dispose === undefined) return
    const late = new Promise((resolve) => setTimeout(resolve, CHANNEL_END_MS).unref())
    void Promise.race([Promise.all(channels.map(({ closed }) => closed)), late]).then(() => dispose())
  }

  /** Gives the frame's bytes, and the channel whose they are until `acknowledged`. */
  write(
    type: number,
    cls: FrameClass,
    sequence: number,
    payload: readonly Uint8Array[],
  ): { bytes: number; channel: number } {
    const channel = this.#leastOutstanding()
    const bytes = this.#channels[channel]!.write(type, cls, sequence, payload)
    this.#outstandingBytes[channel]! += bytes
    return { bytes, channel }
  }

  acknowledged(bytes: number, channel: number): void {
    this.#outstandingBytes[channel]! -= bytes
  }

  /** A frame that needs no acknowledgement, where the least stands before it. */
  writeOwn(type: number, cls: FrameClass, payload: Uint8Array): void {
    this.#channels[this.#leastOutstanding()]?.write(type, cls, 0, [payload])
  }

  /** On every channel: the end of another one must not overtake it. */
  writeToAll(type: number, cls: FrameClass, payload: Uint8Array): void {
    for (const channel of this.#channels) channel.write(type, cls, 0, [payload])
  }

  #leastOutstanding(): number {
    let best = 0
    for (let index = 1; index < this.#outstandingBytes.length; index += 1) {
      if (this.#outstandingBytes[index]! < this.#outstandingBytes[best]!) best = index
    }
    return best
  }
}
