/**
 * The receiver's second level: a chunk that lies nowhere as a whole is put together from 4 KiB blocks that lie here and from
 * those that are then sent. ASK → HINTS → (what is found) PARTS → LITERAL of the rest; the chunk's SHA-256 judges (I3), and
 * what it does not accept is wanted as a whole.
 *
 * It costs a round trip more and 0.2% of the chunk, so a chunk is asked for in this way only where something could be found, and
 * not while a FLUSH waits, but for one with a long backlog before it (the receiver decides).
 */
import type { BlockDevice } from '../block/device.ts'
import { readBytes } from '../block/read-bytes.ts'
import { ChunkIndex } from '../catalog/chunk-index.ts'
import { sha256 } from '../chunk/digest.ts'
import { ProtocolError } from '../core/errors.ts'
import { FINDING_CHUNKS_MAX, OLD_KEPT_BYTES_MAX } from '../core/limits.ts'
import { Turns } from '../core/turns.ts'
import { alignDown, alignUp, BLOCK_BYTES, BRIEF_HINT_BYTES, blockCount, HINT_BYTES } from '../core/units.ts'
import {
  type BaseKind,
  type BlockPlace,
  type BlockPlaces,
  type FoundBlocks,
  findBlocks,
} from './block-finder.ts'
import { isLookedFor, partsOf } from './chunk-blocks.ts'
import { applyBody, bodyBytesMax, type MissingBlocks } from './pieces.ts'
import type { Reports } from './reports.ts'
import { SketchWorth } from './sketch-worth.ts'
import { unlessRefused } from './sources.ts'
import type { Task } from './task.ts'

/** A chunk in fewer whole blocks is not worth a round trip; where its hints came unasked it costs none. */
const BLOCKS_MIN = 2

export interface BlockLevelOptions {
  readonly device: BlockDevice
  readonly places: readonly BlockPlaces[]
  readonly sessionBytesMax: number
  readonly reports: Reports
  /** Whether the far end knows FEATURE_DELTA. */
  readonly deltas: boolean
  /** Whether the device may hold something at [start, end) that is not zero. */
  readonly mayHold: (start: number, end: number) => boolean
  readonly ended: () => boolean
  /** The whole chunk, verified; `task` says what of it was sent. */
  readonly apply: (task: Task, bytes: Buffer) => void
  /** The whole chunk, as the sender says. */
  readonly take: (task: Task, bytes: Buffer) => void
  readonly want: (task: Task) => void
  /** What came of it unasked, which is not kept any more. */
  readonly early: (task: Task) => Buffer | undefined
  readonly fail: (error: unknown) => void
}

