/**
 * Fills a ChunkIndex from image files, or from their maps where these are good, on a worker thread of low priority, while
 * lookups already use what is there.
 * Images are scanned one after the other, in the order of the calls. The result says what the file was when the scan
 * began (its identity); a file that is written to meanwhile costs hits, never correctness: every hit is verified.
 */
import { Worker } from 'node:worker_threads'
import { errorText, LostError, RefusedError } from '../core/errors.ts'
import { IMAGE_NUMBER_MAX } from '../core/limits.ts'
import type { ChunkIndex } from './chunk-index.ts'
import type { ImageIdentity } from './image-files.ts'
import type { IndexProgress, IndexReply, IndexRequest, IndexWorkerData } from './image-index-worker.ts'

export type { IndexProgress } from './image-index-worker.ts'

export interface IndexedImage {
  readonly path: string
  readonly imageNumber: number
  readonly identity: ImageIdentity
  readonly progress: IndexProgress
  /** The file was written to while it was scanned. */
  readonly stale: boolean
  /** From its map: nothing of the image was read. */
  readonly mapped: boolean
  /** Why its map could not be used, or not be written; the image is indexed all the same. */
  readonly problem: string | undefined
}

export interface IndexImageOptions {
  readonly onProgress?: (progress: IndexProgress) => void
  readonly signal?: AbortSignal
}

interface Job {
  readonly path: string
  readonly imageNumber: number
  readonly onProgress: IndexImageOptions['onProgress']
  readonly resolve: (image: IndexedImage) => void
  readonly reject: (error: unknown) => void
}

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
  }) {
    const { index, blocks, catalog } = options
    const workerData: IndexWorkerData = { shared: index.shared, sharedBlocks: blocks.shared, catalog }
    this.#worker = new Worker(new URL('./image-index-worker.ts', import.meta.url), {
      name: 'swam-image-index',
      workerData,
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
   * Scans the file at `path` (resolved and allowed by the caller) and inserts its chunks as those of image
   * `imageNumber`. Rejects with a RefusedError if it cannot be read; what was inserted until then stays.
   */
  indexImage(path: string, imageNumber: number, options: IndexImageOptions = {}): Promise<IndexedImage> {
    const { onProgress, signal } = options
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted()
      if (this.#failure !== undefined) throw this.#failure
      if (!Number.isInteger(imageNumber) || imageNumber < 0 || imageNumber > IMAGE_NUMBER_MAX) {
        throw new RangeError(
          `index image ${path}: a number of 0 to ${IMAGE_NUMBER_MAX} expected, not ${imageNumber}`,
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
        resolve: (image) => {
          settled()
          resolve(image)
        },
        reject: (error) => {
          settled()
          reject(error)
        },
      })
      this.#post({ type: 'index', id, path, imageNumber })
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
    const { path, imageNumber } = job
    if (reply.type === 'failed') {
      job.reject(new RefusedError(`index image ${path}: ${reply.message}`))
      return
    }
    const { identity, progress, stale, mapped, problem } = reply
    job.resolve({ path, imageNumber, identity, progress, stale, mapped, problem })
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
