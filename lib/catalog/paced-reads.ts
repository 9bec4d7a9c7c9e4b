/**
 * An image as a scan in the background reads it: at most so many bytes a second, and on the scanning thread itself, so that its
 * low priority holds for the reads too (libuv's pool has none); what QEMU exports is read by a process that inherits it.
 * Between two reads the thread's messages come in.
 */
import { readSync } from 'node:fs'
import { MIB } from '../core/units.ts'
import type { DataExtent } from './data-extents.ts'
import type { ExtentSource } from './extent-source.ts'
import { ImageSource } from './image-files.ts'

/** What may be read at once before the rate counts: a scan that waited does not catch up with a burst. */
const BURST_BYTES = 8 * MIB

export class PacedReads implements ExtentSource {
  readonly #source: ExtentSource
  #bytesPerSecond: number
  /** When, in ms of the monotonic clock, what was read is paid for. */
  #dueMs = Number.NEGATIVE_INFINITY
  #wake: () => void = () => undefined

  /** @param bytesPerSecond 0: as fast as they come */
  constructor(source: ExtentSource, bytesPerSecond: number) {
    this.#source = source
    this.#bytesPerSecond = bytesPerSecond
  }

  get path(): string {
    return this.#source.path
  }

  get size(): number {
    return this.#source.size
  }

  /** Somebody waits for it: no rate from now on. */
  hurry(): void {
    this.#bytesPerSecond = 0
    this.#wake()
  }

  extents(signal?: AbortSignal): Promise<DataExtent[]> {
    return this.#source.extents(signal)
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.#source.read(offset, length)
  }

  async readInto(target: Uint8Array, offset: number): Promise<number> {
    await this.#turn(target.length)
    const source = this.#source
    if (!(source instanceof ImageSource)) return await source.readInto(target, offset)
    let filled = 0
    while (filled < target.length) {
      const got = readSync(source.fd, target, filled, target.length - filled, offset + filled)
      if (got === 0) break
      filled += got
    }
    return filled
  }

  async #turn(bytes: number): Promise<void> {
    const now = performance.now()
    if (this.#bytesPerSecond === 0) {
      await new Promise((resolve) => setImmediate(resolve))
      return
    }
    const earliest = now - (BURST_BYTES / this.#bytesPerSecond) * 1000
    this.#dueMs = Math.max(this.#dueMs, earliest) + (bytes / this.#bytesPerSecond) * 1000
    const { promise, resolve } = Promise.withResolvers<void>()
    const timer = setTimeout(resolve, Math.max(0, this.#dueMs - now))
    this.#wake = resolve
    await promise
    clearTimeout(timer)
  }

  isStale(): Promise<boolean> {
    return this.#source.isStale()
  }

  close(): Promise<void> {
    return this.#source.close()
  }
}
