/**
 * Writes verified chunks of one run to a device. Rabin cuts lie at any byte; disks are written in whole 4 KiB blocks.
 * The inner blocks of a chunk are written at once. A block that chunks share (a seam) is put together in memory and
 * written once, when all its parts are verified; minimum block sizes are obeyed, and the device is read only for parts that lie
 * there and that nobody holds.
 * A chunk whose bytes lie in place already gives its parts to its seams and is not written; a seam all of whose
 * parts lie in place is not written either.
 *
 * A run's own ends need no neighbour: QEMU's writes begin and end on the device's minimum block, and where a run
 * begins inside a 4 KiB block, the seam there covers just the part that is in the run.
 */
import type { BlockDevice } from '../block/device.ts'
import { LostError } from '../core/errors.ts'
import { alignDown, alignUp, BLOCK_BYTES } from '../core/units.ts'

interface Seam {
  readonly start: number
  readonly bytes: Buffer
  /** Parts of which only is known that the device has them: [from, to) in `bytes`. */
  readonly there: { from: number; to: number }[]
  missing: number
  changed: boolean
  waiting: { resolve: () => void; reject: (error: unknown) => void }[]
}

export class RunWriter {
  readonly #device: BlockDevice
  readonly #start: number
  readonly #end: number
  readonly #ended: () => boolean
  readonly #seams = new Map<number, Seam>()

  /**
   * @param start disk offset of the run @param end disk offset behind it
   * @param ended whether the session is: then nothing is written any more, whatever was being read or waited for (I2)
   */
  constructor(device: BlockDevice, start: number, end: number, ended: () => boolean) {
    this.#device = device
    this.#ended = ended
    this.#start = start
    this.#end = end
  }

  /**
   * Resolves when every byte of the chunk lies on the device. `data` is verified and belongs to the writer.
   * @param inPlace the device holds these bytes at this place already
   * @param onTaken told when `data` is not needed any more: a seam may wait long for a neighbour that is still to come
   */
  async chunk(offset: number, data: Buffer, inPlace: boolean, onTaken?: () => void): Promise<void> {
    await this.#put(offset, data.length, data, inPlace, onTaken)
  }

  /** The same where the device holds [offset, offset + length) already, and nobody has its bytes at hand. */
  async inPlace(offset: number, length: number): Promise<void> {
    await this.#put(offset, length, undefined, true, undefined)
  }

  async #put(
    offset: number,
    length: number,
    data: Buffer | undefined,
    inPlace: boolean,
    onTaken: (() => void) | undefined,
  ): Promise<void> {
    const end = offset + length
    const innerStart = offset === this.#start ? offset : alignUp(offset, BLOCK_BYTES)
    const innerEnd = end === this.#end ? end : alignDown(end, BLOCK_BYTES)
    const work: Promise<void>[] = []
    const seam = (from: number, to: number): Promise<void> =>
      this.#seam(from, to - from, data?.subarray(from - offset, to - offset), inPlace)
    let own: Promise<void> | undefined
    if (innerStart < innerEnd) {
      if (innerStart > offset) work.push(seam(offset, innerStart))
      if (!inPlace && data !== undefined)
        own = this.#write(innerStart, data.subarray(innerStart - offset, innerEnd - offset))
      if (innerEnd < end) work.push(seam(innerEnd, end))
    } else {
      // A chunk without a whole block of its own: it lies in one block, or across the border of two.
      let at = offset
      while (at < end) {
        const next = Math.min(end, alignDown(at, BLOCK_BYTES) + BLOCK_BYTES)
        work.push(seam(at, next))
        at = next
      }
    }
    if (own === undefined) onTaken?.()
    else work.push(onTaken === undefined ? own : own.then(onTaken))
    await Promise.all(work)
  }

  async #write(offset: number, bytes: Buffer): Promise<void> {
    if (this.#ended()) throw new LostError('the session ended before it was written')
    await this.#device.write(offset, bytes)
  }

  async #seam(offset: number, partBytes: number, part: Buffer | undefined, inPlace: boolean): Promise<void> {
    const block = alignDown(offset, BLOCK_BYTES)
    let seam = this.#seams.get(block)
    if (seam === undefined) {
      const start = Math.max(block, this.#start)
      const length = Math.min(block + BLOCK_BYTES, this.#end) - start
      const bytes = Buffer.allocUnsafe(length)
      seam = { start, bytes, there: [], missing: length, changed: false, waiting: [] }
      this.#seams.set(block, seam)
    }
    const from = offset - seam.start
    if (part === undefined) seam.there.push({ from, to: from + partBytes })
    else part.copy(seam.bytes, from)
    seam.missing -= partBytes
    if (!inPlace) seam.changed = true
    if (seam.missing > 0) {
      const { waiting } = seam
      await new Promise<void>((resolve, reject) => waiting.push({ resolve, reject }))
      return
    }
    this.#seams.delete(block)
    try {
      if (seam.changed) {
        if (seam.there.length > 0) {
          const old = await this.#device.read(seam.start, seam.bytes.length)
          for (const { from, to } of seam.there) old.copy(seam.bytes, from, from, to)
        }
        await this.#write(seam.start, seam.bytes)
      }
    } catch (error) {
      for (const waiter of seam.waiting) waiter.reject(error)
      throw error
    }
    for (const waiter of seam.waiting) waiter.resolve()
  }
}
