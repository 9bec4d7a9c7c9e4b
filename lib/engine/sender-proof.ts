/**
 * The sender's half of a proof: it keeps a map of what was described, in the order in which that left, and holds the root that
 * the far side tells against its own. What was not written whole is unknown here, and told as open.
 *
 * Key idea: PROVE goes between two runs, and the map stands still from then until it is answered. So the map is the disk at the
 * barrier, however much is described meanwhile: those changes wait in the map's queue.
 */
import type { Described } from '../chunk/describer.ts'
import type { LeafSpan } from '../chunk/leaf-digests.ts'
import { errorText, LostError, ProtocolError, RefusedError } from '../core/errors.ts'
import { PROOF_RUNS_MAX } from '../core/limits.ts'
import { LEAF_BYTES } from '../core/units.ts'
import type { LeafMap } from '../proof/leaf-map.ts'
import { type LeafRun, LeafSet } from '../proof/leaf-set.ts'
import { leafCount, leavesCovered, leavesTouched } from '../proof/leaves.ts'
import type { LeafRange } from '../wire/disk-proof.ts'
import type { CutOver, DiskProof } from './disk-proof.ts'

const EIO = 5

export interface SenderProofOptions {
  readonly map: LeafMap
  readonly size: number
  /** `vda`, for messages. */
  readonly target: string
  /** Whether the far side shall read back what it wrote. */
  readonly read: boolean
  readonly describe: (bytes: Uint8Array, leaves: LeafSpan) => Promise<Described>
}

/** What the far side says of a PROVE; undefined: that it is flushed, and nothing is proved. */
export type Proved =
  | { readonly root: Buffer; readonly unread: number; readonly excluded: readonly LeafRange[] }
  | undefined

interface Asked {
  readonly answer: (proved: Proved) => void
  readonly refuse: (error: Error) => void
  /** Settled when it is compared. */
  readonly compared: Promise<void>
}

export class SenderProof implements DiskProof {
  readonly #options: SenderProofOptions
  readonly #asked = new Map<number, Asked>()
  /** What was described behind the last PROVE, and what behind the last one that was proved. */
  #behind = new LeafSet([], PROOF_RUNS_MAX)
  #cutOver: (CutOver & { readonly since: LeafSet }) | undefined
  #reason: string | undefined
  #closed = false

  constructor(options: SenderProofOptions) {
    this.#options = options
  }

  get map(): LeafMap {
    return this.#options.map
  }

  get read(): boolean {
    return this.#options.read
  }

  get cutOver(): CutOver | undefined {
    return this.#cutOver
  }

  get reason(): string | undefined {
    return this.#reason
  }

  /** Cuts what lies at `offset`, and digests the leaves that lie whole in it. */
  async describe(offset: number, bytes: Uint8Array): Promise<Described> {
    const { first, end } = this.#covered(offset, bytes.length)
    const from = first * LEAF_BYTES - offset
    // Where it has none whole, the span is empty.
    const to = first < end ? Math.min(bytes.length, end * LEAF_BYTES - offset) : from
    return await this.#options.describe(bytes, { from, to })
  }

  #covered(offset: number, length: number): LeafRun {
    return leavesCovered(offset, offset + length, this.#options.size)
  }

