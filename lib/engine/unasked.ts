/**
 * What goes along with the description of a small run although nobody asked for it. Its bytes, where a FLUSH waits and they are on
 * their way sooner than an answer could come; else the hints of its blocks, which spare the far side a question, where it may have
 * most of them in an older version: QEMU mirrors 64 KiB of which the guest wrote 4. Where that did not help lately, the bytes again.
 */
import type { DescribedRun } from '../chunk/describer.ts'
import { sha256 } from '../chunk/digest.ts'
import type { Slab } from '../chunk/slab.ts'
import { EAGER_OUTSTANDING_BYTES_MAX, EAGER_RUN_BYTES_MAX, EARLY_BYTES_MAX } from '../core/limits.ts'
import { alignDown, MIB, MIRRORED_BYTES } from '../core/units.ts'
import { FEATURE_DELTA } from '../wire/disk.ts'
import type { DiskLink } from './link.ts'

/** Of the bytes of runs whose hints went along, those that need not be sent: below that they do not pay. */
const SPARED_SHARE_MIN = 0.25
/** So many bytes tell, by weight, what hints of the next ones will spare. */
const SPARED_BYTES = MIB
/** When they do not pay, those of one run in so many go all the same: the guest may do something else now. */
const HINT_EVERY = 16
const UNITS = EAGER_RUN_BYTES_MAX / MIRRORED_BYTES

export interface UnderWay {
  /** Whether a FLUSH waits. */
  readonly flushing: boolean
  /** Bytes that went unasked and are not applied; bytes that are described and not applied. */
  readonly earlyBytes: number
  readonly bytes: number
  /** Whether this session sent an older version of it. */
  readonly rewritten: boolean
  /** Whether the far side had something at the place of this disk: most of what is described lies there as it is. */
  readonly held: boolean
  /** Where it is decided already whether its hints go along: they are tried now and then, and each decision counts. */
  readonly hinted?: boolean | undefined
}

/**
 * A rewritten run in pieces of which each is decided alone, in chunks of what QEMU mirrors at once: cut by content they would lie
 * nowhere else either, would have blocks of which they hold a part, and each costs a digest.
 * @param base where the slab's bytes lie on the disk
 */
export function* inUnits(base: number, slab: Slab, run: DescribedRun): Generator<DescribedRun> {
  const end = run.offset + run.length
  for (let at = run.offset; at < end; ) {
    const lengths: number[] = []
    const digests: Uint8Array[] = []
    const offset = at
    while (at < end && lengths.length < UNITS) {
      const next = Math.min(end, alignDown(base + at, MIRRORED_BYTES) + MIRRORED_BYTES - base)
      const isWhole = run.lengths.length === 1 && next - at === run.length
      lengths.push(next - at)
      digests.push(isWhole ? run.digests : sha256(slab.bytes.subarray(at, next)))
      at = next
    }
    const length = at - offset
    yield {
      offset,
      length,
      zero: false,
      lengths: Uint32Array.from(lengths),
      digests: Buffer.concat(digests),
    }
  }
}

/** Of a rewritten run those bytes that changed are worth telling apart from the others up to this part of it. */
const CHANGED_SHARE = 0.75

/**
 * How a rewritten piece goes of which the sender knows what changed: as that, as hints where there is no room for more that
 * nobody asked for, or as any other run, where most of it is new.
 * @param length of the piece @param bodyBytes what changed, with what says where @param earlyBytes as in UnderWay
 */
export function asChanged(
  length: number,
  bodyBytes: number,
  earlyBytes: number,
): 'changed' | 'hints' | 'run' {
  if (bodyBytes > length * CHANGED_SHARE) return 'run'
  return earlyBytes + bodyBytes <= EARLY_BYTES_MAX ? 'changed' : 'hints'
}

type Path = Pick<DiskLink, 'features' | 'rateBytesPerSecond' | 'roundTripMs'>

/** Whether so many bytes are at the far side before an answer of it could be here. */
export function isSooner({ rateBytesPerSecond, roundTripMs }: Path, bytes: number): boolean {
  return bytes * 1000 <= rateBytesPerSecond * roundTripMs && bytes <= EARLY_BYTES_MAX
}

export class Unasked {
  readonly #link: Path
  #sparedShare = 1
  #unhinted = 0

  constructor(link: Path) {
    this.#link = link
  }

  /** @param length of the run */
  of(
    length: number,
    { flushing, earlyBytes, bytes, rewritten, held, hinted: decided }: UnderWay,
  ): 'bytes' | 'hints' | 'nothing' {
    const early = earlyBytes + length
    const small = length <= EAGER_RUN_BYTES_MAX && early <= EARLY_BYTES_MAX
    const hinted =
      decided ??
      ((rewritten || (held && flushing)) && this.#link.features.has(FEATURE_DELTA) && this.#hintsPay())
    if (flushing) {
      if (small && (!hinted || isSooner(this.#link, early))) return 'bytes'
      return hinted ? 'hints' : 'nothing'
    }
    if (hinted) return 'hints'
    // What a guest rewrites, and whose hints spared nothing lately, will be asked for: the guest may be paused before that.
    return small && (rewritten || bytes + length <= EAGER_OUTSTANDING_BYTES_MAX) ? 'bytes' : 'nothing'
  }

  /** A chunk whose hints went along is applied. */
  applied(bytes: number, sentBytes: number): void {
    this.#sparedShare += (1 - sentBytes / bytes - this.#sparedShare) * Math.min(1, bytes / SPARED_BYTES)
  }

  #hintsPay(): boolean {
    return this.#sparedShare >= SPARED_SHARE_MIN || ++this.#unhinted % HINT_EVERY === 0
  }
}
