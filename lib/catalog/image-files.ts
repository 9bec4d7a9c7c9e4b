/**
 * Image files as sources of bytes: which there are, what identifies one, and how it is read. Everything is raw bytes:
 * formats are never probed (a guest can write a qcow2 header), and since every reuse is verified by digest, the raw
 * bytes of a qcow2 file do no harm. Files are opened read-only, without following links, and must be regular, or block devices:
 * those that root's own links in a directory below /dev name (a volume group, /dev/mapper), where the config lists it, and what
 * the caller allows.
 */
import { type BigIntStats, constants } from 'node:fs'
import { type FileHandle, open, readdir, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { blockDeviceBytes } from '../block/file.ts'
import { errorText, LostError, RefusedError } from '../core/errors.ts'
import { IMAGE_BYTES_MAX, IMAGE_READ_BYTES_MAX } from '../core/limits.ts'
import { MIB } from '../core/units.ts'
import { type DataExtent, dataExtents } from './data-extents.ts'
import type { ExtentSource } from './extent-source.ts'
import { isSalvageFolder, parseSalvageName, SALVAGE_FOLDER } from './salvage.ts'

export type ImageFormat = 'raw' | 'qcow2'

/** What tells that a path still holds what was indexed. */
export interface ImageIdentity {
  readonly dev: bigint
  readonly ino: bigint
  readonly size: number
  readonly mtimeNs: bigint
}

export interface ImageFile {
  /** Without symbolic links. */
  readonly path: string
  readonly identity: ImageIdentity
  /** How it is read; none: raw. */
  readonly format?: ImageFormat
  /** When its bytes, its owner or its name were changed last: no copy of an older time hides that. */
  readonly changedAtMs?: number
  /** What it takes on its file system. */
  readonly allocatedBytes?: number
}

/** Smaller files are firmware variables, configuration and the like. */
export const IMAGE_BYTES_MIN: number = MIB

/** The same file, which may have been written to, or have grown. */
export function sameFile(one: ImageIdentity, other: ImageIdentity): boolean {
  return one.dev === other.dev && one.ino === other.ino
}

/**
 * The same file as far as a map goes: a file system that is mounted again may have another number, but what nobody touched has
 * the rest as it was.
 */
export function sameImage(one: ImageIdentity, other: ImageIdentity): boolean {
  return sameFile(one, other) || (one.ino === other.ino && sameTime(one, other))
}

function sameTime(one: ImageIdentity, other: ImageIdentity): boolean {
  return one.size === other.size && one.mtimeNs === other.mtimeNs
}

/** The same, and nobody wrote to it. */
export function sameContent(one: ImageIdentity, other: ImageIdentity): boolean {
  return sameImage(one, other) && sameTime(one, other)
}

export function sameIdentity(one: ImageIdentity, other: ImageIdentity): boolean {
  return sameFile(one, other) && sameTime(one, other)
}

/** What holds anything, and not too much. @throws RefusedError */
export function checkImage(path: string, source: Pick<ExtentSource, 'size'>): void {
  const { size } = source
  if (size === 0) throw new RefusedError(`${path}: the image is empty`)
  if (size > IMAGE_BYTES_MAX)
    throw new RefusedError(`${path}: ${size} bytes: expected at most ${IMAGE_BYTES_MAX}`)
}

/** A block device does not tell when it was written to, so it is another one each time it is looked at: never at rest, never exact. */
function identityOf(stats: BigIntStats, size = Number(stats.size)): ImageIdentity {
  const mtimeNs = stats.isBlockDevice() ? BigInt(Date.now()) * 1_000_000n : stats.mtimeNs
  return { dev: stats.dev, ino: stats.ino, size, mtimeNs }
}

/** Whether block devices may lie there, and nothing can be made there. */
export function isBelowDev(path: string): boolean {
  return path.startsWith('/dev/')
}

/**
 * The regular files of at least 1 MiB that lie directly in `directories`, each once, by path. A symbolic link counts
 * if what it points to lies directly in one of the directories too. Of a directory below /dev into which root alone writes: the
 * block devices that it names. What is left of migrations that failed, in a folder of root's own, counts too. What cannot be read is
 * left out.
 */
export async function listImages(directories: readonly string[]): Promise<ImageFile[]> {
  const allowed = await resolvedDirectories(directories)
  const images = new Map<string, ImageFile>()
  for (const directory of allowed) {
    const names = await readdir(directory).catch(() => [])
    const devices = isBelowDev(directory) && (await isRootsOwn(directory))
    for (const name of names) {
      const path = join(directory, name)
      const image = devices ? await deviceAt(path) : await imageAt(path, allowed)
      if (image !== undefined) images.set(`${image.identity.dev}:${image.identity.ino}`, image)
    }
  }
  for (const directory of allowed) {
    for (const image of await salvaged(join(directory, SALVAGE_FOLDER))) {
      // What lies in its place still is known by that.
      const key = `${image.identity.dev}:${image.identity.ino}`
      if (!images.has(key)) images.set(key, image)
    }
  }
  return [...images.values()].sort((one, other) => (one.path < other.path ? -1 : 1))
}

/** Of migrations that failed: of what root's hook has linked there, and nothing else. */
async function salvaged(folder: string): Promise<ImageFile[]> {
  if (!(await isSalvageFolder(folder))) return []
  const images: ImageFile[] = []
  for (const name of await readdir(folder).catch(() => [])) {
    const disk = parseSalvageName(name)
    const image = disk === undefined ? undefined : await imageAt(join(folder, name), new Set([folder]))
    if (image !== undefined) images.push(disk?.format === 'qcow2' ? { ...image, format: 'qcow2' } : image)
  }
  return images
}

/** Whether all of `paths`, which need not be there yet, lie directly in one of `directories`, and so do what links point to. */
export async function lieIn(directories: readonly string[], paths: readonly string[]): Promise<boolean> {
  const allowed = await resolvedDirectories(directories)
  for (const path of paths) {
    const real = await realpath(path).catch(async () => join(await realpath(dirname(path)), basename(path)))
    if (!allowed.has(dirname(real))) return false
  }
  return true
}

/** Without links; those that are not there are left out. */
export async function resolvedDirectories(directories: readonly string[]): Promise<Set<string>> {
  const real = new Set<string>()
  for (const directory of directories) {
    const path = await realpath(directory).catch(() => undefined)
    if (path !== undefined) real.add(path)
  }
  return real
}

async function imageAt(path: string, allowed: ReadonlySet<string>): Promise<ImageFile | undefined> {
  try {
    const real = await realpath(path)
    if (!allowed.has(dirname(real))) return undefined
    const stats = await stat(real, { bigint: true })
    if (!stats.isFile() || stats.size < BigInt(IMAGE_BYTES_MIN)) return undefined
    const [changedAtMs, allocatedBytes] = [Number(stats.ctimeMs), Number(stats.blocks) * 512]
    return { path: real, identity: identityOf(stats), changedAtMs, allocatedBytes }
  } catch {
    // It went away meanwhile, or a link points nowhere.
    return undefined
  }
}

async function isRootsOwn(directory: string): Promise<boolean> {
  const found = await stat(directory).catch(() => undefined)
  return found?.uid === 0 && (found.mode & 0o022) === 0
}

async function deviceAt(path: string): Promise<ImageFile | undefined> {
  try {
    const real = await realpath(path)
    const stats = await stat(real, { bigint: true })
    if (!isBelowDev(real) || !stats.isBlockDevice()) return undefined
    const size = await blockDeviceBytes(Number(stats.rdev))
    const identity = identityOf(stats, size)
    return size < IMAGE_BYTES_MIN
      ? undefined
      : { path: real, identity, changedAtMs: Date.now(), allocatedBytes: size }
  } catch {
    return undefined
  }
}

/** An open image. Reads are positional and may run side by side. */
export class ImageSource implements ExtentSource {
  readonly path: string
  readonly identity: ImageIdentity
  /** What the file takes on its file system; less than its size if it has holes (or is compressed there). */
  readonly allocatedBytes: number
  readonly isBlockDevice: boolean
  readonly #handle: FileHandle

  private constructor(path: string, stats: BigIntStats, size: number, handle: FileHandle) {
    this.path = path
    this.identity = identityOf(stats, size)
    this.isBlockDevice = stats.isBlockDevice()
    this.allocatedBytes = stats.isFile() ? Number(stats.blocks) * 512 : size
    this.#handle = handle
  }

  /**
   * `path` has been resolved and allowed by the caller; if it became a link or no regular file (with `blockDevices`, or below
   * /dev: and no block device), this refuses.
   */
  static async open(path: string, options: { readonly blockDevices?: boolean } = {}): Promise<ImageSource> {
    const { blockDevices = isBelowDev(path) } = options
    // O_NONBLOCK: a FIFO in the way would hold up a thread of the pool for ever.
    const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
    const handle = await open(path, flags)
    try {
      const stats = await handle.stat({ bigint: true })
      if (blockDevices && stats.isBlockDevice()) {
        return new ImageSource(path, stats, await blockDeviceBytes(Number(stats.rdev)), handle)
      }
      if (!stats.isFile()) throw new RefusedError(`open image ${path}: a regular file expected`)
      return new ImageSource(path, stats, Number(stats.size), handle)
    } catch (error) {
      await handle.close()
      throw error
    }
  }

  /** For passing on to a child process; it stays open until `close`. */
  get fd(): number {
    return this.#handle.fd
  }

  get size(): number {
    return this.identity.size
  }

  extents(signal?: AbortSignal): Promise<DataExtent[]> {
    return dataExtents(this, signal)
  }

  /** True if the file was written to, or has another size, since it was opened. A block device does not tell. */
  async isStale(): Promise<boolean> {
    const stats = await this.#handle.stat({ bigint: true })
    if (!stats.isFile()) return false
    return !sameIdentity(this.identity, identityOf(stats))
  }

  /** Exactly `length` bytes; they are what lies there now, so the caller verifies their digest. */
  async read(offset: number, length: number): Promise<Buffer> {
    if (!Number.isSafeInteger(length) || length < 1 || length > IMAGE_READ_BYTES_MAX) {
      throw new RangeError(
        `read image ${this.path}: 1 to ${IMAGE_READ_BYTES_MAX} bytes expected, not ${length}`,
      )
    }
    const target = Buffer.allocUnsafe(length)
    const bytesRead = await this.readInto(target, offset)
    if (bytesRead < length) {
      throw new LostError(
        `read image ${this.path}: ${length} bytes at ${offset} expected, it ends after ${bytesRead}`,
      )
    }
    return target
  }

  /** Fills `target` from `offset` on; returns less than its length only at the end of the file. Rejects with a RefusedError. */
  async readInto(target: Uint8Array, offset: number): Promise<number> {
    let filled = 0
    try {
      while (filled < target.length) {
        const { bytesRead } = await this.#handle.read(target, filled, target.length - filled, offset + filled)
        if (bytesRead === 0) break
        filled += bytesRead
      }
    } catch (error) {
      const what = `read image ${this.path}: ${target.length - filled} bytes at ${offset + filled}`
      throw new RefusedError(`${what}: ${errorText(error)}`, { cause: error })
    }
    return filled
  }

  /** Idempotent. */
  async close(): Promise<void> {
    await this.#handle.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
