/**
 * What all receiving sessions of the daemon have from each other: a guest that is still arriving is a source for the next
 * one, and two that arrive at once ask for the same content once.
 *
 * Delivered: what a session has delivered is read through its own device, for as long as it lives (delivered.ts); what it is
 * still writing is taken from its memory.
 * Under way: who lacks a chunk that another session has asked for waits for its arrival there, and gets the bytes by reference
 * the moment they are verified. Nothing can lock up: who has asked never waits, and what was asked for comes over its own
 * session's link, needs no room and no order any more, and no other session. A wait ends without bytes when the
 * session that asked ends, or got nothing for ARRIVAL_SILENCE_MS, after ARRIVAL_WAIT_MS in any case, when the one that waits
 * has to hurry (a FLUSH), or when its own literal came unasked; it then asks itself.
 *
 * Memory: who waits has no place in the budget. On arrival he gets the bytes together with a place, if there is one at once;
 * else he holds nothing, and later finds them with the session that asked (in its memory, on its device) or asks himself. A
 * chunk that is written but for a block which waits for its neighbour lies nowhere as a whole: the bytes of some such chunks are
 * kept, ARRIVAL_KEPT_BYTES_MAX of them in the whole daemon.
 */
import { type Clock, systemClock } from '../core/clock.ts'
import { ARRIVAL_KEPT_BYTES_MAX, ARRIVAL_SILENCE_MS, ARRIVAL_WAIT_MS } from '../core/limits.ts'
import type { BlockPlaces } from './block-finder.ts'
import { type DeliveredChunks, DeliveredSource, Offer, OfferedBlocks } from './delivered.ts'
import type { ChunkQuery, ChunkSource } from './sources.ts'
import type { Task } from './task.ts'

/** Its bytes, while anybody has them: not verified by this session, and not to be changed. */
export type Arrived = () => Buffer | undefined

interface Waiter {
  /** @param arrived undefined: it is not waited for any more */
  readonly settle: (arrived: Arrived | undefined) => void
}

/** Content that somebody has asked for or is writing. */
interface Content {
  readonly asks: Map<Task, { readonly session: ArrivalSession; readonly sinceMs: number }>
  /** Verified bytes, while they are in memory. */
  readonly known: Map<Task, Buffer>
  readonly waiters: Set<Waiter>
}

/** What the sessions share. */
interface Shared {
  readonly clock: Clock
  /** By digest. */
  readonly contents: Map<string, Content>
  readonly offers: Set<Offer>
  readonly kept: Kept
}

export class Arrivals {
  readonly #shared: Shared

  constructor(clock: Clock = systemClock) {
    this.#shared = { clock, contents: new Map(), offers: new Set(), kept: new Kept() }
  }

