/**
 * What a sender has described of places that are written again and again, as bytes: so it knows itself what changed there, and
 * sends that unasked (CHANGED). Exact, and cheaper than digests: a comparison of memory. Nothing is remembered of what was
 * written once, which is most of a disk. When memory is short, what was described the longest ago is forgotten; then the far
 * side is asked, as ever.
 *
 * Both ends mean the same: the far side looks at a place when everything older there is applied, and what was described last is
 * what it then has. If it has not, the chunk's SHA-256 says so (I3).
 */
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab } from '../chunk/slab.ts'
import { SENT_VERSIONS_BYTES_MAX } from '../core/limits.ts'
import {
  alignDown,
  alignUp,
  BLOCK_BYTES,
  blockCount,
  MIB,
  MIRRORED_BYTES,
  PIECE_BYTES,
} from '../core/units.ts'
import { blockBits, setBlock } from './chunk-blocks.ts'
import { type Differences, differencesBetween } from './pieces.ts'

const UNIT_BLOCKS = MIRRORED_BYTES / BLOCK_BYTES
/** Memory is taken in such parts: small ones come from a heap that does not shrink. */
const ARENA_BYTES = 4 * MIB

interface Unit {
  readonly bytes: Buffer
  owner: SentVersions
  index: number
  /** A bit for each block of it that is known. */
  known: number
}

/** The memory of these, for all disks of a daemon. */
export class VersionMemory {
  readonly #bytesMax: number
  #free: Buffer[] = []
  #allocatedBytes = 0
  /** Oldest first. */
  readonly #units = new Set<Unit>()

  constructor({ bytesMax }: { readonly bytesMax: number } = { bytesMax: SENT_VERSIONS_BYTES_MAX }) {
    this.#bytesMax = bytesMax
  }

  get allocatedBytes(): number {
    return this.#allocatedBytes
  }

  /** Undefined where not even one finds room. */
  take(owner: SentVersions, index: number): Unit | undefined {
    if (this.#free.length === 0 && this.#allocatedBytes + ARENA_BYTES <= this.#bytesMax) this.#allocate()
    const oldest = this.#free.length === 0 ? this.#units.values().next().value : undefined
    oldest?.owner.drop(oldest)
    const bytes = this.#free.pop()
    if (bytes === undefined) return undefined
    const unit = { bytes, owner, index, known: 0 }
    this.#units.add(unit)
    return unit
  }

  #allocate(): void {
    const arena = Buffer.allocUnsafeSlow(ARENA_BYTES)
    this.#allocatedBytes += ARENA_BYTES
    for (let at = 0; at < ARENA_BYTES; at += MIRRORED_BYTES)
      this.#free.push(arena.subarray(at, at + MIRRORED_BYTES))
  }

  touch(unit: Unit): void {
    this.#units.delete(unit)
    this.#units.add(unit)
  }

