/**
 * Stage: where a disk's writes wait before they are cut into chunks. It puts writes that came out of order in order,
 * and drops what a newer write supersedes before it costs anything; the newer one then stands for the older one, and is as
 * old as it: a FLUSH that waits for that may not be answered before one of them is applied (I1). It takes out runs: touching
 * data, or touching zeroes, around the oldest thing staged. Nothing here knows of the network; the sender decides when to take.
 *
 * Deliberately not here: reads (the sender waits until a range is applied) and any promise.
 */
import { IntervalMap } from '../block/extents.ts'

interface Piece {
  /** Arrival number: which put() brought it, or the oldest of what it took the place of. */
  readonly order: number
  /** Undefined for zeroes. */
  readonly bytes: Buffer | undefined
  /** Disk offset of bytes[0]. */
  readonly base: number
}

export interface StagedRun {
  readonly offset: number
  readonly length: number
  readonly zero: boolean
  /** The bytes in order, without gaps; empty for zeroes. */
  readonly parts: readonly Buffer[]
}

export class Stage {
  readonly #map = new IntervalMap<Piece>()
  /** Arrivals in order; an entry is stale once nothing of it is left in the map. */
  #arrivals: { order: number; start: number; end: number }[] = []
  #head = 0
  #order = 0
  #dataBytes = 0

  /** Bytes of data waiting (zeroes cost nothing). */
  get dataBytes(): number {
    return this.#dataBytes
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

  put(offset: number, bytes: Buffer): void {
    this.#insert(offset, offset + bytes.length, bytes)
  }

  putZeroes(offset: number, length: number): void {
    this.#insert(offset, offset + length, undefined)
  }

  #insert(start: number, end: number, bytes: Buffer | undefined): void {
    const arrived = this.#order++
    let order = arrived
    for (const old of this.#map.overlapping(start, end)) {
      order = Math.min(order, old.value.order)
      if (old.value.bytes !== undefined)
        this.#dataBytes -= Math.min(old.end, end) - Math.max(old.start, start)
    }
    if (bytes !== undefined) this.#dataBytes += bytes.length
    this.#map.set(start, end, { order, bytes, base: start })
    if (order === arrived) this.#arrivals.push({ order, start, end })
    else this.#widen(order, start, end)
  }

  /** Something of that arrival is staged here, too. */
  #widen(order: number, start: number, end: number): void {
    let low = this.#head
    let high = this.#arrivals.length - 1
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#arrivals[middle]!.order < order) low = middle + 1
      else high = middle
    }
    const arrival = this.#arrivals[low]!
    arrival.start = Math.min(arrival.start, start)
    arrival.end = Math.max(arrival.end, end)
  }

  #oldest(): { order: number; at: number } | undefined {
    for (; this.#head < this.#arrivals.length; this.#head++) {
      const arrival = this.#arrivals[this.#head]!
      const piece = this.#map
        .overlapping(arrival.start, arrival.end)
        .find((range) => range.value.order === arrival.order)
      if (piece !== undefined) return { order: arrival.order, at: piece.start }
      if (this.#head > 1024 && this.#head * 2 > this.#arrivals.length) {
        this.#arrivals = this.#arrivals.slice(this.#head)
        this.#head = 0
      }
    }
    this.#arrivals = []
    this.#head = 0
    return undefined
  }

  /** Arrival number of the oldest thing staged. */
  get oldestOrder(): number | undefined {
    return this.#oldest()?.order
  }

  /**
   * Takes the run around the oldest thing staged, from the run's start, at most `bytesMax` of data (zeroes are not
   * cut). A run that is longer than that is taken from its start, so the oldest may need a further call.
   */
  takeOldest(bytesMax: number): StagedRun | undefined {
    const oldest = this.#oldest()
    if (oldest === undefined) return undefined
    const run = this.#map.runAround(oldest.at, (a, b) => (a.bytes === undefined) === (b.bytes === undefined))!
    const offset = run[0]!.start
    const zero = run[0]!.value.bytes === undefined
    const runEnd = run[run.length - 1]!.end
    const end = zero ? runEnd : Math.min(runEnd, offset + bytesMax)
    const parts: Buffer[] = []
    for (const range of run) {
      const { bytes, base } = range.value
      if (bytes === undefined || range.start >= end) continue
      parts.push(bytes.subarray(range.start - base, Math.min(range.end, end) - base))
    }
    this.#map.delete(offset, end)
    if (!zero) this.#dataBytes -= end - offset
    return { offset, length: end - offset, zero, parts }
  }

  clear(): void {
    this.#map.clear()
    this.#arrivals = []
    this.#head = 0
    this.#dataBytes = 0
  }
}
