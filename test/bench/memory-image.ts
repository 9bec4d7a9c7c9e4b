/** The data of an image in memory, so that no disk is measured: its pages of a MiB that are not holes; everything else is zero. */
import { ImageSource } from '../../lib/catalog/image-files.ts'
import { zeroRuns } from '../../lib/chunk/zero.ts'
import { MIB } from '../../lib/core/units.ts'

export class MemoryImage {
  readonly size: number
  /** In 4 KiB blocks that are not zero. */
  dataBytes = 0
  readonly #pages = new Map<number, Buffer>()

  constructor(size: number) {
    this.size = size
  }

  static async of(path: string): Promise<MemoryImage> {
    await using source = await ImageSource.open(path)
    const image = new MemoryImage(source.size)
    for (const extent of await source.extents()) {
      for (let at = extent.offset; at < extent.end; ) {
        const page = Math.floor(at / MIB)
        const length = Math.min(extent.end, (page + 1) * MIB) - at
        ;(await source.read(at, length)).copy(image.page(page), at % MIB)
        at += length
      }
    }
    for (const bytes of image.#pages.values())
      for (const run of zeroRuns(bytes)) if (!run.zero) image.dataBytes += run.length
    return image
  }

  /** Zeroes, with memory for what `other` has: not taken while a clock runs. */
  static roomFor(other: MemoryImage): MemoryImage {
    const image = new MemoryImage(other.size)
    // Written to, so that the system has given it.
    for (const page of other.#pages.keys()) image.page(page).fill(0)
    return image
  }

  /** Ascending, each a MiB but for the image's end. */
  get pages(): [offset: number, bytes: Buffer][] {
    return [...this.#pages].sort(([a], [b]) => a - b).map(([page, bytes]) => [page * MIB, bytes])
  }

  page(number: number): Buffer {
    let page = this.#pages.get(number)
    if (page === undefined) {
      page = Buffer.alloc(Math.min(MIB, this.size - number * MIB))
      this.#pages.set(number, page)
    }
    return page
  }

  read(offset: number, length: number): Buffer {
    const bytes = Buffer.alloc(length)
    for (let at = offset; at < offset + length; ) {
      const page = Math.floor(at / MIB)
      const some = Math.min(offset + length, (page + 1) * MIB) - at
      this.#pages.get(page)?.copy(bytes, at - offset, at % MIB, (at % MIB) + some)
      at += some
    }
    return bytes
  }

  write(offset: number, data: Buffer): void {
    for (let at = 0; at < data.length; ) {
      const page = Math.floor((offset + at) / MIB)
      const some = Math.min(data.length - at, (page + 1) * MIB - offset - at)
      data.copy(this.page(page), (offset + at) % MIB, at, at + some)
      at += some
    }
  }

  equals(other: MemoryImage): boolean {
    const pages = new Set([...this.#pages.keys(), ...other.#pages.keys()])
    return [...pages].every((page) => {
      const length = Math.min(MIB, this.size - page * MIB)
      return this.read(page * MIB, length).equals(other.read(page * MIB, length))
    })
  }
}
