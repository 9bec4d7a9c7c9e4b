/**
 * The root of a disk's leaves: the sum modulo 2^256 of SHA-256(leaf number, 8 bytes; digest, 32 bytes) over all that are not
 * zero. A sum, so that a leaf comes and goes in one step and two ends that leave out the same leaves agree on the rest. Whoever may
 * choose leaves could find two disks with one root: it proves that no fault happened, not that nobody lied.
 */
import { DIGEST_BYTES, sha256 } from '../chunk/digest.ts'

const WORDS = 8

export class RootSum {
  /** The least first. */
  readonly #words = new Uint32Array(WORDS)
  readonly #block = Buffer.alloc(8 + DIGEST_BYTES)

  add(leaf: number, digest: Uint8Array): void {
    this.#change(leaf, digest, 1)
  }

  subtract(leaf: number, digest: Uint8Array): void {
    this.#change(leaf, digest, -1)
  }

  #change(leaf: number, digest: Uint8Array, sign: 1 | -1): void {
    this.#block.writeUInt32BE(Math.floor(leaf / 2 ** 32), 0)
    this.#block.writeUInt32BE(leaf % 2 ** 32, 4)
    this.#block.set(digest, 8)
    const part = sha256(this.#block)
    let carry = 0
    for (let at = 0; at < WORDS; at++) {
      const sum = this.#words[at]! + sign * part.readUInt32LE(4 * at) + carry
      // -1, 0 or 1: what is over, or was lent.
      carry = Math.floor(sum / 2 ** 32)
      this.#words[at] = sum - carry * 2 ** 32
    }
  }

  copy(): RootSum {
    const copy = new RootSum()
    copy.#words.set(this.#words)
    return copy
  }

  /** 32 bytes, the greatest first. */
  bytes(): Buffer {
    const bytes = Buffer.alloc(4 * WORDS)
    for (let at = 0; at < WORDS; at++) bytes.writeUInt32BE(this.#words[WORDS - 1 - at]!, 4 * at)
    return bytes
  }
}
