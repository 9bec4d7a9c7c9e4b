/**
 * The receiver's half of a proof: it keeps a map of what its disk holds, from what it hands to QEMU (`device` stands before the
 * real one, so wrong seams and offsets are seen), what it found in place, and zeroes; and answers a PROVE with the root.
 *
 * At a PROVE everything below its barrier is applied. What was described behind the barrier may be applied too, in part: leaves that it
 * touches are excluded, and told. Of the others each is known, or is read back now.
 */
import type { BlockDevice } from '../block/device.ts'
import { type Clock, systemClock } from '../core/clock.ts'
import { ProtocolError, RefusedError } from '../core/errors.ts'
import { PROOF_RUNS_MAX } from '../core/limits.ts'
import { LEAF_BYTES } from '../core/units.ts'
import type { LeafMap } from '../proof/leaf-map.ts'
import { type LeafRun, LeafSet } from '../proof/leaf-set.ts'
import { leafCount, leavesCovered, leavesTouched } from '../proof/leaves.ts'
import type { LeafRange } from '../wire/disk-proof.ts'
import type { CutOver, DiskProof } from './disk-proof.ts'
import { LeafAssembly, type LeafSlots } from './leaf-assembly.ts'
import { ReadBack } from './read-back.ts'

const EIO = 5

export interface ReceiverProofOptions {
  readonly device: BlockDevice
  readonly map: LeafMap
  /** `vda`, for messages. */
  readonly target: string
  /** Shared by all disks of the daemon. */
  readonly slots: LeafSlots
  /** The digest of one leaf, in shared memory. */
  readonly digest: (bytes: Uint8Array) => Promise<Uint8Array>
  /** What was written is read back although the source does not ask for it. */
  readonly read: boolean
  readonly clock?: Clock
}

/** What it needs of the receiver that it belongs to. */
export interface ReceiverHooks {
  readonly busy: (start: number, end: number) => boolean
  readonly applyZeroes: (bytes: Buffer, offset: number) => void
  readonly ended: () => boolean
  readonly fail: (error: unknown) => void
}

export interface Prove {
  readonly barrier: number
  readonly read: boolean
  readonly open: readonly LeafRange[]
}

export interface ProvedRoot {
  readonly root: Buffer
  readonly unread: number
  readonly excluded: readonly LeafRange[]
}

interface Asked extends Prove {
  /** Leaves that were touched behind the barrier, or cannot be read. */
  readonly excluded: LeafSet
}

export class ReceiverProof implements DiskProof {
  /** The one to write to. */
  readonly device: BlockDevice
  readonly #options: ReceiverProofOptions
  readonly #assembly: LeafAssembly
  #readBack: ReadBack | undefined
  #hooks: ReceiverHooks | undefined
  /** Those that are not answered, and the last that was. */
  #asked: Asked[] = []
  #last: Asked | undefined
  #cutOver: CutOver | undefined
  #reason: string | undefined

