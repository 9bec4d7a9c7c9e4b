/**
 * Reads a receiver's disk back: leaves of which no digest could be put together, at any time; and with `start`, all that was
 * written, which is then held against what this end knows of it. In the background one read at a time, which rest as long as they
 * took; while a FLUSH waits several.
 *
 * A read counts only if nothing touched the leaf from its beginning until it was compared; what is being written is looked at later.
 */
import type { BlockDevice } from '../block/device.ts'
import { leafDigest } from '../chunk/leaf-digests.ts'
import type { Clock } from '../core/clock.ts'
import { RefusedError } from '../core/errors.ts'
import {
  PROOF_BUSY_MS,
  PROOF_READ_BYTES_MAX,
  PROOF_READS_MAX,
  PROOF_REST_MS,
  PROOF_RUNS_MAX,
} from '../core/limits.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { LEAF_BYTES } from '../core/units.ts'
import type { LeafMap } from '../proof/leaf-map.ts'
import { type LeafRun, LeafSet } from '../proof/leaf-set.ts'
import type { LeafAssembly } from './leaf-assembly.ts'

const EIO = 5
const READ_LEAVES = PROOF_READ_BYTES_MAX / LEAF_BYTES

export interface ReadBackOptions {
  readonly device: BlockDevice
  readonly target: string
  readonly map: LeafMap
  readonly assembly: LeafAssembly
  /** Whether something under way writes, or makes zeroes, at [start, end). */
  readonly busy: (start: number, end: number) => boolean
  /** Makes of what the device holds at `offset` what it shall hold: zeroes may be pending. */
  readonly applyZeroes: (bytes: Buffer, offset: number) => void
  readonly ended: () => boolean
  readonly fail: (error: unknown) => void
  readonly clock: Clock
}

interface Watch extends LeafRun {
  touched: boolean
}

export class ReadBack {
  readonly #options: ReadBackOptions
  readonly #missing = new LeafSet([], PROOF_RUNS_MAX)
  /** Written and not read: since `start`, and what was there then. */
  #fresh = new LeafSet([], PROOF_RUNS_MAX)
  #backlog = new LeafSet([], PROOF_RUNS_MAX)
  #started = false
  readonly #watches = new Set<Watch>()
  readonly #writing = new Set<LeafRun>()
  #running = false

  constructor(options: ReadBackOptions) {
    this.#options = options
  }

