/**
 * Puts the frames of several channels back into the order in which they were sent. Pure. What it holds is bounded by
 * what the sender may have in flight; a peer that sends more, or a sequence twice, breaks the protocol.
 */
import { ProtocolError } from '../core/errors.ts'
import { FRAME_HEADER_BYTES, type Frame } from '../wire/frame.ts'

export class Reorder {
  readonly #bytesMax: number
  readonly #framesMax: number
  readonly #early = new Map<number, Frame>()
  #next = 0
  #heldBytes = 0

  constructor(options: { readonly bytesMax: number; readonly framesMax: number }) {
    this.#bytesMax = options.bytesMax
    this.#framesMax = options.framesMax
  }

  get heldBytes(): number {
    return this.#heldBytes
  }

  get heldFrames(): number {
    return this.#early.size
  }

  push(frame: Frame): void {
    const ahead = frame.sequence - this.#next
    if (ahead < 0 || this.#early.has(frame.sequence)) {
      throw new ProtocolError(`frame ${frame.sequence} came twice (the next one expected is ${this.#next})`)
    }
    if (ahead >= this.#framesMax) {
      throw new ProtocolError(
        `frame ${frame.sequence} came while ${this.#next} is expected: at most ${this.#framesMax} may be in flight`,
      )
    }
    this.#heldBytes += FRAME_HEADER_BYTES + frame.payload.length
    if (this.#heldBytes > this.#bytesMax) {
      throw new ProtocolError(
        `frame ${frame.sequence}: ${this.#heldBytes} bytes are in flight, at most ${this.#bytesMax} were allowed`,
      )
    }
    this.#early.set(frame.sequence, frame)
  }

  /** Forgets what came early: it will be sent again. */
  restart(): void {
    this.#early.clear()
    this.#heldBytes = 0
  }

  /** The next frame in order, if it is here, left where it is. */
  peek(): Frame | undefined {
    return this.#early.get(this.#next)
  }

  /** The next frame in order, if it is here. */
  take(): Frame | undefined {
    const frame = this.#early.get(this.#next)
    if (frame === undefined) return undefined
    this.#early.delete(this.#next)
    this.#next += 1
    this.#heldBytes -= FRAME_HEADER_BYTES + frame.payload.length
    return frame
  }
}