  give(unit: Unit): void {
    if (!this.#units.delete(unit)) return
    this.#free.push(unit.bytes)
    if (this.#units.size > 0) return
    this.#free = []
    this.#allocatedBytes = 0
  }
}

/** Which blocks of a chunk are other ones now, and what of them goes. */
export interface Change {
  readonly missing: Buffer
  readonly differences: Differences
}

/** Of one disk; offsets and lengths in bytes. */
export class SentVersions {
  readonly #memory: VersionMemory
  readonly #units = new Map<number, Unit>()
  #closed = false

  constructor(memory: VersionMemory) {
    this.#memory = memory
  }

  /** What differs between what was described last and `bytes` at `start`; undefined where that is not known. */
  changeOf(start: number, bytes: Uint8Array): Change | undefined {
    const end = start + bytes.length
    if (start % BLOCK_BYTES !== 0 || end % BLOCK_BYTES !== 0) return undefined
    const missing = blockBits(blockCount(start, end))
    const maps: number[] = []
    let literalBytes = 0
    for (let at = start; at < end; at += BLOCK_BYTES) {
      const old = this.#blockAt(at)
      if (old === undefined) return undefined
      const now = bytes.subarray(at - start, at - start + BLOCK_BYTES)
      const map = differencesBetween(old, now)
      if (map === 0) continue
      setBlock(missing, (at - start) / BLOCK_BYTES)
      maps.push(map)
      literalBytes += piecesIn(map) * PIECE_BYTES
    }
    const deltaBytes = maps.length * BLOCK_BYTES - literalBytes
    const bodyBytes = literalBytes + maps.length * Uint32Array.BYTES_PER_ELEMENT
    return { missing, differences: { maps, literalBytes, deltaBytes, bodyBytes } }
  }

  /** Whether it is known what was described last of all of it. */
  knows(start: number, length: number): boolean {
    const end = start + length
    if (start % BLOCK_BYTES !== 0 || end % BLOCK_BYTES !== 0) return false
    for (let at = start; at < end; at += BLOCK_BYTES) if (this.#blockAt(at) === undefined) return false
    return true
  }

  #blockAt(at: number): Buffer | undefined {
    const unit = this.#units.get(Math.floor(at / MIRRORED_BYTES))
    const from = at % MIRRORED_BYTES
    if (unit === undefined || (unit.known & (1 << (from / BLOCK_BYTES))) === 0) return undefined
    return unit.bytes.subarray(from, from + BLOCK_BYTES)
  }

  /** It is described now, and was before: the whole blocks of it are known from now on, those at its ends not any more. */
  put(start: number, bytes: Uint8Array): void {
    if (this.#closed) return
    const end = start + bytes.length
    const first = alignUp(start, BLOCK_BYTES)
    const last = alignDown(end, BLOCK_BYTES)
    if (first > start) this.forget(first - BLOCK_BYTES, BLOCK_BYTES)
    if (last < end) this.forget(last, BLOCK_BYTES)
    for (let at = first; at < last; ) {
      const index = Math.floor(at / MIRRORED_BYTES)
      const to = Math.min(last, (index + 1) * MIRRORED_BYTES)
      const unit = this.#unit(index)
      if (unit === undefined) return
      unit.bytes.set(bytes.subarray(at - start, to - start), at % MIRRORED_BYTES)
      unit.known |= blocksOf(at % MIRRORED_BYTES, to - at)
      at = to
    }
  }

  #unit(index: number): Unit | undefined {
    let unit = this.#units.get(index)
    if (unit !== undefined) this.#memory.touch(unit)
    else {
      unit = this.#memory.take(this, index)
      if (unit !== undefined) this.#units.set(index, unit)
    }
    return unit
  }

  /** Something else lies there now. */
  forget(start: number, length: number): void {
    if (this.#units.size === 0) return
    const end = start + length
    const within = (index: number): number => {
      const from = Math.max(start, index * MIRRORED_BYTES)
      const to = Math.min(end, (index + 1) * MIRRORED_BYTES)
      const first = alignDown(from, BLOCK_BYTES)
      return first < to ? blocksOf(first % MIRRORED_BYTES, alignUp(to, BLOCK_BYTES) - first) : 0
    }
    const firstIndex = Math.floor(start / MIRRORED_BYTES)
    const endIndex = Math.ceil(end / MIRRORED_BYTES)
    // Zeroes may be as long as the disk.
    const touched =
      endIndex - firstIndex > this.#units.size
        ? [...this.#units.values()].filter(({ index }) => index >= firstIndex && index < endIndex)
        : Array.from({ length: endIndex - firstIndex }, (_, n) => this.#units.get(firstIndex + n))
    for (const unit of touched) {
      if (unit === undefined) continue
      unit.known &= ~within(unit.index)
      if (unit.known === 0) this.drop(unit)
    }
  }

  drop(unit: Unit): void {
    this.#units.delete(unit.index)
    this.#memory.give(unit)
  }

  close(): void {
    this.#closed = true
    for (const unit of [...this.#units.values()]) this.drop(unit)
  }
}

/** A bit for each block of [from, from + length) in a unit. */
function blocksOf(from: number, length: number): number {
  const count = length / BLOCK_BYTES
  const all = count === UNIT_BLOCKS ? 0xffff : (1 << count) - 1
  return all << (from / BLOCK_BYTES)
}

function piecesIn(map: number): number {
  let count = 0
  for (let bits = map; bits !== 0; bits = (bits & (bits - 1)) >>> 0) count++
  return count
}

/** Of each chunk of a run; undefined where it is not known of one. @param base where the slab's bytes lie on the disk */
export function changesOf(
  versions: SentVersions,
  base: number,
  slab: Slab,
  { offset, lengths }: DescribedRun,
): readonly Change[] | undefined {
  const changes: Change[] = []
  let at = offset
  for (const length of lengths) {
    const change = versions.changeOf(base + at, slab.bytes.subarray(at, at + length))
    if (change === undefined) return undefined
    changes.push(change)
    at += length
  }
  return changes
}
