/**
 * The one table from errors to NBD error values and back. The specification allows eight values; what a device
 * rejects with is mapped to the nearest one, and what cannot be mapped is EIO.
 */
import { RefusedError } from '../../core/errors.ts'
import {
  NBD_EINVAL,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_ENOSPC,
  NBD_ENOTSUP,
  NBD_EOVERFLOW,
  NBD_EPERM,
  NBD_ESHUTDOWN,
} from './constants.ts'
import { errnoText } from './names.ts'

const ALLOWED: ReadonlySet<number> = new Set([
  NBD_EPERM,
  NBD_EIO,
  NBD_ENOMEM,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_ENOTSUP,
  NBD_ESHUTDOWN,
])

/** Codes of Node's system errors ("Error values": EDQUOT and EFBIG are to be sent as ENOSPC, a read-only medium as EPERM). */
const BY_CODE: ReadonlyMap<string, number> = new Map([
  ['EPERM', NBD_EPERM],
  ['EACCES', NBD_EPERM],
  ['EROFS', NBD_EPERM],
  ['ENOMEM', NBD_ENOMEM],
  ['EINVAL', NBD_EINVAL],
  ['ENOSPC', NBD_ENOSPC],
  ['EDQUOT', NBD_ENOSPC],
  ['EFBIG', NBD_ENOSPC],
  ['EOVERFLOW', NBD_EOVERFLOW],
  ['ENOTSUP', NBD_ENOTSUP],
  ['EOPNOTSUPP', NBD_ENOTSUP],
  ['ESHUTDOWN', NBD_ESHUTDOWN],
])

/** The NBD error value for anything that a device rejected with. */
export function errnoOf(error: unknown): number {
  if (error instanceof RefusedError && error.errno !== undefined) return allowedErrno(error.errno)
  if (error instanceof Error && 'code' in error && typeof error.code === 'string') {
    return BY_CODE.get(error.code) ?? NBD_EIO
  }
  return NBD_EIO
}

/** An error value from a reply: a server may send the errno of its system, the client sees one of the eight. */
export function allowedErrno(errno: number): number {
  return ALLOWED.has(errno) ? errno : NBD_EIO
}

export function refused(errno: number, message: string): RefusedError {
  return new RefusedError(`${message}: ${errnoText(errno)}`, { errno })
}
