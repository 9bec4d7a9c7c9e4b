/** The tables: which request is refused with which error, which error becomes which number, what numbers are called. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { deviceFeatures, transmissionFlags } from '../../../lib/nbd/features.ts'
import type { NbdRequest } from '../../../lib/nbd/protocol/decode.ts'
import { allowedErrno, errnoOf } from '../../../lib/nbd/protocol/errno.ts'
import {
  chunkName,
  commandFlagNames,
  commandName,
  errnoName,
  infoName,
  optionName,
  optionReplyName,
  transmissionFlagNames,
} from '../../../lib/nbd/protocol/names.ts'
import { type Agreement, validateRequest } from '../../../lib/nbd/validate.ts'

const ALL = {
  readOnly: false,
  flush: true,
  fua: true,
  trim: true,
  writeZeroes: true,
  fastZero: true,
  cache: true,
  multiConn: true,
  blockStatus: true,
}
const NONE = {
  ...ALL,
  fua: false,
  trim: false,
  writeZeroes: false,
  fastZero: false,
  cache: false,
  blockStatus: false,
}
const agreed: Agreement = {
  size: 1048576,
  blockSizes: { minimum: 512, preferred: 4096, maximum: 65536 },
  features: ALL,
  structured: true,
  allocation: true,
}
const readOnly: Agreement = { ...agreed, features: { ...ALL, readOnly: true } }
const poor: Agreement = { ...agreed, features: NONE, structured: false, allocation: false }

type Range = Exclude<NbdRequest['type'], 'write'>
function ask(type: Range | 'write', offset: number, length: number, flags = 0): NbdRequest {
  const fields = { command: 0, cookie: 1n, offset, length, flags }
  return type === 'write' ? { ...fields, type, data: Buffer.alloc(0) } : { ...fields, type }
}

describe('validateRequest', () => {
  const cases: readonly [string, NbdRequest, Agreement, number][] = [
    ['read', ask('read', 0, 512), agreed, 0],
    ['read of the end', ask('read', 1048064, 512), agreed, 0],
    ['read beyond the end', ask('read', 1048064, 1024), agreed, 22],
    ['read of nothing', ask('read', 0, 0), agreed, 22],
    ['read off the block', ask('read', 100, 512), agreed, 22],
    ['read of half a block', ask('read', 0, 100), agreed, 22],
    ['read of the longest', ask('read', 0, 65536), agreed, 0],
    ['read too long', ask('read', 0, 66048), agreed, 22],
    ['read too long, unfragmented', ask('read', 0, 66048, 4), agreed, 75],
    ['read with DF', ask('read', 0, 512, 4), agreed, 0],
    ['read with DF but simple replies', ask('read', 0, 512, 4), poor, 22],
    ['read with FUA', ask('read', 0, 512, 1), agreed, 0],
    ['read with FUA not offered', ask('read', 0, 512, 1), poor, 22],
    ['read with NO_HOLE', ask('read', 0, 512, 2), agreed, 22],
    ['read with an unknown flag', ask('read', 0, 512, 0x8000), agreed, 22],
    ['read of a read-only export', ask('read', 0, 512), readOnly, 0],
    ['read from 2^63', ask('read', 2 ** 63, 512), agreed, 22],
    ['write', ask('write', 0, 512), agreed, 0],
    ['write with FUA', ask('write', 0, 512, 1), agreed, 0],
    ['write with FUA not offered', ask('write', 0, 512, 1), poor, 22],
    ['write with DF', ask('write', 0, 512, 4), agreed, 22],
    ['write beyond the end', ask('write', 1048576, 512), agreed, 28],
    ['write too long', ask('write', 0, 131072), agreed, 22],
    ['write off the block', ask('write', 1, 512), agreed, 22],
    ['write to a read-only export', ask('write', 0, 512), readOnly, 1],
    ['write of nothing', ask('write', 0, 0), agreed, 22],
    ['zeroes longer than a payload', ask('writeZeroes', 0, 1048576), agreed, 0],
    ['zeroes with all flags', ask('writeZeroes', 0, 512, 1 | 2 | 16), agreed, 0],
    ['zeroes beyond the end', ask('writeZeroes', 512, 1048576), agreed, 28],
    [
      'zeroes with FAST_ZERO not offered',
      ask('writeZeroes', 0, 512, 16),
      { ...agreed, features: { ...ALL, fastZero: false } },
      22,
    ],
    ['zeroes not offered', ask('writeZeroes', 0, 512), poor, 22],
    ['zeroes to a read-only export', ask('writeZeroes', 0, 512), readOnly, 1],
    ['trim', ask('trim', 0, 1048576), agreed, 0],
    ['trim beyond the end', ask('trim', 512, 1048576), agreed, 22],
    ['trim not offered', ask('trim', 0, 512), poor, 22],
    ['trim of a read-only export', ask('trim', 0, 512), readOnly, 1],
    ['cache', ask('cache', 0, 1048576), agreed, 0],
    ['cache not offered', ask('cache', 0, 512), poor, 22],
    ['cache beyond the end', ask('cache', 512, 1048576), agreed, 22],
    ['status', ask('blockStatus', 0, 1048576), agreed, 0],
    ['status of one', ask('blockStatus', 0, 512, 8), agreed, 0],
    ['status without a context', ask('blockStatus', 0, 512), poor, 22],
    ['status beyond the end', ask('blockStatus', 512, 1048576), agreed, 22],
    ['flush', ask('flush', 0, 0), agreed, 0],
    ['flush with FUA', ask('flush', 0, 0, 1), agreed, 0],
    ['flush with an offset', ask('flush', 512, 0), agreed, 22],
    ['flush with a length', ask('flush', 0, 512), agreed, 22],
    ['unknown', ask('unknown', 0, 0), agreed, 22],
    ['disc', ask('disc', 0, 0), agreed, 0],
  ]
  for (const [name, request, agreement, errno] of cases) {
    test(`${name}: ${errno === 0 ? 'allowed' : errnoName(errno)}`, () => {
      const verdict = validateRequest(request, agreement)
      assert.equal(verdict.errno, errno, verdict.reason)
      assert.equal(verdict.reason === '', errno === 0)
    })
  }
})

describe('errors and numbers', () => {
  const system = (code: string): Error => Object.assign(new Error(code), { code })
  const cases: readonly [string, unknown, number][] = [
    ['a refusal with a number', new RefusedError('no', { errno: 28 }), 28],
    ['a refusal with a foreign number', new RefusedError('no', { errno: 30 }), 5],
    ['a refusal without a number', new RefusedError('no'), 5],
    ['a lost connection', new LostError('gone'), 5],
    ['ENOSPC', system('ENOSPC'), 28],
    ['EDQUOT', system('EDQUOT'), 28],
    ['EFBIG', system('EFBIG'), 28],
    ['EROFS', system('EROFS'), 1],
    ['EOPNOTSUPP', system('EOPNOTSUPP'), 95],
    ['EBADF', system('EBADF'), 5],
    ['no error at all', 'text', 5],
  ]
  for (const [name, error, errno] of cases)
    test(`${name} is ${errno}`, () => assert.equal(errnoOf(error), errno))

  test('a number that the protocol does not know is EIO', () => {
    assert.deepEqual(
      [1, 2, 5, 12, 22, 28, 75, 95, 108, 117].map(allowedErrno),
      [1, 5, 5, 12, 22, 28, 75, 95, 108, 5],
    )
  })
})

describe('transmission flags', () => {
  test('golden, and back', () => {
    assert.equal(transmissionFlags(ALL, true), 0x0ded)
    assert.equal(transmissionFlags(ALL, false), 0x0d6d)
    assert.deepEqual(deviceFeatures(0x0ded, true), ALL)
    assert.deepEqual(deviceFeatures(transmissionFlags(readOnly.features, true), true), readOnly.features)
  })

  test('FLUSH is offered whatever the device says', () => {
    assert.equal(transmissionFlags({ ...NONE, flush: false, multiConn: false }, false), 1 | 4)
  })

  test('without HAS_FLAGS nothing is offered', () => {
    assert.equal(deviceFeatures(0x0dec, false).flush, false)
  })
})

describe('names', () => {
  test('numbers have the names of the specification', () => {
    assert.equal(commandName(6), 'NBD_CMD_WRITE_ZEROES')
    assert.equal(commandName(0), 'NBD_CMD_READ')
    assert.equal(commandName(99), 'command 99')
    assert.equal(optionName(10), 'NBD_OPT_SET_META_CONTEXT')
    assert.equal(optionReplyName(0x80000006), 'NBD_REP_ERR_UNKNOWN')
    assert.equal(optionReplyName(0x80000063), 'option reply 0x80000063')
    assert.equal(infoName(3), 'NBD_INFO_BLOCK_SIZE')
    assert.equal(chunkName(0x8001), 'NBD_REPLY_TYPE_ERROR')
    assert.equal(errnoName(28), 'ENOSPC')
    assert.equal(errnoName(3), 'error 3')
    assert.equal(commandFlagNames(17), 'NBD_CMD_FLAG_FUA|NBD_CMD_FLAG_FAST_ZERO')
    assert.equal(commandFlagNames(0), 'none')
    assert.equal(transmissionFlagNames(0x8005), 'NBD_FLAG_HAS_FLAGS|NBD_FLAG_SEND_FLUSH|0x8000')
  })
})
