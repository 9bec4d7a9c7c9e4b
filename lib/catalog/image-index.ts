/**
 * Fills a ChunkIndex from image files, or from their maps where there are any, on a worker thread of low priority, while
 * lookups already use what is there.
 * Images are scanned one after the other, in the order of the calls; maps are taken in meanwhile. The result says what the file
 * was when the scan began (its identity); a file that is written to meanwhile costs hits, never correctness: every hit is verified.
 */
import { Worker } from 'node:worker_threads'
import { errorText, LostError, RefusedError } from '../core/errors.ts'
import { IMAGE_NUMBER_MAX } from '../core/limits.ts'
import type { ChunkIndex } from './chunk-index.ts'
import type { ImageIdentity } from './image-files.ts'
import type { IndexProgress, IndexReply, IndexRequest, IndexWorkerData } from './image-index-worker.ts'
import type { MapSummary } from './image-map.ts'
import type { ImageRef } from './open-image.ts'

export type { IndexProgress } from './image-index-worker.ts'

export interface IndexedImage {
  readonly path: string
  readonly imageNumber: number | null
  /** What the image was when it was scanned. */
  readonly identity: ImageIdentity
  readonly progress: IndexProgress
  /** The file was written to while it was scanned, or since its map was made. */
  readonly stale: boolean
  /** From its map: nothing of the image was read. */
  readonly mapped: boolean
  /** Why its map could not be used, or not be written; the image is indexed all the same. */
  readonly problem: string | undefined
  /** How large its map was when it was given up for that; else 0. */
  readonly tooLargeBytes: number
}

export interface IndexImageOptions {
  readonly onProgress?: (progress: IndexProgress) => void
  readonly signal?: AbortSignal
  /** Scans it also when there is a map of it. */
  readonly anew?: boolean
  /** Bytes of the image that are read in a second; 0 or none: as fast as it goes. */
  readonly bytesPerSecond?: number
  /** When it resolves, bytesPerSecond holds no more. */
  readonly hurry?: Promise<void>
  /** A map that gets larger is given up; 0: none is made. */
  readonly mapBytesMax?: number
}

/** What a map says of itself, and why one that lies there is not believed. */
export interface PeekedMap {
  readonly summary: MapSummary | undefined
  readonly problem: string | undefined
}

interface Job {
  readonly path: string
  readonly imageNumber: number | null
  readonly onProgress: IndexImageOptions['onProgress']
  readonly resolve: (reply: Extract<IndexReply, { type: 'done' | 'peeked' }>) => void
  readonly reject: (error: unknown) => void
}

type Done = Extract<IndexReply, { type: 'done' }>
type Peeked = Extract<IndexReply, { type: 'peeked' }>

export class ImageIndexer {
  readonly #worker: Worker
  readonly #jobs = new Map<number, Job>()
  #nextId = 0
  #failure: Error | undefined
  #closing: Promise<void> | undefined

