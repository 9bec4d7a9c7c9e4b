/**
 * What one SURVEY says of data that was written together: runs of zeroes and of chunks, with the digest of every chunk or, where
 * the far side most likely has all of it in place, with one root for ROOT_CHUNKS of them: SHA-256 over their digests.
 */

import type { DescribedRun } from '../chunk/describer.ts'
import { sha256 } from '../chunk/digest.ts'
import {
  DIGEST_BYTES,
  type DiskMessage,
  type DiskMessageBody,
  ROOT_CHUNKS,
  type SurveyedRun,
} from '../wire/disk.ts'

/** @param digests of neighbouring chunks, ROOT_CHUNKS at most */
export function rootOf(digests: Uint8Array): Buffer {
  return sha256(digests)
}

/** @param offset of the data on the disk */
export function surveyOf(
  firstSeq: number,
  offset: number,
  described: readonly DescribedRun[],
  roots: boolean,
): DiskMessageBody {
  const runs = described.map(
    ({ zero, length, lengths }): SurveyedRun => (zero ? { zero, length } : { zero: false, lengths }),
  )
  const own = Buffer.concat(described.map((run) => run.digests))
  const digests = roots ? Buffer.concat(groupsOf(own).map(rootOf)) : own
  return { type: 'survey', firstSeq, offset, runs, roots, digests }
}

function groupsOf(digests: Buffer): Buffer[] {
  const groups: Buffer[] = []
  const bytes = ROOT_CHUNKS * DIGEST_BYTES
  for (let at = 0; at < digests.length; at += bytes) groups.push(digests.subarray(at, at + bytes))
  return groups
}

/** One run of a SURVEY, where it lies; the digests of its chunks, if they are not behind roots. */
export type PlacedRun =
  | { readonly zero: true; readonly seq: number; readonly offset: number; readonly length: number }
  | {
      readonly zero: false
      readonly seq: number
      readonly offset: number
      readonly lengths: Uint32Array
      readonly digests: Uint8Array
    }

export type Survey = Extract<DiskMessage, { type: 'survey' }>

export function* runsOf({ firstSeq, offset, runs, roots, digests }: Survey): Generator<PlacedRun> {
  let seq = firstSeq
  let at = offset
  let digestsAt = 0
  for (const run of runs) {
    if (run.zero) {
      yield { zero: true, seq, offset: at, length: run.length }
      seq++
      at += run.length
      continue
    }
    const { lengths } = run
    const bytes = roots ? 0 : lengths.length * DIGEST_BYTES
    yield { zero: false, seq, offset: at, lengths, digests: digests.subarray(digestsAt, digestsAt + bytes) }
    seq += lengths.length
    digestsAt += bytes
    for (const length of lengths) at += length
  }
}
