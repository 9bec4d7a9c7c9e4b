/** The server, talked to by hand: the options one by one, the order of work, the limits, and how connections end. */
import assert from 'node:assert/strict'
import type { Duplex } from 'node:stream'
import { describe, test } from 'node:test'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { FaultyDevice } from '../../../lib/block/faulty.ts'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { LostError, ProtocolError } from '../../../lib/core/errors.ts'
import { LOOP_TURN_MS, NBD_PAYLOAD_BYTES_MAX, NBD_REPLY_EXTENTS_MAX } from '../../../lib/core/limits.ts'
import * as nbd from '../../../lib/nbd/protocol/constants.ts'
import { encodeRequestHeader } from '../../../lib/nbd/protocol/encode.ts'
import { encodeClientFlags, encodeOption } from '../../../lib/nbd/protocol/handshake.ts'
import { encodeInfoRequest, encodeMetaRequest, encodeText } from '../../../lib/nbd/protocol/options.ts'
import { type NbdServerOptions, serveNbd } from '../../../lib/nbd/server.ts'
import { hex } from './feed.ts'
import { type RawPeer, rawPair } from './peer.ts'

class CountingDevice extends MemoryDevice {
  closes = 0
  override async close(): Promise<void> {
    this.closes++
  }
}

/** By this thread. */
function computedMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

interface Talk {
  readonly peer: RawPeer
  readonly served: Promise<void>
  readonly opened: string[]
  /** The server's own end. */
  readonly stream: Duplex
}

function talk(device: BlockDevice | undefined, options: Partial<NbdServerOptions> = {}): Talk {
  const { peer, stream } = rawPair()
  const opened: string[] = []
  const exports = {
    list: async () => ['disk', 'other'],
    open: async (name: string) => {
      opened.push(name)
      return name === 'disk' ? device : undefined
    },
    description: () => 'of a test',
  }
  return { peer, served: serveNbd(stream, { exports, ...options }), opened, stream }
}

interface OptionReply {
  readonly option: number
  readonly reply: number
  readonly data: Buffer
}

async function readReply(peer: RawPeer): Promise<OptionReply> {
  const head = await peer.read(20)
  assert.equal(head.readBigUInt64BE(0), nbd.NBD_REP_MAGIC)
  return {
    option: head.readUInt32BE(8),
    reply: head.readUInt32BE(12),
    data: await peer.read(head.readUInt32BE(16)),
  }
}

/** Sends an option and gathers its replies up to ACK or an error. */
/** Until the export is open, with structured replies and base:allocation. */
async function greetWithExtents(peer: RawPeer): Promise<void> {
  await greet(peer)
  await option(peer, nbd.NBD_OPT_STRUCTURED_REPLY)
  const query = encodeMetaRequest({ name: 'disk', queries: ['base:allocation'] })
  await option(peer, nbd.NBD_OPT_SET_META_CONTEXT, query)
  await option(peer, nbd.NBD_OPT_GO, GO)
}

async function option(peer: RawPeer, number: number, data?: Buffer): Promise<OptionReply[]> {
  peer.send(encodeOption(number, data))
  const replies: OptionReply[] = []
  for (;;) {
    const reply = await readReply(peer)
    assert.equal(reply.option, number)
    replies.push(reply)
    if (reply.reply === nbd.NBD_REP_ACK || reply.reply >= nbd.NBD_REP_FLAG_ERROR) return replies
  }
}

async function greet(peer: RawPeer): Promise<void> {
  assert.deepEqual(await peer.read(18), hex('4e42444d41474943 49484156454f5054 0003'))
  peer.send(encodeClientFlags(3))
}

const GO = encodeInfoRequest({ name: 'disk', infos: [] })

/** Up to the transmission phase. */
async function go(
  device: BlockDevice,
  options?: Partial<NbdServerOptions>,
  structured = false,
): Promise<Talk> {
  const talking = talk(device, options)
  await greet(talking.peer)
  if (structured) await option(talking.peer, nbd.NBD_OPT_STRUCTURED_REPLY)
  await option(talking.peer, nbd.NBD_OPT_GO, GO)
  return talking
}

