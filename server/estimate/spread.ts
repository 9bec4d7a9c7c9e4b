/**
 * Which part of a disk is looked at closely, when not all of it can be. Pure. Both work on groups of neighbours, because what
 * lies beside each other is alike, compresses together and stands behind one root.
 */
import { ROOT_CHUNKS } from '../../lib/wire/disk.ts'

export const GROUP_CHUNKS: number = ROOT_CHUNKS

/**
 * At most `max` of the items that are added, in groups of neighbours spread evenly over all of them: every group is kept until
 * there are too many, then every second one, and so on.
 */
export class Spread<T> {
  readonly #max: number
  #groups: { readonly number: number; readonly items: T[] }[] = []
  #every = 1
  #added = 0
  #kept = 0

  /** @param max at least GROUP_CHUNKS */
  constructor(max: number) {
    this.#max = max
  }

  add(item: T): void {
    const number = Math.floor(this.#added++ / GROUP_CHUNKS)
    if (number % this.#every !== 0) return
    if (this.#kept === this.#max) {
      this.#every *= 2
      this.#groups = this.#groups.filter((group) => group.number % this.#every === 0)
      this.#kept = this.#groups.reduce((sum, { items }) => sum + items.length, 0)
      if (number % this.#every !== 0) return
    }
    const last = this.#groups.at(-1)
    if (last?.number === number) last.items.push(item)
    else this.#groups.push({ number, items: [item] })
    this.#kept++
  }

  get groups(): T[][] {
    return this.#groups.map(({ items }) => items)
  }
}

/** Items that weigh `bytesOf` each, of groups spread evenly over all groups, at most about `bytesMax` of them. */
export function someGroups<T>(groups: readonly T[][], bytesOf: (item: T) => number, bytesMax: number): T[][] {
  const total = groups.flat().reduce((sum, item) => sum + bytesOf(item), 0)
  const every = Math.max(1, Math.ceil(total / bytesMax))
  return groups.filter((_, index) => index % every === 0)
}

/**
 * How much is asked about of disks of any size: the first half of what may be is asked of every group, then of every second one,
 * and ever fewer, twice as few with each further sixteenth.
 */
export class Thinning {
  readonly #max: number
  #used = 0
  #group = 0

  constructor(max: number) {
    this.#max = max
  }

  /** For how many groups the next one, of `count` items, stands; 0: it is not asked about. */
  take(count: number): number {
    const beyond = this.#used - this.#max / 2
    const every = beyond <= 0 ? 1 : 2 ** Math.ceil(beyond / (this.#max / 16))
    if (this.#group++ % every !== 0 || this.#used + count > this.#max) return 0
    this.#used += count
    return every
  }
}
