/**
 * Flushes a device in the background while a guest goes on writing, so that the FLUSH for which it is paused finds little. Often
 * only once it was asked for a FLUSH: before that a disk is being copied, and every flush slows that down; so only as often as the next
 * attempt wants to find what came, should the host or its QEMU die: of a qcow2 that was never flushed nothing may be left. A failure
 * is the session's (I2): a disk that could not write something back may say yes to the next flush all the same.
 */
import type { BlockDevice } from '../block/device.ts'
import { type Clock, systemClock } from '../core/clock.ts'
import { FLUSH_AHEAD_MS, FLUSH_BULK_MS } from '../core/limits.ts'

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
  #often = false
  #ended = false

  constructor(options: FlushAheadOptions) {
    this.#options = options
  }

  /** Something was written since. */
  wrote(): void {
    this.#written = true
    if (this.#stop === undefined) this.#later()
  }

  /** A FLUSH was asked for. */
  start(): void {
    if (this.#often) return
    this.#often = true
    this.#stop?.()
    this.#later()
  }

  stop(): void {
    this.#ended = true
    this.#stop?.()
  }

  #later(): void {
    if (this.#ended) return
    const { clock = systemClock } = this.#options
    this.#stop = clock.after(this.#often ? FLUSH_AHEAD_MS : FLUSH_BULK_MS, () => {
      this.#later()
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
