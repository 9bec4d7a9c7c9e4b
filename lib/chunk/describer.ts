/**
 * Describes buffers (zero runs out, Rabin cuts, SHA-256) on worker threads; what a description is, chunker.ts says.
 * Buffers lie in shared memory, so only descriptors cross threads. Promises resolve in the order of the calls,
 * whichever thread is done first. Two jobs lie at each thread so that it never waits for the main thread; the rest
 * waits here, where an abort can still take it out. A thread that dies fails the whole describer, for good: half of an
 * order is of no use to a session.
 */

import { availableParallelism } from 'node:os'
import { Worker } from 'node:worker_threads'
import { errorText, LostError } from '../core/errors.ts'
import { DESCRIBE_BYTES_MAX, DESCRIBE_JOBS_MAX, DESCRIBE_WORKERS_MAX } from '../core/limits.ts'
import { type DescribedRun, unflatten } from './chunker.ts'
import type { DescribeReply, DescribeRequest } from './describe-worker.ts'
import type { LeafSpan } from './leaf-digests.ts'

export type { DescribedRun } from './chunker.ts'

/** A description, and the digests of the leaves that were asked for with it. */
export interface Described {
  readonly runs: DescribedRun[]
  readonly leaves: Uint8Array
}

interface Job {
  readonly id: number
  readonly request: Omit<DescribeRequest, 'id'>
  readonly resolve: (described: Described) => void
  readonly reject: (error: unknown) => void
  /** Settled towards the caller, by abort: its result is dropped. */
  aborted: boolean
  reply: DescribeReply | undefined
}

interface Thread {
  readonly worker: Worker
  jobCount: number
}

export interface DescriberOptions {
  /** Default: one less than there are cores, 1 to 4. */
  readonly workers?: number
  /** The file of the thread; tests put one in its place that fails. */
  readonly entry?: URL
}

export class Describer {
  readonly #threads: Thread[]
  /** Not yet resolved, in the order of the calls (ids grow, and a Map keeps the order of insertion). */
  readonly #jobs = new Map<number, Job>()
  readonly #queue: Job[] = []
  #nextId = 0
  #failure: Error | undefined
  #closing: Promise<void> | undefined

  constructor(options: DescriberOptions = {}) {
    const count = options.workers ?? Math.max(1, Math.min(DESCRIBE_WORKERS_MAX, availableParallelism() - 1))
    if (!Number.isInteger(count) || count < 1)
      throw new RangeError(`describer: 1 or more workers, not ${count}`)
    const entry = options.entry ?? new URL('./describe-worker.ts', import.meta.url)
    this.#threads = Array.from({ length: count }, (_, index) => this.#start(entry, index))
  }

  /**
   * The runs of `bytes`, contiguous from 0. `bytes` must not change until the promise is fulfilled; after an abort a
   * thread may still be reading them, and what it finds is dropped.
   */
  async describe(bytes: Uint8Array, signal?: AbortSignal): Promise<DescribedRun[]> {
    return (await this.#ask({ bytes, cut: true, leaves: undefined }, signal)).runs
  }

  /** 32 bytes for each leaf in the span. */
  async digestLeaves(bytes: Uint8Array, leaves: LeafSpan): Promise<Uint8Array> {
    return (await this.#ask({ bytes, cut: false, leaves })).leaves
  }

  #ask(request: Omit<DescribeRequest, 'id'>, signal?: AbortSignal): Promise<Described> {
    return new Promise((resolve, reject) => {
      const { bytes } = request
      signal?.throwIfAborted()
      if (this.#failure !== undefined) throw this.#failure
      if (!(bytes.buffer instanceof SharedArrayBuffer)) {
        throw new TypeError('describe: bytes on a SharedArrayBuffer expected, others would be copied')
      }
      if (bytes.length > DESCRIBE_BYTES_MAX) {
        throw new RangeError(`describe: at most ${DESCRIBE_BYTES_MAX} bytes expected, ${bytes.length} given`)
      }
      const onAbort = (): void => {
        job.aborted = true
        reject(signal?.reason)
        const queued = this.#queue.indexOf(job)
        if (queued < 0) return
        this.#queue.splice(queued, 1)
        this.#jobs.delete(job.id)
        this.#resolveInOrder()
      }
      const job: Job = {
        id: this.#nextId++,
        request,
        resolve: (described) => {
          signal?.removeEventListener('abort', onAbort)
          resolve(described)
        },
        reject: (error) => {
          signal?.removeEventListener('abort', onAbort)
          reject(error)
        },
        aborted: false,
        reply: undefined,
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      this.#jobs.set(job.id, job)
      this.#queue.push(job)
      this.#dispatch()
    })
  }

  /** Ends the threads; what is not described yet is rejected. */
  close(): Promise<void> {
    this.#closing ??= this.#close()
    return this.#closing
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }

  async #close(): Promise<void> {
    this.#fail(new LostError('describer: closed'))
    await Promise.all(this.#threads.map(({ worker }) => worker.terminate()))
  }

  #start(entry: URL, index: number): Thread {
    const worker = new Worker(entry, { name: `swam-describe-${index}` })
    const thread: Thread = { worker, jobCount: 0 }
    // Only work keeps the process alive.
    worker.unref()
    worker.on('message', (reply: DescribeReply) => this.#receive(thread, reply))
    worker.on('error', (error) => {
      this.#fail(new LostError(`describer: worker ${index} failed: ${errorText(error)}`, { cause: error }))
    })
    worker.on('exit', (code) => {
      this.#fail(new LostError(`describer: worker ${index} exited unexpectedly with code ${code}`))
    })
    return thread
  }

  #dispatch(): void {
    while (this.#queue.length > 0) {
      const thread = this.#threads.reduce((least, other) => (other.jobCount < least.jobCount ? other : least))
      if (thread.jobCount >= DESCRIBE_JOBS_MAX) return
      const job = this.#queue.shift()!
      if (thread.jobCount++ === 0) thread.worker.ref()
      const request: DescribeRequest = { id: job.id, ...job.request }
      thread.worker.postMessage(request)
    }
  }

  #receive(thread: Thread, reply: DescribeReply): void {
    if (--thread.jobCount === 0) thread.worker.unref()
    const job = this.#jobs.get(reply.id)
    if (job !== undefined) job.reply = reply
    this.#resolveInOrder()
    if (this.#failure === undefined) this.#dispatch()
  }

  #resolveInOrder(): void {
    for (const [id, job] of this.#jobs) {
      if (job.reply === undefined) return
      this.#jobs.delete(id)
      if (!job.aborted) job.resolve({ runs: unflatten(job.reply), leaves: job.reply.leaves })
    }
  }

  #fail(error: Error): void {
    if (this.#failure !== undefined) return
    this.#failure = error
    this.#queue.length = 0
    const jobs = [...this.#jobs.values()]
    this.#jobs.clear()
    for (const job of jobs) if (!job.aborted) job.reject(error)
    for (const { worker } of this.#threads) worker.unref()
  }
}

/** A description, and beside it on a thread of its own the leaves in that span: one after the other they would take half as long again. */
export async function describeWithLeaves(
  cutter: Pick<Describer, 'describe'>,
  digester: Pick<Describer, 'digestLeaves'>,
  bytes: Uint8Array,
  span: LeafSpan,
): Promise<Described> {
  const [runs, leaves] = await Promise.all([cutter.describe(bytes), digester.digestLeaves(bytes, span)])
  return { runs, leaves }
}
