/**
 * The oracle of the Rabin cutter: the same cuts straight from the definition, with polynomials over GF(2) as BigInt
 * and no tables, no skipping and no lanes. About a microsecond a byte, so for small inputs and for readers.
 */
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../core/limits.ts'
import { CHUNK_MASK_BITS, RABIN_WINDOW_BYTES } from './rabin.ts'

/** Irreducible over GF(2), of degree 53; the one that rabin-wasm uses. */
export const RABIN_POLYNOMIAL: bigint = 0x3da3358b4dc173n
const DEGREE = 53n

/** value * x^8 mod P. */
function timesByte(value: bigint): bigint {
  let rest = value << 8n
  for (let bit = DEGREE + 7n; bit >= DEGREE; bit--) {
    if ((rest >> bit) & 1n) rest ^= RABIN_POLYNOMIAL << (bit - DEGREE)
  }
  return rest
}

export function plainChunkLengths(run: Uint8Array): number[] {
  // What a byte contributes once it is 48 places old, by which it is taken out again.
  const leaving = Array.from({ length: 256 }, (_, byte) => {
    let value = BigInt(byte)
    for (let i = 0; i < RABIN_WINDOW_BYTES; i++) value = timesByte(value)
    return value
  })
  const mask = (1n << BigInt(CHUNK_MASK_BITS)) - 1n

  const lengths: number[] = []
  let start = 0
  let fingerprint = 0n
  for (let at = 0; at < run.length; at++) {
    fingerprint = timesByte(fingerprint) ^ BigInt(run[at]!)
    // The window begins empty with each chunk.
    if (at - start >= RABIN_WINDOW_BYTES) fingerprint ^= leaving[run[at - RABIN_WINDOW_BYTES]!]!
    const count = at + 1 - start
    if ((count >= CHUNK_BYTES_MIN && (fingerprint & mask) === 0n) || count === CHUNK_BYTES_MAX) {
      lengths.push(count)
      start = at + 1
      fingerprint = 0n
    }
  }
  if (start < run.length) lengths.push(run.length - start)
  return lengths
}
