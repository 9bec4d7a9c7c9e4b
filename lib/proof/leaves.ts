/** Leaves of a disk: its 64 KiB pieces, aligned, counted from 0; the last one may be shorter. */
import { LEAF_BYTES } from '../core/units.ts'
import type { LeafRun } from './leaf-set.ts'

export function leafCount(size: number): number {
  return Math.ceil(size / LEAF_BYTES)
}

/** All leaves of which [start, end) has a byte. */
export function leavesTouched(start: number, end: number): LeafRun {
  return { first: Math.floor(start / LEAF_BYTES), end: Math.ceil(end / LEAF_BYTES) }
}

/** Those that it has whole. Where it has none, `end` is not beyond `first`. */
export function leavesCovered(start: number, end: number, size: number): LeafRun {
  return {
    first: Math.ceil(start / LEAF_BYTES),
    end: end === size ? leafCount(size) : Math.floor(end / LEAF_BYTES),
  }
}
