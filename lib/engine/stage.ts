/**
 * Stage: where a disk's writes wait before they are cut into chunks. It puts writes that came out of order in order,
 * and drops what a newer write supersedes before it costs anything; the newer one then stands for the older one, and is as
 * old as it: a FLUSH that waits for that may not be answered before one of them is applied (I1). It takes out runs: touching
 * data, or touching zeroes, around the oldest thing staged. What is hot may be held: it stays when the rest leaves, until it is
 * let go or taken by force. Nothing here knows of the network or the time; the caller decides what is hot, and when to take.
 *
 * Deliberately not here: reads (the sender waits until a range is applied) and any promise.
 */
import { type Interval, IntervalMap } from '../block/extents.ts'

interface Piece {
  /** Arrival number: which put() brought it, or the oldest of what it took the place of. */
  readonly order: number
  /** Undefined for zeroes. */
  readonly bytes: Buffer | undefined
  /** Disk offset of bytes[0]. */
  readonly base: number
  /** When it was written, while it is held. */
  heldAtMs: number | undefined
}

export interface StagedRun {
  readonly offset: number
  readonly length: number
  readonly zero: boolean
  /** The bytes in order, without gaps; empty for zeroes. */
  readonly parts: readonly Buffer[]
}

interface Arrival {
  readonly order: number
  start: number
  end: number
}

/** Arrivals by their order, of what is held or of what is not; one is stale once nothing of it is in the map. */
class Arrivals {
  #list: Arrival[] = []
  #head = 0

  /** Something of that arrival lies here, too. */
  add(order: number, start: number, end: number): void {
    let low = this.#head
    let high = this.#list.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#list[middle]!.order < order) low = middle + 1
      else high = middle
    }
    const arrival = this.#list[low]
    if (arrival?.order !== order) {
      this.#list.splice(low, 0, { order, start, end })
      return
    }
    arrival.start = Math.min(arrival.start, start)
    arrival.end = Math.max(arrival.end, end)
  }

  /** The first of which anything is left. */
  oldest(left: (arrival: Arrival) => Interval<Piece> | undefined): { order: number; at: number } | undefined {
    for (; this.#head < this.#list.length; this.#head++) {
      const arrival = this.#list[this.#head]!
      const piece = left(arrival)
      if (piece !== undefined) return { order: arrival.order, at: piece.start }
      if (this.#head > 1024 && this.#head * 2 > this.#list.length) {
        this.#list = this.#list.slice(this.#head)
        this.#head = 0
      }
    }
    this.clear()
    return undefined
  }

  /** Keeps those for which this is so. */
  keep(isLeft: (arrival: Arrival) => boolean): void {
    this.#list = this.#list.slice(this.#head).filter(isLeft)
    this.#head = 0
  }

  clear(): void {
    this.#list = []
    this.#head = 0
  }
}

export class Stage {
  readonly #map = new IntervalMap<Piece>()
  readonly #free = new Arrivals()
  readonly #held = new Arrivals()
  #order = 0
  #dataBytes = 0
  #heldBytes = 0

  /** Bytes of data waiting (zeroes cost nothing). */
  get dataBytes(): number {
    return this.#dataBytes
  }

  /** Those of them that are held. */
  get heldBytes(): number {
    return this.#heldBytes
  }

  get empty(): boolean {
    return this.#map.count === 0
  }

  get count(): number {
    return this.#map.count
  }

  /** The arrival number that the next put will get: everything before it is older. */
  get nextOrder(): number {
    return this.#order
  }

  /** @param heldAtMs when it came, if it is to be held */
  put(offset: number, bytes: Buffer, heldAtMs?: number): void {
    this.#insert(offset, offset + bytes.length, bytes, heldAtMs)
  }

  putZeroes(offset: number, length: number): void {
    this.#insert(offset, offset + length, undefined, undefined)
  }

