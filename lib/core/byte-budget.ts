/**
 * ByteBudget: how many bytes all users of a kind may hold together. Each user (one disk of one migration) has a share,
 * which is capped too, so that one that hangs does not stop the others. Who finds no room waits: first come first
 * served within a share, in turn between shares. A request that is larger than all there is gets it alone.
 *
 * It counts, and holds no memory. What a share still holds when it is closed goes back to the budget.
 */
interface Waiter {
  readonly bytes: number
  readonly resolve: () => void
}

export class ByteBudget {
  readonly bytesMax: number
  #used = 0
  /** Shares in which somebody waits; who got something goes to the end. */
  readonly #hungry = new Set<ByteShare>()

  constructor(options: { readonly bytesMax: number }) {
    this.bytesMax = options.bytesMax
  }

  get used(): number {
    return this.#used
  }

  share(options: { readonly bytesMax: number }): ByteShare {
    return new ByteShare(options.bytesMax, {
      grant: (bytes) => {
        if (this.#used > 0 && this.#used + bytes > this.bytesMax) return false
        this.#used += bytes
        return true
      },
      hungry: (share) => this.#hungry.add(share),
      sated: (share) => this.#hungry.delete(share),
      released: (bytes) => {
        this.#used -= bytes
        this.#serve()
      },
    })
  }

  #serve(): void {
    for (let served = true; served; ) {
      served = false
      for (const share of [...this.#hungry]) {
        if (!share.serveOne()) continue
        served = true
        this.#hungry.delete(share)
        if (share.waiting > 0) this.#hungry.add(share)
      }
    }
  }
}

/** What a share asks of its budget. */
interface Purse {
  grant(bytes: number): boolean
  hungry(share: ByteShare): void
  sated(share: ByteShare): void
  released(bytes: number): void
}

export class ByteShare {
  readonly #bytesMax: number
  readonly #purse: Purse
  #used = 0
  #waiters: Waiter[] = []
  #closed = false

  constructor(bytesMax: number, purse: Purse) {
    this.#bytesMax = bytesMax
    this.#purse = purse
  }

  get used(): number {
    return this.#used
  }

  get waiting(): number {
    return this.#waiters.length
  }

  /** Resolves when the bytes may be held, and at once when the share is closed: look at that. */
  take(bytes: number): Promise<void> {
    if (this.#closed || this.tryTake(bytes)) return Promise.resolve()
    return new Promise((resolve) => {
      this.#waiters.push({ bytes, resolve })
      this.#purse.hungry(this)
    })
  }

  /** Takes them if there is room now and nobody of this share waits for it. */
  tryTake(bytes: number): boolean {
    return !this.#closed && this.#waiters.length === 0 && this.#grant(bytes)
  }

  release(bytes: number): void {
    if (this.#closed) return
    if (bytes > this.#used) throw new Error(`byte share: ${bytes} bytes released, ${this.#used} are held`)
    this.#used -= bytes
    this.#purse.released(bytes)
  }

  /** Idempotent. */
  close(): void {
    if (this.#closed) return
    this.#closed = true
    this.#purse.sated(this)
    for (const { resolve } of this.#waiters.splice(0)) resolve()
    const used = this.#used
    this.#used = 0
    this.#purse.released(used)
  }

  /** For the budget: gives the first waiter its bytes if there is room now. */
  serveOne(): boolean {
    const first = this.#waiters[0]
    if (first === undefined || !this.#grant(first.bytes)) return false
    this.#waiters.shift()
    first.resolve()
    return true
  }

  #grant(bytes: number): boolean {
    if (this.#used > 0 && this.#used + bytes > this.#bytesMax) return false
    if (!this.#purse.grant(bytes)) return false
    this.#used += bytes
    return true
  }
}
