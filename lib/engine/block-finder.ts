/**
 * Looks for the 4 KiB blocks of a chunk by their hints: where the chunk belongs, then wherever `BlockPlaces` say that such a
 * block lies. Neighbours lie beside each other mostly, so what follows a find is read with it and compared first.
 *
 * What is found is a guess of 8 bytes each; whoever uses it verifies the whole chunk (I3). A place that cannot be read is
 * none.
 */
import { loopTurn } from '../core/loop-turn.ts'
import { BLOCK_BYTES, HINT_BYTES } from '../core/units.ts'
import { blockBits, blockCount, fitsHint, hasBlock, isLookedFor, partOf, setBlock } from './chunk-blocks.ts'
import { sketchOf } from './pieces.ts'

const ZEROES = Buffer.alloc(BLOCK_BYTES)

/** Somewhere with blocks: `read` gives exactly `length` bytes from `offset` on, which is below `size`, or rejects. */
export interface BlockPlace {
  readonly offset: number
  readonly size: number
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
  /** Those of which an older version lies in place, and stands in `bytes`; with what each of its pieces is like. */
  readonly old?: { readonly blocks: Buffer; readonly sketches: Buffer }
}

/**
 * @param hints of HINT_BYTES each; brief ones are for `old` only
 * @param old what lies at the chunk's blocks now, from the first one's start on, if it is worth a look
 * @param sketched whether what is not found shall be held against it piece by piece
 */
export async function findBlocks(
  start: number,
  end: number,
  hints: Buffer,
  places: readonly BlockPlaces[],
  old: Buffer | undefined,
  sketched = false,
): Promise<FoundBlocks> {
  const search = new Search(start, end, hints)
  if (old !== undefined) for (let index = 0; index < search.count; index++) search.take(index, old, index)
  for (const place of places) {
    if (place.blockCount === 0) continue
    for (let index = 0; index < search.count; index++) {
      if (!search.seeks(index)) continue
      if (loopTurn.over) await loopTurn.next()
      await search.lookInto(place, index)
    }
  }
  return search.result(sketched ? old : undefined)
}

class Search {
  readonly count: number
  readonly #start: number
  readonly #end: number
  readonly #hints: Buffer
  readonly #hintBytes: number
  readonly #bytes: Buffer
  readonly #found: Buffer
  #foundBytes = 0

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

  async lookInto(places: BlockPlaces, index: number): Promise<void> {
    for (const place of places.lookup(this.#hints, index * HINT_BYTES)) {
      const blocks = Math.min(this.count - index, Math.floor((place.size - place.offset) / BLOCK_BYTES))
      if (blocks < 1) continue
      const bytes = await place.read(place.offset, blocks * BLOCK_BYTES).catch(() => undefined)
      if (bytes === undefined || !this.take(index, bytes, 0)) continue
      for (let next = 1; next < blocks && this.take(index + next, bytes, next); next++);
      return
    }
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

  /** @param old of which blocks that were not found shall be sketched */
  result(old: Buffer | undefined): FoundBlocks {
    const missing = blockBits(this.count)
    const blocks = blockBits(this.count)
    const sketches: Buffer[] = []
    for (let index = 0; index < this.count; index++) {
      if (hasBlock(this.#found, index)) continue
      setBlock(missing, index)
      const block = old?.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES)
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
    return sketches.length === 0 ? found : { ...found, old: { blocks, sketches: Buffer.concat(sketches) } }
  }

  /** Puts what of the block lies in the chunk there. */
  #place(index: number, block: Buffer): number {
    const { from, to } = partOf(this.#start, this.#end, index)
    const skip = index === 0 ? this.#start % BLOCK_BYTES : 0
    block.copy(this.#bytes, from, skip, skip + to - from)
    return to - from
  }
}
