/**
 * SparseImage: an extent source together with its map, which is asked for once. Reads leave holes out, and who walks it
 * meets only what may hold data. The map is as good as the image is still: nobody should write to it meanwhile.
 */
import type { DataExtent } from '../../lib/catalog/data-extents.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'

export class SparseImage {
  readonly source: ExtentSource
  /** In order, apart from each other. */
  readonly extents: readonly DataExtent[]

  private constructor(source: ExtentSource, extents: readonly DataExtent[]) {
    this.source = source
    this.extents = extents
  }

  /** Asks for the map. Rejects as the source does. */
  static async of(source: ExtentSource, signal?: AbortSignal): Promise<SparseImage> {
    return new SparseImage(source, await source.extents(signal))
  }

  get path(): string {
    return this.source.path
  }

  get size(): number {
    return this.source.size
  }

  /** The parts of [start, end) that may hold data, in order. */
  *within(start: number, end: number): Generator<DataExtent> {
    for (let i = this.#firstEndingAfter(start); i < this.extents.length; i++) {
      const extent = this.extents[i]!
      if (extent.offset >= end) return
      yield { offset: Math.max(start, extent.offset), end: Math.min(end, extent.end) }
    }
  }

  /** Exactly `length` bytes. Rejects if the image ends before them, or cannot be read. */
  async read(offset: number, length: number): Promise<Buffer> {
    const parts = [...this.within(offset, offset + length)]
    if (parts.length === 1 && parts[0]!.offset === offset && parts[0]!.end === offset + length) {
      return await this.source.read(offset, length)
    }
    const whole = Buffer.alloc(length)
    for (const part of parts) {
      const bytes = await this.source.read(part.offset, part.end - part.offset)
      bytes.copy(whole, part.offset - offset)
    }
    return whole
  }

  #firstEndingAfter(offset: number): number {
    let low = 0
    let high = this.extents.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.extents[middle]!.end > offset) high = middle
      else low = middle + 1
    }
    return low
  }
}