  /**
   * The indexer is the only writer of both indexes, and of the maps in `catalog`: a directory that it makes when it is needed.
   * Without one every image is scanned.
   */
  constructor(options: {
    readonly index: ChunkIndex
    readonly blocks: ChunkIndex
    readonly catalog?: string
    readonly freeBytesMin?: number
    readonly freeChunksMax?: number
  }) {
    const { index, blocks, catalog, freeBytesMin, freeChunksMax } = options
    const workerData: IndexWorkerData = {
      shared: index.shared,
      sharedBlocks: blocks.shared,
      catalog,
      freeBytesMin,
      freeChunksMax,
    }
    this.#worker = new Worker(new URL('./image-index-worker.ts', import.meta.url), {
      name: 'swam-image-index',
      workerData,
      // It makes many small things that do not last: more room for them would only be more memory.
      resourceLimits: { maxYoungGenerationSizeMb: 8 },
    })
    // Only work keeps the process alive.
    this.#worker.unref()
    this.#worker.on('message', (reply: IndexReply) => this.#receive(reply))
    this.#worker.on('error', (error) => {
      this.#fail(new LostError(`image indexer: worker failed: ${errorText(error)}`, { cause: error }))
    })
    this.#worker.on('exit', (code) => {
      this.#fail(new LostError(`image indexer: worker exited unexpectedly with code ${code}`))
    })
  }

  /**
   * Scans the file at `path` (resolved and allowed by the caller), or reads its map if that is of what the file is now, and
   * inserts its chunks as those of image `imageNumber`; null: only a map is made. Rejects with a RefusedError if it cannot be
   * read; what was inserted until then stays.
   */
  async indexImage(
    image: string | ImageRef,
    imageNumber: number | null,
    options: IndexImageOptions = {},
  ): Promise<IndexedImage> {
    const { anew = false, bytesPerSecond = 0, mapBytesMax = Number.POSITIVE_INFINITY } = options
    const ref = imageRef(image)
    const { path } = ref
    const done = await this.#ask<Done>(path, imageNumber, options, (id) => {
      void options.hurry?.then(() => {
        if (this.#jobs.has(id)) this.#post({ type: 'hurry', id })
      })
      return { type: 'index', id, image: ref, imageNumber, anew, bytesPerSecond, mapBytesMax }
    })
    return indexed(path, imageNumber, done)
  }

  /**
   * Takes in what the map of the file says, also one of what it was before: its chunks, and its blocks if they are wanted.
   * Rejects with a RefusedError if there is none that can be believed, which may be seen at its end only: what was inserted until
   * then stays, and is to be forgotten.
   */
  async loadImage(
    image: string | ImageRef,
    imageNumber: number,
    options: { readonly withBlocks: boolean; readonly signal?: AbortSignal },
  ): Promise<IndexedImage> {
    const { withBlocks } = options
    const ref = imageRef(image)
    const done = await this.#ask<Done>(ref.path, imageNumber, options, (id) => {
      return { type: 'load', id, image: ref, imageNumber, withBlocks }
    })
    return indexed(ref.path, imageNumber, done)
  }

  /** Whether there is a map of the file, and what it says of itself. Rejects with a RefusedError if the file cannot be opened. */
  async peekMap(image: string | ImageRef): Promise<PeekedMap> {
    const ref = imageRef(image)
    const { summary, problem } = await this.#ask<Peeked>(ref.path, null, {}, (id) => {
      return { type: 'peek', id, image: ref }
    })
    return { summary, problem }
  }

  #ask<Answer extends Done | Peeked>(
    path: string,
    imageNumber: number | null,
    options: Pick<IndexImageOptions, 'onProgress' | 'signal'>,
    request: (id: number) => IndexRequest,
  ): Promise<Answer> {
    const { onProgress, signal } = options
    return new Promise<Answer>((resolve, reject) => {
      signal?.throwIfAborted()
      if (this.#failure !== undefined) throw this.#failure
      const number = imageNumber ?? 0
      if (!Number.isInteger(number) || number < 0 || number > IMAGE_NUMBER_MAX) {
        throw new RangeError(
          `index image ${path}: a number of 0 to ${IMAGE_NUMBER_MAX} expected, not ${number}`,
        )
      }
      const id = this.#nextId++
      const onAbort = (): void => {
        this.#jobs.delete(id)
        this.#post({ type: 'abort', id })
        this.#refWhileBusy()
        reject(signal?.reason)
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      const settled = (): void => signal?.removeEventListener('abort', onAbort)
      this.#jobs.set(id, {
        path,
        imageNumber,
        onProgress,
        resolve: (answer) => {
          settled()
          resolve(answer as Answer)
        },
        reject: (error) => {
          settled()
          reject(error)
        },
      })
      this.#post(request(id))
      this.#refWhileBusy()
    })
  }

  /** Ends the scan; what is not scanned yet is rejected. The index stays usable. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#fail(new LostError('image indexer: closed'))
    await this.#worker.terminate()
  }

  #post(request: IndexRequest): void {
    this.#worker.postMessage(request)
  }

  #refWhileBusy(): void {
    if (this.#jobs.size > 0) this.#worker.ref()
    else this.#worker.unref()
  }

  #receive(reply: IndexReply): void {
    const job = this.#jobs.get(reply.id)
    // Aborted meanwhile.
    if (job === undefined) return
    if (reply.type === 'progress') {
      job.onProgress?.(reply.progress)
      return
    }
    this.#jobs.delete(reply.id)
    this.#refWhileBusy()
    if (reply.type === 'failed') job.reject(new RefusedError(`index image ${job.path}: ${reply.message}`))
    else job.resolve(reply)
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    const jobs = [...this.#jobs.values()]
    this.#jobs.clear()
    for (const job of jobs) job.reject(error)
    this.#worker.unref()
  }
}

/** A path alone is a raw image's. */
function imageRef(image: string | ImageRef): ImageRef {
  return typeof image === 'string' ? { path: image, format: 'raw', directories: [] } : image
}

function indexed(path: string, imageNumber: number | null, done: Done): IndexedImage {
  const { identity, progress, stale, mapped, problem, tooLargeBytes } = done
  return { path, imageNumber, identity, progress, stale, mapped, problem, tooLargeBytes }
}
