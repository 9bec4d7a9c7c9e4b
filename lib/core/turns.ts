/** Turns: steps that are begun in the order in which they came, at most so many at once. It counts no bytes (ByteBudget does). */
export class Turns {
  readonly #atOnceMax: number
  readonly #onError: (error: unknown) => void
  #queue: (() => Promise<void>)[] = []
  #head = 0
  #running = 0

  /** @param onError is told what a step rejects with; the others go on */
  constructor(atOnceMax: number, onError: (error: unknown) => void) {
    this.#atOnceMax = atOnceMax
    this.#onError = onError
  }

  add(step: () => Promise<void>): void {
    this.#queue.push(step)
    this.#pump()
  }

  /** What has not begun never does. */
  clear(): void {
    this.#queue = []
    this.#head = 0
  }

  #pump(): void {
    while (this.#running < this.#atOnceMax && this.#head < this.#queue.length) {
      const step = this.#queue[this.#head++]!
      if (this.#head > 1024 && this.#head * 2 > this.#queue.length) {
        this.#queue = this.#queue.slice(this.#head)
        this.#head = 0
      }
      this.#running++
      void step()
        .catch(this.#onError)
        .finally(() => {
          this.#running--
          this.#pump()
        })
    }
  }
}
