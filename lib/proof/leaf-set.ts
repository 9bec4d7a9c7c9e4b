/**
 * LeafSet: a set of leaves as sorted runs that never touch. For ranges that are few and long, as disks are written; where they
 * are many and short, `coarsen` takes the smallest gaps in, so that memory and messages have a bound whatever a guest does.
 */
export interface LeafRun {
  readonly first: number
  /** Behind the last one. */
  readonly end: number
}

export class LeafSet {
  #firsts: number[] = []
  #ends: number[] = []
  #leaves = 0

  readonly #runsMax: number

  /** @param runsMax where there are more, it holds more than was added */
  constructor(runs: Iterable<LeafRun> = [], runsMax: number = Number.POSITIVE_INFINITY) {
    this.#runsMax = runsMax
    for (const { first, end } of runs) this.add(first, end)
  }

  /** How many leaves. */
  get leaves(): number {
    return this.#leaves
  }

  /** How many runs. */
  get count(): number {
    return this.#firsts.length
  }

  /** Index of the first run that ends at `leaf` or later. */
  #firstReaching(leaf: number): number {
    let low = 0
    let high = this.#ends.length
    while (low < high) {
      const middle = (low + high) >>> 1
      if (this.#ends[middle]! >= leaf) high = middle
      else low = middle + 1
    }
    return low
  }

  add(first: number, end: number): void {
    if (first >= end) return
    const from = this.#firstReaching(first)
    let to = from
    let [start, stop] = [first, end]
    for (; to < this.#firsts.length && this.#firsts[to]! <= end; to++) {
      start = Math.min(start, this.#firsts[to]!)
      stop = Math.max(stop, this.#ends[to]!)
      this.#leaves -= this.#ends[to]! - this.#firsts[to]!
    }
    this.#firsts.splice(from, to - from, start)
    this.#ends.splice(from, to - from, stop)
    this.#leaves += stop - start
    if (this.count > this.#runsMax) this.coarsen(Math.floor(this.#runsMax / 2))
  }

  delete(first: number, end: number): void {
    if (first >= end) return
    const from = this.#firstReaching(first + 1)
    let to = from
    const firsts: number[] = []
    const ends: number[] = []
    for (; to < this.#firsts.length && this.#firsts[to]! < end; to++) {
      const [start, stop] = [this.#firsts[to]!, this.#ends[to]!]
      this.#leaves -= Math.min(stop, end) - Math.max(start, first)
      if (start < first) {
        firsts.push(start)
        ends.push(first)
      }
      if (stop > end) {
        firsts.push(end)
        ends.push(stop)
      }
    }
    if (from === to) return
    this.#firsts.splice(from, to - from, ...firsts)
    this.#ends.splice(from, to - from, ...ends)
  }

  addAll(runs: Iterable<LeafRun>): void {
    for (const { first, end } of runs) this.add(first, end)
  }

  deleteAll(runs: Iterable<LeafRun>): void {
    for (const { first, end } of runs) this.delete(first, end)
  }

  clear(): void {
    this.#firsts = []
    this.#ends = []
    this.#leaves = 0
  }

  has(leaf: number): boolean {
    const at = this.#firstReaching(leaf + 1)
    return at < this.#firsts.length && this.#firsts[at]! <= leaf
  }

  overlaps(first: number, end: number): boolean {
    const at = this.#firstReaching(first + 1)
    return at < this.#firsts.length && this.#firsts[at]! < end
  }

  /** The parts of [first, end) that are in the set. */
  within(first: number, end: number): LeafRun[] {
    const runs: LeafRun[] = []
    for (let at = this.#firstReaching(first + 1); at < this.#firsts.length; at++) {
      if (this.#firsts[at]! >= end) break
      runs.push({ first: Math.max(first, this.#firsts[at]!), end: Math.min(end, this.#ends[at]!) })
    }
    return runs
  }

  /** One after the other; the set must not change meanwhile. */
  *entries(): Generator<LeafRun> {
    for (let at = 0; at < this.#firsts.length; at++) yield { first: this.#firsts[at]!, end: this.#ends[at]! }
  }

  runs(): LeafRun[] {
    return this.#firsts.map((first, at) => ({ first, end: this.#ends[at]! }))
  }

  /** At most `runsMax` runs, by taking the smallest gaps in; gives those. */
  coarsen(runsMax: number): LeafRun[] {
    const over = this.count - runsMax
    if (over <= 0) return []
    const gaps = this.#firsts.slice(1).map((end, at) => ({ first: this.#ends[at]!, end }))
    gaps.sort((a, b) => a.end - a.first - (b.end - b.first))
    const taken = gaps.slice(0, over)
    this.addAll(taken)
    return taken
  }
}
