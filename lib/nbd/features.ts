/**
 * Transmission flags and device features, the one turned into the other: the server says what its device can do, the
 * client learns what the far device can do.
 */
import type { DeviceFeatures } from '../block/device.ts'
import {
  NBD_FLAG_CAN_MULTI_CONN,
  NBD_FLAG_HAS_FLAGS,
  NBD_FLAG_READ_ONLY,
  NBD_FLAG_SEND_CACHE,
  NBD_FLAG_SEND_DF,
  NBD_FLAG_SEND_FAST_ZERO,
  NBD_FLAG_SEND_FLUSH,
  NBD_FLAG_SEND_FUA,
  NBD_FLAG_SEND_TRIM,
  NBD_FLAG_SEND_WRITE_ZEROES,
} from './protocol/constants.ts'

/**
 * FLUSH is always offered: a client that does not see the flag drops its flushes without a word (QEMU does), and then
 * believes to be durable what is not.
 */
export function transmissionFlags(features: DeviceFeatures, structured: boolean): number {
  return (
    NBD_FLAG_HAS_FLAGS |
    NBD_FLAG_SEND_FLUSH |
    (features.readOnly ? NBD_FLAG_READ_ONLY : 0) |
    (features.fua ? NBD_FLAG_SEND_FUA : 0) |
    (features.trim ? NBD_FLAG_SEND_TRIM : 0) |
    (features.writeZeroes ? NBD_FLAG_SEND_WRITE_ZEROES : 0) |
    (features.writeZeroes && features.fastZero ? NBD_FLAG_SEND_FAST_ZERO : 0) |
    (features.cache ? NBD_FLAG_SEND_CACHE : 0) |
    (features.multiConn ? NBD_FLAG_CAN_MULTI_CONN : 0) |
    (structured ? NBD_FLAG_SEND_DF : 0)
  )
}

/** Without NBD_FLAG_HAS_FLAGS the other bits mean nothing. */
export function deviceFeatures(flags: number, blockStatus: boolean): DeviceFeatures {
  const known = (flags & NBD_FLAG_HAS_FLAGS) !== 0 ? flags : 0
  const has = (flag: number): boolean => (known & flag) !== 0
  return {
    readOnly: has(NBD_FLAG_READ_ONLY),
    flush: has(NBD_FLAG_SEND_FLUSH),
    fua: has(NBD_FLAG_SEND_FUA),
    trim: has(NBD_FLAG_SEND_TRIM),
    writeZeroes: has(NBD_FLAG_SEND_WRITE_ZEROES),
    fastZero: has(NBD_FLAG_SEND_WRITE_ZEROES) && has(NBD_FLAG_SEND_FAST_ZERO),
    cache: has(NBD_FLAG_SEND_CACHE),
    multiConn: has(NBD_FLAG_CAN_MULTI_CONN),
    blockStatus,
  }
}