  /** @param delivered what the session has delivered so far @param tryHold takes a chunk's place in memory if there is one now */
  join(delivered: DeliveredChunks, tryHold: (task: Task) => boolean): ArrivalSession {
    const offer = new Offer(delivered, this.#shared.clock)
    this.#shared.offers.add(offer)
    return new ArrivalSession(this.#shared, offer, tryHold)
  }

  /** Contents that are asked for or being written. */
  get size(): number {
    return this.#shared.contents.size
  }

  /** Chunks that wait for another session. */
  get waiting(): number {
    let count = 0
    for (const { waiters } of this.#shared.contents.values()) count += waiters.size
    return count
  }
}

/** One session's side of it. */
export class ArrivalSession {
  /** What the other sessions have delivered, or are writing. */
  readonly chunks: ChunkSource
  readonly blocks: BlockPlaces
  readonly #shared: Shared
  readonly #clock: Clock
  readonly #offer: Offer
  readonly #tryHold: (task: Task) => boolean
  /** Asked for or being written. */
  readonly #tasks = new Set<Task>()
  readonly #waiters = new Set<Waiter>()
  #arrivedMs = Number.NEGATIVE_INFINITY
  #ended = false

  constructor(shared: Shared, offer: Offer, tryHold: (task: Task) => boolean) {
    this.#shared = shared
    this.#clock = shared.clock
    this.#offer = offer
    this.#tryHold = tryHold
    const delivered = new DeliveredSource(shared.offers, offer)
    this.chunks = {
      name: delivered.name,
      find: async (query) => this.#inMemory(query) ?? (await delivered.find(query)),
    }
    this.blocks = new OfferedBlocks(shared.offers, offer)
  }

  offerBlocks(blocks: BlockPlaces): void {
    this.#offer.blocks = blocks
  }

  #inMemory({ digest, verify }: ChunkQuery): Buffer | undefined {
    for (const bytes of this.#shared.contents.get(keyOf(digest))?.known.values() ?? [])
      if (verify(bytes)) return bytes
    return undefined
  }

  /**
   * Undefined: no other session has asked for this chunk, or none that is worth waiting for: it must be asked for here. Else
   * resolves when it has arrived, or to undefined when it is not waited for any more. Never rejects.
   */
  wait(task: Task): Promise<Arrived | undefined> | undefined {
    const content = this.#shared.contents.get(keyOf(task.digest!))
    if (content === undefined) return undefined
    if (content.known.size > 0 && !task.offered) {
      // It arrived while it was looked for elsewhere.
      task.offered = true
      return Promise.resolve(() => anyOf(content))
    }
    if (this.#leftMs(content, task) <= 0) return undefined
    return new Promise((resolve) => {
      let cancel: () => void = () => undefined
      const waiter: Waiter = {
        settle: (arrived) => {
          cancel()
          content.waiters.delete(waiter)
          this.#waiters.delete(waiter)
          task.wake = undefined
          if (arrived === undefined) resolve(undefined)
          else {
            // By reference only with a place in memory: nobody holds what is not counted.
            const bytes = this.#tryHold(task) ? arrived() : undefined
            resolve(() => bytes ?? arrived())
          }
        },
      }
      const look = (): void => {
        const leftMs = this.#leftMs(content, task)
        if (leftMs <= 0) waiter.settle(undefined)
        else cancel = this.#clock.after(leftMs, look)
      }
      content.waiters.add(waiter)
      this.#waiters.add(waiter)
      task.wake = () => waiter.settle(undefined)
      look()
    })
  }

  /** How much longer it is worth waiting for what others asked. A chunk's waits have one end, however often it waits. */
  #leftMs(content: Content, task: Task): number {
    const nowMs = this.#clock.nowMs()
    let leftMs = 0
    for (const { session, sinceMs } of content.asks.values()) {
      if (session === this) continue
      task.waitsUntilMs ??= nowMs + ARRIVAL_WAIT_MS
      leftMs = Math.max(leftMs, Math.max(sinceMs, session.#arrivedMs) + ARRIVAL_SILENCE_MS - nowMs)
    }
    return Math.min(leftMs, (task.waitsUntilMs ?? nowMs) - nowMs)
  }

  #content(task: Task): Content {
    const key = keyOf(task.digest!)
    let content = this.#shared.contents.get(key)
    if (content === undefined) {
      content = { asks: new Map(), known: new Map(), waiters: new Set() }
      this.#shared.contents.set(key, content)
    }
    this.#tasks.add(task)
    return content
  }

  /** This session asks its sender for the chunk: it does not wait for others any more, and others may wait for it. */
  asked(task: Task): void {
    if (this.#ended) return
    this.#content(task).asks.set(task, { session: this, sinceMs: this.#clock.nowMs() })
  }

  /** @param bytes of the chunk, verified; before anything is done with them */
  arrived(task: Task, bytes: Buffer): void {
    // A read may still come back after the end; nobody would ever forget it.
    if (this.#ended) return
    const content = this.#content(task)
    if (content.asks.delete(task)) this.#arrivedMs = this.#clock.nowMs()
    content.known.set(task, bytes)
    for (const waiter of [...content.waiters]) waiter.settle(() => anyOf(content))
  }

  /** Its bytes have no place in memory any more; they are on the disk but for a block that it shares. */
  taken(task: Task): void {
    const { contents, offers, kept } = this.#shared
    const known = this.#tasks.has(task) ? contents.get(keyOf(task.digest!))?.known : undefined
    if (known === undefined) return
    // Else nobody needs them.
    if (offers.size > 1) kept.keep(task, known)
    else known.delete(task)
  }

  /** It lies on the disk, and in what this session has delivered. */
  applied(task: Task): void {
    this.#forget(task)
  }

  #forget(task: Task): void {
    if (!this.#tasks.delete(task)) return
    const key = keyOf(task.digest!)
    this.#shared.kept.forget(task)
    const content = this.#shared.contents.get(key)
    // Gone with the last one that had asked for it or had its bytes.
    if (content === undefined) return
    content.asks.delete(task)
    content.known.delete(task)
    if (content.asks.size > 0) return
    for (const waiter of [...content.waiters]) waiter.settle(undefined)
    if (content.known.size === 0) this.#shared.contents.delete(key)
  }

  /** A FLUSH waits: whoever waits for others asks himself. */
  hurry(): void {
    for (const waiter of [...this.#waiters]) waiter.settle(undefined)
  }

  /** Whoever waits for this session asks himself, and nothing is read from it any more. Idempotent. */
  end(): void {
    this.#ended = true
    this.#shared.offers.delete(this.#offer)
    this.hurry()
    for (const task of this.#tasks) this.#forget(task)
  }
}

/** Bytes that no place in memory stands for. */
class Kept {
  readonly #kept = new Map<Task, { readonly known: Map<Task, Buffer>; readonly bytes: number }>()
  #bytes = 0

  keep(task: Task, known: Map<Task, Buffer>): void {
    const shared = known.get(task)
    if (shared === undefined) return
    this.forget(task)
    // A copy: what came with it, up to a mebibyte of literals, would stay in memory with it.
    const bytes = Buffer.from(shared)
    known.set(task, bytes)
    this.#kept.set(task, { known, bytes: bytes.length })
    this.#bytes += bytes.length
    for (const [oldest, { known }] of this.#kept) {
      if (this.#bytes <= ARRIVAL_KEPT_BYTES_MAX) break
      known.delete(oldest)
      this.forget(oldest)
    }
  }

  forget(task: Task): void {
    const one = this.#kept.get(task)
    if (one === undefined) return
    this.#kept.delete(task)
    this.#bytes -= one.bytes
  }
}

function anyOf({ known }: Content): Buffer | undefined {
  for (const bytes of known.values()) return bytes
  return undefined
}

function keyOf(digest: Buffer): string {
  return digest.toString('latin1')
}