export class BlockLevel {
  readonly #options: BlockLevelOptions
  readonly #session: SessionBlocks
  readonly #places: readonly BlockPlaces[]
  readonly #finding: Turns
  #keptBytes = 0
  readonly #sketching: Readonly<Record<BaseKind, SketchWorth>> = {
    inPlace: new SketchWorth(),
    similar: new SketchWorth(),
  }

  constructor(options: BlockLevelOptions) {
    this.#options = options
    this.#finding = new Turns(FINDING_CHUNKS_MAX, options.fail)
    this.#session = new SessionBlocks(options.device, options.sessionBytesMax)
    this.#places = [ownPlaces(this.#session), ...options.places]
  }

  /** Blocks that this session has delivered. */
  get session(): BlockPlaces {
    return this.#session
  }

  /** False where it would be of no use. @param old what lies in its place, as it was read just now */
  ask(task: Task, old?: Buffer): boolean {
    const { mayHold, reports, take } = this.#options
    if (task.hints === undefined && task.end - task.start < BLOCKS_MIN * BLOCK_BYTES) return false
    const known = this.#places.some((places) => places.blockCount > 0)
    if (!known && !mayHold(task.start, task.end)) return false
    task.asked = true
    // It may come unasked meanwhile.
    task.literal = (bytes) => take(task, bytes)
    const { hints } = task
    if (hints === undefined) reports.ask(task.seq)
    else this.#findSoon(task, hints, old)
    return true
  }

  /** @throws ProtocolError */
  hints(type: 'hints' | 'brief', task: Task, hints: Buffer): void {
    const count = blockCount(task.start, task.end)
    const [expected, bytes] =
      type === 'hints' ? [task.asked, HINT_BYTES] : [this.#options.deltas, BRIEF_HINT_BYTES]
    if (!expected || task.hints !== undefined || hints.length !== count * bytes) {
      const what = `${type.toUpperCase()} of chunk ${task.seq}: ${hints.length / bytes} of ${count} blocks`
      throw new ProtocolError(`${what}, ${task.asked ? 'or a second time' : 'which was not asked for'}`)
    }
    // The message's buffer is much larger.
    const copy = Buffer.from(hints)
    task.hints = copy
    // Those that came unasked wait until they are needed.
    this.#options.reports.unask(task.seq)
    if (task.asked) this.#finding.add(() => this.#find(task, copy))
  }

  /** What was read is kept until its turn, up to a bound: reading it again costs more than looking through it. */
  #findSoon(task: Task, hints: Buffer, read: Buffer | undefined): void {
    const whole = task.start % BLOCK_BYTES === 0 && task.end % BLOCK_BYTES === 0
    const kept = whole && this.#keptBytes + (read?.length ?? 0) <= OLD_KEPT_BYTES_MAX ? read : undefined
    this.#keptBytes += kept?.length ?? 0
    this.#finding.add(async () => {
      this.#keptBytes -= kept?.length ?? 0
      await this.#find(task, hints, kept)
    })
  }

  async #find(task: Task, hints: Buffer, read?: Buffer): Promise<void> {
    const { ended, reports, want } = this.#options
    if (task.taken || ended()) return
    const old = read ?? (await this.#old(task))
    const sketched = (kind: BaseKind): boolean => this.#options.deltas && this.#sketching[kind].pays
    // By brief ones no index can be asked.
    const places = hints.length / blockCount(task.start, task.end) === HINT_BYTES ? this.#places : []
    const found = await findBlocks(task.start, task.end, hints, places, old, sketched)
    if (task.taken || ended()) return
    const length = task.end - task.start
    if (found.foundBytes === length) {
      this.#judge(task, found.bytes)
      return
    }
    const parts = { seq: task.seq, blocks: blockCount(task.start, task.end), missing: found.missing }
    if (found.old !== undefined) {
      const { blocks, sketches, kind } = found.old
      const worth = this.#sketching[kind]
      const missing = { start: task.start, end: task.end, missing: found.missing, old: blocks }
      task.bodyBytesMax = bodyBytesMax(missing)
      worth.asked(task.bodyBytesMax)
      task.literal = (bytes) => this.#fillPieces(task, found.bytes, missing, bytes, worth)
      reports.sketches({ ...parts, old: blocks, sketches })
      return
    }
    if (found.foundBytes === 0) {
      want(task)
      return
    }
    task.partsBytes = length - found.foundBytes
    task.literal = (bytes) => this.#fill(task, found, bytes)
    reports.parts(parts)
  }

  /** The sender says what of it is another version than what lies in place; where nothing is, it is as any other chunk. */
  changed(task: Task, missing: Buffer): void {
    if (missing.every((bits) => bits === 0)) return
    // The message's buffer is much larger.
    task.changed = Buffer.from(missing)
    task.bodyBytesMax = bodyBytesMax({ start: task.start, end: task.end, missing, old: missing })
  }

  /** What changed comes unasked. Everything older there is applied, so what lies in place is what the sender means. */
  async rebuild(task: Task): Promise<void> {
    const { device, ended, early, want } = this.#options
    const { start, end } = task
    const old = await unlessRefused(readBytes(device, start, end - start))
    if (ended() || task.taken) return
    const missing = { start, end, missing: task.changed!, old: task.changed! }
    task.literal = (body) => {
      task.literal = undefined
      if (old === undefined && body.length !== end - start) want(task)
      // A copy: what was read may be a part of what the device has read for others.
      else this.#fillPieces(task, Buffer.from(old ?? body), missing, body)
    }
    const body = early(task)
    if (body !== undefined) task.literal(body)
  }

  /** What lies in place: the device has it, or what it was before. */
  async #old({ start, end }: Task): Promise<Buffer | undefined> {
    const { device, mayHold } = this.#options
    if (!mayHold(start, end)) return undefined
    const from = alignDown(start, BLOCK_BYTES)
    const to = Math.min(alignUp(end, BLOCK_BYTES), device.size)
    return await unlessRefused(readBytes(device, from, to - from))
  }

  #fill(task: Task, found: FoundBlocks, bytes: Buffer): void {
    if (bytes.length !== task.partsBytes) {
      this.#options.take(task, bytes)
      return
    }
    let at = 0
    for (const { from, to } of partsOf(task.start, task.end, found.missing)) {
      bytes.copy(found.bytes, from, at, at + to - from)
      at += to - from
    }
    task.literalBytes = bytes.length
    this.#judge(task, found.bytes)
  }

  /** @param bytes of the chunk, with older versions of some blocks, or similar ones, in their places */
  #fillPieces(task: Task, bytes: Buffer, missing: MissingBlocks, body: Buffer, worth?: SketchWorth): void {
    // The sender found nothing to spare.
    if (body.length === bytes.length) {
      worth?.told(0, bytes.length)
      this.#options.take(task, body)
      return
    }
    const applied = applyBody(missing, body, bytes)
    if (applied === undefined)
      throw new ProtocolError(
        `LITERAL of chunk ${task.seq}: ${body.length} bytes are no pieces of its blocks`,
      )
    worth?.told(applied.deltaBytes, applied.deltaBytes + applied.literalBytes)
    task.literalBytes = applied.literalBytes
    task.deltaBytes = applied.deltaBytes
    this.#judge(task, bytes)
  }

  #judge(task: Task, bytes: Buffer): void {
    task.partsBytes = 0
    task.bodyBytesMax = 0
    if (sha256(bytes).equals(task.digest!)) {
      this.#options.apply(task, bytes)
      return
    }
    task.literalBytes = 0
    task.deltaBytes = 0
    this.#options.want(task)
  }

  /** The chunk lies on the device now. */
  delivered({ start, end, hints }: Task): void {
    if (hints?.length === blockCount(start, end) * HINT_BYTES) this.#session.add(start, end, hints)
  }
}

