/**
 * The thread behind an ImageIndexer: scans one image after the other into the shared chunk index. It runs at the
 * lowest priority, so that it takes the time that a migration leaves. A failed image is reported and the next one is
 * begun; only a fault of our own ends the thread.
 */
import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { basename } from 'node:path'
import { parentPort, workerData } from 'node:worker_threads'
import { Chunker } from '../chunk/chunker.ts'
import { errorText } from '../core/errors.ts'
import { ChunkIndex, type SharedChunkIndex } from './chunk-index.ts'
import { type ImageIdentity, ImageSource } from './image-files.ts'
import { scanImage } from './image-scan.ts'

export type IndexRequest =
  | { readonly type: 'index'; readonly id: number; readonly path: string; readonly imageNumber: number }
  | { readonly type: 'abort'; readonly id: number }

/** How far an image is; `chunks` were cut, `inserted` of them were new to the index and found room. */
export interface IndexProgress {
  readonly bytesDone: number
  readonly bytesTotal: number
  readonly zeroBytes: number
  readonly chunks: number
  readonly inserted: number
}

export type IndexReply =
  | { readonly type: 'progress'; readonly id: number; readonly progress: IndexProgress }
  | {
      readonly type: 'done'
      readonly id: number
      readonly identity: ImageIdentity
      readonly progress: IndexProgress
      readonly stale: boolean
    }
  | { readonly type: 'failed'; readonly id: number; readonly message: string }

if (parentPort === null) throw new Error('image-index-worker.ts runs as a worker thread only')

const port = parentPort
const index = ChunkIndex.attach(workerData as SharedChunkIndex)
const chunker = new Chunker()
const aborts = new Map<number, AbortController>()
let tail: Promise<void> = Promise.resolve()

// On Linux a priority belongs to a thread; the link names /proc/PID/task/TID of the thread that reads it.
setPriority(Number(basename(readlinkSync('/proc/thread-self'))), 19)

function reply(message: IndexReply): void {
  port.postMessage(message)
}

async function indexImage(id: number, path: string, imageNumber: number, signal: AbortSignal): Promise<void> {
  signal.throwIfAborted()
  await using source = await ImageSource.open(path)
  const bytesTotal = source.identity.size
  let progress: IndexProgress = { bytesDone: 0, bytesTotal, zeroBytes: 0, chunks: 0, inserted: 0 }
  let chunks = 0
  let inserted = 0
  await scanImage(source, chunker, {
    signal,
    onChunk: (offset, length, digests, digestOffset) => {
      chunks++
      if (index.insert(digests, digestOffset, { image: imageNumber, offset, length })) inserted++
    },
    onProgress: (bytesDone, zeroBytes) => {
      progress = { bytesDone, bytesTotal, zeroBytes, chunks, inserted }
      reply({ type: 'progress', id, progress })
    },
  })
  reply({ type: 'done', id, identity: source.identity, progress, stale: await source.isStale() })
}

port.on('message', (request: IndexRequest) => {
  if (request.type === 'abort') {
    aborts.get(request.id)?.abort()
    return
  }
  const { id, path, imageNumber } = request
  const abort = new AbortController()
  aborts.set(id, abort)
  tail = tail
    .then(() => indexImage(id, path, imageNumber, abort.signal))
    .catch((error: unknown) => reply({ type: 'failed', id, message: errorText(error) }))
    .finally(() => aborts.delete(id))
})
