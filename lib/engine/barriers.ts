/** FLUSHes that wait until everything below their barrier is applied. */
export class Barriers {
  #waiting: { readonly barrier: number; readonly resolve: () => void }[] = []

  /** Whether a FLUSH waits for something to be applied. */
  get any(): boolean {
    return this.#waiting.length > 0
  }

  /** @param tasks what is not applied, in the order of their numbers @param nextSeq behind all that was described */
  wait(barrier: number, tasks: ReadonlyMap<number, unknown>, nextSeq: number): Promise<void> {
    const { promise, resolve } = Promise.withResolvers<void>()
    this.#waiting.push({ barrier, resolve })
    this.check(tasks, nextSeq)
    return promise
  }

  check(tasks: ReadonlyMap<number, unknown>, nextSeq: number): void {
    if (this.#waiting.length === 0) return
    let oldest = nextSeq
    for (const seq of tasks.keys()) {
      oldest = seq
      break
    }
    this.#waiting = this.#waiting.filter(({ barrier, resolve }) => {
      if (oldest < barrier) return true
      resolve()
      return false
    })
  }

  /** Nobody waits any more, whatever is applied. */
  end(): void {
    for (const { resolve } of this.#waiting.splice(0)) resolve()
  }
}
