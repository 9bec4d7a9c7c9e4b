/**
 * Digests of the leaves of a disk (64 KiB, aligned) that lie whole in a buffer. Zeroes have 32 zero bytes instead, which no
 * SHA-256 that anybody has seen is: so they cost no digest, and a file of digests is sparse where the disk is.
 */
import { LEAF_BYTES } from '../core/units.ts'
import { DIGEST_BYTES, sha256 } from './digest.ts'
import { isZero } from './zero.ts'

export const ZERO_DIGEST: Buffer = Buffer.alloc(DIGEST_BYTES)

/** Where in a buffer whole leaves lie: [from, to), of which only the last of the disk may be shorter. */
export interface LeafSpan {
  readonly from: number
  readonly to: number
}

export function leafDigest(bytes: Uint8Array): Buffer {
  return isZero(bytes) ? ZERO_DIGEST : sha256(bytes)
}

export function leafDigests(bytes: Uint8Array, { from, to }: LeafSpan): Uint8Array<ArrayBuffer> {
  const digests = new Uint8Array(Math.ceil((to - from) / LEAF_BYTES) * DIGEST_BYTES)
  for (let at = from, leaf = 0; at < to; at += LEAF_BYTES, leaf++) {
    const digest = leafDigest(bytes.subarray(at, Math.min(at + LEAF_BYTES, to)))
    if (digest !== ZERO_DIGEST) digests.set(digest, leaf * DIGEST_BYTES)
  }
  return digests
}
