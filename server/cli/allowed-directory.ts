/**
 * Opens the directory of an image for root: only where it lies, after all links, in a directory that root's config names. It is held open
 * and entered through /proc, so that nobody can swap it between check and use.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readlink, realpath } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { isBelowDev } from '../../lib/catalog/image-files.ts'
import { SALVAGE_FOLDER } from '../../lib/catalog/salvage.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'

export interface AllowedDirectory {
  readonly handle: FileHandle
  /** The directory of the config in which it lies, or which it is; without links. */
  readonly root: string
}

/** The directory of an image, held open. @throws RefusedError */
export async function openAllowed(path: string, images: readonly string[]): Promise<AllowedDirectory> {
  const handle = await open(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY).catch(
    (error: unknown) => {
      throw new RefusedError(`${path}: no such directory: ${errorText(error)}`, { cause: error })
    },
  )
  try {
    // What the kernel says about the open directory, after all symlinks.
    const real = await readlink(`/proc/self/fd/${handle.fd}`)
    if (isBelowDev(`${real}/`)) throw new RefusedError(`${path}: no image is made below /dev, or removed`)
    if (basename(real) === SALVAGE_FOLDER) throw new RefusedError(`${path}: no guest's image belongs there`)
    for (const allowed of images) {
      const root = await realpath(allowed).catch(() => undefined)
      if (root !== undefined && (real === root || real.startsWith(`${root === '/' ? '' : root}/`)))
        return { handle, root }
    }
    throw new RefusedError(`${path}: not inside a directory that "images" in swam.toml names`)
  } catch (error) {
    await handle.close()
    throw error
  }
}

/** Where what lies in an open directory can be named. */
export function insideOf(handle: FileHandle): string {
  return `/proc/${process.pid}/fd/${handle.fd}`
}