/** The same to the session itself: others, which look there too, bring other guests. */
function ownPlaces(session: SessionBlocks): BlockPlaces {
  return {
    get blockCount() {
      return session.blockCount
    },
    lookup: (hints, hintOffset) =>
      session.lookup(hints, hintOffset).map((place) => ({ ...place, isOwn: true })),
  }
}

/** Blocks that this session has delivered to this disk, as far as their hints are known. */
class SessionBlocks implements BlockPlaces {
  readonly #device: BlockDevice
  readonly #index: ChunkIndex

  constructor(device: BlockDevice, bytesMax: number) {
    this.#device = device
    this.#index = ChunkIndex.create({ bytesMax })
  }

  get blockCount(): number {
    return this.#index.count
  }

  lookup(hints: Buffer, hintOffset: number): readonly BlockPlace[] {
    const { size } = this.#device
    const read = (offset: number, length: number): Promise<Buffer> => readBytes(this.#device, offset, length)
    return this.#index.lookup(hints, hintOffset).map(({ offset }) => ({ offset, size, read }))
  }

  /** Blocks that are whole in the chunk; those that it shares may not lie there yet. */
  add(start: number, end: number, hints: Buffer): void {
    const first = alignDown(start, BLOCK_BYTES)
    for (let at = alignUp(start, BLOCK_BYTES); at + BLOCK_BYTES <= end; at += BLOCK_BYTES) {
      const index = (at - first) / BLOCK_BYTES
      if (isLookedFor(hints, index))
        this.#index.insert(hints, index * HINT_BYTES, { image: 0, offset: at, length: BLOCK_BYTES })
    }
  }
}
