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
import { hintOf } from '../chunk/digest.ts'
import { errorText } from '../core/errors.ts'
import { BLOCK_BYTES, HINT_BYTES } from '../core/units.ts'
import { ChunkIndex, type SharedChunkIndex } from './chunk-index.ts'
import { type ImageIdentity, ImageSource } from './image-files.ts'
import { ImageMap, ImageMapWriter } from './image-map.ts'
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
      /** From its map: nothing of the image was read. */
      readonly mapped: boolean
      /** Why its map could not be used, or not be written. */
      readonly problem: string | undefined
    }
  | { readonly type: 'failed'; readonly id: number; readonly message: string }

export interface IndexWorkerData {
  readonly shared: SharedChunkIndex
  /** The same for blocks of 4 KiB. */
  readonly sharedBlocks: SharedChunkIndex
  /** Where maps lie; without it every image is scanned. */
  readonly catalog: string | undefined
}

if (parentPort === null) throw new Error('image-index-worker.ts runs as a worker thread only')

const port = parentPort
const { shared, sharedBlocks, catalog } = workerData as IndexWorkerData
const index = ChunkIndex.attach(shared)
const blocks = ChunkIndex.attach(sharedBlocks)
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
  const { identity } = source
  const bytesTotal = identity.size
  let problem: string | undefined
  try {
    const progress = await insertMapped(path, identity, imageNumber, signal)
    if (progress !== undefined) {
      reply({ type: 'progress', id, progress })
      reply({ type: 'done', id, identity, progress, stale: false, mapped: true, problem })
      return
    }
  } catch (error) {
    signal.throwIfAborted()
    problem = errorText(error)
  }
  let progress: IndexProgress = { bytesDone: 0, bytesTotal, zeroBytes: 0, chunks: 0, inserted: 0 }
  let chunks = 0
  let inserted = 0
  const map = new MapKeeper(path, identity)
  try {
    await scanImage(source, chunker, {
      signal,
      onChunk: (offset, length, digests, digestOffset) => {
        chunks++
        if (index.insert(digests, digestOffset, { image: imageNumber, offset, length })) inserted++
        map.add(digests, digestOffset, offset, length)
      },
      onBlock: (offset, bytes) => {
        const hint = hintOf(bytes)
        blocks.insert(hint, 0, { image: imageNumber, offset, length: BLOCK_BYTES })
        map.addBlock(offset, hint)
      },
      onProgress: (bytesDone, zeroBytes) => {
        progress = { bytesDone, bytesTotal, zeroBytes, chunks, inserted }
        reply({ type: 'progress', id, progress })
      },
    })
    const stale = await source.isStale()
    // Of an image that is written to there would be another one each time.
    if (!stale) map.finish()
    problem ??= map.problem
    reply({ type: 'done', id, identity, progress, stale, mapped: false, problem })
  } finally {
    map.abort()
  }
}

/** What its map says of the image; nothing when there is none. @throws RefusedError, or what reading it throws */
async function insertMapped(
  path: string,
  identity: ImageIdentity,
  image: number,
  signal: AbortSignal,
): Promise<IndexProgress | undefined> {
  if (catalog === undefined) return undefined
  using map = ImageMap.open(catalog, path, identity)
  if (map === undefined) return undefined
  let inserted = 0
  let dataBytes = 0
  for (const piece of map.pieces()) {
    signal.throwIfAborted()
    if (Array.isArray(piece)) {
      for (const { key, offset, length } of piece) {
        if (index.insert(key, 0, { image, offset, length })) inserted++
        dataBytes += length
      }
    } else {
      for (let at = 0; at < piece.hints.length; at += HINT_BYTES) {
        const offset = piece.offset + (at / HINT_BYTES) * BLOCK_BYTES
        blocks.insert(piece.hints, at, { image, offset, length: BLOCK_BYTES })
      }
    }
    await new Promise((resolve) => setImmediate(resolve))
  }
  const { size } = identity
  return { bytesDone: size, bytesTotal: size, zeroBytes: size - dataBytes, chunks: map.count, inserted }
}

/** A map that cannot be written (a full disk) is a pity, and no reason not to know the image now. */
class MapKeeper {
  problem: string | undefined
  #writer: ImageMapWriter | undefined

  constructor(path: string, identity: ImageIdentity) {
    if (catalog !== undefined) this.#try(() => (this.#writer = new ImageMapWriter(catalog, path, identity)))
  }

  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    this.#try(() => this.#writer?.add(digests, digestOffset, offset, length))
  }

  addBlock(offset: number, hint: Buffer): void {
    this.#try(() => this.#writer?.addBlock(offset, hint))
  }

  finish(): void {
    this.#try(() => this.#writer?.finish())
  }

  abort(): void {
    this.#writer?.abort()
  }

  #try(work: () => unknown): void {
    if (this.problem !== undefined) return
    try {
      work()
    } catch (error) {
      this.problem = errorText(error)
      this.#writer?.abort()
      this.#writer = undefined
    }
  }
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
