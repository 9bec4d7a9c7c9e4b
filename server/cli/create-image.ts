/**
 * Creates one missing disk image, as root, on the word of a daemon that is not root: so the path must stand in the
 * domain XML that libvirt gave, the directory must lie in one that root's config allows (allowed-directory.ts), and nothing
 * that exists is ever opened, followed or overwritten. Images are sparse.
 * It does not make directories, and does not probe or change an image that is there already. What it made and nobody
 * wrote is marked (lib/host/unwritten.ts), and is removed again when the migration fails.
 */
import { hash } from 'node:crypto'
import { constants } from 'node:fs'
import { type FileHandle, link, lstat, open, rename, unlink } from 'node:fs/promises'
import { basename } from 'node:path'
import type { HookDomain, ImageToCreate } from '../../hooks/decision.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import {
  COMMAND_OUTPUT_BYTES_MAX,
  IMAGE_BYTES_MAX,
  PATH_BYTES_MAX,
  QEMU_IMG_DEADLINE_MS,
} from '../../lib/core/limits.ts'
import { runCommand } from '../../lib/host/command.ts'
import { isUnwritten, UNWRITTEN } from '../../lib/host/unwritten.ts'
import type { UserIds } from '../../lib/host/users.ts'
import { insideOf, openAllowed } from './allowed-directory.ts'

export interface CreateOptions {
  readonly domain: HookDomain
  /** The directories of images that the config allows. */
  readonly images: readonly string[]
  /** Who shall own the image; undefined: root. */
  readonly owner: UserIds | undefined
}

const CREATE_FLAGS = constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW | constants.O_RDWR

/** True when it was made, false when something was there already. Throws RefusedError with the reason otherwise. */
export async function createImage(image: ImageToCreate, options: CreateOptions): Promise<boolean> {
  const { path, format, size } = image
  const disk = options.domain.disks.find(
    (candidate) => candidate.source === path && candidate.type === 'file',
  )
  if (disk === undefined) throw new RefusedError(`${path}: not a file disk of ${options.domain.name}`)
  if (disk.format !== format)
    throw new RefusedError(`${path}: the guest has it as ${disk.format}, not as ${format}`)
  const { handle: directory } = await openAllowed(path, options.images)
  try {
    const inside = insideOf(directory)
    const name = basename(path)
    if (name === '' || name === '.' || name === '..')
      throw new RefusedError(`${path}: expected the name of a file`)
    return await createFile(inside, name, format, size, options.owner)
  } catch (error) {
    if (error instanceof RefusedError) throw error
    throw new RefusedError(`${path}: cannot create it: ${errorText(error)}`, { cause: error })
  } finally {
    await directory.close()
  }
}

/** Removes an image that `createImage` has made and nobody has written since. Anything else stays. */
export async function removeUnwrittenImage(path: string, images: readonly string[]): Promise<void> {
  if (!(await isUnwritten(path))) return
  const { handle: directory } = await openAllowed(path, images)
  try {
    const inside = `${insideOf(directory)}/${basename(path)}`
    if (await isUnwritten(inside)) await unlink(inside)
  } finally {
    await directory.close()
  }
}

/** Checks what the daemon asks for before anything is done. */
export function imageToCreate(value: unknown): ImageToCreate {
  const image = (typeof value === 'object' && value !== null ? value : {}) as Record<string, unknown>
  const { path, format, size } = image
  if (
    typeof path !== 'string' ||
    !path.startsWith('/') ||
    path.includes('\0') ||
    Buffer.byteLength(path) > PATH_BYTES_MAX
  ) {
    throw new RefusedError('create: expected an absolute path')
  }
  if (format !== 'raw' && format !== 'qcow2') throw new RefusedError(`${path}: expected format raw or qcow2`)
  if (typeof size !== 'number' || !Number.isSafeInteger(size) || size <= 0 || size > IMAGE_BYTES_MAX) {
    throw new RefusedError(
      `${path}: expected a size from 1 to ${IMAGE_BYTES_MAX} bytes, found ${String(size)}`,
    )
  }
  return { path, format, size }
}

/**
 * It is made under another name and gets its own when it is whole: a hook that is killed, or lets go at its deadline, must not leave an
 * image of no bytes, which libvirt would take for the guest's. qemu-img gets the open file and no name: whoever may write in that
 * directory could put a link in the place of one.
 */
async function createFile(
  directory: string,
  name: string,
  format: ImageToCreate['format'],
  size: number,
  owner: UserIds | undefined,
): Promise<boolean> {
  const place = `${directory}/${name}`
  if ((await lstat(place).catch(() => undefined)) !== undefined) return false
  // Of a hook that was cut short: names are as long as they may be, so it is not made of this one.
  const making = `${directory}/.swam-new-${hash('sha256', name, 'hex').slice(0, 16)}`
  await unlink(making).catch(() => {})
  const file = await open(making, CREATE_FLAGS, 0o600)
  try {
    if (format === 'raw') await file.truncate(size)
    else {
      const open = `/proc/${process.pid}/fd/${file.fd}`
      await runCommand(['qemu-img', 'create', '-q', '-f', format, open, String(size)], {
        deadlineMs: QEMU_IMG_DEADLINE_MS,
        outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
      })
    }
    if (owner !== undefined) await file.chown(owner.uid, owner.gid)
    await file.utimes(UNWRITTEN, UNWRITTEN)
    return await named(file, making, place)
  } finally {
    await unlink(making).catch(() => {})
    await file.close()
  }
}

/** Gives the file its name, unless somebody has it; what has it then is that file. */
async function named(file: FileHandle, making: string, place: string): Promise<boolean> {
  try {
    await link(making, place)
  } catch (error) {
    const { code = '' } = error as NodeJS.ErrnoException
    if (code === 'EEXIST') return false
    // A file system without hard links: an empty file of our own takes the name, and is replaced at once.
    if (!['EPERM', 'ENOTSUP', 'EOPNOTSUPP', 'ENOSYS', 'EMLINK'].includes(code)) throw error
    await (await open(place, CREATE_FLAGS, 0o600)).close()
    await rename(making, place)
  }
  const [own, found] = [await file.stat({ bigint: true }), await lstat(place, { bigint: true })]
  if (own.dev === found.dev && own.ino === found.ino) return true
  await unlink(place).catch(() => {})
  throw new RefusedError(`${place}: something else was put in the place of the image`)
}
