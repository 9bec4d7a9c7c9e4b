/**
 * What one end knows of a disk: the digest of every leaf, or that it is zeroes, or nothing (`unknown`); and the root of what it
 * knows. Changes are made one after the other in the order of the calls, whatever file they wait for: so whoever takes a `turn`
 * sees the map between two changes, and it stays so until the turn is over.
 *
 * The digests lie in a file; PROOF_PAGES_MAX pages of it are in memory. Unknown leaves have none in it: the root is its sum.
 * Where the file fails (a full disk) the map is broken for good, and whoever waits for it hears of that.
 */
import { DIGEST_BYTES } from '../chunk/digest.ts'
import { ZERO_DIGEST } from '../chunk/leaf-digests.ts'
import { errorText, LostError } from '../core/errors.ts'
import { PROOF_CHANGES_MAX, PROOF_PAGES_MAX, PROOF_RUNS_MAX } from '../core/limits.ts'
import { type LeafFile, type LeafHead, PAGE_BYTES, PAGE_LEAVES } from './leaf-file.ts'
import { type LeafRun, LeafSet } from './leaf-set.ts'
import { RootSum } from './root.ts'

interface Page {
  readonly bytes: Buffer
  dirty: boolean
}

/** Between two changes. */
export interface MapTurn {
  readonly unknown: LeafSet
  readonly root: RootSum
  /** The root without these leaves. */
  without(runs: Iterable<LeafRun>): Promise<RootSum>
  /** Undefined: nothing is known of it. */
  digest(leaf: number): Promise<Buffer | undefined>
}

/** Gives a promise where a page must be read first. */
type Change = () => Promise<void> | undefined
type PageStep = (page: Page, from: number, to: number) => void

export class LeafMap {
  readonly leaves: number
  readonly #file: LeafFile
  readonly #unknown: LeafSet
  readonly #root = new RootSum()
  /** The least recently used first. */
  readonly #pages = new Map<number, Page>()
  /** A bit for each page that was ever made: what is not is zeroes. */
  readonly #made: Uint8Array
  #queue: Change[] = []
  /** Of the next change. */
  #at = 0
  #working: Promise<void> | undefined
  readonly #turns = new Set<(error: Error) => void>()
  #room: (() => void)[] = []
  #broken: Error | undefined
  #closing: Promise<void> | undefined

  constructor(file: LeafFile) {
    this.#file = file
    this.leaves = file.leaves
    this.#unknown = new LeafSet([{ first: 0, end: file.leaves }])
    this.#made = new Uint8Array(Math.ceil(file.leaves / PAGE_LEAVES / 8))
  }

  /** Why nothing is known any more, ever. */
  get broken(): Error | undefined {
    return this.#broken
  }

  get path(): string {
    return this.#file.path
  }

  // ---- changes -----------------------------------------------------------------------------------------------

