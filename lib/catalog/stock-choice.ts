/**
 * Which images are in the indexes, where not all find room: first those of which most was asked for, with their blocks as long as
 * these find room, then by their chunks alone.
 */

/**
 * How the memory for the indexes (`limits.indexMiB`, in bytes) is spent: all of it on blocks, of which there are 16 in a chunk, and half
 * as much on chunks. At 20 bytes an entry and 0.8 of the places, 256 MiB are the blocks of 40 GiB and the chunks of 330 GiB.
 */
export function indexBudgets(bytes: number): {
  readonly indexBytesMax: number
  readonly blockIndexBytesMax: number
} {
  return { indexBytesMax: Math.floor(bytes / 2), blockIndexBytesMax: bytes }
}

/** What is known of an image; numbers of entries. */
export interface Candidate {
  /** By its map; without one it is as it is. */
  readonly map: { readonly chunks: number; readonly blocks: number } | undefined
  /** What lies in the indexes now. */
  readonly loaded:
    | { readonly chunks: number; readonly blocks: number; readonly withBlocks: boolean }
    | undefined
  /** How many of its samples were looked up. */
  readonly score: number
}

/** What lies there gives way only to what is asked for so much more often: loading costs time, and two must not take turns. */
const LOADED_FACTOR = 2

function weight({ loaded, score }: Candidate): number {
  return loaded?.withBlocks === true ? LOADED_FACTOR * score : score
}

/** Those that are asked for most, then those that are loaded, then small ones, which are many. */
export function ranked<Image extends Candidate>(images: readonly Image[]): Image[] {
  return images.toSorted(
    (one, other) =>
      weight(other) - weight(one) ||
      Number(other.loaded !== undefined) - Number(one.loaded !== undefined) ||
      (one.map?.chunks ?? 0) - (other.map?.chunks ?? 0),
  )
}

/**
 * Of the ranked images those that find room, each with whether its blocks do too.
 * @param chunks entries that the index of chunks holds @param blocks the same of blocks
 */
export function choose<Image extends Candidate>(
  images: readonly Image[],
  chunks: number,
  blocks: number,
): { readonly wanted: Map<Image, boolean>; readonly crowded: boolean } {
  const wanted = new Map<Image, boolean>()
  let crowded = false
  for (const image of images) {
    const { map, loaded } = image
    const ofChunks = loaded?.chunks ?? map?.chunks ?? 0
    const ofBlocks = loaded?.withBlocks === true || map === undefined ? (loaded?.blocks ?? 0) : map.blocks
    const withBlocks = ofBlocks <= blocks
    const fits = ofChunks <= chunks
    if (!fits || !withBlocks) crowded = true
    if (!fits && map !== undefined) continue
    chunks -= ofChunks
    if (withBlocks) blocks -= ofBlocks
    if (map !== undefined) wanted.set(image, withBlocks)
  }
  return { wanted, crowded }
}
