/**
 * The disks of one guest: when it is paused QEMU flushes them one after the other, and waits for each. So the first FLUSH
 * starts one on all of them, and those that QEMU asks for then are under way or answered. Before the guest's memory is on its
 * way it does nothing: then a FLUSH is that of one disk, and others are still being copied.
 */
export interface GroupMember {
  flush(): Promise<void>
}

export class SenderGroup {
  readonly #members = new Set<GroupMember>()
  readonly #isFinal: () => boolean
  readonly #onAsked: () => () => void
  #starting = false

  /**
   * @param isFinal whether all disks are copied
   * @param onAsked told of each FLUSH, of whichever disk; what it gives back is called when that one is answered, if it ever is
   */
  constructor(isFinal: () => boolean, onAsked: () => () => void = () => () => undefined) {
    this.#isFinal = isFinal
    this.#onAsked = onAsked
  }

  join(member: GroupMember): void {
    this.#members.add(member)
  }

  leave(member: GroupMember): void {
    this.#members.delete(member)
  }

  /** QEMU asks for a FLUSH, which may have nothing to do. @returns to be called when it is answered, unless it fails */
  asked(): () => void {
    return this.#onAsked()
  }

  /** A FLUSH of this one begins. A failure of another one's is its own, and told when it is asked. */
  flushing(by: GroupMember): void {
    if (this.#starting || !this.#isFinal()) return
    this.#starting = true
    try {
      for (const member of this.#members) if (member !== by) void member.flush().catch(() => undefined)
    } finally {
      this.#starting = false
    }
  }
}