  #insert(start: number, end: number, bytes: Buffer | undefined, heldAtMs: number | undefined): void {
    let order = this.#order++
    for (const old of this.#map.overlapping(start, end)) {
      order = Math.min(order, old.value.order)
      this.#uncount(old.value, Math.min(old.end, end) - Math.max(old.start, start))
    }
    if (bytes !== undefined) this.#dataBytes += bytes.length
    if (heldAtMs !== undefined) this.#heldBytes += end - start
    this.#map.set(start, end, { order, bytes, base: start, heldAtMs })
    const arrivals = heldAtMs === undefined ? this.#free : this.#held
    arrivals.add(order, start, end)
  }

  #uncount(piece: Piece, length: number): void {
    if (piece.bytes !== undefined) this.#dataBytes -= length
    if (piece.heldAtMs !== undefined) this.#heldBytes -= length
  }

  /** What is left of an arrival among what is held, or among the rest. */
  #left({ order, start, end }: Arrival, held: boolean): Interval<Piece>[] {
    return this.#map
      .overlapping(start, end)
      .filter(({ value }) => value.order === order && (value.heldAtMs !== undefined) === held)
  }

  #oldestFree(): { order: number; at: number } | undefined {
    return this.#free.oldest((arrival) => this.#left(arrival, false)[0])
  }

  #oldestHeld(): { order: number; at: number } | undefined {
    if (this.#heldBytes === 0) return undefined
    return this.#held.oldest((arrival) => this.#left(arrival, true)[0])
  }

  #oldest(): { order: number; at: number } | undefined {
    const free = this.#oldestFree()
    const held = this.#oldestHeld()
    return free === undefined || (held !== undefined && held.order < free.order) ? held : free
  }

  /** Arrival number of the oldest thing staged, held or not. */
  get oldestOrder(): number | undefined {
    return this.#oldest()?.order
  }

  /** The same of what is not held. */
  get oldestFreeOrder(): number | undefined {
    return this.#oldestFree()?.order
  }

  /** Lets go what is held and was written then or before. */
  letGo(untilMs: number): void {
    if (this.#heldBytes === 0) return
    this.#held.keep((arrival) => {
      const left = this.#left(arrival, true)
      const rested = left.filter(({ value }) => value.heldAtMs! <= untilMs)
      this.#release(rested)
      return rested.length < left.length
    })
  }

  /** Lets go what has been held the longest, until no more than so many bytes are held. */
  letGoOver(bytesMax: number): void {
    while (this.#heldBytes > bytesMax) {
      const oldest = this.#oldestHeld()!
      this.#release(
        this.#map.overlapping(oldest.at, oldest.at + 1).filter(({ value }) => value.heldAtMs !== undefined),
      )
    }
  }

  #release(ranges: readonly Interval<Piece>[]): void {
    for (const { start, end, value } of ranges) {
      this.#heldBytes -= end - start
      this.#free.add(value.order, start, end)
      // Parts of what it was may lie elsewhere, and stay held.
      this.#map.set(start, end, { ...value, heldAtMs: undefined })
    }
  }

  /**
   * Takes the run around the oldest thing staged, from the run's start, at most `bytesMax` of data (zeroes are not
   * cut). A run that is longer than that is taken from its start, so the oldest may need a further call.
   * @param held whether what is held may be taken
   */
  takeOldest(bytesMax: number, held = true): StagedRun | undefined {
    const oldest = held ? this.#oldest() : this.#oldestFree()
    if (oldest === undefined) return undefined
    const isHeld = ({ heldAtMs }: Piece): boolean => !held && heldAtMs !== undefined
    const run = this.#map.runAround(
      oldest.at,
      (a, b) => (a.bytes === undefined) === (b.bytes === undefined) && isHeld(a) === isHeld(b),
    )!
    const offset = run[0]!.start
    const zero = run[0]!.value.bytes === undefined
    const runEnd = run[run.length - 1]!.end
    const end = zero ? runEnd : Math.min(runEnd, offset + bytesMax)
    const parts: Buffer[] = []
    for (const range of run) {
      if (range.start >= end) break
      const { bytes, base } = range.value
      const partEnd = Math.min(range.end, end)
      this.#uncount(range.value, partEnd - range.start)
      if (bytes !== undefined) parts.push(bytes.subarray(range.start - base, partEnd - base))
    }
    this.#map.delete(offset, end)
    return { offset, length: end - offset, zero, parts }
  }

  clear(): void {
    this.#map.clear()
    this.#free.clear()
    this.#held.clear()
    this.#dataBytes = 0
    this.#heldBytes = 0
  }
}
