/** Reads of bytes, from a device that reads blocks. */
import { alignDown, alignUp } from '../core/units.ts'
import type { BlockDevice } from './device.ts'

/** Reads any byte range of a device that has a minimum block size. */
export async function readBytes(device: BlockDevice, offset: number, length: number): Promise<Buffer> {
  const unit = device.blockSizes.minimum
  const start = alignDown(offset, unit)
  const end = Math.min(alignUp(offset + length, unit), device.size)
  const bytes = await device.read(start, end - start)
  return bytes.subarray(offset - start, offset - start + length)
}
