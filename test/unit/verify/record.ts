/** The record of a disk as a migration keeps it, for tests of who reads it. */
import { leafDigests } from '../../../lib/chunk/leaf-digests.ts'
import type { LeafHead } from '../../../lib/proof/leaf-file.ts'
import type { ProofFolder } from '../../../lib/proof/proof-folder.ts'

export const UUID = '11111111-2222-4333-8444-555555555555'

/** @param unknown leaves of which nothing is known */
export async function keepRecord(
  folder: ProofFolder,
  bytes: Buffer,
  image: string,
  { unknown, ...head }: Partial<LeafHead> & { readonly unknown?: readonly [first: number, end: number] } = {},
): Promise<void> {
  const map = await folder.begin(bytes.length)
  map.put(0, leafDigests(bytes, { from: 0, to: bytes.length }))
  if (unknown !== undefined) map.forget(...unknown)
  await folder.keep(map, {
    guest: 'vm',
    uuid: UUID,
    target: 'vda',
    image,
    format: 'raw',
    peer: 'fra1',
    direction: 'in',
    at: Date.now() + 60_000,
    size: bytes.length,
    root: 'cd'.repeat(32),
    ...head,
  })
}
