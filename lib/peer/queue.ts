/** The sender's queues: one for each class, the lowest class first, first in first out within it. Pure. */
import { FRAME_CLASSES, FRAME_CONTROL, FRAME_HEADER_BYTES, type FrameClass } from '../wire/frame.ts'

export interface QueuedFrame {
  readonly type: number
  readonly cls: FrameClass
  readonly payload: readonly Uint8Array[]
  readonly bytes: number
  readonly sent: () => void
  readonly failed: (error: Error) => void
}

export class SendQueue {
  readonly #lanes = FRAME_CLASSES.map(() => ({ frames: [] as QueuedFrame[], head: 0 }))
  #bytes = 0
  #controlBytes = 0
  #controlCount = 0
  #count = 0

  get bytes(): number {
    return this.#bytes
  }

  /** Of the class that passes the pacing. */
  get controlBytes(): number {
    return this.#controlBytes
  }

  get controlCount(): number {
    return this.#controlCount
  }

  get count(): number {
    return this.#count
  }

  push(frame: QueuedFrame): void {
    this.#lanes[frame.cls]!.frames.push(frame)
    this.#bytes += frame.bytes
    if (frame.cls === FRAME_CONTROL) {
      this.#controlBytes += frame.bytes
      this.#controlCount += 1
    }
    this.#count += 1
  }

  /** What would leave next. */
  peek(): QueuedFrame | undefined {
    for (const lane of this.#lanes) if (lane.head < lane.frames.length) return lane.frames[lane.head]
    return undefined
  }

  shift(): QueuedFrame | undefined {
    for (const lane of this.#lanes) {
      if (lane.head >= lane.frames.length) continue
      const frame = lane.frames[lane.head++]!
      if (lane.head === lane.frames.length) {
        lane.frames = []
        lane.head = 0
      } else if (lane.head >= 256 && lane.head * 2 > lane.frames.length) {
        lane.frames = lane.frames.slice(lane.head)
        lane.head = 0
      }
      this.#bytes -= frame.bytes
      if (frame.cls === FRAME_CONTROL) {
        this.#controlBytes -= frame.bytes
        this.#controlCount -= 1
      }
      this.#count -= 1
      return frame
    }
    return undefined
  }

  /** Empties it and gives what was in it. */
  drain(): QueuedFrame[] {
    const frames: QueuedFrame[] = []
    for (let frame = this.shift(); frame !== undefined; frame = this.shift()) frames.push(frame)
    return frames
  }
}

export function frameBytes(payload: readonly Uint8Array[]): number {
  let bytes = FRAME_HEADER_BYTES
  for (const part of payload) bytes += part.length
  return bytes
}
