/**
 * Whether a request may be handed to the device: judged against what was negotiated, without any I/O. Gives the NBD
 * error to answer with, or 0. The order of the rules decides which error a request with several faults gets.
 */
import type { BlockSizes, DeviceFeatures } from '../block/device.ts'
import {
  NBD_CMD_FLAG_DF,
  NBD_CMD_FLAG_FAST_ZERO,
  NBD_CMD_FLAG_FUA,
  NBD_CMD_FLAG_NO_HOLE,
  NBD_CMD_FLAG_REQ_ONE,
  NBD_EINVAL,
  NBD_ENOSPC,
  NBD_EOVERFLOW,
  NBD_EPERM,
} from './protocol/constants.ts'
import type { NbdRequest } from './protocol/decode.ts'

export interface Agreement {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
  readonly structured: boolean
  /** base:allocation was selected for this export. */
  readonly allocation: boolean
}

export interface Verdict {
  readonly errno: number
  readonly reason: string
}

const OK: Verdict = { errno: 0, reason: '' }

function no(errno: number, reason: string): Verdict {
  return { errno, reason }
}

export function validateRequest(request: NbdRequest, agreed: Agreement): Verdict {
  const { features } = agreed
  switch (request.type) {
    case 'disc':
      return OK
    case 'unknown':
      return no(NBD_EINVAL, `unknown command ${request.command}`)
    case 'flush':
      if (request.offset !== 0 || request.length !== 0) return no(NBD_EINVAL, 'offset and length must be 0')
      return checkFlags(request, agreed, 0)
    case 'read': {
      const verdict = checkRange(request, agreed, NBD_EINVAL, agreed.structured ? NBD_CMD_FLAG_DF : 0)
      if (verdict.errno !== 0) return verdict
      if (request.length <= agreed.blockSizes.maximum) return OK
      const errno = (request.flags & NBD_CMD_FLAG_DF) !== 0 ? NBD_EOVERFLOW : NBD_EINVAL
      return no(errno, `longer than ${agreed.blockSizes.maximum} bytes`)
    }
    case 'write': {
      if (features.readOnly) return no(NBD_EPERM, 'the export is read-only')
      const verdict = checkRange(request, agreed, NBD_ENOSPC, 0)
      if (verdict.errno !== 0) return verdict
      if (request.length <= agreed.blockSizes.maximum) return OK
      return no(NBD_EINVAL, `longer than ${agreed.blockSizes.maximum} bytes`)
    }
    case 'writeZeroes': {
      if (features.readOnly) return no(NBD_EPERM, 'the export is read-only')
      if (!features.writeZeroes) return no(NBD_EINVAL, 'not offered')
      const fastZero = features.fastZero ? NBD_CMD_FLAG_FAST_ZERO : 0
      return checkRange(request, agreed, NBD_ENOSPC, NBD_CMD_FLAG_NO_HOLE | fastZero)
    }
    case 'trim':
      if (features.readOnly) return no(NBD_EPERM, 'the export is read-only')
      if (!features.trim) return no(NBD_EINVAL, 'not offered')
      return checkRange(request, agreed, NBD_EINVAL, 0)
    case 'cache':
      if (!features.cache) return no(NBD_EINVAL, 'not offered')
      return checkRange(request, agreed, NBD_EINVAL, 0)
    case 'blockStatus':
      if (!agreed.allocation) return no(NBD_EINVAL, 'no metadata context was selected')
      return checkRange(request, agreed, NBD_EINVAL, NBD_CMD_FLAG_REQ_ONE)
    default:
      return request satisfies never
  }
}

/** FUA is valid on every command once offered ("Command flags"): clients are known to set it on all of them. */
function checkFlags(request: NbdRequest, agreed: Agreement, allowed: number): Verdict {
  const valid = allowed | (agreed.features.fua ? NBD_CMD_FLAG_FUA : 0)
  const wrong = request.flags & ~valid
  return wrong === 0 ? OK : no(NBD_EINVAL, `flags 0x${wrong.toString(16)} are not allowed here`)
}

function checkRange(request: NbdRequest, agreed: Agreement, beyondEnd: number, allowed: number): Verdict {
  const verdict = checkFlags(request, agreed, allowed)
  if (verdict.errno !== 0) return verdict
  const { offset, length } = request
  const { minimum } = agreed.blockSizes
  if (length === 0) return no(NBD_EINVAL, 'length 0')
  if (offset + length > agreed.size) return no(beyondEnd, `beyond the end at ${agreed.size}`)
  if (offset % minimum !== 0 || length % minimum !== 0) {
    return no(NBD_EINVAL, `not a multiple of the minimum block of ${minimum} bytes`)
  }
  return OK
}
