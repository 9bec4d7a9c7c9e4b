/**
 * ExtentSource: an image that is read, whatever holds it: a file, a block device, an export of QEMU's. It says which parts may
 * hold data, so that holes cost nothing, and gives bytes as they are now: who relies on them verifies their digest.
 * It deliberately has no writes and no formats.
 */
import type { DataExtent } from './data-extents.ts'

export interface ExtentSource {
  /** For messages. */
  readonly path: string
  /** Bytes of the disk, not of the file. */
  readonly size: number
  /** The parts that may hold data: block-aligned (but for the end), in order, apart; the rest reads as zero. */
  extents(signal?: AbortSignal): Promise<DataExtent[]>
  /** Exactly `length` bytes; rejects if there are fewer. */
  read(offset: number, length: number): Promise<Buffer>
  /** Fills `target` from `offset` on; returns less than its length only at the end. */
  readInto(target: Uint8Array, offset: number): Promise<number>
  /** True if it was written to since it was opened, as far as that can be known. */
  isStale(): Promise<boolean>
  /** Idempotent. */
  close(): Promise<void>
}
