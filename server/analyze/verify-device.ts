/**
 * VerifyDevice: the disk that `swam analyze` receives onto. It holds no data: each write is compared with what the analyzed
 * image has at that place, read again, and only the place is remembered. What is read from it is the image where
 * something was written, and elsewhere what lay at the target before: another image, or zeroes.
 *
 * What nobody wrote must have been right before: `checkRest` reads that part of both at the end. So a byte that differs, and
 * one that never came, both fail. One bit for each 4 KiB of the disk; the system gives memory for what is touched.
 */
import {
  ALL_FEATURES,
  type BlockDevice,
  type BlockSizes,
  type DeviceFeatures,
  type StatusExtent,
} from '../../lib/block/device.ts'
import type { DataExtent } from '../../lib/catalog/data-extents.ts'
import { isZero } from '../../lib/chunk/zero.ts'
import { RefusedError } from '../../lib/core/errors.ts'
import { LITERAL_BYTES_MAX } from '../../lib/core/limits.ts'
import { BLOCK_BYTES, MIB } from '../../lib/core/units.ts'
import type { SparseImage } from './sparse-image.ts'

const EIO = 5
const EINVAL = 22
/** One read of a check: as long as what the engine writes at once. */
const PIECE_BYTES: number = LITERAL_BYTES_MAX

interface Run extends DataExtent {
  readonly written: boolean
}