  constructor(options: ReceiverProofOptions) {
    const { device, map, slots, digest } = options
    this.#options = options
    this.device = this.#watched(device)
    this.#assembly = new LeafAssembly({
      size: device.size,
      slots,
      digest,
      whole: (leaf, leafDigest) => {
        this.#readBack?.found(leaf, leaf + 1)
        map.put(leaf, leafDigest)
      },
      lost: (leaf, zeroesOnly) => {
        if (zeroesOnly) map.zeroPart(leaf)
        else {
          map.forget(leaf, leaf + 1)
          this.#readBack?.missing(leaf)
        }
      },
      fail: (error) => this.#hooks?.fail(error),
    })
  }

  get map(): LeafMap {
    return this.#options.map
  }

  get cutOver(): CutOver | undefined {
    return this.#cutOver
  }

  get reason(): string | undefined {
    return this.#reason
  }

  get since(): LeafRun[] {
    return this.#last?.excluded.runs() ?? []
  }

  /** Leaves that are to be read back and are not yet. */
  get unread(): number {
    return leavesOf(this.#readBack?.unread(true) ?? [])
  }

  attach(hooks: ReceiverHooks): void {
    const { device, target, map, clock = systemClock } = this.#options
    this.#hooks = hooks
    this.#readBack = new ReadBack({ device, target, map, assembly: this.#assembly, clock, ...hooks })
  }

  // ---- what passes -------------------------------------------------------------------------------------------

  #watched(device: BlockDevice): BlockDevice {
    const writing = (offset: number, length: number, done: Promise<void>): Promise<void> =>
      this.#readBack?.writing(leavesTouched(offset, offset + length), done) ?? done
    return {
      size: device.size,
      blockSizes: device.blockSizes,
      features: device.features,
      read: (offset, length) => device.read(offset, length),
      write: (offset, data, flags) => {
        // Before the device has it: then it is the device's.
        if (this.#hooks !== undefined) this.#assembly.put(offset, data.length, data)
        return writing(offset, data.length, device.write(offset, data, flags))
      },
      // What shall be zeroes is known from `zeroed`.
      writeZeroes: (offset, length, flags) =>
        writing(offset, length, device.writeZeroes(offset, length, flags)),
      trim: (offset, length, flags) => writing(offset, length, device.trim(offset, length, flags)),
      cache: (offset, length) => device.cache(offset, length),
      blockStatus: (offset, length) => device.blockStatus(offset, length),
      flush: () => device.flush(),
      close: () => device.close(),
    }
  }

  /** The device holds this at `offset` already: it was read there. */
  lies(offset: number, bytes: Uint8Array): void {
    this.#touched(offset, bytes.length)
    this.#assembly.put(offset, bytes.length, bytes)
  }

  /** It shall read as zeroes from now on. */
  zeroed(start: number, end: number): void {
    const { size } = this.#options.device
    this.#touched(start, end - start)
    const { first, end: last } = leavesCovered(start, end, size)
    if (first >= last) {
      this.#assembly.put(start, end - start, undefined)
      return
    }
    this.#assembly.dropAll(first, last)
    this.#options.map.zero(first, last)
    this.#readBack?.found(first, last)
    const [from, to] = [first * LEAF_BYTES, Math.min(size, last * LEAF_BYTES)]
    if (start < from) this.#assembly.put(start, from - start, undefined)
    if (to < end) this.#assembly.put(to, end - to, undefined)
  }

  #touched(offset: number, length: number): void {
    const { first, end } = leavesTouched(offset, offset + length)
    this.#readBack?.touched(first, end)
  }

  /** It is described, and may be applied at any time from now on. */
  began(seq: number, start: number, end: number): void {
    const touched = leavesTouched(start, end)
    for (const { barrier, excluded } of this.#asked)
      if (seq >= barrier) excluded.add(touched.first, touched.end)
    this.#last?.excluded.add(touched.first, touched.end)
  }

  // ---- PROVE -------------------------------------------------------------------------------------------------

  /**
   * It came. @param nextSeq of what was described so far: nothing behind the barrier
   * @throws ProtocolError
   */
  asked(prove: Prove, nextSeq: number): Asked {
    const { leaves } = this.map
    const end = prove.open.at(-1)?.end ?? 0
    if (end > leaves) throw new ProtocolError(`PROVE: leaf ${end - 1} of a disk of ${leaves} leaves`)
    if (prove.barrier < nextSeq)
      throw new ProtocolError(`PROVE: ${nextSeq} chunks were described, its barrier is ${prove.barrier}`)
    const asked = { ...prove, excluded: new LeafSet([], PROOF_RUNS_MAX) }
    this.#asked.push(asked)
    return asked
  }

  /** A FLUSH is answered for which no root speaks: an older one speaks for nothing any more. */
  unproved(): void {
    this.#cutOver = undefined
    this.#reason = this.map.broken?.message ?? 'the source proves nothing'
  }

  /** What is below the barrier is applied, zeroes too. Undefined: there is no proof. */
  async answer(asked: Asked): Promise<ProvedRoot | undefined> {
    try {
      return await this.#answer(asked)
    } catch (error) {
      // A map that cannot be kept fails no migration.
      if (this.map.broken !== undefined) return undefined
      throw error
    } finally {
      this.#asked = this.#asked.filter((other) => other !== asked)
    }
  }

  async #answer(asked: Asked): Promise<ProvedRoot | undefined> {
    const { map, read } = this.#options
    const { open, excluded } = asked
    const reads = read || asked.read
    if (reads) this.#readBack?.start()
    for (const leaf of this.#assembly.incomplete) if (!excluded.has(leaf)) this.#assembly.giveUp(leaf)
    for (const { first, end } of open) {
      // Nor may a digest that is on its way be known later than that.
      this.#assembly.dropAll(first, end)
      map.forget(first, end)
      this.#readBack?.found(first, end)
    }
    await this.#fill(asked)
    if (reads) await this.#readFresh(asked)
    if (this.#hooks?.ended() !== false) return undefined
    return await map.turn(async (turn) => {
      excluded.coarsen(PROOF_RUNS_MAX)
      const leftOut = excluded.runs()
      const root = (await turn.without(leftOut)).bytes()
      const notProved = new LeafSet([...open, ...leftOut])
      const unread = reads ? leavesOf(minus(this.#readBack?.unread(true) ?? [], notProved)) : 0
      const leaves = leafCount(this.#options.device.size)
      this.#last = asked
      this.#cutOver = {
        root: root.toString('hex'),
        at: Date.now(),
        leaves,
        proved: leaves - notProved.leaves,
        unread: reads ? unread : null,
      }
      return { root, unread, excluded: leftOut }
    })
  }

  /** Reads back what has to be known and is not. */
  async #fill({ open, excluded }: Asked): Promise<void> {
    while (this.#hooks?.ended() === false) {
      await this.#assembly.settled()
      const unknown = await this.#options.map.turn(async (turn) =>
        minus(turn.unknown.runs(), new LeafSet([...open, ...excluded.runs()])),
      )
      if (unknown.length === 0) return
      excluded.addAll(await this.#readBack!.read(unknown, true))
    }
  }

  async #readFresh({ open, excluded }: Asked): Promise<void> {
    while (this.#hooks?.ended() === false) {
      await this.#assembly.settled()
      const fresh = minus(this.#readBack!.unread(false), new LeafSet([...open, ...excluded.runs()]))
      if (fresh.length === 0) return
      excluded.addAll(await this.#readBack!.read(fresh, false))
    }
  }

  /** The map stays what it is. */
  close(): void {
    this.#assembly.close()
  }
}

/** What the sender says of the root that it was told. */
export function disproved(target: string, root: Buffer): RefusedError {
  return new RefusedError(
    `proof: ${target}: this disk is not the one at the source, whose root is ${root.toString('hex')}: the guest stays there`,
    { errno: EIO },
  )
}

function leavesOf(runs: readonly LeafRun[]): number {
  return runs.reduce((sum, { first, end }) => sum + end - first, 0)
}

function minus(runs: readonly LeafRun[], others: LeafSet): LeafRun[] {
  const rest: LeafRun[] = []
  for (const { first, end } of runs) {
    let at = first
    for (const other of others.within(first, end)) {
      if (other.first > at) rest.push({ first: at, end: other.first })
      at = other.end
    }
    if (at < end) rest.push({ first: at, end })
  }
  return rest
}
