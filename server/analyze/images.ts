/**
 * The images that `swam analyze` is told of: what was typed, looked at and opened. A format is what was said and never
 * what the bytes look like: a guest can write a qcow2 header into its disk. Where a file that nobody called raw begins
 * as a qcow2, as a LUKS container or as something that is no disk as it lies, that is a refusal which asks for the word.
 *
 * What cannot be used is one line that names the path, with the class that makes its exit code: AnswerError (no such image, 5), a
 * cause of EACCES (not allowed, 4), UsageError (2), RefusedError (1).
 */
import { constants, type Stats } from 'node:fs'
import { access, realpath, stat } from 'node:fs/promises'
import type { ChainRules } from '../../lib/catalog/backing-chain.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { checkImage, type ImageFormat, ImageSource, listImages } from '../../lib/catalog/image-files.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { UsageError } from '../cli/exit-codes.ts'
import { AnswerError } from '../control.ts'

/** An image as it was named: `PATH`, `raw:PATH` or `qcow2:PATH`. */
export interface ImageName {
  readonly path: string
  readonly format: ImageFormat
  /** The format was said with the path. */
  readonly explicit: boolean
}

const SECTOR_BYTES = 512
const QCOW2_MAGIC: Buffer = Buffer.from('QFI\xfb', 'latin1')
/** Of LUKS1 and LUKS2. */
const LUKS_MAGIC: Buffer = Buffer.from('LUKS\xba\xbe', 'latin1')
const CONVERT = 'which is not read: convert it (qemu-img convert -O raw)'
const UNPACK = 'which is not read: unpack it'
/** What else lies among images, and would give figures of bytes that no guest's disk has. By what stands where. */
const OTHERS: readonly {
  readonly name: string
  readonly at: number
  readonly magic: string
  readonly advice: string
}[] = [
  { name: 'a VMDK', at: 0, magic: 'KDMV', advice: CONVERT },
  { name: 'a VMDK', at: 0, magic: '# Disk DescriptorFile', advice: CONVERT },
  { name: 'a VHDX', at: 0, magic: 'vhdxfile', advice: CONVERT },
  { name: 'a VHD', at: 0, magic: 'conectix', advice: CONVERT },
  { name: 'a VDI', at: 64, magic: '\x7f\x10\xda\xbe', advice: CONVERT },
  { name: 'a QED', at: 0, magic: 'QED\0', advice: CONVERT },
  { name: 'gzip', at: 0, magic: '\x1f\x8b\x08', advice: UNPACK },
  { name: 'xz', at: 0, magic: '\xfd7zXZ\0', advice: UNPACK },
  { name: 'zstd', at: 0, magic: '\x28\xb5\x2f\xfd', advice: UNPACK },
]
/** Up to the end of the last of these. */
const HEAD_BYTES = Math.max(...OTHERS.map(({ at, magic }) => at + magic.length), LUKS_MAGIC.length)

/** @param format of names that say none; undefined: raw, which a file that begins as a qcow2 must be called */
export function imageName(text: string, format: ImageFormat | undefined): ImageName {
  const match = /^(raw|qcow2):(.*)$/s.exec(text)
  if (match !== null) return { path: named(match[2]!), format: match[1] as ImageFormat, explicit: true }
  return { path: named(text), format: format ?? 'raw', explicit: format !== undefined }
}

function named(path: string): string {
  if (path === '' || path.includes('\0'))
    throw new UsageError('expected the path of an image, found an empty one')
  return path
}

export async function isDirectory(name: ImageName): Promise<boolean> {
  return (await statOf(name.path)).isDirectory()
}

/** The images in a directory, as the daemon would find them: files of 1 MiB and more, not below it. Rejects if it cannot be read. */
export async function imagesIn(directory: ImageName): Promise<ImageName[]> {
  await access(directory.path, constants.R_OK | constants.X_OK).catch((error: unknown) => {
    throw problem(directory.path, error)
  })
  return (await listImages([directory.path])).map(({ path }) => ({ ...directory, path }))
}