function request(command: number, cookie: bigint, offset = 0, length = 0, flags = 0): Buffer {
  return encodeRequestHeader({ command, flags, cookie, offset, length })
}

async function simpleReply(peer: RawPeer): Promise<{ cookie: bigint; errno: number }> {
  const reply = await peer.read(16)
  assert.equal(reply.readUInt32BE(0), nbd.NBD_SIMPLE_REPLY_MAGIC)
  return { cookie: reply.readBigUInt64BE(8), errno: reply.readUInt32BE(4) }
}

async function leave({ peer, served }: Talk): Promise<void> {
  peer.send(request(nbd.NBD_CMD_DISC, 0n))
  await served
}

const MIB = 1024 * 1024

describe('server, options', () => {
  const replies = async (number: number, data: Buffer | undefined, before: readonly number[] = []) => {
    const talking = talk(new MemoryDevice({ size: MIB }))
    await greet(talking.peer)
    for (const each of before) await option(talking.peer, each)
    const found = await option(talking.peer, number, data)
    await option(talking.peer, nbd.NBD_OPT_ABORT)
    await talking.served
    return found.map((each) => [each.reply, each.data.toString('latin1')] as const)
  }
  const codes = async (number: number, data?: Buffer, before?: readonly number[]): Promise<number[]> =>
    (await replies(number, data, before)).map(([code]) => code)

  test('LIST', async () => {
    assert.deepEqual(await replies(nbd.NBD_OPT_LIST, undefined), [
      [nbd.NBD_REP_SERVER, encodeText('disk').toString('latin1')],
      [nbd.NBD_REP_SERVER, encodeText('other').toString('latin1')],
      [nbd.NBD_REP_ACK, ''],
    ])
    assert.deepEqual(await codes(nbd.NBD_OPT_LIST, Buffer.alloc(1)), [nbd.NBD_REP_ERR_INVALID])
  })

  test('STARTTLS, extended headers, what is unknown: refused, and the talk goes on', async () => {
    assert.deepEqual(await codes(nbd.NBD_OPT_STARTTLS), [nbd.NBD_REP_ERR_POLICY])
    assert.deepEqual(await codes(nbd.NBD_OPT_EXTENDED_HEADERS), [nbd.NBD_REP_ERR_UNSUP])
    assert.deepEqual(await codes(nbd.NBD_OPT_PEEK_EXPORT), [nbd.NBD_REP_ERR_UNSUP])
    assert.deepEqual(await codes(4711, Buffer.alloc(65536)), [nbd.NBD_REP_ERR_UNSUP])
  })

  test('INFO says size, flags, block sizes, and name and description when asked', async () => {
    const infos = [nbd.NBD_INFO_NAME, nbd.NBD_INFO_DESCRIPTION]
    const found = await replies(nbd.NBD_OPT_INFO, encodeInfoRequest({ name: 'disk', infos }))
    assert.deepEqual(found, [
      [nbd.NBD_REP_INFO, hex('0000 0000000000100000 0d6d').toString('latin1')],
      [nbd.NBD_REP_INFO, hex('0003 00000001 00001000 02000000').toString('latin1')],
      [nbd.NBD_REP_INFO, '\0\x01disk'],
      [nbd.NBD_REP_INFO, '\0\x02of a test'],
      [nbd.NBD_REP_ACK, ''],
    ])
  })

  test('a device that takes more at once than the protocol promises is offered with what this server holds', async () => {
    const blockSizes = { minimum: 1, preferred: 4096, maximum: 2 * NBD_PAYLOAD_BYTES_MAX }
    const talking = talk(new MemoryDevice({ size: MIB, blockSizes }))
    await greet(talking.peer)
    const infos = [nbd.NBD_INFO_BLOCK_SIZE]
    const [, sizes] = await option(talking.peer, nbd.NBD_OPT_INFO, encodeInfoRequest({ name: 'disk', infos }))
    assert.deepEqual(sizes?.data, hex('0003 00000001 00001000 02000000'))
    talking.peer.send(encodeOption(nbd.NBD_OPT_ABORT))
    await talking.served
  })

  test('INFO and GO of what is not there, or garbled', async () => {
    const unknown = encodeInfoRequest({ name: 'nothing', infos: [] })
    assert.deepEqual(await codes(nbd.NBD_OPT_INFO, unknown), [nbd.NBD_REP_ERR_UNKNOWN])
    assert.deepEqual(await codes(nbd.NBD_OPT_GO, unknown), [nbd.NBD_REP_ERR_UNKNOWN])
    assert.deepEqual(await codes(nbd.NBD_OPT_GO, hex('000000ff')), [nbd.NBD_REP_ERR_INVALID])
  })

  test('metadata contexts', async () => {
    const ask = (...queries: string[]): Buffer => encodeMetaRequest({ name: 'disk', queries })
    const structured = [nbd.NBD_OPT_STRUCTURED_REPLY]
    const { NBD_OPT_LIST_META_CONTEXT: list, NBD_OPT_SET_META_CONTEXT: set } = nbd
    const context = (id: number): (readonly [number, string])[] => [
      [nbd.NBD_REP_META_CONTEXT, `\0\0\0${String.fromCharCode(id)}base:allocation`],
      [nbd.NBD_REP_ACK, ''],
    ]
    const none = [[nbd.NBD_REP_ACK, '']]
    assert.deepEqual(await replies(list, ask(), structured), context(0))
    assert.deepEqual(await replies(list, ask('base:'), structured), context(0))
    assert.deepEqual(await replies(list, ask('qemu:'), structured), none)
    assert.deepEqual(await replies(set, ask('base:allocation'), structured), context(1))
    assert.deepEqual(
      await replies(set, ask('qemu:dirty-bitmap:x', 'base:allocation'), structured),
      context(1),
    )
    assert.deepEqual(await replies(set, ask('base:'), structured), none)
    assert.deepEqual(await replies(set, ask(), structured), none)
    assert.deepEqual(await codes(set, ask('base:allocation')), [nbd.NBD_REP_ERR_INVALID])
    const unknown = encodeMetaRequest({ name: 'nothing', queries: [] })
    assert.deepEqual(await codes(set, unknown, structured), [nbd.NBD_REP_ERR_UNKNOWN])
  })

  test('three options on one export open it once, and it is closed once', async () => {
    const device = new CountingDevice({ size: MIB })
    const talking = talk(device)
    await greet(talking.peer)
    await option(talking.peer, nbd.NBD_OPT_STRUCTURED_REPLY)
    const query = encodeMetaRequest({ name: 'disk', queries: ['base:allocation'] })
    await option(talking.peer, nbd.NBD_OPT_SET_META_CONTEXT, query)
    await option(talking.peer, nbd.NBD_OPT_INFO, GO)
    await option(talking.peer, nbd.NBD_OPT_GO, GO)
    await leave(talking)
    assert.deepEqual(talking.opened, ['disk'])
    assert.equal(device.closes, 1)
  })

  test('EXPORT_NAME with and without the zeroes; an unknown name ends the connection', async () => {
    for (const [flags, zeroes] of [
      [1, 124],
      [3, 0],
    ] as const) {
      const talking = talk(new MemoryDevice({ size: MIB }))
      await talking.peer.read(18)
      talking.peer.send(encodeClientFlags(flags), encodeOption(nbd.NBD_OPT_EXPORT_NAME, Buffer.from('disk')))
      const reply = await talking.peer.read(10 + zeroes)
      assert.deepEqual(reply, Buffer.concat([hex('0000000000100000 0d6d'), Buffer.alloc(zeroes)]))
      await leave(talking)
    }
    const talking = talk(new MemoryDevice({ size: MIB }))
    await greet(talking.peer)
    talking.peer.send(encodeOption(nbd.NBD_OPT_EXPORT_NAME, Buffer.from('nothing')))
    assert.equal((await talking.peer.readToEnd()).length, 0)
    await talking.served
  })

  test('unknown client flags and a wrong magic break the connection', async () => {
    const flags = talk(undefined)
    flags.peer.send(encodeClientFlags(4))
    await assert.rejects(flags.served, ProtocolError)
    const magic = talk(undefined)
    magic.peer.send(encodeClientFlags(3), Buffer.alloc(16))
    await assert.rejects(magic.served, ProtocolError)
  })

  test('a client may leave between messages, not inside one', async () => {
    const clean = talk(undefined)
    await greet(clean.peer)
    clean.peer.stream.end()
    await clean.served
    const cut = talk(undefined)
    cut.peer.stream.end(hex('000000'))
    await assert.rejects(cut.served, LostError)
  })

  test('haggling without end is ended', async () => {
    const talking = talk(undefined)
    talking.peer.send(encodeClientFlags(3))
    for (let index = 0; index < 1025; index++) talking.peer.send(encodeOption(nbd.NBD_OPT_STARTTLS))
    await assert.rejects(talking.served, /more than 1024 options/)
  })
})

