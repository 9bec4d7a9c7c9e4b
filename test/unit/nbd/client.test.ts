/** The client against servers played by hand: old ones, odd ones, hostile ones, and ones that vanish. */
import assert from 'node:assert/strict'
import { describe, test } from 'node:test'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { LostError, ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { NBD_EXPORTS_MAX, NBD_OPTIONS_MAX, NBD_RANGE_BYTES_MAX } from '../../../lib/core/limits.ts'
import { type NbdNegotiation, negotiateNbd } from '../../../lib/nbd/client.ts'
import * as nbd from '../../../lib/nbd/protocol/constants.ts'
import {
  encodeDataChunkHeader,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeNoneChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from '../../../lib/nbd/protocol/encode.ts'
import { encodeExportReply, encodeGreeting, encodeOptionReply } from '../../../lib/nbd/protocol/handshake.ts'
import {
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeMetaReply,
  encodeText,
} from '../../../lib/nbd/protocol/options.ts'
import { hex, rawChunk } from './feed.ts'
import { type RawPeer, rawPair } from './peer.ts'

const { NBD_REP_ACK: ACK, NBD_REP_ERR_UNSUP: UNSUP } = nbd
const ALL_FLAGS = 0x0ded
const SIZE = 1048576

/** One option as the client sent it. */
async function readOption(peer: RawPeer): Promise<{ option: number; data: Buffer }> {
  const head = await peer.read(16)
  assert.equal(head.readBigUInt64BE(0), nbd.NBD_OPTS_MAGIC)
  return { option: head.readUInt32BE(8), data: await peer.read(head.readUInt32BE(12)) }
}

async function answer(
  peer: RawPeer,
  option: number,
  ...replies: readonly (readonly [number, Buffer?])[]
): Promise<void> {
  const asked = await readOption(peer)
  assert.equal(asked.option, option)
  for (const [reply, data] of replies) peer.send(encodeOptionReply(option, reply, data))
}

/** A server that greets and answers STRUCTURED_REPLY. */
async function greeted(structured = true): Promise<{ peer: RawPeer; negotiation: NbdNegotiation }> {
  const { peer, stream } = rawPair()
  const promise = negotiateNbd(stream)
  peer.send(encodeGreeting(3))
  assert.equal((await peer.read(4)).readUInt32BE(0), 3)
  await answer(peer, nbd.NBD_OPT_STRUCTURED_REPLY, [structured ? ACK : UNSUP])
  return { peer, negotiation: await promise }
}

interface Setting {
  readonly structured?: boolean
  readonly flags?: number
  readonly size?: number
  readonly sizes?: { minimum: number; preferred: number; maximum: number }
}

/** A connection in the transmission phase; base:allocation has the id 7. */
async function connected(setting: Setting = {}): Promise<{ peer: RawPeer; device: BlockDevice }> {
  const { structured = true, flags = ALL_FLAGS, size = SIZE, sizes } = setting
  const { peer, negotiation } = await greeted(structured)
  const going = negotiation.go('disk')
  if (structured) {
    const context = encodeMetaReply(7, 'base:allocation')
    await answer(peer, nbd.NBD_OPT_SET_META_CONTEXT, [nbd.NBD_REP_META_CONTEXT, context], [ACK])
  }
  const infos: (readonly [number, Buffer])[] = [[nbd.NBD_REP_INFO, encodeExportInfo(size, flags)]]
  if (sizes !== undefined) infos.push([nbd.NBD_REP_INFO, encodeBlockSizeInfo(sizes)])
  await answer(peer, nbd.NBD_OPT_GO, ...infos, [ACK])
  return { peer, device: await going }
}

interface Asked {
  readonly command: number
  readonly flags: number
  readonly cookie: bigint
  readonly offset: number
  readonly length: number
}

async function readRequest(peer: RawPeer): Promise<Asked> {
  const head = await peer.read(28)
  assert.equal(head.readUInt32BE(0), nbd.NBD_REQUEST_MAGIC)
  return {
    flags: head.readUInt16BE(4),
    command: head.readUInt16BE(6),
    cookie: head.readBigUInt64BE(8),
    offset: Number(head.readBigUInt64BE(16)),
    length: head.readUInt32BE(24),
  }
}

const refused =
  (errno: number, message: RegExp = /./) =>
  (error: unknown): boolean =>
    error instanceof RefusedError && error.errno === errno && message.test(error.message)

describe('client, handshake', () => {
  test('lists exports, describes one, and leaves', async () => {
    const { peer, negotiation } = await greeted()
    const listing = negotiation.list()
    await answer(
      peer,
      nbd.NBD_OPT_LIST,
      [nbd.NBD_REP_SERVER, encodeText('a')],
      [nbd.NBD_REP_SERVER, encodeText('b')],
      [ACK],
    )
    assert.deepEqual(await listing, ['a', 'b'])
    const describing = negotiation.info('b')
    await answer(peer, nbd.NBD_OPT_SET_META_CONTEXT, [ACK])
    const sizes = encodeBlockSizeInfo({ minimum: 4096, preferred: 65536, maximum: 0xffffffff })
    await answer(
      peer,
      nbd.NBD_OPT_INFO,
      [nbd.NBD_REP_INFO, sizes],
      [nbd.NBD_REP_INFO, encodeExportInfo(SIZE, 3)],
      [nbd.NBD_REP_INFO, hex('0002 6e6963 65')],
      [nbd.NBD_REP_INFO, hex('7777 00')],
      [ACK],
    )
    const info = await describing
    assert.equal(info.size, SIZE)
    assert.equal(info.description, 'nice')
    assert.deepEqual(info.blockSizes, { minimum: 4096, preferred: 65536, maximum: 32 * SIZE })
    assert.equal(info.features.readOnly, true)
    assert.equal(info.features.blockStatus, false)
    await negotiation.abort()
    assert.equal((await readOption(peer)).option, nbd.NBD_OPT_ABORT)
  })

  test('a refusal leaves the connection usable', async () => {
    const { peer, negotiation } = await greeted()
    const first = negotiation.go('nothing')
    await answer(peer, nbd.NBD_OPT_SET_META_CONTEXT, [nbd.NBD_REP_ERR_UNKNOWN])
    await answer(peer, nbd.NBD_OPT_GO, [nbd.NBD_REP_ERR_UNKNOWN, Buffer.from('never heard of it')])
    await assert.rejects(
      first,
      (error) =>
        error instanceof RefusedError &&
        /export 'nothing': NBD_REP_ERR_UNKNOWN: never heard of it/.test(error.message),
    )
    const second = negotiation.list()
    await answer(peer, nbd.NBD_OPT_LIST, [nbd.NBD_REP_ERR_POLICY])
    await assert.rejects(second, RefusedError)
  })

  test('a list of exports without end is a breach, and is not kept', async () => {
    const names = (count: number): (readonly [number, Buffer])[] =>
      Array.from({ length: count }, (_, at) => [nbd.NBD_REP_SERVER, encodeText(`disk ${at}`)] as const)
    const { peer, negotiation } = await greeted(false)
    const most = negotiation.list()
    await answer(peer, nbd.NBD_OPT_LIST, ...names(NBD_EXPORTS_MAX), [ACK])
    assert.equal((await most).length, NBD_EXPORTS_MAX)
    const more = negotiation.list()
    await answer(peer, nbd.NBD_OPT_LIST, ...names(NBD_EXPORTS_MAX + 1), [ACK])
    await assert.rejects(more, /more than 10000 exports/)
  })

  test('a server that describes an export without end is a breach', async () => {
    const { peer, negotiation } = await greeted(false)
    const going = negotiation.go('disk')
    const info = [nbd.NBD_REP_INFO, encodeExportInfo(SIZE, ALL_FLAGS)] as const
    await answer(peer, nbd.NBD_OPT_GO, ...Array.from({ length: NBD_OPTIONS_MAX }, () => info), [ACK])
    await assert.rejects(going, /more than 1024 replies/)
  })

  test('a server without GO is asked with EXPORT_NAME', async () => {
    const { peer, negotiation } = await greeted(false)
    const going = negotiation.go('disk')
    await answer(peer, nbd.NBD_OPT_GO, [UNSUP])
    const asked = await readOption(peer)
    assert.deepEqual(asked, { option: nbd.NBD_OPT_EXPORT_NAME, data: Buffer.from('disk') })
    peer.send(encodeExportReply(SIZE, 5, true))
    const device = await going
    assert.equal(device.size, SIZE)
    assert.equal(device.features.flush, true)
    assert.equal(device.features.trim, false)
  })

  test('a server without the fixed newstyle gets EXPORT_NAME and nothing else; its zeroes are skipped', async () => {
    const { peer, stream } = rawPair()
    const promise = negotiateNbd(stream)
    peer.send(encodeGreeting(0))
    assert.equal((await peer.read(4)).readUInt32BE(0), 0)
    const negotiation = await promise
    await assert.rejects(negotiation.list(), RefusedError)
    const going = negotiation.go('disk')
    await readOption(peer)
    peer.send(encodeExportReply(SIZE, 5, false))
    const device = await going
    const reading = device.read(0, 4)
    const { cookie } = await readRequest(peer)
    peer.send(encodeSimpleReply(cookie, 0), Buffer.from('data'))
    assert.equal((await reading).toString(), 'data')
  })

  test('a server that closes on EXPORT_NAME refuses', async () => {
    const { peer, negotiation } = await greeted(false)
    const going = negotiation.go('disk')
    await answer(peer, nbd.NBD_OPT_GO, [UNSUP])
    await readOption(peer)
    peer.stream.end()
    await assert.rejects(
      going,
      (error) => error instanceof RefusedError && /closed the connection/.test(error.message),
    )
  })

  const greetings: readonly [string, Buffer, RegExp][] = [
    ['oldstyle', hex('4e42444d41474943 0000420281861253 0000'), /oldstyle/],
    ['no NBD at all', Buffer.from('HTTP/1.1 400 Bad Request\r\n'), /expected NBDMAGIC/],
  ]
  for (const [name, bytes, message] of greetings) {
    test(`refuses a server that speaks ${name}`, async () => {
      const { peer, stream } = rawPair()
      peer.send(bytes)
      await assert.rejects(
        negotiateNbd(stream),
        (error) => error instanceof ProtocolError && message.test(error.message),
      )
      assert.equal(stream.destroyed, true)
    })
  }

  test('bytes that were peeked and put back are read', async () => {
    const { peer, stream } = rawPair()
    peer.send(encodeGreeting(3))
    const peeked = await new Promise<Buffer>((resolve) => stream.once('data', resolve))
    stream.pause()
    stream.unshift(peeked)
    const promise = negotiateNbd(stream, { structuredReplies: false })
    await peer.read(4)
    await promise
  })

  const cuts: readonly [string, Buffer][] = [
    ['before the greeting', Buffer.alloc(0)],
    ['inside the greeting', encodeGreeting(3).subarray(0, 17)],
    ['before an answer', encodeGreeting(3)],
  ]
  for (const [name, bytes] of cuts) {
    test(`an end ${name} is a loss`, async () => {
      const { peer, stream } = rawPair()
      peer.stream.end(bytes)
      await assert.rejects(negotiateNbd(stream), LostError)
    })
  }

  test('an abort is a loss', async () => {
    const { stream } = rawPair()
    const controller = new AbortController()
    const promise = negotiateNbd(stream, { signal: controller.signal })
    controller.abort()
    await assert.rejects(promise, LostError)
    await assert.rejects(negotiateNbd(rawPair().stream, { signal: AbortSignal.abort() }), LostError)
  })

  const wrong: readonly [string, readonly (readonly [number, Buffer?])[], RegExp][] = [
    ['GO without a size', [[ACK]], /no NBD_INFO_EXPORT/],
    ['a size beyond 2^53', [[nbd.NBD_REP_INFO, hex('0000 ffffffffffffffff 0001')]], /is larger than/],
    [
      'impossible block sizes',
      [[nbd.NBD_REP_INFO, hex('0003 00000003 00001000 00100000')]],
      /impossible sizes/,
    ],
    [
      'a list entry in place of an answer',
      [[nbd.NBD_REP_SERVER, encodeText('x')]],
      /got NBD_REP_SERVER to NBD_OPT_GO/,
    ],
  ]
  for (const [name, replies, message] of wrong) {
    test(`breaks on ${name}`, async () => {
      const { peer, negotiation } = await greeted(false)
      const going = negotiation.go('disk')
      await answer(peer, nbd.NBD_OPT_GO, ...replies)
      await assert.rejects(going, (error) => error instanceof ProtocolError && message.test(error.message))
      await assert.rejects(negotiation.list(), LostError)
    })
  }

  test('a name that does not fit is refused before anything is sent', async () => {
    const { negotiation } = await greeted(false)
    await assert.rejects(negotiation.go('x'.repeat(4097)), RefusedError)
  })
})

describe('client, requests', () => {
  test('answers may come in any order', async () => {
    const { peer, device } = await connected()
    const writes = [device.write(0, Buffer.from('a')), device.write(1, Buffer.from('b'))]
    const first = await readRequest(peer)
    await peer.read(1)
    const second = await readRequest(peer)
    peer.send(encodeSimpleReply(second.cookie, 0))
    await writes[1]
    peer.send(encodeSimpleReply(first.cookie, 0))
    await writes[0]
  })

  test('an error concerns its request only, and carries number and text', async () => {
    const { peer, device } = await connected()
    const failing = device.write(0, Buffer.from('a'))
    const working = device.flush()
    const write = await readRequest(peer)
    await peer.read(1)
    const flush = await readRequest(peer)
    peer.send(encodeErrorChunk(write.cookie, 28, 'disk full', true), encodeSimpleReply(flush.cookie, 0))
    await assert.rejects(failing, refused(28, /NBD_CMD_WRITE of 1 bytes at 0 of 'disk': disk full: ENOSPC/))
    await working
    const read = device.read(0, 4)
    peer.send(encodeErrorChunk((await readRequest(peer)).cookie, 117, '', true))
    await assert.rejects(read, refused(5))
  })

  test('a read in scattered chunks, with a hole, backwards', async () => {
    const { peer, device } = await connected()
    const reading = device.read(100, 12)
    const { cookie } = await readRequest(peer)
    peer.send(
      encodeDataChunkHeader(cookie, 108, 4, false),
      Buffer.from('ijkl'),
      encodeHoleChunk(cookie, 104, 4, false),
      encodeDataChunkHeader(cookie, 100, 4, false),
      Buffer.from('abcd'),
      encodeNoneChunk(cookie),
    )
    assert.equal((await reading).toString('latin1'), 'abcd\0\0\0\0ijkl')
  })

  test('an error in the middle of a read: the rest is taken and the read fails', async () => {
    const { peer, device } = await connected()
    const reading = device.read(100, 8)
    const { cookie } = await readRequest(peer)
    const error = rawChunk(nbd.NBD_REPLY_TYPE_ERROR_OFFSET, 0, cookie, hex('00000005 0000 0000000000000068'))
    peer.send(error, encodeDataChunkHeader(cookie, 100, 4, true), Buffer.from('abcd'))
    await assert.rejects(reading, refused(5, /failed at 104/))
    const next = device.flush()
    peer.send(encodeSimpleReply((await readRequest(peer)).cookie, 0))
    await next
  })

  test('long requests are split at the maximum, a read is put together in place', async () => {
    const { peer, device } = await connected({ sizes: { minimum: 512, preferred: 4096, maximum: 6144 } })
    const data = Buffer.alloc(15360, 5)
    const writing = device.write(512, data, { fua: true })
    const lengths: number[] = []
    for (let at = 512; at < 512 + data.length; ) {
      const asked = await readRequest(peer)
      assert.equal(asked.offset, at)
      assert.equal(asked.flags, nbd.NBD_CMD_FLAG_FUA)
      assert.deepEqual(await peer.read(asked.length), data.subarray(0, asked.length))
      lengths.push(asked.length)
      at += asked.length
      peer.send(encodeSimpleReply(asked.cookie, 0))
    }
    assert.deepEqual(lengths, [6144, 6144, 3072])
    await writing
    const reading = device.read(0, 12288)
    const asked = [await readRequest(peer), await readRequest(peer)]
    for (const { cookie, offset, length } of asked.reverse()) {
      peer.send(encodeDataChunkHeader(cookie, offset, length, true), Buffer.alloc(length, offset / 6144 + 1))
    }
    assert.deepEqual(await reading, Buffer.concat([Buffer.alloc(6144, 1), Buffer.alloc(6144, 2)]))
  })

  test('zeroes, trims and questions about more than fits a request are asked in parts', {
    timeout: 20_000,
  }, async () => {
    const size = 4 * NBD_RANGE_BYTES_MAX
    const { peer, device } = await connected({ size })
    const length = 2 * NBD_RANGE_BYTES_MAX + 512
    for (const work of [() => device.writeZeroes(0, length), () => device.trim(0, length)]) {
      const working = work()
      const asked = [await readRequest(peer), await readRequest(peer), await readRequest(peer)]
      assert.deepEqual(
        asked.map((each) => [each.offset, each.length]),
        [
          [0, NBD_RANGE_BYTES_MAX],
          [NBD_RANGE_BYTES_MAX, NBD_RANGE_BYTES_MAX],
          [2 * NBD_RANGE_BYTES_MAX, 512],
        ],
      )
      for (const each of asked) peer.send(encodeSimpleReply(each.cookie, 0))
      await working
    }
    const asking = device.blockStatus(0, length)
    const asked = await readRequest(peer)
    assert.equal(asked.length, NBD_RANGE_BYTES_MAX)
    peer.send(encodeStatusChunk(asked.cookie, 7, [{ length: asked.length, flags: 0 }], true))
    assert.deepEqual(await asking, [{ length: NBD_RANGE_BYTES_MAX, hole: false, zero: false }])
  })

  test('one failed piece fails the whole, after all pieces are answered', async () => {
    const { peer, device } = await connected({ sizes: { minimum: 512, preferred: 512, maximum: 512 } })
    const reading = device.read(0, 1024)
    const [first, second] = [await readRequest(peer), await readRequest(peer)]
    let settled = false
    reading
      .catch(() => {})
      .finally(() => (settled = true))
      .catch(() => {})
    peer.send(encodeErrorChunk(first.cookie, 5, '', true))
    for (let turns = 0; turns < 5; turns++) await new Promise((resolve) => setImmediate(resolve))
    assert.equal(settled, false)
    peer.send(encodeHoleChunk(second.cookie, 512, 512, true))
    await assert.rejects(reading, refused(5))
  })

  test('flags on the wire', async () => {
    const { peer, device } = await connected()
    const work = [
      device.writeZeroes(0, 512, { fua: true, noHole: true, fastZero: true }),
      device.trim(0, 512, { fua: true }),
      device.cache(0, 512),
    ]
    const asked = [await readRequest(peer), await readRequest(peer), await readRequest(peer)]
    assert.deepEqual(
      asked.map((each) => [each.command, each.flags]),
      [
        [nbd.NBD_CMD_WRITE_ZEROES, 1 | 2 | 16],
        [nbd.NBD_CMD_TRIM, 1],
        [nbd.NBD_CMD_CACHE, 0],
      ],
    )
    for (const each of asked) peer.send(encodeSimpleReply(each.cookie, 0))
    await Promise.all(work)
  })

  test('a server without FUA gets a flush behind the write', async () => {
    const { peer, device } = await connected({ flags: 1 | 4 })
    const writing = device.write(0, Buffer.from('a'), { fua: true })
    const write = await readRequest(peer)
    assert.equal(write.flags, 0)
    await peer.read(1)
    peer.send(encodeSimpleReply(write.cookie, 0))
    const flush = await readRequest(peer)
    assert.equal(flush.command, nbd.NBD_CMD_FLUSH)
    peer.send(encodeSimpleReply(flush.cookie, 0))
    await writing
  })

  test('what was not offered, or lies outside, is refused without asking', async () => {
    const { device } = await connected({ flags: 1, sizes: { minimum: 512, preferred: 512, maximum: 65536 } })
    await assert.rejects(device.flush(), refused(95))
    await assert.rejects(device.trim(0, 512), refused(95))
    await assert.rejects(device.cache(0, 512), refused(95))
    await assert.rejects(device.writeZeroes(0, 512), refused(95))
    await assert.rejects(device.read(0, 0), refused(22))
    await assert.rejects(device.read(SIZE - 512, 1024), refused(22, /outside of 0 to 1048576/))
    await assert.rejects(device.read(100, 512), refused(22, /minimum block of 512/))
    await assert.rejects(device.write(0, Buffer.alloc(100)), refused(22))
    const readOnly = await connected({ flags: 1 | 2 | 4 | 64 })
    await assert.rejects(readOnly.device.write(0, Buffer.alloc(512)), refused(1))
    const noFast = await connected({ flags: 1 | 64 })
    await assert.rejects(noFast.device.writeZeroes(0, 512, { fastZero: true }), refused(95))
  })

  test('block status, cut at what was asked; without a context all is data', async () => {
    const { peer, device } = await connected()
    const asking = device.blockStatus(0, 1000)
    const { cookie } = await readRequest(peer)
    const extents = [
      { length: 600, flags: 3 },
      { length: 9999, flags: 0 },
    ]
    peer.send(encodeStatusChunk(cookie, 7, extents, true))
    assert.deepEqual(await asking, [
      { length: 600, hole: true, zero: true },
      { length: 400, hole: false, zero: false },
    ])
    const plain = await connected({ structured: false })
    assert.deepEqual(await plain.device.blockStatus(0, 1000), [{ length: 1000, hole: false, zero: false }])
  })

  type Spoil = (asked: Asked) => readonly Buffer[]
  const hostile: readonly [string, (device: BlockDevice) => Promise<unknown>, Spoil, RegExp][] = [
    [
      'an unknown cookie',
      (d) => d.flush(),
      ({ cookie }) => [encodeSimpleReply(cookie + 77n, 0)],
      /has the cookie/,
    ],
    [
      'a read that ends early',
      (d) => d.read(0, 8),
      ({ cookie }) => [encodeHoleChunk(cookie, 0, 7, true)],
      /before all data/,
    ],
    [
      'a read without data',
      (d) => d.read(0, 8),
      ({ cookie }) => [encodeNoneChunk(cookie)],
      /before all data/,
    ],
    [
      'chunks that overlap',
      (d) => d.read(0, 8),
      ({ cookie }) => [encodeHoleChunk(cookie, 0, 5, false), encodeHoleChunk(cookie, 4, 4, true)],
      /twice/,
    ],
    [
      'a hole outside',
      (d) => d.read(0, 8),
      ({ cookie }) => [encodeHoleChunk(cookie, 4, 5, true)],
      /5 bytes at 4/,
    ],
    [
      'a status for a foreign context',
      (d) => d.blockStatus(0, 8),
      ({ cookie }) => [encodeStatusChunk(cookie, 8, [{ length: 8, flags: 0 }], true)],
      /context 8/,
    ],
    ['no status', (d) => d.blockStatus(0, 8), ({ cookie }) => [encodeNoneChunk(cookie)], /without a status/],
    [
      'two statuses',
      (d) => d.blockStatus(0, 8),
      ({ cookie }) => [
        encodeStatusChunk(cookie, 7, [{ length: 4, flags: 0 }], false),
        encodeStatusChunk(cookie, 7, [{ length: 8, flags: 0 }], true),
      ],
      /unexpected status/,
    ],
    [
      'thousands of crumbs',
      (d) => d.read(0, 8192),
      ({ cookie }) =>
        Array.from({ length: 1025 }, (_, index) => encodeHoleChunk(cookie, index * 2, 1, false)),
      /more than 1024 scattered/,
    ],
  ]
  for (const [name, work, spoil, message] of hostile) {
    test(`${name}: all in flight fail, and all that come after`, { timeout: 20_000 }, async () => {
      const { peer, device } = await connected()
      const spoiled = work(device)
      const asked = await readRequest(peer)
      const bystander = device.flush()
      await readRequest(peer)
      peer.send(...spoil(asked))
      const broken = (error: unknown): boolean =>
        error instanceof ProtocolError && message.test(error.message)
      await Promise.all([assert.rejects(spoiled, broken), assert.rejects(bystander, broken)])
      await assert.rejects(device.read(0, 1), broken)
      await device.close()
    })
  }

  test('an end of the connection rejects all with LostError', async () => {
    const { peer, device } = await connected()
    const waiting = [device.flush(), device.read(0, 100), device.write(0, Buffer.alloc(5))]
    peer.stream.end()
    const settled = await Promise.allSettled(waiting)
    for (const each of settled) assert.ok(each.status === 'rejected' && each.reason instanceof LostError)
    await assert.rejects(device.flush(), LostError)
    await device.close()
  })

  test('close says DISC; with requests in flight it abandons them', async () => {
    const clean = await connected()
    await clean.device.close()
    await clean.device.close()
    assert.equal((await readRequest(clean.peer)).command, nbd.NBD_CMD_DISC)
    await assert.rejects(clean.device.flush(), LostError)
    const busy = await connected()
    const flushing = busy.device.flush()
    await Promise.all([assert.rejects(flushing, LostError), busy.device.close()])
  })
})
