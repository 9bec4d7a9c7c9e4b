/**
 * Holds an image against the record of a proof, leaf by leaf. What the record does not know is not judged; holes of the image are
 * zeroes without being read. The record is held against its own root on the way: what it says counts only when it is whole.
 */
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { leafDigest, ZERO_DIGEST } from '../../lib/chunk/leaf-digests.ts'
import { RefusedError } from '../../lib/core/errors.ts'
import { PROOF_DIFFERENCES_MAX, PROOF_READ_BYTES_MAX } from '../../lib/core/limits.ts'
import { LEAF_BYTES } from '../../lib/core/units.ts'
import { type LeafRecord, PAGE_LEAVES } from '../../lib/proof/leaf-file.ts'
import { RootSum } from '../../lib/proof/root.ts'
import { SparseImage } from '../analyze/sparse-image.ts'

export interface Comparison {
  readonly leaves: number
  readonly equalLeaves: number
  readonly differentLeaves: number
  /** Of which the record knows nothing. */
  readonly unknownLeaves: number
  /** Where the first different ones begin, in bytes. */
  readonly differences: readonly number[]
}

const READ_LEAVES = PROOF_READ_BYTES_MAX / LEAF_BYTES

/** @throws RefusedError where either cannot be used; the signal's reason */
export async function compareWithRecord(
  source: ExtentSource,
  record: LeafRecord,
  path: string,
  signal?: AbortSignal,
): Promise<Comparison> {
  if (source.size !== record.head.size)
    throw new RefusedError(
      `${source.path}: ${source.size} bytes: the disk that was proved has ${record.head.size}`,
    )
  const image = await SparseImage.of(source, signal)
  const sum = new RootSum()
  const differences: number[] = []
  let [equal, different] = [0, 0]
  for (let first = 0; first < record.leaves; first += PAGE_LEAVES) {
    const page = await record.readPage(first / PAGE_LEAVES)
    for (let at = first; at < Math.min(record.leaves, first + PAGE_LEAVES); at += READ_LEAVES) {
      signal?.throwIfAborted()
      const end = Math.min(record.leaves, first + PAGE_LEAVES, at + READ_LEAVES)
      const digests = await imageDigests(image, record, at, end)
      for (let leaf = at; leaf < end; leaf++) {
        const expected = page.subarray((leaf - first) * 32, (leaf - first + 1) * 32)
        if (!expected.equals(ZERO_DIGEST)) sum.add(leaf, expected)
        const found = digests[leaf - at]
        if (found === undefined) continue
        if (found.equals(expected)) equal++
        else {
          different++
          if (differences.length < PROOF_DIFFERENCES_MAX) differences.push(leaf * LEAF_BYTES)
        }
      }
    }
  }
  if (sum.bytes().toString('hex') !== record.head.fileRoot)
    throw new RefusedError(`${path}: no whole record of a proof: its digests do not fit its root`)
  return {
    leaves: record.leaves,
    equalLeaves: equal,
    differentLeaves: different,
    unknownLeaves: record.unknown.leaves,
    differences,
  }
}

/** Undefined for those that are not judged. */
async function imageDigests(
  image: SparseImage,
  record: LeafRecord,
  first: number,
  end: number,
): Promise<(Buffer | undefined)[]> {
  const from = first * LEAF_BYTES
  const to = Math.min(image.size, end * LEAF_BYTES)
  const hole = image.within(from, to).next().done === true
  const known = (leaf: number): boolean => !record.unknown.has(leaf)
  const leaves = Array.from({ length: end - first }, (_, at) => first + at)
  if (hole || !leaves.some(known)) return leaves.map((leaf) => (known(leaf) ? ZERO_DIGEST : undefined))
  const bytes = await image.read(from, to - from)
  return leaves.map((leaf) =>
    known(leaf)
      ? leafDigest(bytes.subarray((leaf - first) * LEAF_BYTES, (leaf - first + 1) * LEAF_BYTES))
      : undefined,
  )
}
