/** The codec of replies: golden bytes, every split, truncation, and each thing that a server must not send. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import {
  encodeDataChunkHeader,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeNoneChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from '../../../lib/nbd/protocol/encode.ts'
import { type Expectation, type NbdReply, ReplyDecoder } from '../../../lib/nbd/protocol/replies.ts'
import { feed, hex, rawChunk } from './feed.ts'

/** Cookie 1 is a read of 16 bytes at 4096, 2 a block status of 1 MiB, 3 a write. */
function expectations(): Map<bigint, Expectation> {
  return new Map<bigint, Expectation>([
    [1n, { kind: 'read', offset: 4096, length: 16, target: Buffer.alloc(16, 0xee) }],
    [2n, { kind: 'status', offset: 0, length: 1048576, target: undefined }],
    [3n, { kind: 'other', offset: 0, length: 512, target: undefined }],
  ])
}

function decoder(structured: boolean, map: Map<bigint, Expectation> = expectations()): ReplyDecoder {
  return new ReplyDecoder({ structured, expect: (cookie) => map.get(cookie) })
}

interface Case {
  readonly name: string
  readonly bytes: Buffer
  readonly encoded: Buffer
  readonly reply: NbdReply
}

const data = Buffer.from('0123456789abcdef')

const structured: readonly Case[] = [
  {
    name: 'a data chunk',
    bytes: hex('668e33ef 0000 0001 0000000000000001 00000010 0000000000001000 3031323334353637'),
    encoded: Buffer.concat([encodeDataChunkHeader(1n, 4096, 8, false), data.subarray(0, 8)]),
    reply: { type: 'data', cookie: 1n, offset: 4096, length: 8, done: false },
  },
  {
    name: 'a hole chunk that ends the reply',
    bytes: hex('668e33ef 0001 0002 0000000000000001 0000000c 0000000000001008 00000008'),
    encoded: encodeHoleChunk(1n, 4104, 8, true),
    reply: { type: 'hole', cookie: 1n, offset: 4104, length: 8, done: true },
  },
  {
    name: 'a status',
    bytes: hex('668e33ef 0001 0005 0000000000000002 00000014 00000001 00010000 00000003 000f0000 00000000'),
    encoded: encodeStatusChunk(
      2n,
      1,
      [
        { length: 65536, flags: 3 },
        { length: 983040, flags: 0 },
      ],
      true,
    ),
    reply: {
      type: 'status',
      cookie: 2n,
      contextId: 1,
      extents: [
        { length: 65536, flags: 3 },
        { length: 983040, flags: 0 },
      ],
      done: true,
    },
  },
  {
    name: 'an error with a text',
    bytes: hex('668e33ef 0001 8001 0000000000000003 00000009 0000001c 0003 6e6f21'),
    encoded: encodeErrorChunk(3n, 28, 'no!', true),
    reply: { type: 'error', cookie: 3n, errno: 28, message: 'no!', offset: undefined, done: true },
  },
  {
    name: 'an error with an offset',
    bytes: hex('668e33ef 0000 8002 0000000000000001 0000000e 00000005 0000 0000000000001004'),
    encoded: rawChunk(0x8002, 0, 1n, hex('00000005 0000 0000000000001004')),
    reply: { type: 'error', cookie: 1n, errno: 5, message: '', offset: 4100, done: false },
  },
  {
    name: 'an error of a type of the future',
    bytes: hex('668e33ef 0001 8077 0000000000000003 00000008 00000016 0001 78 ff'),
    encoded: rawChunk(0x8077, 1, 3n, hex('00000016 0001 78 ff')),
    reply: { type: 'error', cookie: 3n, errno: 22, message: 'x', offset: undefined, done: true },
  },
  {
    name: 'none',
    bytes: hex('668e33ef 0001 0000 0000000000000001 00000000'),
    encoded: encodeNoneChunk(1n),
    reply: { type: 'none', cookie: 1n, done: true },
  },
  {
    name: 'a simple reply to a write among structured ones',
    bytes: hex('67446698 00000000 0000000000000003'),
    encoded: encodeSimpleReply(3n, 0),
    reply: { type: 'simple', cookie: 3n, errno: 0 },
  },
]

