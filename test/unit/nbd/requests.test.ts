/** The codec of requests: golden bytes, round trip, every split, truncation, oversize, properties. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { NBD_CMD_WRITE } from '../../../lib/nbd/protocol/constants.ts'
import { type NbdRequest, RequestDecoder } from '../../../lib/nbd/protocol/decode.ts'
import { encodeRequestHeader, type RequestHeader } from '../../../lib/nbd/protocol/encode.ts'
import { feed, hex } from './feed.ts'

const LIMIT = { payloadBytesMax: 1024 }

interface Case {
  readonly name: string
  readonly bytes: Buffer
  readonly request: NbdRequest
}

const cases: readonly Case[] = [
  {
    name: 'read of 512 bytes at 4 GiB',
    bytes: hex('25609513 0004 0000 0102030405060708 0000000100000000 00000200'),
    request: {
      type: 'read',
      command: 0,
      flags: 4,
      cookie: 0x0102030405060708n,
      offset: 2 ** 32,
      length: 512,
    },
  },
  {
    name: 'write of 3 bytes with FUA',
    bytes: hex('25609513 0001 0001 ffffffffffffffff 0000000000001000 00000003 616263'),
    request: {
      type: 'write',
      command: 1,
      flags: 1,
      cookie: 0xffffffffffffffffn,
      offset: 4096,
      length: 3,
      data: Buffer.from('abc'),
    },
  },
  {
    name: 'write of nothing',
    bytes: hex('25609513 0000 0001 0000000000000001 0000000000000000 00000000'),
    request: { type: 'write', command: 1, flags: 0, cookie: 1n, offset: 0, length: 0, data: Buffer.alloc(0) },
  },
  {
    name: 'disconnect',
    bytes: hex('25609513 0000 0002 0000000000000002 0000000000000000 00000000'),
    request: { type: 'disc', command: 2, flags: 0, cookie: 2n, offset: 0, length: 0 },
  },
  {
    name: 'flush',
    bytes: hex('25609513 0000 0003 0000000000000003 0000000000000000 00000000'),
    request: { type: 'flush', command: 3, flags: 0, cookie: 3n, offset: 0, length: 0 },
  },
  {
    name: 'trim',
    bytes: hex('25609513 0000 0004 0000000000000004 0000000000000200 ffffffff'),
    request: { type: 'trim', command: 4, flags: 0, cookie: 4n, offset: 512, length: 0xffffffff },
  },
  {
    name: 'cache',
    bytes: hex('25609513 0000 0005 0000000000000005 0000000000000000 00000010'),
    request: { type: 'cache', command: 5, flags: 0, cookie: 5n, offset: 0, length: 16 },
  },
  {
    name: 'write zeroes with NO_HOLE and FAST_ZERO',
    bytes: hex('25609513 0012 0006 0000000000000006 0000000000010000 01000000'),
    request: { type: 'writeZeroes', command: 6, flags: 18, cookie: 6n, offset: 65536, length: 2 ** 24 },
  },
  {
    name: 'block status with REQ_ONE',
    bytes: hex('25609513 0008 0007 0000000000000007 0000000000000000 80000000'),
    request: { type: 'blockStatus', command: 7, flags: 8, cookie: 7n, offset: 0, length: 2 ** 31 },
  },
  {
    name: 'an unknown command carries no payload',
    bytes: hex('25609513 0000 0099 0000000000000008 0000000000000000 00000040'),
    request: { type: 'unknown', command: 0x99, flags: 0, cookie: 8n, offset: 0, length: 64 },
  },
]

function encode(request: NbdRequest): Buffer {
  const head = encodeRequestHeader(request)
  return request.type === 'write' ? Buffer.concat([head, request.data]) : head
}

describe('requests', () => {
  for (const { name, bytes, request } of cases) {
    test(`${name}: bytes and back`, () => {
      assert.deepEqual(feed(new RequestDecoder(LIMIT), bytes), [request])
      assert.deepEqual(encode(request), bytes)
    })
  }

  const stream = Buffer.concat(cases.map((each) => each.bytes))
  const requests = cases.map((each) => each.request)

  test('a stream cut in two at every place', () => {
    for (let cut = 0; cut <= stream.length; cut++) {
      assert.deepEqual(feed(new RequestDecoder(LIMIT), stream, [cut]), requests, `cut at ${cut}`)
    }
  })

  test('a stream byte by byte', () => {
    const cuts = Array.from({ length: stream.length }, (_, index) => index)
    assert.deepEqual(feed(new RequestDecoder(LIMIT), stream, cuts), requests)
  })

  test('a truncated stream gives the whole requests and says that one is cut', () => {
    let whole = 0
    const ends = new Set<number>()
    for (const each of cases) {
      whole += each.bytes.length
      ends.add(whole)
    }
    for (let length = 0; length <= stream.length; length++) {
      const decoder = new RequestDecoder(LIMIT)
      const found = feed(decoder, stream.subarray(0, length))
      assert.deepEqual(found, requests.slice(0, found.length))
      assert.equal(decoder.partial, length > 0 && !ends.has(length), `length ${length}`)
    }
  })

  test('a write above the ceiling breaks the connection before its payload', () => {
    const header = { command: NBD_CMD_WRITE, flags: 0, cookie: 1n, offset: 0 }
    const decoder = new RequestDecoder(LIMIT)
    assert.throws(
      () => feed(decoder, encodeRequestHeader({ ...header, length: 1025 })),
      (error) =>
        error instanceof ProtocolError &&
        /NBD_CMD_WRITE at 0: payload of 1025 bytes, at most 1024/.test(error.message),
    )
    assert.deepEqual(feed(new RequestDecoder(LIMIT), encodeRequestHeader({ ...header, length: 1024 })), [])
  })

  test('a wrong magic breaks the connection', () => {
    const bytes = encodeRequestHeader({ command: 0, flags: 0, cookie: 1n, offset: 0, length: 1 })
    bytes[0] = 0x26
    assert.throws(() => feed(new RequestDecoder(LIMIT), bytes), ProtocolError)
  })

  test('an offset beyond 2^53 stays beyond every device', () => {
    const bytes = encodeRequestHeader({ command: 0, flags: 0, cookie: 1n, offset: 0, length: 1 })
    bytes.fill(0xff, 16, 24)
    const [request] = feed(new RequestDecoder(LIMIT), bytes)
    assert.ok(request !== undefined && request.offset > Number.MAX_SAFE_INTEGER)
  })

  test('the payload of a write is not a view of what was pushed', () => {
    const bytes = Buffer.from(cases[1]?.bytes ?? [])
    const [request] = feed(new RequestDecoder(LIMIT), bytes)
    bytes.fill(0)
    assert.ok(request?.type === 'write' && request.data.equals(Buffer.from('abc')))
  })

  test('taking can stop inside a chunk and go on', () => {
    const decoder = new RequestDecoder(LIMIT)
    const generator = decoder.push(stream)
    assert.deepEqual(generator.next().value, requests[0])
    assert.deepEqual(generator.next().value, requests[1])
    assert.deepEqual([...generator], requests.slice(2))
    assert.equal(decoder.partial, false)
  })

  test('any requests, cut anywhere, come back as they were', () => {
    const header = fc.record({
      command: fc.integer({ min: 0, max: 10 }),
      flags: fc.integer({ min: 0, max: 0xffff }),
      cookie: fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
      offset: fc.integer({ min: 0, max: Number.MAX_SAFE_INTEGER }),
      length: fc.integer({ min: 0, max: 1024 }),
    })
    fc.assert(
      fc.property(
        fc.array(header, { maxLength: 8 }),
        fc.array(fc.nat()),
        fc.nat(255),
        (headers, at, filler) => {
          const payload = (each: RequestHeader): Buffer =>
            Buffer.alloc(each.command === NBD_CMD_WRITE ? each.length : 0, filler)
          const bytes = Buffer.concat(headers.flatMap((each) => [encodeRequestHeader(each), payload(each)]))
          const cuts = at.map((each) => (bytes.length === 0 ? 0 : each % bytes.length)).sort((a, b) => a - b)
          const found = feed(new RequestDecoder(LIMIT), bytes, cuts)
          assert.equal(found.length, headers.length)
          for (const [index, request] of found.entries()) {
            const expected = headers[index] as RequestHeader
            const { command, flags, cookie, offset, length } = request
            assert.deepEqual({ command, flags, cookie, offset, length }, { ...expected })
            if (request.type === 'write') assert.deepEqual(request.data, payload(expected))
          }
        },
      ),
    )
  })

  test('any bytes give requests or a ProtocolError, nothing else', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 200 }), (noise) => {
        const bytes = Buffer.concat([hex('25609513'), noise])
        try {
          feed(new RequestDecoder(LIMIT), bytes)
        } catch (error) {
          assert.ok(error instanceof ProtocolError)
        }
      }),
    )
  })
})
