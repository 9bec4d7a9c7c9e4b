/**
 * Finds the 4 KiB blocks that are all zero, and divides a buffer into maximal runs of zero and of non-zero blocks.
 * Most non-zero blocks show it in a few probed bytes; the rest is one memcmp against a block of zeroes.
 * Blocks are counted from the start of the buffer: the caller sees to it that this is aligned on the disk.
 */
import { BLOCK_BYTES, MIB } from '../core/units.ts'

const ZEROES: Uint8Array = new Uint8Array(MIB)

export interface ZeroRun {
  readonly offset: number
  readonly length: number
  readonly zero: boolean
}

/** True if all of `bytes` (or of its part from `start` to `end`) is zero. */
export function isZero(bytes: Uint8Array, start = 0, end: number = bytes.length): boolean {
  if (start >= end) return true
  if (bytes[start] !== 0 || bytes[end - 1] !== 0 || bytes[start + ((end - start) >> 1)] !== 0) return false
  for (let at = start; at < end; at += ZEROES.length) {
    const length = Math.min(ZEROES.length, end - at)
    if (Buffer.compare(bytes.subarray(at, at + length), ZEROES.subarray(0, length)) !== 0) return false
  }
  return true
}

/** The maximal runs of zero and non-zero blocks of `bytes`, contiguous from 0; only the last block may be short. */
export function zeroRuns(bytes: Uint8Array): ZeroRun[] {
  const runs: ZeroRun[] = []
  let runStart = 0
  let runZero = false
  for (let at = 0; at < bytes.length; at += BLOCK_BYTES) {
    const zero = isZero(bytes, at, Math.min(at + BLOCK_BYTES, bytes.length))
    if (at > 0 && zero !== runZero) {
      runs.push({ offset: runStart, length: at - runStart, zero: runZero })
      runStart = at
    }
    runZero = zero
  }
  if (bytes.length > 0) runs.push({ offset: runStart, length: bytes.length - runStart, zero: runZero })
  return runs
}