  /** @param digests of neighbouring leaves from `first` on; they belong to the map from now on */
  put(first: number, digests: Uint8Array): void {
    const end = first + digests.length / DIGEST_BYTES
    this.#enqueue(() => {
      this.#unknown.delete(first, end)
      return this.#eachPage(first, end, true, (page, from, to) => {
        for (let leaf = from; leaf < to; leaf++) {
          const at = (leaf - first) * DIGEST_BYTES
          this.#set(page, leaf, digests.subarray(at, at + DIGEST_BYTES))
        }
      })
    })
  }

  zero(first: number, end: number): void {
    this.#enqueue(() => {
      this.#unknown.delete(first, end)
      return this.#clear(first, end)
    })
  }

  forget(first: number, end: number): void {
    this.#enqueue(() => {
      this.#unknown.add(first, end)
      const cleared = this.#clear(first, end)
      if (this.#unknown.count <= PROOF_RUNS_MAX) return cleared
      for (const gap of this.#unknown.coarsen(PROOF_RUNS_MAX / 2))
        this.#queue.splice(this.#at, 0, () => this.#clear(gap.first, gap.end))
      return cleared
    })
  }

  /** A part of it was zeroed: zeroes still are, of anything else nothing is known. */
  zeroPart(leaf: number): void {
    this.#enqueue(() => {
      if (this.#unknown.has(leaf)) return undefined
      return this.#eachPage(leaf, leaf + 1, false, (page) => {
        if (digestIn(page, leaf).equals(ZERO_DIGEST)) return
        this.#set(page, leaf, ZERO_DIGEST)
        this.#unknown.add(leaf, leaf + 1)
      })
    })
  }

  /** Runs when all changes before it are made; those after it wait until it is over. */
  async turn<Result>(work: (turn: MapTurn) => Promise<Result>): Promise<Result> {
    if (this.#broken !== undefined) throw this.#broken
    return await new Promise<Result>((resolve, reject) => {
      this.#turns.add(reject)
      this.#enqueue(async () => {
        try {
          resolve(
            await work({
              unknown: this.#unknown,
              root: this.#root.copy(),
              without: (runs) => this.#without(runs),
              digest: (leaf) => this.#digest(leaf),
            }),
          )
        } catch (error) {
          reject(error)
        } finally {
          this.#turns.delete(reject)
        }
      })
    })
  }

  /** Resolves when not too many changes wait. */
  async room(): Promise<void> {
    if (this.#waiting <= PROOF_CHANGES_MAX || this.#broken !== undefined) return
    await new Promise<void>((resolve) => this.#room.push(resolve))
  }

  // ---- the end -----------------------------------------------------------------------------------------------

  /** Makes its file a record of what it knows, and closes it. */
  async seal(head: Omit<LeafHead, 'fileRoot'>): Promise<void> {
    await this.turn(async ({ root }) => {
      for (const [number, page] of this.#pages) await this.#save(number, page)
      await this.#file.seal({ ...head, fileRoot: root.bytes().toString('hex') }, this.#unknown.runs())
    })
    await this.close()
  }

  /** Whoever holds a turn must have let it go. Idempotent. */
  async close(): Promise<void> {
    this.#closing ??= (async () => {
      this.#break(new LostError('the proof was closed'))
      await this.#working
      await this.#file.close()
    })()
    await this.#closing
  }

  // ---- one after the other -----------------------------------------------------------------------------------

  get #waiting(): number {
    return this.#queue.length - this.#at
  }

  #enqueue(change: Change): void {
    if (this.#broken !== undefined) return
    this.#queue.push(change)
    this.#working ??= this.#work()
  }

  async #work(): Promise<void> {
    // Whoever puts one change puts the next one, too.
    await Promise.resolve()
    try {
      while (this.#waiting > 0 && this.#broken === undefined) {
        const pending = this.#queue[this.#at++]!()
        if (pending !== undefined) await pending
        if (this.#at >= 1024) {
          this.#queue = this.#queue.slice(this.#at)
          this.#at = 0
        }
        if (this.#waiting <= PROOF_CHANGES_MAX) for (const resolve of this.#room.splice(0)) resolve()
      }
    } catch (error) {
      this.#break(new LostError(`the proof's file ${this.path}: ${errorText(error)}`, { cause: error }))
    } finally {
      this.#queue = []
      this.#at = 0
      this.#working = undefined
    }
  }

  #break(error: Error): void {
    this.#broken ??= error
    for (const reject of this.#turns) reject(this.#broken)
    this.#turns.clear()
    for (const resolve of this.#room.splice(0)) resolve()
  }

  // ---- pages -------------------------------------------------------------------------------------------------

  #clear(first: number, end: number): Promise<void> | undefined {
    return this.#eachPage(first, end, false, (page, from, to) => {
      for (let leaf = from; leaf < to; leaf++) this.#set(page, leaf, ZERO_DIGEST)
    })
  }

  #set(page: Page, leaf: number, digest: Uint8Array): void {
    const old = digestIn(page, leaf)
    if (old.equals(digest)) return
    if (!old.equals(ZERO_DIGEST)) this.#root.subtract(leaf, old)
    if (!ZERO_DIGEST.equals(digest)) this.#root.add(leaf, digest)
    old.set(digest)
    page.dirty = true
  }

  /** @param make pages that were never made, too: all of whose leaves are zeroes, or unknown */
  #eachPage(first: number, end: number, make: boolean, step: PageStep): Promise<void> | undefined {
    for (let leaf = first; leaf < end; ) {
      const number = Math.floor(leaf / PAGE_LEAVES)
      const [from, to] = [leaf, Math.min(end, (number + 1) * PAGE_LEAVES)]
      leaf = to
      if (!make && !this.#isMade(number)) continue
      const page = this.#resident(number)
      if (page === undefined)
        return this.#load(number).then((loaded) => {
          step(loaded, from, to)
          return this.#eachPage(to, end, make, step)
        })
      step(page, from, to)
    }
    return undefined
  }

  #isMade(number: number): boolean {
    return (this.#made[number >>> 3]! & (1 << (number & 7))) !== 0
  }

  #resident(number: number): Page | undefined {
    const page = this.#pages.get(number)
    if (page === undefined) return undefined
    this.#pages.delete(number)
    this.#pages.set(number, page)
    return page
  }

  async #load(number: number): Promise<Page> {
    for (const [oldest, old] of this.#pages) {
      if (this.#pages.size < PROOF_PAGES_MAX) break
      await this.#save(oldest, old)
      this.#pages.delete(oldest)
    }
    const made = this.#isMade(number)
    const page = {
      bytes: made ? await this.#file.readPage(number) : Buffer.alloc(PAGE_BYTES),
      dirty: false,
    }
    this.#made[number >>> 3]! |= 1 << (number & 7)
    this.#pages.set(number, page)
    return page
  }

  async #save(number: number, page: Page): Promise<void> {
    if (!page.dirty) return
    await this.#file.writePage(number, page.bytes)
    page.dirty = false
  }

  // ---- in a turn ---------------------------------------------------------------------------------------------

  async #without(runs: Iterable<LeafRun>): Promise<RootSum> {
    const sum = this.#root.copy()
    for (const { first, end } of runs) {
      await this.#eachPage(first, end, false, (page, from, to) => {
        for (let leaf = from; leaf < to; leaf++) {
          const digest = digestIn(page, leaf)
          if (!digest.equals(ZERO_DIGEST)) sum.subtract(leaf, digest)
        }
      })
    }
    return sum
  }

  async #digest(leaf: number): Promise<Buffer | undefined> {
    if (this.#unknown.has(leaf)) return undefined
    let digest: Buffer = ZERO_DIGEST
    await this.#eachPage(leaf, leaf + 1, false, (page) => {
      digest = Buffer.from(digestIn(page, leaf))
    })
    return digest
  }
}

/** A view. */
function digestIn(page: Page, leaf: number): Buffer {
  const at = (leaf % PAGE_LEAVES) * DIGEST_BYTES
  return page.bytes.subarray(at, at + DIGEST_BYTES)
}
