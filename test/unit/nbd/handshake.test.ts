/** The codec of the handshake: golden bytes, every split, oversize, and what does not parse. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import {
  ClientHandshakeDecoder,
  encodeClientFlags,
  encodeExportReply,
  encodeGreeting,
  encodeOption,
  encodeOptionReply,
  ServerHandshakeDecoder,
} from '../../../lib/nbd/protocol/handshake.ts'
import {
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeInfoRequest,
  encodeMetaReply,
  encodeMetaRequest,
  encodeText,
  encodeTextInfo,
  parseExportName,
  parseInfo,
  parseInfoRequest,
  parseMetaReply,
  parseMetaRequest,
  parseServerReply,
} from '../../../lib/nbd/protocol/options.ts'
import { feed, hex } from './feed.ts'

const refuses = (work: () => unknown, message: RegExp): void =>
  assert.throws(work, (error) => error instanceof ProtocolError && message.test(error.message))

describe('handshake, what the client sends', () => {
  const bytes = hex(`00000003
    49484156454f5054 00000008 00000000
    49484156454f5054 00000007 0000000c 00000004 6469736b 0001 0003
    49484156454f5054 00000002 00000000`)
  const messages = [
    { type: 'clientFlags', flags: 3 },
    { type: 'option', option: 8, data: Buffer.alloc(0) },
    { type: 'option', option: 7, data: hex('00000004 6469736b 0001 0003') },
    { type: 'option', option: 2, data: Buffer.alloc(0) },
  ]

  test('golden bytes', () => {
    assert.deepEqual(
      Buffer.concat([
        encodeClientFlags(3),
        encodeOption(8),
        encodeOption(7, encodeInfoRequest({ name: 'disk', infos: [3] })),
        encodeOption(2),
      ]),
      bytes,
    )
  })

  test('cut in two at every place', () => {
    for (let cut = 0; cut <= bytes.length; cut++) {
      assert.deepEqual(feed(new ClientHandshakeDecoder(), bytes, [cut]), messages)
    }
  })

  test('what stands behind a message is handed over untouched', () => {
    const decoder = new ClientHandshakeDecoder()
    const generator = decoder.push(Buffer.concat([bytes, Buffer.from('tail')]))
    for (const message of messages) assert.deepEqual(generator.next().value, message)
    assert.equal(decoder.rest().toString(), 'tail')
  })

  test('partial is true inside a message only', () => {
    const ends = new Set([0, 4, 20, 48, 64])
    for (let length = 0; length <= bytes.length; length++) {
      const decoder = new ClientHandshakeDecoder()
      feed(decoder, bytes.subarray(0, length))
      assert.equal(decoder.partial, !ends.has(length), `length ${length}`)
    }
  })

  test('refuses a wrong magic and too much data', () => {
    refuses(() => feed(new ClientHandshakeDecoder(), Buffer.alloc(20)), /expected magic IHAVEOPT/)
    const option = encodeOption(7)
    option.writeUInt32BE(65537, 12)
    refuses(
      () => feed(new ClientHandshakeDecoder(), Buffer.concat([Buffer.alloc(4), option])),
      /NBD_OPT_GO: 65537 bytes of data, at most 65536 allowed/,
    )
  })
})

describe('handshake, what the server sends', () => {
  const bytes = hex(`4e42444d41474943 49484156454f5054 0003
    0003e889045565a9 00000008 00000001 00000000
    0003e889045565a9 00000007 00000003 0000000c 0000 0000000040000000 056d
    0003e889045565a9 00000007 00000001 00000000`)
  const messages = [
    { type: 'greeting', flags: 3 },
    { type: 'optionReply', option: 8, reply: 1, data: Buffer.alloc(0) },
    { type: 'optionReply', option: 7, reply: 3, data: encodeExportInfo(1 << 30, 0x056d) },
    { type: 'optionReply', option: 7, reply: 1, data: Buffer.alloc(0) },
  ]

  test('golden bytes', () => {
    assert.deepEqual(
      Buffer.concat([
        encodeGreeting(3),
        encodeOptionReply(8, 1),
        encodeOptionReply(7, 3, encodeExportInfo(1 << 30, 0x056d)),
        encodeOptionReply(7, 1),
      ]),
      bytes,
    )
  })

  test('cut in two at every place', () => {
    for (let cut = 0; cut <= bytes.length; cut++) {
      assert.deepEqual(feed(new ServerHandshakeDecoder(), bytes, [cut]), messages)
    }
  })

  for (const noZeroes of [true, false]) {
    test(`the bare reply to EXPORT_NAME, ${noZeroes ? 'without' : 'with'} its zeroes`, () => {
      const decoder = new ServerHandshakeDecoder()
      feed(decoder, encodeGreeting(1))
      decoder.expectExport(noZeroes)
      const reply = encodeExportReply(2 ** 40, 5, noZeroes)
      assert.equal(reply.length, noZeroes ? 10 : 134)
      const half = feed(decoder, reply.subarray(0, reply.length - 1))
      assert.deepEqual(half, [])
      assert.deepEqual(feed(decoder, reply.subarray(-1)), [
        { type: 'export', size: 2 ** 40, transmissionFlags: 5 },
      ])
    })
  }

  test('refuses other greetings, naming the oldstyle', () => {
    refuses(() => feed(new ServerHandshakeDecoder(), Buffer.from('SSH-2.0-OpenSSH_9.2')), /expected NBDMAGIC/)
    const oldstyle = hex('4e42444d41474943 0000420281861253 0000')
    refuses(() => feed(new ServerHandshakeDecoder(), oldstyle), /oldstyle/)
    const strange = hex('4e42444d41474943 0000000000000000 0000')
    refuses(() => feed(new ServerHandshakeDecoder(), strange), /IHAVEOPT/)
  })

  test('refuses a wrong magic, too much data, and a size that is no safe integer', () => {
    const greeting = encodeGreeting(3)
    refuses(
      () => feed(new ServerHandshakeDecoder(), Buffer.concat([greeting, Buffer.alloc(20)])),
      /wrong magic/,
    )
    const long = encodeOptionReply(3, 2)
    long.writeUInt32BE(65537, 16)
    refuses(
      () => feed(new ServerHandshakeDecoder(), Buffer.concat([greeting, long])),
      /NBD_REP_SERVER to NBD_OPT_LIST: 65537 bytes/,
    )
    const huge = encodeExportInfo(0, 1)
    huge.fill(0xff, 2, 10)
    refuses(() => parseInfo(huge), /size 18446744073709551615/)
  })
})

describe('handshake, the data of options', () => {
  test('round trips', () => {
    const info = { name: 'größe/ü', infos: [0, 3, 77] }
    assert.deepEqual(parseInfoRequest(encodeInfoRequest(info)), info)
    const meta = { name: '', queries: ['base:', 'base:allocation', 'x-y:z'] }
    assert.deepEqual(parseMetaRequest(encodeMetaRequest(meta)), meta)
    assert.equal(parseServerReply(encodeText('disk')), 'disk')
    assert.equal(parseServerReply(Buffer.concat([encodeText('disk'), Buffer.from('details')])), 'disk')
    assert.deepEqual(parseMetaReply(encodeMetaReply(5, 'base:allocation')), {
      contextId: 5,
      name: 'base:allocation',
    })
    assert.deepEqual(parseInfo(encodeExportInfo(5, 6)), { type: 'export', size: 5, transmissionFlags: 6 })
    assert.deepEqual(parseInfo(encodeTextInfo(1, 'disk')), { type: 'name', text: 'disk' })
    assert.deepEqual(parseInfo(encodeTextInfo(2, 'a disk')), { type: 'description', text: 'a disk' })
    const sizes = { minimum: 512, preferred: 4096, maximum: 0xffffffff }
    assert.deepEqual(parseInfo(encodeBlockSizeInfo(sizes)), { type: 'blockSize', ...sizes })
    assert.deepEqual(parseInfo(hex('0063 01')), { type: 'unknown', info: 99 })
  })

  const broken: readonly { name: string; parse: () => unknown; message: RegExp }[] = [
    {
      name: 'info: empty',
      parse: () => parseInfoRequest(Buffer.alloc(0)),
      message: /needs 4 bytes at 0, has 0/,
    },
    {
      name: 'info: name longer than the data',
      parse: () => parseInfoRequest(hex('00000005 61')),
      message: /needs 5/,
    },
    {
      name: 'info: name too long',
      parse: () => parseInfoRequest(hex('00001001')),
      message: /string of 4097 bytes/,
    },
    {
      name: 'info: name not UTF-8',
      parse: () => parseInfoRequest(hex('00000001 ff 0000')),
      message: /not UTF-8/,
    },
    { name: 'info: too few', parse: () => parseInfoRequest(hex('00000000 0002 0001')), message: /needs 2/ },
    {
      name: 'info: too many',
      parse: () => parseInfoRequest(hex('00000000 0000 0001')),
      message: /2 bytes too many/,
    },
    {
      name: 'meta: count without queries',
      parse: () => parseMetaRequest(hex('00000000 ffffffff')),
      message: /needs 4/,
    },
    {
      name: 'meta: bytes behind',
      parse: () => parseMetaRequest(hex('00000000 00000000 00')),
      message: /1 bytes too/,
    },
    {
      name: 'server: name longer than the reply',
      parse: () => parseServerReply(hex('00000002 61')),
      message: /needs 2/,
    },
    { name: 'context: too short', parse: () => parseMetaReply(hex('000001')), message: /needs 4/ },
    { name: 'export name too long', parse: () => parseExportName(Buffer.alloc(4097)), message: /4097/ },
    { name: 'export info too long', parse: () => parseInfo(Buffer.alloc(13)), message: /1 bytes too many/ },
    { name: 'export info too short', parse: () => parseInfo(Buffer.alloc(11)), message: /needs 2/ },
    ...(
      [
        [0, 4096, 65536],
        [3, 4096, 65536],
        [131072, 131072, 131072],
        [512, 1000, 65536],
        [4096, 512, 65536],
        [4096, 4096, 2048],
        [4096, 4096, 6000],
      ] as const
    ).map(([minimum, preferred, maximum]) => ({
      name: `block sizes ${minimum} ${preferred} ${maximum}`,
      parse: () => parseInfo(encodeBlockSizeInfo({ minimum, preferred, maximum })),
      message: /impossible sizes/,
    })),
  ]
  for (const { name, parse, message } of broken) test(`refuses ${name}`, () => refuses(parse, message))

  test('any bytes parse or give a ProtocolError', () => {
    fc.assert(
      fc.property(fc.uint8Array({ maxLength: 64 }), (noise) => {
        for (const parse of [
          parseInfoRequest,
          parseMetaRequest,
          parseServerReply,
          parseMetaReply,
          parseInfo,
        ]) {
          try {
            parse(Buffer.from(noise))
          } catch (error) {
            assert.ok(error instanceof ProtocolError)
          }
        }
      }),
    )
  })
})
