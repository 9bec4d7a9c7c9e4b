/**
 * HaveStock: the images that the far side is supposed to have, as the stock that its receiver looks into. The index, the cut
 * and the way it is asked are the daemon's own (ChunkIndex, scanImage, StockSource); only who chose the images differs:
 * whoever typed the command, so they may be block devices and exports too. All are scanned before anything is sent.
 */
import { ChunkIndex } from '../../lib/catalog/chunk-index.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { scanImage } from '../../lib/catalog/image-scan.ts'
import { Chunker } from '../../lib/chunk/chunker.ts'
import { BLOCK_BYTES } from '../../lib/core/units.ts'
import type { ChunkStock, StockedImage } from '../../lib/engine/stock-source.ts'

export class HaveStock implements ChunkStock {
  readonly images: StockedImage[] = []
  readonly #index: ChunkIndex
  readonly #blocks: ChunkIndex
  readonly #chunker = new Chunker()

  constructor(options: { readonly indexBytesMax: number; readonly blockIndexBytesMax: number }) {
    this.#index = ChunkIndex.create({ bytesMax: options.indexBytesMax })
    this.#blocks = ChunkIndex.create({ bytesMax: options.blockIndexBytesMax })
  }

  /** Chunks that found the index full, and will only be found at the same offset. */
  get refused(): number {
    return this.#index.refused
  }

  image(number: number): StockedImage | undefined {
    return this.images[number]
  }

  lookup(digest: Buffer): readonly { image: number; offset: number; length: number }[] {
    return this.#index.lookup(digest)
  }

  get blockCount(): number {
    return this.#blocks.count
  }

  lookupBlock(hints: Buffer, hintOffset: number): readonly { image: number; offset: number }[] {
    return this.#blocks.lookup(hints, hintOffset)
  }

  /** Scans the image on this thread; it stays the caller's to close. Rejects if it cannot be read, or at the signal. */
  async add(source: ExtentSource, signal?: AbortSignal): Promise<void> {
    const number = this.images.length
    await scanImage(source, this.#chunker, {
      onChunk: (offset, length, digests, digestOffset) => {
        this.#index.insert(digests, digestOffset, { image: number, offset, length })
      },
      onBlock: (offset, hint) => {
        this.#blocks.insert(hint, 0, { image: number, offset, length: BLOCK_BYTES })
      },
      ...(signal === undefined ? {} : { signal }),
    })
    this.images.push({ number, path: source.path, size: source.size, source })
  }
}
