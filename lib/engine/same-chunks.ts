/** Chunks of one session with the same content: while one is under way, later ones wait for its bytes and do not ask again. */
import type { Task } from './task.ts'

export interface SameChunksOptions {
  /** Takes and gives back the chunk's place in memory. */
  readonly hold: (task: Task) => Promise<void>
  readonly letGo: (task: Task) => void
}

export class SameChunks {
  readonly #options: SameChunksOptions
  readonly #byDigest = new Map<string, Task>()

  constructor(options: SameChunksOptions) {
    this.#options = options
  }

  /** An older chunk under way with the same content, or this one will be it for others. A newer one may wait for this one. */
  olderThan(task: Task): Task | undefined {
    const key = task.digest!.toString('latin1')
    const same = this.#byDigest.get(key)
    if (same !== undefined && same.seq < task.seq) return same
    this.#byDigest.set(key, task)
    return undefined
  }

  /**
   * Resolves when the bytes of `same` are known, lie on the device or never will be known; `task` has its place in memory then.
   * A literal may take a round trip, so that place is given back meanwhile.
   */
  async until(task: Task, same: Task): Promise<void> {
    const { hold, letGo } = this.#options
    letGo(task)
    await same.found
    await hold(task)
    // Written but for a block that it shares with a neighbour, which in its own run may be this very chunk.
    if (same.bytes === undefined && same.writer !== task.writer) {
      letGo(task)
      await same.done
      await hold(task)
    }
  }

  applied(task: Task): void {
    const key = task.digest!.toString('latin1')
    if (this.#byDigest.get(key) === task) this.#byDigest.delete(key)
  }
}