export class VerifyDevice implements BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes = { minimum: BLOCK_BYTES, preferred: BLOCK_BYTES, maximum: 32 * MIB }
  readonly features: DeviceFeatures = ALL_FEATURES
  readonly #image: SparseImage
  readonly #before: SparseImage | undefined
  readonly #written: Uint8Array
  #anyWritten = false

  /** @param image what must arrive @param before what lies at the target, of the same size; undefined: a new, empty image */
  constructor(image: SparseImage, before: SparseImage | undefined) {
    this.size = image.size
    this.#image = image
    this.#before = before
    this.#written = new Uint8Array(Math.ceil(image.size / BLOCK_BYTES / 8))
  }

  async read(offset: number, length: number): Promise<Buffer> {
    this.#check('read', offset, length)
    const runs = [...this.#runs(offset, offset + length)]
    if (runs.length === 1) return await this.#readRun(runs[0]!)
    const whole = Buffer.allocUnsafeSlow(length)
    for (const run of runs) (await this.#readRun(run)).copy(whole, run.offset - offset)
    return whole
  }

  /** Rejects with a RefusedError (EIO) that names the first byte that is not the image's. */
  async write(offset: number, data: Buffer): Promise<void> {
    this.#check('write', offset, data.length)
    this.#compare(`write of ${data.length} bytes`, offset, data, await this.#image.read(offset, data.length))
    this.#mark(offset, data.length)
  }

  /** Rejects with a RefusedError (EIO) if the image is not zero there. */
  async writeZeroes(offset: number, length: number): Promise<void> {
    this.#check('zeroing', offset, length)
    for (const { offset: at, end } of pieces(this.#image.within(offset, offset + length))) {
      const expected = await this.#image.read(at, end - at)
      if (!isZero(expected)) this.#compare(`zeroing of ${length} bytes`, at, Buffer.alloc(end - at), expected)
    }
    this.#mark(offset, length)
  }

  async trim(): Promise<void> {
    throw new RefusedError('verify: the engine never trims', { errno: EINVAL })
  }

  async cache(): Promise<void> {}

  /** Holes are told of only while nothing is written, which is when the receiver asks. */
  async blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    if (this.#anyWritten) return [{ length, hole: false, zero: false }]
    const extents: StatusExtent[] = []
    let at = offset
    for (const part of this.#before?.within(offset, offset + length) ?? []) {
      if (part.offset > at) extents.push({ length: part.offset - at, hole: true, zero: true })
      extents.push({ length: part.end - part.offset, hole: false, zero: false })
      at = part.end
    }
    if (at < offset + length) extents.push({ length: offset + length - at, hole: true, zero: true })
    return extents
  }

  async flush(): Promise<void> {}

  async close(): Promise<void> {}

  /**
   * Compares what nobody wrote with the image; to be called when everything is flushed. Rejects with a RefusedError that names
   * the first byte that differs, or with the signal's reason.
   */
  async checkRest(signal?: AbortSignal): Promise<void> {
    for (const { offset, end } of pieces(union(this.#image.extents, this.#before?.extents ?? []))) {
      for (const run of this.#runs(offset, end)) {
        if (run.written) continue
        signal?.throwIfAborted()
        const length = run.end - run.offset
        const found = await this.#readRun(run)
        const expected = await this.#image.read(run.offset, length)
        this.#compare(`${length} bytes that nobody wrote`, run.offset, found, expected)
      }
    }
  }

  #compare(what: string, offset: number, found: Buffer, expected: Buffer): void {
    if (found.equals(expected)) return
    const at = found.findIndex((byte, index) => byte !== expected[index])
    throw new RefusedError(
      `verify ${this.#image.path}: ${what} at ${offset}: byte ${offset + at}: ` +
        `expected 0x${hex(expected[at]!)}, found 0x${hex(found[at]!)}`,
      { errno: EIO },
    )
  }

  async #readRun({ offset, end, written }: Run): Promise<Buffer> {
    const from = written ? this.#image : this.#before
    return from === undefined ? Buffer.alloc(end - offset) : await from.read(offset, end - offset)
  }

  /** Whole blocks, or up to the end of the disk: one bit says of a block that all of it was written. */
  #check(what: string, offset: number, length: number): void {
    const end = offset + length
    const aligned = offset % BLOCK_BYTES === 0 && (end % BLOCK_BYTES === 0 || end === this.size)
    if (!aligned || length <= 0 || end > this.size) {
      throw new RefusedError(
        `verify ${this.#image.path}: ${what} of ${length} bytes at ${offset}: expected whole blocks of ${BLOCK_BYTES} ` +
          `below ${this.size}`,
        { errno: EINVAL },
      )
    }
  }

  #mark(offset: number, length: number): void {
    this.#anyWritten = true
    const written = this.#written
    let block = offset / BLOCK_BYTES
    const end = Math.ceil((offset + length) / BLOCK_BYTES)
    for (; block < end && block % 8 !== 0; block++) written[Math.floor(block / 8)]! |= 1 << (block & 7)
    const lastByte = Math.floor(end / 8)
    if (block < lastByte * 8) {
      written.fill(0xff, block / 8, lastByte)
      block = lastByte * 8
    }
    for (; block < end; block++) written[Math.floor(block / 8)]! |= 1 << (block & 7)
  }

  #isWritten(block: number): boolean {
    return (this.#written[Math.floor(block / 8)]! & (1 << (block & 7))) !== 0
  }

  /** [start, end), both on blocks or at the end of the disk, by what was written and what was not. */
  *#runs(start: number, end: number): Generator<Run> {
    let offset = start
    while (offset < end) {
      const written = this.#isWritten(offset / BLOCK_BYTES)
      let at = offset
      while (at < end && this.#isWritten(at / BLOCK_BYTES) === written) at = Math.min(end, at + BLOCK_BYTES)
      yield { offset, end: at, written }
      offset = at
    }
  }
}

function* pieces(extents: Iterable<DataExtent>): Generator<DataExtent> {
  for (const { offset, end } of extents) {
    for (let at = offset; at < end; at += PIECE_BYTES)
      yield { offset: at, end: Math.min(end, at + PIECE_BYTES) }
  }
}

/** What lies in either; the result is apart and in order. */
function union(one: readonly DataExtent[], other: readonly DataExtent[]): DataExtent[] {
  const all = [...one, ...other].sort((a, b) => a.offset - b.offset)
  const merged: { offset: number; end: number }[] = []
  for (const { offset, end } of all) {
    const last = merged.at(-1)
    if (last !== undefined && offset <= last.end) last.end = Math.max(last.end, end)
    else merged.push({ offset, end })
  }
  return merged
}

function hex(byte: number): string {
  return byte.toString(16).padStart(2, '0')
}