/** Opens the file or device itself, whatever it holds. */
export async function openFile(name: ImageName): Promise<ImageSource> {
  const { path } = name
  const stats = await statOf(path)
  if (!stats.isFile() && !stats.isBlockDevice()) {
    throw new RefusedError(`${path}: expected an image file or a block device, found ${kindOf(stats)}`)
  }
  try {
    return await ImageSource.open(await realpath(path), { blockDevices: true })
  } catch (error) {
    throw problem(path, error)
  }
}

/** Opens an image that is raw. */
export async function openRaw(name: ImageName): Promise<ImageSource> {
  const source = await openFile(name)
  try {
    if (!name.explicit) await refuseOther(name.path, source)
    return source
  } catch (error) {
    await source.close()
    throw error
  }
}

/** What a file begins as that is most likely not a guest's disk as the guest has it. */
async function refuseOther(path: string, source: ImageSource): Promise<void> {
  const head = Buffer.alloc(HEAD_BYTES)
  await source.readInto(head, 0)
  if (head.subarray(0, QCOW2_MAGIC.length).equals(QCOW2_MAGIC))
    throw new UsageError(`${path} begins as a qcow2: say qcow2:${path} or raw:${path}`)
  // QEMU sends what is in it; but where the guest itself encrypts, its disk is these bytes.
  if (head.subarray(0, LUKS_MAGIC.length).equals(LUKS_MAGIC)) {
    const key = 'what is in it cannot be told without its key'
    throw new UsageError(`${path} is encrypted (LUKS): ${key}; if its guest encrypts, say raw:${path}`)
  }
  const other = OTHERS.find(({ at, magic }) => head.toString('latin1', at, at + magic.length) === magic)
  if (other !== undefined)
    throw new UsageError(`${path} begins as ${other.name}, ${other.advice}, or say raw:${path}`)
}

/** What the engine can take as a disk. */
export function checkDisk(path: string, source: ExtentSource): void {
  checkImage(path, source)
  const { size } = source
  if (size % SECTOR_BYTES !== 0) {
    throw new RefusedError(
      `${path}: ${size} bytes: expected a multiple of ${SECTOR_BYTES}, as every disk of a guest has`,
    )
  }
}

/**
 * Of a chain all that is under `backings` may be read, as what it was named.
 * @param thorough whether figures are of what is in it: a source of the far side may be in use, and what is found in it is verified
 */
export function chainRules(backings: readonly ImageName[], thorough = false): ChainRules<ImageName> {
  return {
    thorough,
    open: (name) => (name.format === 'raw' ? openRaw(name) : openFile(name)),
    backing: async ({ path }, wanted, format) => {
      for (const backing of backings) {
        const given = await realpath(backing.path).catch(() => undefined)
        if (given !== wanted) continue
        if (format !== undefined && format !== backing.format) {
          throw new RefusedError(
            `${path}: it has its backing file as ${format}, not as ${backing.format}: ` +
              `say --backing ${format}:${backing.path}`,
          )
        }
        return backing
      }
      const named = format === undefined ? '' : `${format}:`
      throw new RefusedError(
        `${path}: it stands on ${wanted}: if that may be read, say --backing ${named}${wanted}`,
      )
    },
  }
}

async function statOf(path: string): Promise<Stats> {
  try {
    return await stat(path)
  } catch (error) {
    throw problem(path, error)
  }
}

/** What a failed call of the system says of this path. */
export function problem(path: string, error: unknown): Error {
  const code = (error as NodeJS.ErrnoException | undefined)?.code
  if (code === 'ENOENT' || code === 'ENOTDIR')
    return new AnswerError('SWAM_NOT_FOUND', `${path}: no such image`)
  if (code === 'EACCES' || code === 'EPERM') {
    return new RefusedError(`${path}: not allowed to read it`, { cause: error })
  }
  return new RefusedError(`${path}: cannot read it: ${errorText(error)}`, { cause: error })
}

function kindOf(stats: Stats): string {
  if (stats.isDirectory()) return 'a directory'
  if (stats.isFIFO()) return 'a FIFO'
  if (stats.isSocket()) return 'a socket'
  return 'a character device'
}
