/**
 * The npm package rabin-wasm as the reference, used as it must be: a fresh instance for each run (it carries state
 * over), `bits` instead of an average, runs of at most 64 MiB, and the tail that it drops appended.
 */
import { createRequire } from 'node:module'
import { CHUNK_MASK_BITS, RABIN_WINDOW_BYTES } from '../../../lib/chunk/rabin.ts'
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'

interface RabinWasm {
  create(
    bits: number,
    min: number,
    max: number,
    windowSize: number,
  ): Promise<{ fingerprint(bytes: Uint8Array): Int32Array }>
}

const { create } = createRequire(import.meta.url)('rabin-wasm') as RabinWasm

export async function referenceChunkLengths(run: Uint8Array): Promise<number[]> {
  if (run.length > 64 * MIB)
    throw new RangeError(`rabin-wasm: runs of at most 64 MiB, not ${run.length} bytes`)
  const rabin = await create(CHUNK_MASK_BITS, CHUNK_BYTES_MIN, CHUNK_BYTES_MAX, RABIN_WINDOW_BYTES)
  const lengths = [...rabin.fingerprint(run)]
  const covered = lengths.reduce((sum, length) => sum + length, 0)
  if (covered < run.length) lengths.push(run.length - covered)
  return lengths
}
