/**
 * The receiver's level above chunks: where the sender takes for granted that all of it lies in place, one root stands for
 * ROOT_CHUNKS chunks. What lies there is digested; if the root fits, all of them are where they belong and nothing is said but
 * APPLIED. If not, DETAIL asks for the digests, and the chunks are put together like any others.
 */
import type { BlockDevice } from '../block/device.ts'
import { readBytes } from '../block/read-bytes.ts'
import { sha256 } from '../chunk/digest.ts'
import { ProtocolError } from '../core/errors.ts'
import { FINDING_CHUNKS_MAX } from '../core/limits.ts'
import { Turns } from '../core/turns.ts'
import { DIGEST_BYTES } from '../wire/disk.ts'
import type { Reports } from './reports.ts'
import { unlessRefused } from './sources.ts'
import { rootOf } from './survey.ts'
import type { Task } from './task.ts'

export interface RootLevelOptions {
  readonly device: BlockDevice
  readonly reports: Reports
  readonly ended: () => boolean
  /** Whether the device may hold something at [start, end) that is not zero. */
  readonly mayHold: (start: number, end: number) => boolean
  /** Takes and gives back the chunk's place in memory. */
  readonly hold: (task: Task) => Promise<void>
  readonly letGo: (task: Task) => void
  /** Was read of the device, whatever it may turn out to be. */
  readonly saw?: (offset: number, bytes: Buffer) => void
  /** The device holds this chunk where it belongs. */
  readonly inPlace: (task: Task) => void
  /** Its digest is known now; what is older on its range is applied. */
  readonly resolve: (task: Task) => Promise<void>
  readonly fail: (error: unknown) => void
}

export class RootLevel {
  readonly #options: RootLevelOptions
  /** Beside the places of what was described: those may be taken by newer chunks that wait for these. */
  readonly #resolving: Turns

  constructor(options: RootLevelOptions) {
    this.#options = options
    this.#resolving = new Turns(FINDING_CHUNKS_MAX, options.fail)
  }

  /** Looks at what lies in place. @param group with what must be applied before each chunk is looked at */
  async compare(
    group: readonly { readonly task: Task; readonly waits: readonly Promise<void>[] }[],
    root: Buffer,
  ): Promise<void> {
    const { reports, ended, inPlace } = this.#options
    const digests: Buffer[] = []
    for (const [index, { task, waits }] of group.entries()) {
      for (const wait of waits) await wait
      if (ended()) return
      // What cannot be read, or is zero, is not in place; the others must be waited for all the same.
      if (digests.length === index) await this.#digest(task, digests)
    }
    if (ended()) return
    if (digests.length === group.length && rootOf(Buffer.concat(digests)).equals(root)) {
      for (const [index, { task }] of group.entries()) {
        task.digest = digests[index]!
        inPlace(task)
      }
      return
    }
    for (const { task } of group) {
      task.detailed = true
      reports.detail(task.seq)
    }
  }

  async #digest(task: Task, digests: Buffer[]): Promise<void> {
    const { device, mayHold, hold, letGo } = this.#options
    if (!mayHold(task.start, task.end)) return
    await hold(task)
    try {
      const bytes = await unlessRefused(readBytes(device, task.start, task.end - task.start))
      if (bytes === undefined) return
      digests.push(sha256(bytes))
      this.#options.saw?.(task.start, bytes)
    } finally {
      letGo(task)
    }
  }

  /** @throws ProtocolError */
  digests(tasks: ReadonlyMap<number, Task>, firstSeq: number, digests: Uint8Array): void {
    for (let at = 0; at < digests.length; at += DIGEST_BYTES) {
      const seq = firstSeq + at / DIGEST_BYTES
      const task = tasks.get(seq)
      if (task?.detailed !== true || task.digest !== undefined)
        throw new ProtocolError(`DIGESTS: that of chunk ${seq} was not asked for`)
      task.digest = Buffer.from(digests.subarray(at, at + DIGEST_BYTES))
      this.#resolving.add(() => this.#options.resolve(task))
    }
  }
}
