/** Sizes that the whole project shares. */
export const KIB: number = 1024
export const MIB: number = 1024 * KIB
export const GIB: number = 1024 * MIB

/** The unit in which zeroes are found and writes are put together: 4 KiB, aligned. */
export const BLOCK_BYTES: number = 4 * KIB
/** The granularity of a mirror job of QEMU: what it writes at once, aligned. */
export const MIRRORED_BYTES: number = 64 * KIB
/** The unit of a proof, aligned on the disk. */
export const LEAF_BYTES: number = MIRRORED_BYTES

export function alignDown(value: number, unit: number): number {
  return value - (value % unit)
}

export function alignUp(value: number, unit: number): number {
  const rest = value % unit
  return rest === 0 ? value : value + unit - rest
}

/** Blocks of the disk that [start, end) lies in. */
export function blockCount(start: number, end: number): number {
  return (alignUp(end, BLOCK_BYTES) - alignDown(start, BLOCK_BYTES)) / BLOCK_BYTES
}

/** Of a block's SHA-256: enough to look for it. What is found is verified by a whole digest. */
export const HINT_BYTES: number = 8
/** The same where a block is looked for in its place only. */
export const BRIEF_HINT_BYTES: number = 4
/** The unit in which two versions of a block are compared over the link; of each 16 bits are told. */
export const PIECE_BYTES: number = 128
export const PIECE_HASH_BYTES: number = 2
/** Of one block. */
export const SKETCH_BYTES: number = (BLOCK_BYTES / PIECE_BYTES) * PIECE_HASH_BYTES
