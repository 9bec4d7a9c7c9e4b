/**
 * IntervalMap: non-overlapping half-open ranges [start, end) of a disk, each with a value. Setting a range replaces
 * whatever lay there, cutting neighbours at the edges; a cut neighbour keeps its value (by reference), so a value
 * that describes bytes must know its own base offset.
 *
 * Sorted parallel arrays and binary search: the engine keeps hundreds to some thousands of ranges, where a splice is
 * a memmove and beats any tree. Ranges are never merged: who wants merged runs walks `runFrom`.
 */
export interface Interval<T> {
  readonly start: number
  readonly end: number
  readonly value: T
}

export class IntervalMap<T> {
  #starts: number[] = []
  #ends: number[] = []
  #values: T[] = []
  #bytes = 0

  /** Number of ranges. */
  get count(): number {
    return this.#starts.length
  }

  /** Sum of the lengths of all ranges. */
  get bytes(): number {
    return this.#bytes
  }

  /** Index of the first range that ends after `offset`. */
  #firstEndingAfter(offset: number): number {
    let low = 0
    let high = this.#ends.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#ends[middle]! > offset) high = middle
      else low = middle + 1
    }
    return low
  }

  /** All ranges that overlap [start, end), unclipped, in order. */
  overlapping(start: number, end: number): Interval<T>[] {
    const found: Interval<T>[] = []
    for (let i = this.#firstEndingAfter(start); i < this.#starts.length && this.#starts[i]! < end; i++) {
      found.push({ start: this.#starts[i]!, end: this.#ends[i]!, value: this.#values[i]! })
    }
    return found
  }

  overlaps(start: number, end: number): boolean {
    const i = this.#firstEndingAfter(start)
    return i < this.#starts.length && this.#starts[i]! < end
  }

  /** True when every byte of [start, end) lies in some range. */
  covers(start: number, end: number): boolean {
    let at = start
    for (let i = this.#firstEndingAfter(start); at < end; i++) {
      if (i >= this.#starts.length || this.#starts[i]! > at) return false
      at = this.#ends[i]!
    }
    return true
  }

  set(start: number, end: number, value: T): void {
    if (!(start < end)) throw new RangeError(`IntervalMap.set: empty range ${start}..${end}`)
    const at = this.#cut(start, end)
    this.#starts.splice(at, 0, start)
    this.#ends.splice(at, 0, end)
    this.#values.splice(at, 0, value)
    this.#bytes += end - start
  }

  delete(start: number, end: number): void {
    if (start < end) this.#cut(start, end)
  }

  /** Removes the parts of [start, end) that still carry exactly this value. */
  deleteValue(start: number, end: number, value: T): void {
    for (const range of this.overlapping(start, end)) {
      if (range.value === value) this.#cut(Math.max(range.start, start), Math.min(range.end, end))
    }
  }

  clear(): void {
    this.#starts = []
    this.#ends = []
    this.#values = []
    this.#bytes = 0
  }

  /** Every range in order; the map must not change meanwhile. */
  *entries(): Generator<Interval<T>> {
    for (let i = 0; i < this.#starts.length; i++) {
      yield { start: this.#starts[i]!, end: this.#ends[i]!, value: this.#values[i]! }
    }
  }

  /**
   * The longest run of touching ranges around the one at `offset` for which `same` holds between neighbours.
   * Undefined when nothing lies at `offset`.
   */
  runAround(offset: number, same: (a: T, b: T) => boolean): Interval<T>[] | undefined {
    const middle = this.#firstEndingAfter(offset)
    if (middle >= this.#starts.length || this.#starts[middle]! > offset) return undefined
    let first = middle
    while (
      first > 0 &&
      this.#ends[first - 1] === this.#starts[first] &&
      same(this.#values[first - 1]!, this.#values[first]!)
    )
      first--
    let last = middle
    while (
      last + 1 < this.#starts.length &&
      this.#starts[last + 1] === this.#ends[last] &&
      same(this.#values[last]!, this.#values[last + 1]!)
    )
      last++
    const run: Interval<T>[] = []
    for (let i = first; i <= last; i++) {
      run.push({ start: this.#starts[i]!, end: this.#ends[i]!, value: this.#values[i]! })
    }
    return run
  }

  /** Parts of [start, end) that lie in no range. */
  gaps(start: number, end: number): { start: number; end: number }[] {
    const gaps: { start: number; end: number }[] = []
    let at = start
    for (let i = this.#firstEndingAfter(start); i < this.#starts.length && this.#starts[i]! < end; i++) {
      if (this.#starts[i]! > at) gaps.push({ start: at, end: this.#starts[i]! })
      at = this.#ends[i]!
    }
    if (at < end) gaps.push({ start: at, end })
    return gaps
  }

  /** Removes [start, end); returns the index where a range starting at `start` belongs. */
  #cut(start: number, end: number): number {
    const first = this.#firstEndingAfter(start)
    let last = first
    while (last < this.#starts.length && this.#starts[last]! < end) last++
    if (first === last) return first
    const firstStart = this.#starts[first]!
    const lastEnd = this.#ends[last - 1]!
    const firstValue = this.#values[first]!
    const lastValue = this.#values[last - 1]!
    for (let i = first; i < last; i++) this.#bytes -= this.#ends[i]! - this.#starts[i]!
    const starts: number[] = []
    const ends: number[] = []
    const values: T[] = []
    if (firstStart < start) {
      starts.push(firstStart)
      ends.push(start)
      values.push(firstValue)
    }
    const index = first + starts.length
    if (lastEnd > end) {
      starts.push(end)
      ends.push(lastEnd)
      values.push(lastValue)
    }
    this.#starts.splice(first, last - first, ...starts)
    this.#ends.splice(first, last - first, ...ends)
    this.#values.splice(first, last - first, ...values)
    for (let i = 0; i < starts.length; i++) this.#bytes += ends[i]! - starts[i]!
    return index
  }
}