describe('server, requests', () => {
  test('write, read, flush with simple replies', async () => {
    const talking = await go(new MemoryDevice({ size: MIB }))
    const { peer } = talking
    peer.send(request(nbd.NBD_CMD_WRITE, 1n, 512, 4), Buffer.from('data'))
    assert.deepEqual(await simpleReply(peer), { cookie: 1n, errno: 0 })
    peer.send(request(nbd.NBD_CMD_READ, 2n, 510, 8))
    assert.deepEqual(await simpleReply(peer), { cookie: 2n, errno: 0 })
    assert.equal((await peer.read(8)).toString('latin1'), '\0\0data\0\0')
    peer.send(request(nbd.NBD_CMD_FLUSH, 3n))
    assert.deepEqual(await simpleReply(peer), { cookie: 3n, errno: 0 })
    await leave(talking)
  })

  test('structured reads, errors with a text, simple replies for the rest', async () => {
    const talking = await go(new MemoryDevice({ size: MIB }), {}, true)
    const { peer } = talking
    peer.send(request(nbd.NBD_CMD_READ, 1n, 0, 4, nbd.NBD_CMD_FLAG_DF))
    assert.deepEqual(
      await peer.read(32),
      hex('668e33ef 0001 0001 0000000000000001 0000000c 0000000000000000 00000000'),
    )
    peer.send(request(nbd.NBD_CMD_READ, 2n, MIB, 4))
    const head = await peer.read(20)
    assert.equal(head.readUInt16BE(6), nbd.NBD_REPLY_TYPE_ERROR)
    const error = await peer.read(head.readUInt32BE(16))
    assert.equal(error.readUInt32BE(0), nbd.NBD_EINVAL)
    assert.match(error.toString('utf8', 6), /beyond the end at 1048576/)
    peer.send(request(nbd.NBD_CMD_WRITE, 3n, MIB, 4), Buffer.alloc(4))
    assert.deepEqual(await simpleReply(peer), { cookie: 3n, errno: nbd.NBD_ENOSPC })
    peer.send(request(nbd.NBD_CMD_BLOCK_STATUS, 4n, 0, 4))
    assert.equal((await peer.read(20)).readUInt16BE(6), nbd.NBD_REPLY_TYPE_ERROR)
    await peer.read(6 + 'no metadata context was selected'.length)
    await leave(talking)
  })

  test('answers leave in the order in which the device is done', async () => {
    const gate = Promise.withResolvers<void>()
    const device = new FaultyDevice(new MemoryDevice({ size: MIB }), [
      { operation: 'write', nth: 1, after: gate.promise },
      { operation: 'write', nth: 2, errno: nbd.NBD_ENOSPC },
    ])
    const talking = await go(device)
    const { peer } = talking
    for (const cookie of [1n, 2n, 3n]) peer.send(request(nbd.NBD_CMD_WRITE, cookie, 0, 1), Buffer.alloc(1))
    assert.deepEqual(await simpleReply(peer), { cookie: 2n, errno: nbd.NBD_ENOSPC })
    assert.deepEqual(await simpleReply(peer), { cookie: 3n, errno: 0 })
    gate.resolve()
    assert.deepEqual(await simpleReply(peer), { cookie: 1n, errno: 0 })
    await leave(talking)
  })

  test('the device is called in the order of the wire: a FLUSH comes after every WRITE received before it', async () => {
    const order: string[] = []
    class Recording extends MemoryDevice {
      override async write(offset: number, data: Buffer): Promise<void> {
        order.push(`write ${offset}`)
        await super.write(offset, data)
      }
      override async flush(): Promise<void> {
        order.push('flush')
      }
    }
    const talking = await go(new Recording({ size: MIB }))
    const { peer } = talking
    const write = (at: number): Buffer => request(nbd.NBD_CMD_WRITE, BigInt(at), at, 100_000)
    const payload = Buffer.alloc(100_000)
    const flush = request(nbd.NBD_CMD_FLUSH, 9n)
    peer.send(write(0), payload, write(100_000), payload, flush, write(200_000), payload, flush)
    for (let replies = 0; replies < 5; replies++) await simpleReply(peer)
    assert.deepEqual(order, ['write 0', 'write 100000', 'flush', 'write 200000', 'flush'])
    await leave(talking)
  })

  test('requests that came at once and take long leave the event loop free between them', async () => {
    const order: number[] = []
    const turns: number[] = []
    let now = 0
    let counting = true
    const count = (): void => {
      now++
      if (counting) setImmediate(count)
    }
    setImmediate(count)
    class Busy extends MemoryDevice {
      override async write(offset: number): Promise<void> {
        order.push(offset)
        turns.push(now)
        const until = computedMs() + LOOP_TURN_MS + 1
        while (computedMs() < until);
      }
    }
    const talking = await go(new Busy({ size: MIB }))
    const { peer } = talking
    const offsets = [...Array(12).keys()].map((index) => index * 100)
    const wire = offsets.flatMap((at) => [request(nbd.NBD_CMD_WRITE, BigInt(at), at, 100), Buffer.alloc(100)])
    // What comes while they wait is taken after them, and the end of the client too.
    peer.send(Buffer.concat(wire))
    peer.send(request(nbd.NBD_CMD_WRITE, 1n, 5000, 100), Buffer.alloc(100))
    for (let replies = 0; replies <= offsets.length; replies++) await simpleReply(peer)
    await leave(talking)
    counting = false
    assert.deepEqual(order, [...offsets, 5000])
    assert.ok(new Set(turns).size >= offsets.length - 1, `taken in turns ${turns}`)
  })

  test('no more requests are taken than allowed, and all are answered', async () => {
    let running = 0
    let most = 0
    const gates: (() => void)[] = []
    class Slow extends MemoryDevice {
      override async write(): Promise<void> {
        most = Math.max(most, ++running)
        await new Promise<void>((resolve) => gates.push(resolve))
        running--
      }
    }
    const talking = await go(new Slow({ size: MIB }), { requestsMax: 4 })
    const { peer } = talking
    const count = 20
    for (let index = 0; index < count; index++) {
      peer.send(request(nbd.NBD_CMD_WRITE, BigInt(index), 0, 100), Buffer.alloc(100))
    }
    for (let replies = 0; replies < count; replies++) {
      while (gates.length === 0) await new Promise((resolve) => setImmediate(resolve))
      gates.shift()?.()
      await simpleReply(peer)
    }
    assert.equal(most, 4)
    await leave(talking)
  })

  test('no more bytes are taken than allowed', async () => {
    let held = 0
    let most = 0
    const gates: (() => void)[] = []
    class Slow extends MemoryDevice {
      override async write(_offset: number, data: Buffer): Promise<void> {
        held += data.length
        most = Math.max(most, held)
        await new Promise<void>((resolve) => gates.push(resolve))
        held -= data.length
      }
    }
    const talking = await go(new Slow({ size: MIB }), { inFlightBytesMax: 100_000 })
    const { peer } = talking
    const count = 20
    for (let index = 0; index < count; index++) {
      peer.send(request(nbd.NBD_CMD_WRITE, BigInt(index), 0, 40_000), Buffer.alloc(40_000))
    }
    for (let replies = 0; replies < count; replies++) {
      while (gates.length === 0) await new Promise((resolve) => setImmediate(resolve))
      gates.shift()?.()
      await simpleReply(peer)
    }
    assert.equal(most, 120_000)
    await leave(talking)
  })

  test('a client that does not read its replies is not read from for ever', async () => {
    const device = new FaultyDevice(new MemoryDevice({ size: MIB }), [])
    const talking = await go(device, { inFlightBytesMax: 2 * MIB })
    const { peer } = talking
    peer.stream.pause()
    for (let index = 0; index < 50; index++) peer.send(request(nbd.NBD_CMD_READ, BigInt(index), 0, MIB))
    for (let turns = 0; turns < 200; turns++) await new Promise((resolve) => setImmediate(resolve))
    assert.ok(device.calls('read') <= 4, `${device.calls('read')} reads`)
    peer.stream.resume()
    for (let index = 0; index < 50; index++) await peer.read(16 + MIB)
    await leave(talking)
  })

  test('BLOCK_STATUS merges neighbours, cuts at the end of the request, and gives one when asked for one', async () => {
    class Extents extends MemoryDevice {
      override async blockStatus(): Promise<{ length: number; hole: boolean; zero: boolean }[]> {
        const hole = { hole: true, zero: true }
        const data = { hole: false, zero: false }
        return [
          { length: 100, ...hole },
          { length: 100, ...hole },
          { length: 100, ...data },
          { length: 999, ...hole },
        ]
      }
    }
    const talking = talk(new Extents({ size: MIB }))
    const { peer } = talking
    await greetWithExtents(peer)
    peer.send(request(nbd.NBD_CMD_BLOCK_STATUS, 1n, 0, 400))
    assert.deepEqual(
      await peer.read(48),
      hex(
        '668e33ef 0001 0005 0000000000000001 0000001c 00000001 000000c8 00000003 00000064 00000000 00000064 00000003',
      ),
    )
    peer.send(request(nbd.NBD_CMD_BLOCK_STATUS, 2n, 0, 400, nbd.NBD_CMD_FLAG_REQ_ONE))
    assert.deepEqual(
      await peer.read(32),
      hex('668e33ef 0001 0005 0000000000000002 0000000c 00000001 000000c8 00000003'),
    )
    await leave(talking)
  })

  test('a reply to BLOCK_STATUS has so many extents at most; the client asks again for the rest', async () => {
    class Crumbs extends MemoryDevice {
      override async blockStatus(): Promise<{ length: number; hole: boolean; zero: boolean }[]> {
        return Array.from({ length: 2 * NBD_REPLY_EXTENTS_MAX }, (_, at) => {
          return { length: 1, hole: at % 2 === 0, zero: at % 2 === 0 }
        })
      }
    }
    const talking = talk(new Crumbs({ size: MIB }))
    const { peer } = talking
    await greetWithExtents(peer)
    peer.send(request(nbd.NBD_CMD_BLOCK_STATUS, 1n, 0, MIB))
    const length = (await peer.read(20)).readUInt32BE(16)
    assert.equal(length, 4 + 8 * NBD_REPLY_EXTENTS_MAX)
    await peer.read(length)
    await leave(talking)
  })

  test('ENOTSUP is for FAST_ZERO only, EOVERFLOW for DF only', async () => {
    const device = new FaultyDevice(new MemoryDevice({ size: MIB }), [
      { operation: 'writeZeroes', errno: nbd.NBD_ENOTSUP },
      { operation: 'read', errno: nbd.NBD_EOVERFLOW },
    ])
    const talking = await go(device)
    const { peer } = talking
    peer.send(request(nbd.NBD_CMD_WRITE_ZEROES, 1n, 0, 512, nbd.NBD_CMD_FLAG_FAST_ZERO))
    assert.equal((await simpleReply(peer)).errno, nbd.NBD_ENOTSUP)
    peer.send(request(nbd.NBD_CMD_WRITE_ZEROES, 2n, 0, 512))
    assert.equal((await simpleReply(peer)).errno, nbd.NBD_EINVAL)
    peer.send(request(nbd.NBD_CMD_READ, 3n, 0, 512))
    assert.equal((await simpleReply(peer)).errno, nbd.NBD_EINVAL)
    await leave(talking)
  })
})

