/**
 * Room for maps. The history, and the keys of peers, lie on the same file system: maps, which only save bytes, must not be what
 * fills it. Synchronous, for the thread that writes them.
 */
import { statfsSync } from 'node:fs'
import { dirname } from 'node:path'
import { CATALOG_FREE_BYTES_MIN } from '../core/limits.ts'

/** Why no map is to be written into `directory`, which need not be there yet; undefined: there is room, or nobody says. */
export function noRoomFor(
  directory: string,
  freeBytesMin: number = CATALOG_FREE_BYTES_MIN,
): string | undefined {
  const free = freeBytes(directory) ?? freeBytes(dirname(directory))
  if (free === undefined || free >= freeBytesMin) return undefined
  return `${directory}: ${free} bytes free, expected at least ${freeBytesMin}: no maps are made`
}

function freeBytes(path: string): number | undefined {
  try {
    const { bavail, bsize } = statfsSync(path)
    return bavail * bsize
  } catch {
    return undefined
  }
}
