/** A run of the stage, copied into shared memory and described there by a worker: with its leaves, where there is a proof. */
import type { DescribedRun } from '../chunk/describer.ts'
import type { Slab } from '../chunk/slab.ts'
import { loopTurn } from '../core/loop-turn.ts'
import { KIB } from '../core/units.ts'
import type { SenderOptions } from './sender-parts.ts'
import type { SenderProof } from './sender-proof.ts'
import type { StagedRun } from './stage.ts'

/** At once. New memory is slow: 16 MiB were seen to take 25 ms. */
const COPIED_BYTES = 128 * KIB

export interface DescribedSlab {
  /** The caller's, to be released. */
  readonly slab: Slab
  readonly runs: readonly DescribedRun[]
  /** Digests of the leaves that lie whole in it. */
  readonly leaves: Uint8Array | undefined
}

export async function describeRun(
  run: StagedRun,
  { slabs, describe }: Pick<SenderOptions, 'slabs' | 'describe'>,
  proof: SenderProof | undefined,
): Promise<DescribedSlab> {
  const slab = await slabs.takeAsync(run.length)
  try {
    let at = 0
    for (const part of run.parts) {
      for (let from = 0; from < part.length; from += COPIED_BYTES) {
        // Before each, for many runs may leave the stage in one turn.
        if (loopTurn.over) await loopTurn.next()
        const piece = part.subarray(from, from + COPIED_BYTES)
        slab.bytes.set(piece, at)
        at += piece.length
      }
    }
    if (proof !== undefined) return { slab, ...(await proof.describe(run.offset, slab.bytes)) }
    return { slab, runs: await describe(slab.bytes), leaves: undefined }
  } catch (error) {
    slab.release()
    throw error
  }
}
