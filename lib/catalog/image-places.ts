/**
 * What became of an image that is not listed: `gone`, taken away from a directory that is there; or `away`, not to be seen for now,
 * because its file system is not mounted or its directory cannot be read. A map knows on which file system (device number) its image
 * lay: a directory on another one is a mount point with nothing on it, or with something else.
 * Only a name that is surely missing where it was makes an image gone; whoever is not sure waits. One look, then `close`.
 */
import { constants } from 'node:fs'
import { type FileHandle, lstat, open, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { LostError } from '../core/errors.ts'
import { IMAGE_BYTES_MIN, type ImageFile, type ImageIdentity } from './image-files.ts'
import { SALVAGE_FOLDER } from './salvage.ts'

export type Whereabouts = 'gone' | 'away'

interface Directory {
  /** Open while the look lasts, so that what is asked of it is asked of one file system. */
  readonly handle: FileHandle
  readonly dev: bigint
}

export class ImagePlaces {
  readonly #directories: ReadonlyMap<string, Promise<Directory | undefined>>
  /** Directories of the config that lead nowhere now. */
  readonly #lacking: readonly string[]

  private constructor(
    directories: ReadonlyMap<string, Promise<Directory | undefined>>,
    lacking: readonly string[],
  ) {
    this.#directories = directories
    this.#lacking = lacking
  }

  /** @param images the directories of the config */
  static async look(images: readonly string[]): Promise<ImagePlaces> {
    const directories = new Map<string, Promise<Directory | undefined>>()
    const lacking: string[] = []
    for (const directory of images) {
      const real = await realpath(directory).catch(() => undefined)
      if (real === undefined) lacking.push(directory)
      else if (!directories.has(real)) directories.set(real, opened(real))
    }
    return new ImagePlaces(directories, lacking)
  }

  /**
   * @param path of an image that was not listed just now, without links @param identity what it was
   * @param isListed whether it is an image under another name
   */
  async of(
    path: string,
    identity: ImageIdentity,
    isListed: (identity: ImageIdentity) => boolean,
  ): Promise<Whereabouts> {
    const isSalvage = basename(dirname(path)) === SALVAGE_FOLDER
    const directory = isSalvage ? dirname(dirname(path)) : dirname(path)
    const looked = this.#directories.get(directory)
    if (looked === undefined) return await this.#elsewhere(directory, identity)
    const found = await looked
    if (found === undefined || found.dev !== identity.dev) return 'away'
    const name = isSalvage ? join(SALVAGE_FOLDER, basename(path)) : basename(path)
    try {
      const stats = await lstat(`/proc/self/fd/${found.handle.fd}/${name}`, { bigint: true })
      const { dev, ino, mtimeNs } = stats
      const size = Number(stats.size)
      // It is there: what listed the images did not see it for a moment.
      const unseen = stats.isFile() && size >= IMAGE_BYTES_MIN && !isListed({ dev, ino, size, mtimeNs })
      return unseen ? 'away' : 'gone'
    } catch (error) {
      return isMissing(error) ? 'gone' : 'away'
    }
  }

  /** In no directory that is there: the config names it no more, or it has gone with its file system. */
  async #elsewhere(directory: string, { dev }: ImageIdentity): Promise<Whereabouts> {
    if (this.#lacking.length === 0) return 'gone'
    for (let at = directory; ; at = dirname(at)) {
      try {
        const found = await lstat(at, { bigint: true })
        if (at === directory) return (await this.#isBack(at)) ? 'away' : 'gone'
        // What is left of the way to it says on which file system it would be.
        return found.dev === dev ? 'gone' : 'away'
      } catch (error) {
        if (!isMissing(error) || at === dirname(at)) return 'away'
      }
    }
  }

  /** Since it was looked for. */
  async #isBack(directory: string): Promise<boolean> {
    for (const lacking of this.#lacking)
      if ((await realpath(lacking).catch(() => undefined)) === directory) return true
    return false
  }

  async close(): Promise<void> {
    for (const directory of this.#directories.values()) await (await directory)?.handle.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Whether an image is listed, be it under another name. */
export function listedIn(images: Iterable<ImageFile>): (identity: ImageIdentity) => boolean {
  const inodes = new Set<string>()
  for (const { identity } of images) inodes.add(`${identity.dev}:${identity.ino}`)
  return ({ dev, ino }) => inodes.has(`${dev}:${ino}`)
}

function isMissing(error: unknown): boolean {
  const { code } = error as NodeJS.ErrnoException
  return code === 'ENOENT' || code === 'ENOTDIR'
}

/** One that cannot be read is none. */
async function opened(path: string): Promise<Directory | undefined> {
  let handle: FileHandle | undefined
  try {
    handle = await open(path, constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW)
    const { dev, ino } = await handle.stat({ bigint: true })
    // Without /proc all would seem to be missing.
    const seen = await stat(`/proc/self/fd/${handle.fd}`, { bigint: true })
    if (seen.dev === dev && seen.ino === ino) return { handle, dev }
    throw new LostError(`${path}: /proc/self/fd shows another file`)
  } catch {
    await handle?.close()
    return undefined
  }
}