  /** From now on what was written is read. */
  start(): void {
    if (this.#started) return
    this.#started = true
    this.#backlog = this.#fresh
    this.#fresh = new LeafSet([], PROOF_RUNS_MAX)
    this.#wake()
  }

  /** Something became known, or unknown, of these leaves. */
  touched(first: number, end: number): void {
    for (const watch of this.#watches) if (watch.first < end && first < watch.end) watch.touched = true
  }

  /** The device is being written there until `done`. */
  async writing(run: LeafRun, done: Promise<void>): Promise<void> {
    this.touched(run.first, run.end)
    this.#fresh.add(run.first, run.end)
    this.#backlog.delete(run.first, run.end)
    this.#writing.add(run)
    try {
      await done
    } finally {
      this.#writing.delete(run)
      this.#wake()
    }
  }

  /** Nobody knows what lies there. */
  missing(leaf: number): void {
    this.#missing.add(leaf, leaf + 1)
    this.#wake()
  }

  /** These are known again. */
  found(first: number, end: number): void {
    this.#missing.delete(first, end)
  }

  /** Written since `start` and not read; with all that was there then, where `all`. */
  unread(all: boolean): LeafRun[] {
    if (!this.#started) return []
    return all ? new LeafSet([...this.#fresh.runs(), ...this.#backlog.runs()]).runs() : this.#fresh.runs()
  }

  /**
   * Reads all of these now; gives those that the device refuses to read.
   * @param fill of what is not known, what is read is what there is
   */
  async read(runs: readonly LeafRun[], fill: boolean): Promise<LeafRun[]> {
    const refused: LeafRun[] = []
    const pieces = piecesOf(runs)
    const reader = async (): Promise<void> => {
      for (const piece of pieces) {
        const result = await this.#read(piece, fill)
        if (result === 'refused') refused.push(piece)
        if (result === 'busy') await this.#rest(PROOF_BUSY_MS)
        if (this.#options.ended()) return
      }
    }
    await Promise.all(Array.from({ length: PROOF_READS_MAX }, reader))
    return refused
  }

  // ---- in the background -------------------------------------------------------------------------------------

  /** What is to be read now. */
  get #sets(): LeafSet[] {
    return this.#started ? [this.#missing, this.#backlog, this.#fresh] : [this.#missing]
  }

  #wake(): void {
    if (this.#running || this.#sets.every(({ leaves }) => leaves === 0)) return
    this.#running = true
    void this.#run()
      .catch(this.#options.fail)
      .finally(() => {
        this.#running = false
      })
  }

  /** The first that nothing is done to, and of which nothing is on its way. */
  #next(): LeafRun | undefined {
    const { assembly } = this.#options
    for (const set of this.#sets) {
      for (const { first, end } of piecesOf(set.entries())) {
        let from = first
        while (from < end && assembly.has(from)) from++
        let to = from
        while (to < end && !assembly.has(to)) to++
        if (from < to && !this.#isBusy({ first: from, end: to })) return { first: from, end: to }
      }
    }
    return undefined
  }

  async #run(): Promise<void> {
    // Whatever is handed over in one go.
    await this.#rest(PROOF_REST_MS)
    const { clock, ended, map } = this.#options
    while (!ended() && map.broken === undefined && this.#sets.some(({ leaves }) => leaves > 0)) {
      const next = this.#next()
      const startMs = clock.nowMs()
      const result = next === undefined ? 'busy' : await this.#read(next, false)
      if (result === 'refused') this.#forget(next!)
      await this.#rest(result === 'busy' ? PROOF_BUSY_MS : Math.max(PROOF_REST_MS, clock.nowMs() - startMs))
    }
  }

  #forget({ first, end }: LeafRun): void {
    for (const set of [this.#missing, this.#backlog, this.#fresh]) set.delete(first, end)
  }

  #rest(ms: number): Promise<void> {
    return new Promise((resolve) => void this.#options.clock.after(ms, resolve))
  }

  // ---- one read ----------------------------------------------------------------------------------------------

  #isBusy({ first, end }: LeafRun): boolean {
    for (const run of this.#writing) if (run.first < end && first < run.end) return true
    const { busy, device } = this.#options
    return busy(first * LEAF_BYTES, Math.min(device.size, end * LEAF_BYTES))
  }

  async #read(piece: LeafRun, fill: boolean): Promise<'done' | 'busy' | 'refused'> {
    if (this.#isBusy(piece)) return 'busy'
    const watch: Watch = { ...piece, touched: false }
    this.#watches.add(watch)
    try {
      return await this.#readWatched(watch, fill)
    } catch (error) {
      const { ended, map, fail, target } = this.#options
      // What proves nothing any more fails nothing.
      if (ended() || map.broken !== undefined) return 'refused'
      if (!(error instanceof RefusedError)) throw error
      const { first, end } = piece
      if (this.#started && (this.#fresh.overlaps(first, end) || this.#backlog.overlaps(first, end)))
        fail(
          new ReadBackError(`proof: ${target}: at ${first * LEAF_BYTES}: ${error.message}`, { errno: EIO }),
        )
      return 'refused'
    } finally {
      this.#watches.delete(watch)
    }
  }

  async #readWatched(watch: Watch, fill: boolean): Promise<'done' | 'busy'> {
    const { device, map, applyZeroes } = this.#options
    const offset = watch.first * LEAF_BYTES
    const bytes = await device.read(offset, Math.min(device.size, watch.end * LEAF_BYTES) - offset)
    applyZeroes(bytes, offset)
    const digests: Buffer[] = []
    for (let at = 0; at < bytes.length; at += LEAF_BYTES) {
      digests.push(leafDigest(bytes.subarray(at, at + LEAF_BYTES)))
      if (loopTurn.over) await loopTurn.next()
    }
    const known = await map.turn(async (turn) => {
      const all: (Buffer | undefined)[] = []
      for (const at of digests.keys()) all.push(await turn.digest(watch.first + at))
      return all
    })
    if (watch.touched || this.#isBusy(watch)) return 'busy'
    for (const [at, digest] of digests.entries())
      this.#judge(watch.first + at, digest, known[at], fill && known[at] === undefined)
    return 'done'
  }

  #judge(leaf: number, found: Buffer, known: Buffer | undefined, fill: boolean): void {
    const { map, assembly } = this.#options
    if (fill || this.#missing.has(leaf)) {
      // Whatever was put together of it is a part of what was read.
      assembly.drop(leaf)
      this.#missing.delete(leaf, leaf + 1)
      map.put(leaf, found)
    } else if (assembly.has(leaf)) return
    else if (known !== undefined && !known.equals(found)) this.#differs(leaf, found, known)
    this.#fresh.delete(leaf, leaf + 1)
    this.#backlog.delete(leaf, leaf + 1)
  }

  #differs(leaf: number, found: Buffer, expected: Buffer): void {
    const { target, fail } = this.#options
    fail(
      new ReadBackError(
        `proof: ${target}: what was read back at ${leaf * LEAF_BYTES} is not what was written: ` +
          `SHA-256 ${found.toString('hex')}, expected ${expected.toString('hex')}`,
        { errno: EIO },
      ),
    )
  }
}

/** The disk does not hold what was written to it. */
export class ReadBackError extends RefusedError {}

function* piecesOf(runs: Iterable<LeafRun>): Generator<LeafRun> {
  for (const { first, end } of runs)
    for (let at = first; at < end; at += READ_LEAVES)
      yield { first: at, end: Math.min(end, at + READ_LEAVES) }
}
