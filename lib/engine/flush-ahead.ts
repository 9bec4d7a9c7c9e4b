/**
 * Flushes a device in the background while a guest goes on writing, so that the FLUSH for which it is paused finds little. Only
 * once it was asked for a FLUSH: before that a disk is being copied, and every flush would only slow that down. A failure is
 * the session's (I2): a disk that could not write something back may say yes to the next flush all the same.
 */
import type { BlockDevice } from '../block/device.ts'
import { type Clock, systemClock } from '../core/clock.ts'
import { FLUSH_AHEAD_MS } from '../core/limits.ts'

export interface FlushAheadOptions {
  readonly device: Pick<BlockDevice, 'flush'>
  readonly fail: (error: unknown) => void
  readonly clock?: Clock | undefined
}

export class FlushAhead {
  readonly #options: FlushAheadOptions
  #written = false
  #stop: (() => void) | undefined
  #busy = false

  constructor(options: FlushAheadOptions) {
    this.#options = options
  }

  /** Something was written since. */
  wrote(): void {
    this.#written = true
  }

  /** A FLUSH was asked for. */
  start(): void {
    this.#stop ??= this.#later()
  }

  stop(): void {
    this.#stop?.()
    this.#stop = undefined
  }

  #later(): () => void {
    return (this.#options.clock ?? systemClock).after(FLUSH_AHEAD_MS, () => {
      this.#stop = this.#later()
      void this.#flush().catch(this.#options.fail)
    })
  }

  async #flush(): Promise<void> {
    if (this.#busy || !this.#written) return
    this.#busy = true
    this.#written = false
    try {
      await this.#options.device.flush()
    } finally {
      this.#busy = false
    }
  }
}
