/**
 * Looks for the 4 KiB blocks of a chunk by their hints: where the chunk belongs, then wherever `BlockPlaces` say that such a
 * block lies. Neighbours lie beside each other mostly, so what lies around a find is read with it and compared first. What
 * is not the same there is similar most likely: a file that lies elsewhere, and in which a little changed. Of other guests'
 * images that is nobody's business: it would tell the far end what lies there.
 *
 * What is found is a guess of 8 bytes each; whoever uses it verifies the whole chunk (I3). A place that cannot be read is
 * none.
 */
import { loopTurn } from '../core/loop-turn.ts'
import { BLOCK_BYTES, blockCount, HINT_BYTES } from '../core/units.ts'
import { blockBits, fitsHint, hasBlock, isLookedFor, partOf, setBlock } from './chunk-blocks.ts'
import { sketchOf } from './pieces.ts'

const ZEROES = Buffer.alloc(BLOCK_BYTES)

/** Somewhere with blocks: `read` gives exactly `length` bytes from `offset` on, which is below `size`, or rejects. */
export interface BlockPlace {
  readonly offset: number
  readonly size: number
  /** It is what this guest has brought: the far end may be told what it is like, besides whether it is there. */
  readonly isOwn?: boolean
  read(offset: number, length: number): Promise<Buffer>
}

export interface BlockPlaces {
  /** Blocks that could be found; none: it need not be asked. */
  readonly blockCount: number
  /** Where a block may lie whose hint is in `hints` at `hintOffset`. */
  lookup(hints: Buffer, hintOffset: number): readonly BlockPlace[]
}

export interface FoundBlocks {
  /** The chunk, as far as it was found; undefined bytes elsewhere. */
  readonly bytes: Buffer
  /** A bit for each block that was not found. */
  readonly missing: Buffer
  readonly foundBytes: number
  /** Those of which an older version or a similar block is here, and stands in `bytes`; with what each of its pieces is like. */
  readonly old?: { readonly blocks: Buffer; readonly sketches: Buffer; readonly kind: BaseKind }
}

/** What a missing block is held against piece by piece: what lies in its place, or beside blocks that were found elsewhere. */
export type BaseKind = 'inPlace' | 'similar'

/**
 * @param hints of HINT_BYTES each; brief ones are for `old` only
 * @param old what lies at the chunk's blocks now, from the first one's start on, if it is worth a look
 * @param sketched whether what is not found shall be held against something of that kind piece by piece
 */
export async function findBlocks(
  start: number,
  end: number,
  hints: Buffer,
  places: readonly BlockPlaces[],
  old: Buffer | undefined,
  sketched: (kind: BaseKind) => boolean = () => false,
): Promise<FoundBlocks> {
  const search = new Search(start, end, hints)
  if (old !== undefined) search.lookInPlace(old)
  for (const place of places) {
    if (place.blockCount === 0) continue
    for (let index = 0; index < search.count; index++) {
      if (!search.seeks(index)) continue
      if (loopTurn.over) await loopTurn.next()
      await search.lookInto(place, index)
    }
  }
  const bases = search.bases(old)
  return search.result(bases !== undefined && sketched(bases.kind) ? bases : undefined)
}

interface Bases {
  readonly kind: BaseKind
  readonly blockAt: (index: number) => Buffer | undefined
}

class Search {
  readonly count: number
  readonly #start: number
  readonly #end: number
  readonly #hints: Buffer
  readonly #hintBytes: number
  readonly #bytes: Buffer
  readonly #found: Buffer
  /** By index: what lies where a block would lie if it followed those that were found beside it. */
  readonly #beside = new Map<number, Buffer>()
  #foundBytes = 0
  #foundInPlace = false

  constructor(start: number, end: number, hints: Buffer) {
    this.#start = start
    this.#end = end
    this.#hints = hints
    this.count = blockCount(start, end)
    this.#hintBytes = hints.length / this.count
    this.#bytes = Buffer.allocUnsafe(end - start)
    this.#found = blockBits(this.count)
  }

