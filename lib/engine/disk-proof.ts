/** What both ends' proofs have in common: how far the last one went, for the history and the record. */
import type { LeafMap } from '../proof/leaf-map.ts'
import type { LeafRun } from '../proof/leaf-set.ts'

/** The last FLUSH that was proved; in the end that is the one before the guest went on elsewhere. */
export interface CutOver {
  /** 64 hex digits. */
  readonly root: string
  /** Milliseconds since 1970. */
  readonly at: number
  readonly leaves: number
  /** For how many of them the root speaks. */
  readonly proved: number
  /** How many of them were written and not read back; null where they were not to be. */
  readonly unread: number | null
}

export interface DiskProof {
  readonly map: LeafMap
  readonly cutOver: CutOver | undefined
  /** Why there is none, as far as it is known. */
  readonly reason: string | undefined
  /** Leaves of the map for which the last proof does not speak. */
  readonly since: readonly LeafRun[]
  close(): void
}
