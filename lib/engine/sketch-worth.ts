/**
 * Whether sketches of older content pay: they cost 2% of a block, which where a disk's files were replaced by others is for
 * nothing. The first few are made on trust; then what they spared decides, and one in SKETCH_EVERY is made all the same.
 */
import { MIB } from '../core/units.ts'

const SKETCH_SHARE_MIN = 0.1
/** So many bytes of chunks tell, by weight, what sketches of the next ones will spare. */
const SKETCH_SHARE_BYTES = MIB
/** Before that is known, at most so many bytes of missing blocks are sketched: 128 KiB of sketches. */
const SKETCH_GUESSED_BYTES = 8 * MIB
/** Of those of which they will spare too little, one in so many is sketched all the same: the guest may do something else now. */
const SKETCH_EVERY = 32

export class SketchWorth {
  /** Of the bytes that were told of, those that need not be sent: a mean of the first, then one that forgets. */
  #share = 0
  #askedBytes = 0
  #toldBytes = 0
  #unasked = 0

  /** Whether the next ones shall be made. It counts: ask once for each. */
  get pays(): boolean {
    const isKnown = this.#toldBytes >= SKETCH_SHARE_BYTES
    if (isKnown ? this.#share >= SKETCH_SHARE_MIN : this.#askedBytes < SKETCH_GUESSED_BYTES) return true
    return ++this.#unasked % SKETCH_EVERY === 0
  }

  /** @param bytes of the blocks that were sketched just now */
  asked(bytes: number): void {
    this.#askedBytes += bytes
  }

  /** @param savedBytes of `bytes` that were sketched once */
  told(savedBytes: number, bytes: number): void {
    this.#toldBytes += bytes
    const weight = bytes / Math.max(bytes, Math.min(this.#toldBytes, SKETCH_SHARE_BYTES))
    this.#share += (savedBytes / bytes - this.#share) * weight
  }
}
