/**
 * What a disk most likely holds, without reading it where that can be had: the map of its image in the catalog, also one that was
 * made when the image was another one (a guest that runs writes to it), else a scan. Nothing here is believed to be exact.
 */
import { once } from 'node:events'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import type { ImageRef } from '../../lib/catalog/open-image.ts'
import { errorText, LostError } from '../../lib/core/errors.ts'
import { EXPORT_END_MS } from '../../lib/core/limits.ts'
import type { DiskMapReply, DiskMapRequest, DiskMapWorkerData } from './disk-map-worker.ts'
import type { DiskPiece } from './disk-piece.ts'
import { UnreadableDisk } from './live-image.ts'

export interface DiskMap {
  /** Of the disk, in bytes. */
  readonly size: number
  /** When the map was made, in milliseconds since 1970; null: there is none, and the image is being scanned. */
  readonly madeAt: number | null
  /** Why a map that lies there was of no use. */
  readonly problem: string | undefined
  /** In the order of the disk, once. What is not taken is not read. @throws UnreadableDisk, the signal's reason */
  pieces(): AsyncGenerator<DiskPiece>
  /** Ends the reading. Idempotent. */
  close(): Promise<void>
}

/**
 * @param image resolved and allowed by the caller @param catalog where maps lie
 * @throws UnreadableDisk; the signal's reason
 */
export async function mapOfDisk(image: ImageRef, catalog: string, signal: AbortSignal): Promise<DiskMap> {
  const inbox = new Inbox(image, catalog, signal)
  try {
    const first = await inbox.next()
    if (first.type !== 'begun') throw new LostError(`map of ${image.path}: the thread said ${first.type}`)
    return {
      size: first.size,
      madeAt: first.madeAt,
      problem: first.problem,
      pieces: () => inbox.pieces(),
      close: () => inbox.close(),
    }
  } catch (error) {
    await inbox.close()
    throw error
  }
}

class Inbox {
  readonly #path: string
  readonly #worker: Worker
  readonly #replies: DiskMapReply[] = []
  readonly #signal: AbortSignal
  readonly #gone: Promise<unknown>
  #error: Error | undefined
  #wake: () => void = () => undefined

  constructor(image: ImageRef, catalog: string, signal: AbortSignal) {
    signal.throwIfAborted()
    this.#path = image.path
    this.#signal = signal
    const workerData: DiskMapWorkerData = { image, catalog }
    this.#worker = new Worker(new URL('./disk-map-worker.ts', import.meta.url), {
      name: 'swam-disk-map',
      workerData,
    })
    this.#gone = once(this.#worker, 'exit').catch(() => undefined)
    signal.addEventListener('abort', this.#aborted, { once: true })
    this.#worker.on('message', (reply: DiskMapReply) => {
      this.#replies.push(reply)
      this.#wake()
    })
    this.#worker.on('error', (error) => this.#fail(errorText(error)))
    this.#worker.on('exit', () => this.#fail('the thread ended'))
  }

  readonly #aborted = (): void => this.#wake()

  #fail(why: string): void {
    this.#error ??= new LostError(`map of ${this.#path}: ${why}`)
    this.#wake()
  }

  async next(): Promise<DiskMapReply> {
    for (;;) {
      this.#signal.throwIfAborted()
      const reply = this.#replies.shift()
      if (reply?.type === 'failed') throw new UnreadableDisk(reply.message)
      if (reply !== undefined) return reply
      if (this.#error !== undefined) throw this.#error
      await new Promise<void>((resolve) => {
        this.#wake = resolve
      })
    }
  }

  async *pieces(): AsyncGenerator<DiskPiece> {
    for (;;) {
      const reply = await this.next()
      if (reply.type === 'done') return
      if (reply.type !== 'piece') throw new LostError(`map of ${this.#path}: the thread said ${reply.type}`)
      yield reply.piece
      this.#say('taken')
    }
  }

  #say(request: DiskMapRequest): void {
    this.#worker.postMessage(request)
  }

  /** It has an export to end; what takes too long dies with the thread. */
  async close(): Promise<void> {
    this.#signal.removeEventListener('abort', this.#aborted)
    this.#say('end')
    const late = new AbortController()
    await Promise.race([
      this.#gone,
      sleep(2 * EXPORT_END_MS, undefined, { signal: late.signal }).catch(() => undefined),
    ])
    late.abort()
    await this.#worker.terminate()
  }
}