  seeks(index: number): boolean {
    return !hasBlock(this.#found, index) && isLookedFor(this.#hints, index, this.#hintBytes)
  }

  lookInPlace(old: Buffer): void {
    for (let index = 0; index < this.count; index++) this.take(index, old, index)
    this.#foundInPlace = this.#foundBytes > 0
  }

  async lookInto(places: BlockPlaces, index: number): Promise<void> {
    for (const place of places.lookup(this.#hints, index * HINT_BYTES)) {
      const behind = Math.min(this.count - index, Math.floor((place.size - place.offset) / BLOCK_BYTES))
      if (behind < 1) continue
      const before = this.#missingBefore(index, Math.floor(place.offset / BLOCK_BYTES))
      const bytes = await place
        .read(place.offset - before * BLOCK_BYTES, (before + behind) * BLOCK_BYTES)
        .catch(() => undefined)
      if (bytes === undefined || !this.take(index, bytes, before)) continue
      for (let at = 0; at < before + behind; at++)
        if (!this.take(index - before + at, bytes, at) && place.isOwn === true)
          this.#keepBeside(index - before + at, bytes, at)
      return
    }
  }

  /** How many blocks right before this one are missing, at most so many. */
  #missingBefore(index: number, most: number): number {
    let before = 0
    while (before < most && before < index && this.seeks(index - before - 1)) before++
    return before
  }

  #keepBeside(index: number, bytes: Buffer, at: number): void {
    if (this.#beside.has(index)) return
    this.#beside.set(index, bytes.subarray(at * BLOCK_BYTES, (at + 1) * BLOCK_BYTES))
  }

  /** What missing blocks could be held against: what lies in their place, unless all that was found of the chunk lies elsewhere. */
  bases(old: Buffer | undefined): Bases | undefined {
    if (this.#beside.size > 0 && !this.#foundInPlace)
      return { kind: 'similar', blockAt: (index) => this.#beside.get(index) }
    if (old === undefined) return undefined
    const blockAt = (index: number): Buffer => old.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)
    return { kind: 'inPlace', blockAt }
  }

  /** True if block `index` is, or was before, what it should be. @param at which block of `bytes` it would be */
  take(index: number, bytes: Buffer, at: number): boolean {
    if (hasBlock(this.#found, index)) return true
    const block = bytes.subarray(at * BLOCK_BYTES, (at + 1) * BLOCK_BYTES)
    if (
      block.length < BLOCK_BYTES ||
      !isLookedFor(this.#hints, index, this.#hintBytes) ||
      !fitsHint(block, this.#hints, index, this.#hintBytes)
    )
      return false
    this.#foundBytes += this.#place(index, block)
    setBlock(this.#found, index)
    return true
  }

  /** @param bases of which those that stand for blocks that were not found shall be sketched */
  result(bases: Bases | undefined): FoundBlocks {
    const missing = blockBits(this.count)
    const blocks = blockBits(this.count)
    const sketches: Buffer[] = []
    for (let index = 0; index < this.count; index++) {
      if (hasBlock(this.#found, index)) continue
      setBlock(missing, index)
      const block = bases?.blockAt(index)
      // What was never written there is no older version.
      if (
        block?.length !== BLOCK_BYTES ||
        !isLookedFor(this.#hints, index, this.#hintBytes) ||
        block.equals(ZEROES)
      )
        continue
      this.#place(index, block)
      setBlock(blocks, index)
      sketches.push(sketchOf(block))
    }
    const found = { bytes: this.#bytes, missing, foundBytes: this.#foundBytes }
    if (bases === undefined || sketches.length === 0) return found
    return { ...found, old: { blocks, sketches: Buffer.concat(sketches), kind: bases.kind } }
  }

  /** Puts what of the block lies in the chunk there. */
  #place(index: number, block: Buffer): number {
    const { from, to } = partOf(this.#start, this.#end, index)
    const skip = index === 0 ? this.#start % BLOCK_BYTES : 0
    block.copy(this.#bytes, from, skip, skip + to - from)
    return to - from
  }
}
