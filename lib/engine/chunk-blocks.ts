/**
 * A chunk lies at any byte; a disk's blocks of 4 KiB do not. These are the blocks that a chunk lies in, their hints and
 * their parts in the chunk, as both ends of the engine see them: block 0 is the one in which the chunk begins. Offsets and
 * lengths in bytes; a set of blocks is a bit each, as in PARTS.
 */
import { hintOf, sha256 } from '../chunk/digest.ts'
import { alignDown, BLOCK_BYTES, blockCount, HINT_BYTES } from '../core/units.ts'

/** The hint of a block that nobody can look for. */
const NONE = Buffer.alloc(HINT_BYTES)

/** Where block `index` of the chunk lies in the chunk: [from, to), counted from the chunk's start. */
export function partOf(start: number, end: number, index: number): { from: number; to: number } {
  const block = alignDown(start, BLOCK_BYTES) + index * BLOCK_BYTES
  return { from: Math.max(block, start) - start, to: Math.min(block + BLOCK_BYTES, end) - start }
}

export function blockBits(count: number): Buffer {
  return Buffer.alloc(Math.ceil(count / 8))
}

export function hasBlock(bits: Uint8Array, index: number): boolean {
  return (bits[index >>> 3]! & (1 << (index & 7))) !== 0
}

export function setBlock(bits: Uint8Array, index: number): void {
  bits[index >>> 3]! |= 1 << (index & 7)
}

/** The parts of the blocks in `bits`, in order; neighbours are one. */
export function partsOf(
  start: number,
  end: number,
  bits: Uint8Array,
): readonly { from: number; to: number }[] {
  const parts: { from: number; to: number }[] = []
  for (let index = blockCount(start, end) - 1; index >= 0; index--) {
    if (!hasBlock(bits, index)) continue
    const { from, to } = partOf(start, end, index)
    const next = parts.at(-1)
    if (next?.from === to) next.from = from
    else parts.push({ from, to })
  }
  return parts.reverse()
}

/**
 * Whether `block` is what the hint at `index` of `hints` was made of, as far as its bytes can say.
 * @param bytes of a hint
 */
export function fitsHint(
  block: Uint8Array,
  hints: Buffer,
  index: number,
  bytes: number = HINT_BYTES,
): boolean {
  return sha256(block).compare(hints, index * bytes, (index + 1) * bytes, 0, bytes) === 0
}

export function isLookedFor(hints: Buffer, index: number, bytes: number = HINT_BYTES): boolean {
  return NONE.compare(hints, index * bytes, (index + 1) * bytes, 0, bytes) !== 0
}

/**
 * @param run bytes of the disk from `runStart` on, in which the chunk [start, end) lies; what a block has beyond them nobody
 * can say, and it gets no hint
 * @param bytes of a hint
 */
export function hintsOf(
  run: Uint8Array,
  runStart: number,
  start: number,
  end: number,
  bytes: number = HINT_BYTES,
): Buffer {
  const count = blockCount(start, end)
  const hints = Buffer.alloc(count * bytes)
  const first = alignDown(start, BLOCK_BYTES) - runStart
  for (let index = 0; index < count; index++) {
    const at = first + index * BLOCK_BYTES
    if (at < 0 || at + BLOCK_BYTES > run.length) continue
    hintOf(run.subarray(at, at + BLOCK_BYTES)).copy(hints, index * bytes, 0, bytes)
  }
  return hints
}
