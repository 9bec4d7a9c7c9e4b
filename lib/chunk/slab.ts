/**
 * A bounded pool of shared memory for data on its way through the engine. Slabs lie on SharedArrayBuffers, so that
 * worker threads read them without a copy, and are counted by reference: the last release gives the memory back.
 * Sizes are rounded up to powers of two, so that a freed slab fits the next request of its class; the bound counts
 * the rounded sizes, of slabs in use and of idle ones. A slab is not cleared when it is reused.
 */
import { SwamError } from '../core/errors.ts'
import { SLAB_BYTES_MAX, SLAB_IDLE_BYTES_MAX } from '../core/limits.ts'
import { KIB } from '../core/units.ts'

const SLAB_BYTES_MIN: number = 4 * KIB

export interface Slab {
  /** Exactly as long as was asked for. Not to be touched after the last release. */
  readonly bytes: Uint8Array<SharedArrayBuffer>
  retain(): void
  release(): void
}

/** The pool has no room now. */
export class SlabExhaustedError extends SwamError {
  constructor(message: string) {
    super('SWAM_SLAB_EXHAUSTED', message)
  }
}

interface Waiter {
  readonly length: number
  readonly resolve: (slab: Slab) => void
}

export class SlabPool {
  readonly bytesMax: number
  #used = 0
  #idleBytes = 0
  /** Idle buffers by class size. */
  readonly #idle = new Map<number, SharedArrayBuffer[]>()
  /** In order of arrival: a large request is not starved by small ones behind it. */
  readonly #waiters = new Set<Waiter>()

  constructor(options: { readonly bytesMax: number }) {
    this.bytesMax = options.bytesMax
  }

  /** Kept for the next one who takes. */
  get idleBytes(): number {
    return this.#idleBytes
  }

  /** Bytes of the slabs in use, rounded up to their classes. */
  get used(): number {
    return this.#used
  }

  get waiting(): number {
    return this.#waiters.size
  }

  /** Throws a SlabExhaustedError if there is no room, or if others wait for it. */
  take(length: number): Slab {
    const classBytes = this.#classBytes(length)
    if (this.#waiters.size > 0 || this.#used + classBytes > this.bytesMax) {
      throw new SlabExhaustedError(
        `slab pool: ${classBytes} bytes asked, ${this.#used} of ${this.bytesMax} in use, ${this.#waiters.size} waiting`,
      )
    }
    return this.#make(length, classBytes)
  }

  /** Like take, but waits for room, first come first served. */
  takeAsync(length: number, signal?: AbortSignal): Promise<Slab> {
    return new Promise((resolve, reject) => {
      signal?.throwIfAborted()
      const classBytes = this.#classBytes(length)
      if (this.#waiters.size === 0 && this.#used + classBytes <= this.bytesMax) {
        resolve(this.#make(length, classBytes))
        return
      }
      const onAbort = (): void => {
        this.#waiters.delete(waiter)
        reject(signal?.reason)
        // Whoever stood behind this one may fit.
        this.#serveWaiters()
      }
      const waiter: Waiter = {
        length,
        resolve: (slab) => {
          signal?.removeEventListener('abort', onAbort)
          resolve(slab)
        },
      }
      this.#waiters.add(waiter)
      signal?.addEventListener('abort', onAbort, { once: true })
    })
  }

  #classBytes(length: number): number {
    const bytesMax = Math.min(SLAB_BYTES_MAX, this.bytesMax)
    if (!Number.isSafeInteger(length) || length < 1 || length > bytesMax) {
      throw new RangeError(`slab pool: a length of 1 to ${bytesMax} bytes expected, ${length} asked`)
    }
    let classBytes = SLAB_BYTES_MIN
    while (classBytes < length) classBytes *= 2
    // The largest slab of a pool that is no power of two itself.
    return Math.min(classBytes, Math.max(length, bytesMax))
  }

  #make(length: number, classBytes: number): Slab {
    const buffer = this.#takeBuffer(classBytes)
    this.#used += classBytes
    const bytes = new Uint8Array(buffer, 0, length)
    let references = 1
    return {
      bytes,
      retain: () => {
        if (references === 0) throw new Error(`slab of ${length} bytes retained after its last release`)
        references++
      },
      release: () => {
        if (references === 0) throw new Error(`slab of ${length} bytes released more often than retained`)
        references--
        if (references === 0) this.#giveBack(buffer)
      },
    }
  }

  #takeBuffer(classBytes: number): SharedArrayBuffer {
    const idle = this.#idle.get(classBytes)?.pop()
    if (idle !== undefined) {
      this.#idleBytes -= classBytes
      return idle
    }
    // Idle buffers of other classes make room.
    this.#dropIdle(this.bytesMax - this.#used - classBytes)
    return new SharedArrayBuffer(classBytes)
  }

  #giveBack(buffer: SharedArrayBuffer): void {
    const classBytes = buffer.byteLength
    this.#used -= classBytes
    this.#idleBytes += classBytes
    const idle = this.#idle.get(classBytes)
    if (idle === undefined) this.#idle.set(classBytes, [buffer])
    else idle.push(buffer)
    this.#serveWaiters()
    // Between migrations the memory is the host's again.
    if (this.#used === 0) this.#dropIdle(SLAB_IDLE_BYTES_MAX)
  }

  /** The largest first, for the fewest to drop. */
  #dropIdle(keptBytesMax: number): void {
    for (const size of [...this.#idle.keys()].sort((a, b) => b - a)) {
      const buffers = this.#idle.get(size)!
      while (buffers.length > 0 && this.#idleBytes > keptBytesMax) {
        buffers.pop()
        this.#idleBytes -= size
      }
    }
  }

  #serveWaiters(): void {
    for (const waiter of this.#waiters) {
      const classBytes = this.#classBytes(waiter.length)
      if (this.#used + classBytes > this.bytesMax) return
      this.#waiters.delete(waiter)
      waiter.resolve(this.#make(waiter.length, classBytes))
    }
  }
}
