/**
 * SendWindow: how much all disks of a daemon together may have acknowledged to their guests and not settled yet. Each
 * disk has a bound of its own too; this one is for many at once. A disk that has next to nothing under way is always let
 * in, so that none waits for others that do not move. Whoever settles something tells it, and who waits looks again.
 */
import { WINDOW_SHARE_BYTES_MIN } from '../core/limits.ts'

export interface WindowMember {
  /** Acknowledged and not settled. */
  readonly unsettledBytes: number
  /** There may be room now. */
  admit(): void
}

export class SendWindow {
  readonly bytesMax: number
  readonly #members = new Set<WindowMember>()

  constructor(options: { readonly bytesMax: number }) {
    this.bytesMax = options.bytesMax
  }

  get usedBytes(): number {
    let sum = 0
    for (const member of this.#members) sum += member.unsettledBytes
    return sum
  }

  join(member: WindowMember): void {
    this.#members.add(member)
  }

  leave(member: WindowMember): void {
    if (this.#members.delete(member)) this.changed()
  }

  hasRoomFor(member: WindowMember): boolean {
    return member.unsettledBytes <= WINDOW_SHARE_BYTES_MIN || this.usedBytes <= this.bytesMax
  }

  changed(): void {
    for (const member of [...this.#members]) member.admit()
  }
}
