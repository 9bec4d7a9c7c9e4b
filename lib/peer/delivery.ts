/**
 * The receiving half of a bundle: frames of several channels, put in order again, are handed over one after the other, as
 * soon as somebody takes them. A turn of the event loop that has had its time goes on in a later one (loop-turn.ts), but
 * for a bundle that must not wait. It counts what was handed over and acknowledges nothing.
 */
import {
  CONTROL_EXTRA_BYTES,
  CONTROL_EXTRA_FRAMES,
  FRAME_PAYLOAD_BYTES_MAX,
  IN_FLIGHT_FRAMES_MAX,
} from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { FRAME_CLOSE, FRAME_HEADER_BYTES, type Frame } from '../wire/frame.ts'
import type { FrameHandler } from './options.ts'
import { Reorder } from './reorder.ts'

export interface DeliveryHandlers {
  /** After each frame. */
  delivered(): void
  /** CLOSE came in its turn. */
  closed(): void
  /** Who took a frame threw this. */
  failed(error: Error): void
}

export class Delivery {
  readonly #handlers: DeliveryHandlers
  readonly #reorder: Reorder
  #onFrame: FrameHandler | undefined
  #paused = false
  #running = false
  readonly #goOn = (): void => this.run()
  readonly #yields: boolean
  #stopped = false
  /** Of frames with their headers. */
  deliveredBytes = 0

  /**
   * @param windowBytes what the far end may have in flight
   * @param yields whether it goes on later when a turn has had its time; calls between daemons do not
   */
  constructor(windowBytes: number, yields: boolean, handlers: DeliveryHandlers) {
    this.#handlers = handlers
    this.#yields = yields
    this.#reorder = new Reorder({
      bytesMax: windowBytes + CONTROL_EXTRA_BYTES + FRAME_HEADER_BYTES + FRAME_PAYLOAD_BYTES_MAX,
      framesMax: IN_FLIGHT_FRAMES_MAX + CONTROL_EXTRA_FRAMES,
    })
  }

  get onFrame(): FrameHandler | undefined {
    return this.#onFrame
  }

  take(handler: FrameHandler): void {
    this.#onFrame = handler
    this.run()
  }

  pause(): void {
    this.#paused = true
  }

  resume(): void {
    this.#paused = false
    this.run()
  }

  /** @throws ProtocolError for one that cannot come now */
  push(frame: Frame): void {
    this.#reorder.push(frame)
  }

  /** Forgets what came early: it will be sent again. */
  restart(): void {
    this.#reorder.restart()
  }

  /** Nothing is delivered any more. */
  stop(): void {
    this.#stopped = true
  }

  /** @param atOnce however long it takes: what was received is not to be lost with the link that brought it */
  run(atOnce = false): void {
    if (this.#running) return
    this.#running = true
    try {
      while (!this.#stopped) {
        const frame = this.#reorder.peek()
        if (frame === undefined) break
        // A close with nothing before it needs nobody to take it.
        if (frame.type !== FRAME_CLOSE && (this.#paused || this.#onFrame === undefined)) break
        if (this.#yields && !atOnce && loopTurn.over) {
          loopTurn.later(this.#goOn)
          break
        }
        this.#reorder.take()
        this.deliveredBytes += FRAME_HEADER_BYTES + frame.payload.length
        if (frame.type === FRAME_CLOSE) {
          this.#handlers.closed()
          return
        }
        this.#onFrame?.(frame.type, frame.payload, frame.cls)
        this.#handlers.delivered()
      }
    } catch (error) {
      this.#handlers.failed(error instanceof Error ? error : new Error(String(error)))
    } finally {
      this.#running = false
    }
  }
}
