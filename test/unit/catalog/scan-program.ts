/** Scans an image into a catalog and says, a line each, how far it is; killed-scan.test.ts kills it. argv: catalog, image, bytes a second. */
import { ChunkIndex } from '../../../lib/catalog/chunk-index.ts'
import { ImageIndexer } from '../../../lib/catalog/image-index.ts'

const [catalog, path, bytesPerSecond] = process.argv.slice(2)
const table = (): ChunkIndex => ChunkIndex.create({ bytesMax: 64 * 1024 })
await using indexer = new ImageIndexer({ index: table(), blocks: table(), catalog: catalog! })
const done = await indexer.indexImage(path!, null, {
  bytesPerSecond: Number(bytesPerSecond),
  onProgress: ({ bytesDone }) => process.stdout.write(`${bytesDone}\n`),
})
process.stdout.write(`done ${done.mapped ? 'from its map' : 'scanned'}\n`)
