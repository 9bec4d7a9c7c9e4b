/**
 * A raw image file or block device. Node has neither SEEK_HOLE nor PUNCH_HOLE, so: zeroes are written only where the
 * file does not read as zero already (a sparse file stays sparse), a hole is reported only where the file was empty at
 * opening and nothing was written since, and TRIM is not offered. Formats are never looked at: bytes are bytes.
 */
import { constants } from 'node:fs'
import { type FileHandle, open, readFile } from 'node:fs/promises'
import { RefusedError } from '../core/errors.ts'
import type { BlockDevice, BlockSizes, DeviceFeatures, StatusExtent } from './device.ts'

export interface FileDeviceOptions {
  readonly readOnly?: boolean
  /** Creates the file, sparse and of this size; it must not exist. */
  readonly createBytes?: number
}

const GRAIN_BYTES = 65536
const ZERO_PIECE_BYTES: number = 1024 * 1024
const ZEROES: Buffer = Buffer.alloc(ZERO_PIECE_BYTES)

export async function openFileDevice(path: string, options: FileDeviceOptions = {}): Promise<BlockDevice> {
  const { createBytes, readOnly = false } = options
  const create = createBytes === undefined ? 0 : constants.O_CREAT | constants.O_EXCL
  const file = await open(path, (readOnly ? constants.O_RDONLY : constants.O_RDWR) | create, 0o600)
  try {
    if (createBytes !== undefined) await file.truncate(createBytes)
    const stat = await file.stat()
    if (!stat.isFile() && !stat.isBlockDevice()) {
      throw new RefusedError(`open ${path}: expected a file or a block device`)
    }
    const size = stat.isBlockDevice() ? await blockDeviceBytes(stat.rdev) : stat.size
    return new FileDevice(file, path, size, readOnly, stat.isFile() && stat.blocks === 0)
  } catch (error) {
    await file.close()
    throw error
  }
}

/** fstat gives no size for a block device; sysfs gives it in sectors of 512 bytes. */
export async function blockDeviceBytes(rdev: number): Promise<number> {
  const major = ((rdev >>> 8) & 0xfff) | 0
  const minor = (rdev & 0xff) | ((rdev >>> 12) & 0xfff00)
  return 512 * Number(await readFile(`/sys/dev/block/${major}:${minor}/size`, 'utf8'))
}

class FileDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes = { minimum: 1, preferred: 4096, maximum: 32 * 1024 * 1024 }
  readonly features: DeviceFeatures
  readonly #file: FileHandle
  readonly #path: string
  /** One byte for each grain that is known to be a hole; undefined when nothing is known. */
  readonly #holes: Uint8Array | undefined
  #closed: Promise<void> | undefined

  constructor(file: FileHandle, path: string, size: number, readOnly: boolean, empty: boolean) {
    this.size = size
    this.#file = file
    this.#path = path
    this.#holes = empty ? new Uint8Array(Math.ceil(size / GRAIN_BYTES)).fill(1) : undefined
    this.features = {
      readOnly,
      flush: true,
      fua: true,
      trim: false,
      writeZeroes: true,
      fastZero: false,
      cache: false,
      multiConn: true,
      blockStatus: true,
    }
  }

  async read(offset: number, length: number): Promise<Buffer> {
    const whole = Buffer.allocUnsafeSlow(length)
    let at = 0
    while (at < length) {
      const { bytesRead } = await this.#file.read(whole, at, length - at, offset + at)
      if (bytesRead === 0) {
        throw new RefusedError(
          `read ${this.#path} at ${offset + at}: the file ends before ${offset + length}`,
        )
      }
      at += bytesRead
    }
    return whole
  }

  async write(offset: number, data: Buffer, flags?: { readonly fua?: boolean }): Promise<void> {
    this.#holes?.fill(0, Math.floor(offset / GRAIN_BYTES), Math.ceil((offset + data.length) / GRAIN_BYTES))
    let at = 0
    while (at < data.length) {
      at += (await this.#file.write(data, at, data.length - at, offset + at)).bytesWritten
    }
    if (flags?.fua === true) await this.flush()
  }

  async writeZeroes(
    offset: number,
    length: number,
    flags?: { readonly fua?: boolean; readonly noHole?: boolean; readonly fastZero?: boolean },
  ): Promise<void> {
    if (flags?.fastZero === true) {
      throw new RefusedError(`fast zeroes ${this.#path}: not supported`, { errno: 95 })
    }
    for (let at = 0; at < length; at += ZERO_PIECE_BYTES) {
      const zeroes = ZEROES.subarray(0, Math.min(ZERO_PIECE_BYTES, length - at))
      const keepHole = flags?.noHole !== true && (await this.#isZero(offset + at, zeroes))
      if (!keepHole) await this.write(offset + at, zeroes)
    }
    if (flags?.fua === true) await this.flush()
  }

  async #isZero(offset: number, zeroes: Buffer): Promise<boolean> {
    return (await this.read(offset, zeroes.length)).equals(zeroes)
  }

  async trim(): Promise<void> {
    throw new RefusedError(`trim ${this.#path}: not supported`, { errno: 95 })
  }

  async cache(): Promise<void> {}

  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    if (this.#holes === undefined) return [{ length, hole: false, zero: false }]
    const extents: { length: number; hole: boolean; zero: boolean }[] = []
    let at = offset
    while (at < offset + length) {
      const grain = Math.floor(at / GRAIN_BYTES)
      const end = Math.min((grain + 1) * GRAIN_BYTES, offset + length)
      const hole = this.#holes[grain] === 1
      const last = extents.at(-1)
      if (last?.hole === hole) last.length += end - at
      else extents.push({ length: end - at, hole, zero: hole })
      at = end
    }
    return extents
  }

  async flush(): Promise<void> {
    await this.#file.datasync()
  }

  close(): Promise<void> {
    this.#closed ??= this.#file.close()
    return this.#closed
  }
}
