/**
 * Handprints (SET: "handprinting"): a few digests of an image that tell how much of something else it holds. A sample is
 * every chunk digest whose first byte is zero, one of 256, so that of what is being sent the same chunks are sampled as of
 * each image: how many of them an image has, times 16 MiB, is what it holds of it (containment: a base of 2 GB inside a disk of
 * 40 GB is found). An image has at least its 64 smallest digests. Samples are hints, as all that a map says.
 */
import { HANDPRINT_SAMPLES_MAX, HANDPRINTS_SAMPLES_MAX } from '../core/limits.ts'

export const SAMPLE_BYTES = 8
const SAMPLES_MIN = 64

/** Eight bytes of a digest as text, whose order is that of the bytes. */
export function sampleAt(digests: Uint8Array, digestOffset: number): string {
  return Buffer.from(digests.buffer, digests.byteOffset + digestOffset, SAMPLE_BYTES).toString('latin1')
}

/** Takes digests as they come and keeps those that are samples. */
export class Handprint {
  /** Those with a first byte of zero. */
  #natural: string[] = []
  /** The smallest others, while there are too few of those. */
  #others: string[] = []

  add(digests: Uint8Array, digestOffset: number): void {
    if (digests[digestOffset] === 0) {
      this.#natural.push(sampleAt(digests, digestOffset))
      if (this.#natural.length > 2 * HANDPRINT_SAMPLES_MAX)
        this.#natural = smallest(this.#natural, HANDPRINT_SAMPLES_MAX)
    } else if (this.#natural.length < SAMPLES_MIN) {
      this.#others.push(sampleAt(digests, digestOffset))
      if (this.#others.length > 64 * SAMPLES_MIN) this.#others = smallest(this.#others, SAMPLES_MIN)
    }
  }

  /** Ascending, each once; at most HANDPRINT_SAMPLES_MAX, the smallest. */
  samples(): string[] {
    const natural = smallest(this.#natural, HANDPRINT_SAMPLES_MAX)
    const missing = Math.max(0, SAMPLES_MIN - natural.length)
    return [...natural, ...smallest(this.#others, missing)]
  }
}

function smallest(samples: readonly string[], count: number): string[] {
  return [...new Set(samples)].sort().slice(0, count)
}

/** Of the two bytes after the first one of a sample: all. */
const WHOLE_RANGE = 65_536

/**
 * Which of many have a sample. When there are too many samples, all handprints become thinner alike, so that owners stay comparable: those
 * whose second and third byte are below a limit stay, and each owner's 64 smallest.
 */
export class HandprintIndex<Owner> {
  readonly #owners = new Map<string, Owner[]>()
  readonly #samples = new Map<Owner, readonly string[]>()
  #count = 0
  #limit = WHOLE_RANGE

  /** @param samples ascending */
  set(owner: Owner, samples: readonly string[]): void {
    this.delete(owner)
    let taken = this.#thinned(samples)
    while (this.#count + taken.length > HANDPRINTS_SAMPLES_MAX && this.#limit > 1) {
      this.#limit >>= 1
      for (const [other, theirs] of this.#samples) this.#cut(other, this.#thinned(theirs).length)
      taken = this.#thinned(samples)
    }
    taken = taken.slice(0, Math.max(0, HANDPRINTS_SAMPLES_MAX - this.#count))
    for (const sample of taken) {
      const owners = this.#owners.get(sample)
      if (owners === undefined) this.#owners.set(sample, [owner])
      else owners.push(owner)
    }
    this.#samples.set(owner, taken)
    this.#count += taken.length
  }

  delete(owner: Owner): void {
    this.#cut(owner, 0)
    this.#samples.delete(owner)
  }

  /** Who has the chunk with this digest among its samples. */
  owners(digest: Uint8Array, digestOffset = 0): readonly Owner[] {
    return this.#owners.get(sampleAt(digest, digestOffset)) ?? []
  }

  /** They ascend, so those that stay come first. */
  #thinned(samples: readonly string[]): readonly string[] {
    if (this.#limit === WHOLE_RANGE) return samples
    let kept = Math.min(SAMPLES_MIN, samples.length)
    while (kept < samples.length && this.#isBelow(samples[kept]!)) kept++
    return samples.slice(0, kept)
  }

  #isBelow(sample: string): boolean {
    return sample.charCodeAt(0) === 0 && sample.charCodeAt(1) * 256 + sample.charCodeAt(2) < this.#limit
  }

  /** Leaves an owner its first samples. */
  #cut(owner: Owner, kept: number): void {
    const samples = this.#samples.get(owner) ?? []
    for (const sample of samples.slice(kept)) {
      const left = this.#owners.get(sample)!.filter((one) => one !== owner)
      if (left.length === 0) this.#owners.delete(sample)
      else this.#owners.set(sample, left)
      this.#count--
    }
    if (kept < samples.length) this.#samples.set(owner, samples.slice(0, kept))
  }
}