describe('replies', () => {
  for (const { name, bytes, encoded, reply } of structured) {
    test(`${name}: bytes and back`, () => {
      assert.deepEqual(feed(decoder(true), bytes), [reply])
      assert.deepEqual(encoded, bytes)
    })
  }

  test('a stream cut in two at every place, and its data land in the target', () => {
    const stream = Buffer.concat(structured.map((each) => each.bytes))
    for (let cut = 0; cut <= stream.length; cut++) {
      const map = expectations()
      const found = feed(decoder(true, map), stream, [cut])
      assert.deepEqual(
        found,
        structured.map((each) => each.reply),
      )
      const expected = Buffer.concat([data.subarray(0, 8), Buffer.alloc(8)])
      assert.deepEqual(map.get(1n)?.target, expected)
    }
  })

  test('simple replies with data, cut in two at every place', () => {
    const stream = Buffer.concat([
      encodeSimpleReply(1n, 0),
      data,
      encodeSimpleReply(3n, 28),
      encodeSimpleReply(1n, 5),
      encodeSimpleReply(2n, 22),
    ])
    for (let cut = 0; cut <= stream.length; cut++) {
      const map = expectations()
      assert.deepEqual(feed(decoder(false, map), stream, [cut]), [
        { type: 'simple', cookie: 1n, errno: 0 },
        { type: 'simple', cookie: 3n, errno: 28 },
        { type: 'simple', cookie: 1n, errno: 5 },
        { type: 'simple', cookie: 2n, errno: 22 },
      ])
      assert.deepEqual(map.get(1n)?.target, data)
    }
  })

  test('an end inside a reply is noticed', () => {
    for (const { bytes } of structured) {
      for (let length = 1; length < bytes.length; length++) {
        const cut = decoder(true)
        assert.deepEqual(feed(cut, bytes.subarray(0, length)), [])
        assert.equal(cut.partial, true)
      }
      const whole = decoder(true)
      feed(whole, bytes)
      assert.equal(whole.partial, false)
    }
  })

  const broken: readonly { name: string; structured?: boolean; bytes: Buffer; message: RegExp }[] = [
    { name: 'unknown magic', bytes: Buffer.alloc(16, 0x11), message: /got 0x11111111/ },
    {
      name: 'a structured reply that was not agreed',
      structured: false,
      bytes: encodeNoneChunk(1n),
      message: /magic of a simple reply, got 0x668e33ef/,
    },
    {
      name: 'unknown cookie',
      bytes: encodeSimpleReply(9n, 0),
      message: /no request in flight has the cookie 9/,
    },
    { name: 'unknown cookie of a chunk', bytes: encodeNoneChunk(9n), message: /cookie 9/ },
    {
      name: 'a simple reply to a structured read',
      bytes: encodeSimpleReply(1n, 0),
      message: /simple reply to a read/,
    },
    {
      name: 'a simple error to a status',
      bytes: encodeSimpleReply(2n, 5),
      message: /simple reply to a status/,
    },
    {
      name: 'none without DONE',
      bytes: rawChunk(0, 0, 1n, Buffer.alloc(0)),
      message: /without NBD_REPLY_FLAG_DONE/,
    },
    {
      name: 'none with a payload',
      bytes: rawChunk(0, 1, 1n, Buffer.alloc(4)),
      message: /impossible length 4/,
    },
    { name: 'data of 0 bytes', bytes: rawChunk(1, 1, 1n, Buffer.alloc(8)), message: /impossible length 8/ },
    {
      name: 'data longer than the request',
      bytes: rawChunk(1, 1, 1n, Buffer.alloc(0), 8 + 17),
      message: /OFFSET_DATA: impossible length 25 in a reply to a read of 16/,
    },
    {
      name: 'data before the request',
      bytes: encodeDataChunkHeader(1n, 4095, 8, true),
      message: /8 bytes at 4095 in a reply to a read of 16 at 4096/,
    },
    { name: 'data behind the request', bytes: encodeDataChunkHeader(1n, 4105, 8, true), message: /at 4105/ },
    {
      name: 'data at an offset that wraps',
      bytes: rawChunk(1, 1, 1n, Buffer.alloc(9, 0xff)),
      message: /in a reply to a read/,
    },
    {
      name: 'data for a write',
      bytes: encodeDataChunkHeader(3n, 0, 8, true),
      message: /OFFSET_DATA: in a reply to a other/,
    },
    {
      name: 'a hole for a status',
      bytes: encodeHoleChunk(2n, 0, 8, true),
      message: /OFFSET_HOLE: in a reply to a status/,
    },
    { name: 'a hole of 0 bytes', bytes: encodeHoleChunk(1n, 4096, 0, true), message: /0 bytes at 4096/ },
    {
      name: 'a hole behind the request',
      bytes: encodeHoleChunk(1n, 4096, 17, true),
      message: /17 bytes at 4096/,
    },
    {
      name: 'a hole of impossible length',
      bytes: rawChunk(2, 1, 1n, Buffer.alloc(13)),
      message: /length 13/,
    },
    {
      name: 'a status for a read',
      bytes: rawChunk(5, 1, 1n, Buffer.alloc(12, 1)),
      message: /in a reply to a read/,
    },
    {
      name: 'a status without extents',
      bytes: rawChunk(5, 1, 2n, Buffer.alloc(4)),
      message: /impossible length 4/,
    },
    {
      name: 'a status of odd length',
      bytes: rawChunk(5, 1, 2n, Buffer.alloc(15)),
      message: /impossible length 15/,
    },
    {
      name: 'a status above the ceiling',
      bytes: rawChunk(5, 1, 2n, Buffer.alloc(0), 4 + 8 * (1024 * 1024 + 1)),
      message: /impossible length 8388620/,
    },
    {
      name: 'an extent of length 0',
      bytes: rawChunk(5, 1, 2n, Buffer.alloc(12)),
      message: /extent of length 0/,
    },
    {
      name: 'an error without a number',
      bytes: rawChunk(0x8001, 1, 3n, hex('00000000 0000')),
      message: /error 0/,
    },
    {
      name: 'an error too short',
      bytes: rawChunk(0x8001, 1, 3n, Buffer.alloc(5)),
      message: /impossible length 5/,
    },
    {
      name: 'an error above the ceiling',
      bytes: rawChunk(0x8001, 1, 3n, Buffer.alloc(0), 9000),
      message: /length 9000/,
    },
    {
      name: 'an error whose text is longer than the chunk',
      bytes: rawChunk(0x8001, 1, 3n, hex('00000005 0002 61')),
      message: /message of 2 bytes in 7 bytes/,
    },
    {
      name: 'an error whose text runs into the offset',
      bytes: rawChunk(0x8002, 1, 1n, hex('00000005 0001 0000000000001000')),
      message: /message of 1 bytes in 14 bytes/,
    },
    {
      name: 'an unknown chunk that is no error',
      bytes: rawChunk(77, 1, 1n, Buffer.alloc(4)),
      message: /unknown chunk type 0x4d/,
    },
  ]
  for (const { name, structured: agreed = true, bytes, message } of broken) {
    test(`refuses ${name}`, () => {
      assert.throws(
        () => feed(decoder(agreed), bytes),
        (error) => error instanceof ProtocolError && message.test(error.message),
      )
    })
  }

  test('any bytes give replies or a ProtocolError, nothing else', () => {
    const chunk = fc
      .tuple(
        fc.constantFrom(0, 1, 2, 5, 0x8001, 0x8002, 9),
        fc.nat(1),
        fc.constantFrom(1n, 2n, 3n),
        fc.uint8Array({ maxLength: 40 }),
      )
      .map(([type, flags, cookie, payload]) => rawChunk(type, flags, cookie, Buffer.from(payload)))
    fc.assert(
      fc.property(fc.array(chunk), (chunks) => {
        try {
          feed(decoder(true), Buffer.concat(chunks))
        } catch (error) {
          assert.ok(error instanceof ProtocolError)
        }
      }),
    )
  })
})
