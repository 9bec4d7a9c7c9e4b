/**
 * A sparse disk in memory, for tests and benches: pages that were never written, or were zeroed, take no memory and are
 * reported as holes. Everything is done at once and in call order; FLUSH and FUA have nothing to do. Not for large
 * images: there is no limit on what it holds.
 */
import {
  ALL_FEATURES,
  type BlockDevice,
  type BlockSizes,
  type DeviceFeatures,
  type StatusExtent,
} from './device.ts'

export interface MemoryDeviceOptions {
  readonly size: number
  readonly blockSizes?: BlockSizes
  readonly features?: Partial<DeviceFeatures>
}

const PAGE_BYTES = 65536

export class MemoryDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
  /** Flushes seen so far, for tests. */
  flushes = 0
  readonly #pages: Map<number, Buffer> = new Map()

  constructor(options: MemoryDeviceOptions) {
    this.size = options.size
    this.blockSizes = options.blockSizes ?? { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 }
    this.features = { ...ALL_FEATURES, ...options.features }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const whole = Buffer.allocUnsafeSlow(length)
    this.#walk(offset, length, (page, start, end, at) => {
      const bytes = this.#pages.get(page)
      if (bytes === undefined) whole.fill(0, at, at + end - start)
      else bytes.copy(whole, at, start, end)
    })
    return whole
  }

  /** A page that is covered whole keeps its part of `data`, which belongs to this device from the call on. */
  async write(offset: number, data: Buffer): Promise<void> {
    this.#walk(offset, data.length, (page, start, end, at) => {
      if (end - start === PAGE_BYTES) this.#pages.set(page, data.subarray(at, at + PAGE_BYTES))
      else data.copy(this.#page(page), start, at, at + end - start)
    })
  }

  async writeZeroes(offset: number, length: number, flags?: { readonly noHole?: boolean }): Promise<void> {
    this.#walk(offset, length, (page, start, end) => {
      const whole = end - start === PAGE_BYTES || page * PAGE_BYTES + end === this.size
      if (flags?.noHole === true) this.#page(page).fill(0, start, end)
      else if (start === 0 && whole) this.#pages.delete(page)
      else this.#pages.get(page)?.fill(0, start, end)
    })
  }

  async trim(offset: number, length: number): Promise<void> {
    await this.writeZeroes(offset, length)
  }

  async cache(): Promise<void> {}

  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    const extents: { length: number; hole: boolean; zero: boolean }[] = []
    this.#walk(offset, length, (page, start, end) => {
      const hole = !this.#pages.has(page)
      const last = extents.at(-1)
      if (last?.hole === hole) last.length += end - start
      else extents.push({ length: end - start, hole, zero: hole })
    })
    return extents
  }

  async flush(): Promise<void> {
    this.flushes++
  }

  async close(): Promise<void> {}

  /** Calls back for each page that the range touches: page number, start and end in the page, place in the range. */
  #walk(
    offset: number,
    length: number,
    visit: (page: number, start: number, end: number, at: number) => void,
  ): void {
    let at = 0
    while (at < length) {
      const page = Math.floor((offset + at) / PAGE_BYTES)
      const start = (offset + at) % PAGE_BYTES
      const end = Math.min(PAGE_BYTES, start + length - at)
      visit(page, start, end, at)
      at += end - start
    }
  }

  #page(page: number): Buffer {
    let bytes = this.#pages.get(page)
    if (bytes === undefined) {
      bytes = Buffer.alloc(PAGE_BYTES)
      this.#pages.set(page, bytes)
    }
    return bytes
  }
}
