/**
 * SHA-256, the strong digest that names a chunk: what matches it may be written to a disk, nothing else (I3).
 * One-shot crypto.hash is several times faster on small inputs than a Hash object.
 */
import { hash } from 'node:crypto'
import { HINT_BYTES } from '../core/units.ts'

export const DIGEST_BYTES: number = 32

export function sha256(bytes: Uint8Array): Buffer {
  return hash('sha256', bytes, 'buffer')
}

/** True if `bytes` have the digest that lies in `digests` at `offset` (a list of digests is one byte array). */
export function matchesDigest(bytes: Uint8Array, digests: Uint8Array, offset = 0): boolean {
  if (offset + DIGEST_BYTES > digests.length) return false
  return Buffer.compare(sha256(bytes), digests.subarray(offset, offset + DIGEST_BYTES)) === 0
}

/** The first HINT_BYTES of the SHA-256 of a block. */
export function hintOf(block: Uint8Array): Buffer {
  return sha256(block).subarray(0, HINT_BYTES)
}
