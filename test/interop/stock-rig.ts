/** An ImageStock on real files and devices, for tests of what it finds. */
import { utimes } from 'node:fs/promises'
import { join } from 'node:path'
import { type ImageFile, listImages } from '../../lib/catalog/image-files.ts'
import type { IndexedImage } from '../../lib/catalog/image-index.ts'
import { ImageStock } from '../../lib/catalog/stock.ts'
import { Chunker } from '../../lib/chunk/chunker.ts'
import { DIGEST_BYTES, hintOf } from '../../lib/chunk/digest.ts'
import { MIB } from '../../lib/core/units.ts'

/** As if nobody had written to it for an hour. */
export async function aged(path: string): Promise<void> {
  const when = Date.now() / 1000 - 3600
  await utimes(path, when, when)
}

export interface Rig {
  readonly stock: ImageStock
  readonly problems: string[]
  readonly indexed: IndexedImage[]
  refresh(): Promise<void>
  tend(): Promise<void>
}

export interface StockPlace {
  /** The directory of images; `images` in the folder. */
  readonly images?: string
  readonly isQcow2?: (path: string) => boolean
}

/** A stock with its maps in the folder, while `work` runs. */
export async function withStock(
  folder: string,
  { images = join(folder, 'images'), isQcow2 = () => false }: StockPlace,
  work: (rig: Rig) => Promise<void>,
): Promise<void> {
  const problems: string[] = []
  const indexed: IndexedImage[] = []
  const stock = new ImageStock({
    indexBytesMax: MIB,
    blockIndexBytesMax: MIB,
    imagesMax: 32,
    directories: [images],
    catalog: join(folder, 'catalog'),
    onProblem: (problem) => problems.push(problem),
    onIndexed: (image) => indexed.push(image),
  })
  const files = async (): Promise<ImageFile[]> =>
    (await listImages([images])).map((file) => (isQcow2(file.path) ? { ...file, format: 'qcow2' } : file))
  try {
    await work({
      stock,
      problems,
      indexed,
      refresh: async () => {
        await stock.refresh(files, new Set())
        while (stock.busy) await new Promise((resolve) => setTimeout(resolve, 10))
      },
      tend: async () => stock.tend(files, { busy: () => new Set(), bytesPerSecond: 1024 * MIB }),
    })
  } finally {
    await stock.close()
  }
}

/** How much of these bytes is found by chunk and read back, and by block. */
export async function share(stock: ImageStock, bytes: Buffer): Promise<{ chunks: number; blocks: number }> {
  const { lengths, digests } = new Chunker().describe(bytes, 0)
  let chunks = 0
  let at = 0
  for (const [number, length] of lengths.entries()) {
    const digest = Buffer.from(digests.subarray(number * DIGEST_BYTES, (number + 1) * DIGEST_BYTES))
    for (const place of stock.lookup(digest)) {
      const there = await stock.image(place.image)?.source.read(place.offset, place.length)
      if (there?.equals(bytes.subarray(at, at + length)) !== true) continue
      chunks += length
      break
    }
    at += length
  }
  let blocks = 0
  for (at = 0; at < bytes.length; at += 4096) {
    const hint = hintOf(bytes.subarray(at, at + 4096))
    if (stock.lookupBlock(hint, 0).some(({ image }) => stock.image(image) !== undefined)) blocks += 4096
  }
  return { chunks: chunks / bytes.length, blocks: blocks / bytes.length }
}
