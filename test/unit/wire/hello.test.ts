/** The hello: round trip, versions that do not fit, hostile JSON. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import {
  HELLO_BYTES_MAX,
  HELLO_NAME_CHARACTERS_MAX,
  HELLO_WINDOW_BYTES_MAX,
  HELLO_WINDOW_BYTES_MIN,
} from '../../../lib/core/limits.ts'
import {
  commonFeatures,
  decodeHello,
  decodeRefusal,
  encodeHello,
  encodeRefusal,
  type Hello,
} from '../../../lib/wire/hello.ts'

const hello: Hello = {
  version: 1,
  bundle: '00112233445566778899aabbccddeeff',
  kind: 'disk',
  channel: 3,
  channels: 4,
  name: 'ams1',
  migration: '3f0c0c9e-6d52-4f0c-9a70-0a3c9f1f9d11',
  features: ['delta', 'zstd'],
  windowBytes: 1024 * 1024,
  instance: '0f'.repeat(16),
}

const raw = (fields: Record<string, unknown>, version = 1): Buffer => {
  const prefix = Buffer.from('SWAM\0\0', 'latin1')
  prefix.writeUInt16BE(version, 4)
  return Buffer.concat([prefix, Buffer.from(JSON.stringify(fields))])
}

test('a hello comes back', () => {
  assert.deepEqual(decodeHello(encodeHello(hello)), hello)
  const { migration: _, ...rest } = hello
  assert.deepEqual(decodeHello(encodeHello({ ...rest, migration: '' })), { ...rest, migration: '' })
})

test('magic and version stand where every release finds them', () => {
  assert.equal(encodeHello(hello).subarray(0, 6).toString('hex'), '5357414d0001')
})

test('unknown fields of a later release do no harm', () => {
  assert.deepEqual(decodeHello(raw({ ...hello, later: true })), hello)
})

test('another version is refused, and both are named', () => {
  assert.throws(
    () => decodeHello(raw({}, 7), 1),
    (error) => error instanceof RefusedError && /version 7, .*version 1/.test(error.message),
  )
})

for (const { name, bytes, message } of [
  { name: 'no bytes', bytes: Buffer.alloc(0), message: /expected the magic/ },
  {
    name: 'another magic',
    bytes: Buffer.from('SSH-2.0-x'),
    message: /expected the magic "SWAM", got "SSH-"/,
  },
  { name: 'too long', bytes: Buffer.alloc(HELLO_BYTES_MAX + 1, 'SWAM'), message: /expected at most 4096/ },
  { name: 'no JSON', bytes: Buffer.from('SWAM\0\x01{'), message: /not JSON/ },
  { name: 'a JSON list', bytes: Buffer.from('SWAM\0\x01[]'), message: /expected a JSON object/ },
  { name: 'null', bytes: Buffer.from('SWAM\0\x01null'), message: /expected a JSON object/ },
  {
    name: 'kind',
    bytes: raw({ ...hello, kind: 'tape' }),
    message: /bundle kind "tape", expected one of control, disk, ram/,
  },
  { name: 'bundle', bytes: raw({ ...hello, bundle: 'xyz' }), message: /bundle is "xyz"/ },
  {
    name: 'no channels',
    bytes: raw({ ...hello, channels: 0 }),
    message: /channels is 0, expected an integer from 1 to 8/,
  },
  { name: 'too many channels', bytes: raw({ ...hello, channels: 9 }), message: /channels is 9/ },
  {
    name: 'channel beyond',
    bytes: raw({ ...hello, channel: 4 }),
    message: /channel is 4, expected an integer from 0 to 3/,
  },
  { name: 'channel half', bytes: raw({ ...hello, channel: 0.5 }), message: /channel is 0.5/ },
  { name: 'name missing', bytes: raw({ ...hello, name: undefined }), message: /name is undefined/ },
  { name: 'name with control characters', bytes: raw({ ...hello, name: 'a\u001b[2J' }), message: /name is/ },
  {
    name: 'migration',
    bytes: raw({ ...hello, migration: '../../etc' }),
    message: /expected a uuid or nothing/,
  },
  { name: 'features', bytes: raw({ ...hello, features: ['ok', 3] }), message: /features is/ },
  {
    name: 'many features',
    bytes: raw({ ...hello, features: new Array(65).fill('a') }),
    message: /features is/,
  },
  { name: 'window', bytes: raw({ ...hello, windowBytes: -1 }), message: /windowBytes is -1/ },
  {
    name: 'a small window',
    bytes: raw({ ...hello, windowBytes: HELLO_WINDOW_BYTES_MIN - 1 }),
    message: /windowBytes is 262143/,
  },
  {
    name: 'a large window',
    bytes: raw({ ...hello, windowBytes: HELLO_WINDOW_BYTES_MAX + 1 }),
    message: /windowBytes is 1073741825/,
  },
  {
    name: 'a long name',
    bytes: raw({ ...hello, name: 'n'.repeat(HELLO_NAME_CHARACTERS_MAX + 1) }),
    message: /expected a name of 1 to 255 characters/,
  },
]) {
  test(`refused: ${name}`, () => {
    assert.throws(
      () => decodeHello(bytes),
      (error) => error instanceof ProtocolError && message.test(error.message),
    )
  })
}

test('features are intersected', () => {
  assert.deepEqual([...commonFeatures(['a', 'b', 'c'], ['c', 'd', 'b'])], ['b', 'c'])
})

test('a refusal comes back, and a hostile one does not reach a terminal', () => {
  const refusal = { code: 'SWAM_REFUSED', message: 'the peer speaks version 2' }
  assert.deepEqual(decodeRefusal(encodeRefusal(refusal)), refusal)
  assert.throws(() => decodeRefusal(Buffer.from('{"code":"X","message":"\\u001b]0;x"}')), ProtocolError)
  assert.throws(() => decodeRefusal(Buffer.from('{"message":"x"}')), ProtocolError)
})
