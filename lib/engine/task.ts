/** One described chunk, or one range of zeroes, at the receiver; and how chunks are told of in runs. */
import type { BlockDevice } from '../block/device.ts'
import { ProtocolError } from '../core/errors.ts'
import { MIGRATION_TASKS_MAX, RECEIVER_TASKS_MAX } from '../core/limits.ts'
import type { AppliedRun, SeqRun, SourceName } from '../wire/disk.ts'
import type { RunWriter } from './seams.ts'

/** What all disks of one migration hold together: a far side that lies may have many of them. */
export interface ReceiverBudget {
  tasks: number
  eagerBytes: number
}

export interface Task {
  readonly seq: number
  readonly start: number
  readonly end: number
  /** Undefined for zeroes, and while only a root is known that it is part of. */
  digest: Buffer | undefined
  readonly writer: RunWriter | undefined
  /** Resolves when the task is applied; never rejects. */
  readonly done: Promise<void>
  readonly finish: () => void
  /** Resolves when the bytes are known or never will be, for a later chunk with the same digest. */
  readonly found: Promise<void>
  readonly finding: () => void
  /** The verified bytes, while they are being written; later they are found where they were delivered. */
  bytes: Buffer | undefined
  /** Has its place in the budget. */
  holding: boolean
  /** Set while a literal is asked for. */
  literal: ((bytes: Buffer) => void) | undefined
  /** A literal that came before it was asked for; not verified yet. */
  eager: Buffer | undefined
  /** Set while another session is waited for; to be called when a literal came all the same. */
  wake: (() => void) | undefined
  /** When other sessions are not waited for any more; undefined before the first wait. */
  waitsUntilMs: number | undefined
  /** It was told of another session's bytes, which is done once: they may not fit. */
  offered: boolean
  /** Its literal came, which happens once. */
  came: boolean
  /** Its bytes are known and are being written. */
  taken: boolean
  /** Its digest was asked for. */
  detailed: boolean
  /** In which of its blocks it is another one than what lies in place, as the sender says. */
  changed: Buffer | undefined
  /** Asked for block by block. */
  asked: boolean
  /** The answer to that. */
  hints: Buffer | undefined
  /** Bytes of the missing blocks that were then asked for; 0: it is wanted as a whole, or not at all. */
  partsBytes: number
  /** The same where only what changed in them comes: at most so many. */
  bodyBytesMax: number
  /** Those of its bytes that were sent, where the others were found block by block; and those that older blocks had. */
  literalBytes: number
  deltaBytes: number
}

export function newTask(
  seq: number,
  start: number,
  end: number,
  digest: Buffer | undefined,
  writer: RunWriter | undefined,
): Task {
  const { promise: done, resolve: finish } = Promise.withResolvers<void>()
  const { promise: found, resolve: finding } = Promise.withResolvers<void>()
  return {
    seq,
    start,
    end,
    digest,
    writer,
    done,
    finish,
    found,
    finding,
    bytes: undefined,
    holding: false,
    literal: undefined,
    eager: undefined,
    wake: undefined,
    waitsUntilMs: undefined,
    offered: false,
    came: false,
    taken: false,
    detailed: false,
    changed: undefined,
    asked: false,
    hints: undefined,
    partsBytes: 0,
    bodyBytesMax: 0,
    literalBytes: 0,
    deltaBytes: 0,
  }
}

/** Whether what is described lies on the disk, in whole blocks. @throws ProtocolError */
export function checkPlace(
  what: string,
  { size, blockSizes }: Pick<BlockDevice, 'size' | 'blockSizes'>,
  offset: number,
  length: number,
): void {
  if (offset + length > size)
    throw new ProtocolError(`${what}: ${length} bytes at ${offset}, the disk has ${size}`)
  const unit = blockSizes.minimum
  if (offset % unit !== 0 || (length % unit !== 0 && offset + length !== size)) {
    throw new ProtocolError(`${what}: ${length} bytes at ${offset} are no multiple of the block size ${unit}`)
  }
}

/** Whether there may be one more. @throws ProtocolError */
export function checkCount(what: string, tasks: number, budget: ReceiverBudget): void {
  if (tasks >= RECEIVER_TASKS_MAX) throw new ProtocolError(`${what}: ${tasks} chunks are under way already`)
  if (budget.tasks >= MIGRATION_TASKS_MAX)
    throw new ProtocolError(`${what}: ${budget.tasks} chunks of all disks are under way already`)
}

/** Neighbouring numbers as runs. @param sorted ascending */
export function seqRuns(sorted: readonly number[]): SeqRun[] {
  const runs: SeqRun[] = []
  for (const seq of sorted) {
    const last = runs.at(-1)
    if (last !== undefined && last.first + last.count === seq) {
      runs[runs.length - 1] = { first: last.first, count: last.count + 1 }
    } else runs.push({ first: seq, count: 1 })
  }
  return runs
}

/**
 * The same, as far as neighbours came from the same source.
 * @param sorted by number @param overZeroes zeroes go with any neighbour: the sender knows what they are
 */
export function runsOfApplied(
  sorted: readonly { seq: number; source: SourceName }[],
  overZeroes: boolean,
): AppliedRun[] {
  const runs: { first: number; count: number; source: SourceName }[] = []
  for (const { seq, source } of sorted) {
    const last = runs.at(-1)
    const alike = last?.source === source || (overZeroes && (source === 'zero' || last?.source === 'zero'))
    if (last !== undefined && alike && last.first + last.count === seq) {
      last.count++
      if (last.source === 'zero') last.source = source
    } else runs.push({ first: seq, count: 1, source })
  }
  return runs
}
