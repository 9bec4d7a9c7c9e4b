/** The writing thread of chunk-index.test.ts. */
import { workerData } from 'node:worker_threads'
import { ChunkIndex, type SharedChunkIndex } from '../../../lib/catalog/chunk-index.ts'
import { sha256 } from '../../../lib/chunk/digest.ts'

const { shared, count } = workerData as { shared: SharedChunkIndex; count: number }
const index = ChunkIndex.attach(shared)
for (let number = 0; number < count; number++) {
  const location = { image: number % 1000, offset: number * 4096, length: number + 1 }
  index.insert(sha256(Buffer.from(`digest ${number}`)), 0, location)
}