describe('server, the end of a connection', () => {
  test('DISC waits for what is in flight; its answer still leaves; then the device is closed', async () => {
    const gate = Promise.withResolvers<void>()
    const inner = new CountingDevice({ size: MIB })
    const talking = await go(new FaultyDevice(inner, [{ operation: 'flush', after: gate.promise }]))
    const { peer } = talking
    peer.send(request(nbd.NBD_CMD_FLUSH, 1n), request(nbd.NBD_CMD_DISC, 0n), request(nbd.NBD_CMD_FLUSH, 2n))
    for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve))
    assert.equal(inner.closes, 0)
    gate.resolve()
    assert.deepEqual(await simpleReply(peer), { cookie: 1n, errno: 0 })
    assert.equal((await peer.readToEnd()).length, 0)
    await talking.served
    assert.equal(inner.closes, 1)
  })

  test('an end between requests is clean, inside one it is a loss', async () => {
    const clean = await go(new MemoryDevice({ size: MIB }))
    clean.peer.stream.end()
    await clean.served
    const device = new CountingDevice({ size: MIB })
    const cut = await go(device)
    cut.peer.stream.end(Buffer.concat([request(nbd.NBD_CMD_WRITE, 1n, 0, 100), Buffer.alloc(99)]))
    await assert.rejects(
      cut.served,
      (error) => error instanceof LostError && /inside a request/.test(error.message),
    )
    assert.equal(device.closes, 1)
    assert.deepEqual(await device.read(0, 100), Buffer.alloc(100))
  })

  test('bad magic and an oversize write break it; the device is closed', { timeout: 20_000 }, async () => {
    for (const bytes of [Buffer.alloc(28, 1), request(nbd.NBD_CMD_WRITE, 1n, 0, NBD_PAYLOAD_BYTES_MAX + 1)]) {
      const device = new CountingDevice({ size: MIB })
      const talking = await go(device)
      talking.peer.send(bytes)
      await assert.rejects(talking.served, ProtocolError)
      assert.equal(device.closes, 1)
      assert.equal((await talking.peer.readToEnd()).length, 0)
    }
  })

  test('a connection that dies is a loss', async () => {
    const talking = await go(new MemoryDevice({ size: MIB }))
    talking.stream.destroy(new Error('read ECONNRESET'))
    await assert.rejects(
      talking.served,
      (error) => error instanceof LostError && /ECONNRESET/.test(error.message),
    )
  })

  test('an abort does not wait for a device that hangs', async () => {
    const never = new Promise<void>(() => {})
    const inner = new CountingDevice({ size: MIB })
    const controller = new AbortController()
    const device = new FaultyDevice(inner, [{ operation: 'flush', after: never }])
    const talking = await go(device, { signal: controller.signal })
    talking.peer.send(request(nbd.NBD_CMD_FLUSH, 1n))
    while (device.calls('flush') === 0) await new Promise((resolve) => setImmediate(resolve))
    controller.abort()
    await assert.rejects(talking.served, LostError)
    assert.equal(inner.closes, 1)
  })

  test('an abort during the handshake rejects too', async () => {
    const controller = new AbortController()
    const talking = talk(undefined, { signal: controller.signal })
    await greet(talking.peer)
    controller.abort()
    await assert.rejects(talking.served)
  })
})