  /** It is described now: before anything that is delivered later. Resolves when there is room for more. */
  async described(offset: number, length: number, leaves: Uint8Array): Promise<void> {
    this.#change(
      offset,
      length,
      ({ first }) => this.map.put(first, leaves),
      (leaf) => this.map.forget(leaf, leaf + 1),
    )
    await this.map.room()
  }

  async zeroed(offset: number, length: number): Promise<void> {
    this.#change(
      offset,
      length,
      ({ first, end }) => this.map.zero(first, end),
      (leaf) => this.map.zeroPart(leaf),
    )
    await this.map.room()
  }

  #change(offset: number, length: number, whole: (run: LeafRun) => void, part: (leaf: number) => void): void {
    const covered = this.#covered(offset, length)
    const touched = leavesTouched(offset, offset + length)
    this.#behind.add(touched.first, touched.end)
    this.#cutOver?.since.add(touched.first, touched.end)
    if (covered.first >= covered.end) {
      for (let leaf = touched.first; leaf < touched.end; leaf++) part(leaf)
      return
    }
    if (touched.first < covered.first) part(touched.first)
    whole(covered)
    if (covered.end < touched.end) part(covered.end)
  }

  /**
   * Between two runs: the map stands still from now on, until `id` is answered. Gives what of it is open, for the PROVE; undefined
   * where there is nothing to be proved any more.
   */
  async ask(id: number): Promise<LeafRange[] | undefined> {
    if (this.#closed) return undefined
    if (this.map.broken !== undefined) {
      this.#unproved(this.map.broken.message)
      return undefined
    }
    const { promise: answered, resolve: answer, reject: refuse } = Promise.withResolvers<Proved>()
    answered.catch(() => undefined)
    const opened = Promise.withResolvers<LeafRange[] | undefined>()
    const behind = new LeafSet([], PROOF_RUNS_MAX)
    this.#behind = behind
    const compared = this.map.turn(async (turn) => {
      opened.resolve(turn.unknown.runs())
      const proved = await answered
      if (proved === undefined) {
        this.#unproved('the far side keeps no map of this disk')
        return
      }
      const root = await turn.without(proved.excluded)
      const notProved = new LeafSet(turn.unknown.runs())
      notProved.addAll(proved.excluded)
      if (!root.bytes().equals(proved.root))
        throw new Disproved(this.#options.target, root.bytes(), proved.root)
      this.#cutOver = {
        root: proved.root.toString('hex'),
        at: Date.now(),
        leaves: leafCount(this.#options.size),
        proved: leafCount(this.#options.size) - notProved.leaves,
        unread: this.read ? proved.unread : null,
        since: behind,
      }
      // Neither of those is proved, whatever is known of it here.
      behind.addAll(proved.excluded)
    })
    compared.catch((error: unknown) => {
      if (!(error instanceof Disproved)) opened.resolve(undefined)
    })
    this.#asked.set(id, { answer, refuse, compared })
    return await opened.promise
  }

  /** A FLUSH is answered for which no root speaks: an older one speaks for nothing any more. */
  #unproved(reason: string): void {
    this.#cutOver = undefined
    this.#reason = reason
  }

  /** @throws Disproved where the far side has another disk than this one; ProtocolError */
  async answer(id: number, proved: Proved): Promise<void> {
    const asked = this.#asked.get(id)
    if (asked === undefined) return
    const end = proved?.excluded.at(-1)?.end ?? 0
    if (end > this.map.leaves)
      throw new ProtocolError(`PROVED: leaf ${end - 1} of a disk of ${this.map.leaves} leaves`)
    this.#asked.delete(id)
    asked.answer(proved)
    await asked.compared.catch((error: unknown) => {
      if (error instanceof Disproved) throw error
      // A map that broke meanwhile proves nothing, and fails nothing.
      if (!this.#closed) this.#unproved(errorText(error))
    })
  }

  /** Leaves that are known here and were changed, or left out, since the last proof. */
  get since(): LeafRun[] {
    return this.#cutOver?.since.runs() ?? []
  }

  /** Nobody is waited for any more; the map stays what it is. */
  close(): void {
    this.#closed = true
    for (const { refuse } of this.#asked.values()) refuse(new LostError('the disk session ended'))
    this.#asked.clear()
  }
}

/** Both ends are sound, and one of them, or the disk, is not. */
export class Disproved extends RefusedError {
  /** Of this end. */
  readonly root: Buffer

  constructor(target: string, own: Buffer, theirs: Buffer) {
    super(
      `proof: ${target}: the far side's disk is not this one: ` +
        `root ${theirs.toString('hex')} there, ${own.toString('hex')} here`,
      { errno: EIO },
    )
    this.root = own
  }
}

/** Whether a session was lost because a proof failed, at whichever end. */
export function isDisproof(error: unknown): boolean {
  return /(^|: )proof: /.test(errorText(error))
}
