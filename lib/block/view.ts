/** One disk may have several NBD connections: each closes only its own view of it. */
import type { BlockDevice } from './device.ts'

export function viewOf(device: BlockDevice): BlockDevice {
  return {
    size: device.size,
    blockSizes: device.blockSizes,
    features: device.features,
    read: (offset, length) => device.read(offset, length),
    write: (offset, data, flags) => device.write(offset, data, flags),
    writeZeroes: (offset, length, flags) => device.writeZeroes(offset, length, flags),
    trim: (offset, length, flags) => device.trim(offset, length, flags),
    cache: (offset, length) => device.cache(offset, length),
    blockStatus: (offset, length) => device.blockStatus(offset, length),
    flush: () => device.flush(),
    close: async () => undefined,
  }
}
