/** The frames that are on their way, oldest first: kept until they are acknowledged, so that they can be sent again. Pure. */
import type { FrameClass } from '../wire/frame.ts'

export interface KeptFrame {
  readonly sequence: number
  readonly type: number
  readonly cls: FrameClass
  readonly payload: readonly Uint8Array[]
}

export class KeptFrames {
  #frames: (KeptFrame | undefined)[] = []
  #head = 0

  get count(): number {
    return this.#frames.length - this.#head
  }

  push(frame: KeptFrame): void {
    this.#frames.push(frame)
  }

  /** Its payload is not held any longer. */
  dropOldest(): void {
    if (this.count === 0) return
    this.#frames[this.#head] = undefined
    this.#head += 1
    if (this.#head === this.#frames.length || (this.#head >= 1024 && this.#head * 2 > this.#frames.length)) {
      this.#frames = this.#frames.slice(this.#head)
      this.#head = 0
    }
  }

  *[Symbol.iterator](): Generator<KeptFrame> {
    for (let index = this.#head; index < this.#frames.length; index += 1) yield this.#frames[index]!
  }

  clear(): void {
    this.#frames = []
    this.#head = 0
  }
}
