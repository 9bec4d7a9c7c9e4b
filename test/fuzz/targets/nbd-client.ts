/** What a server may send to our NBD client: greeting and option replies, replies to requests, and whole lying sessions. */
import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import type { BlockDevice } from '../../../lib/block/device.ts'
import { LostError, ProtocolError, RefusedError, TimeoutError } from '../../../lib/core/errors.ts'
import * as limits from '../../../lib/core/limits.ts'
import { negotiateNbd } from '../../../lib/nbd/client.ts'
import * as nbd from '../../../lib/nbd/protocol/constants.ts'
import {
  encodeDataChunkHeader,
  encodeErrorChunk,
  encodeHoleChunk,
  encodeNoneChunk,
  encodeSimpleReply,
  encodeStatusChunk,
} from '../../../lib/nbd/protocol/encode.ts'
import {
  encodeExportReply,
  encodeGreeting,
  encodeOptionReply,
  ServerHandshakeDecoder,
} from '../../../lib/nbd/protocol/handshake.ts'
import {
  encodeBlockSizeInfo,
  encodeExportInfo,
  encodeMetaReply,
  encodeText,
  encodeTextInfo,
  parseInfo,
  parseMetaReply,
  parseServerReply,
} from '../../../lib/nbd/protocol/options.ts'
import { type Expectation, ReplyDecoder } from '../../../lib/nbd/protocol/replies.ts'
import { allowing, checkSplits, cutsOf, show } from '../checks.ts'
import { below, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'
import { NBD_WORDS } from './nbd-server.ts'

const SIZE = 1024 * 1024
const GO_REPLIES = [nbd.NBD_REP_ACK, nbd.NBD_REP_SERVER, nbd.NBD_REP_INFO, nbd.NBD_REP_META_CONTEXT]

function info(random: Random): Buffer {
  return pick(random, [
    encodeExportInfo(SIZE, below(random, 8192)),
    encodeBlockSizeInfo({ minimum: 1 << below(random, 18), preferred: 4096, maximum: 0xffffffff }),
    encodeTextInfo(nbd.NBD_INFO_NAME, 'disk'),
    encodeTextInfo(nbd.NBD_INFO_DESCRIPTION, 'a disk'),
  ])
}

function optionReply(random: Random): Buffer {
  const option = pick(random, [
    nbd.NBD_OPT_STRUCTURED_REPLY,
    nbd.NBD_OPT_SET_META_CONTEXT,
    nbd.NBD_OPT_GO,
    nbd.NBD_OPT_LIST,
  ])
  const reply = below(random, 6) === 0 ? nbd.NBD_REP_ERR_UNSUP + below(random, 10) : pick(random, GO_REPLIES)
  if (reply === nbd.NBD_REP_SERVER) return encodeOptionReply(option, reply, encodeText('disk'))
  if (reply === nbd.NBD_REP_INFO) return encodeOptionReply(option, reply, info(random))
  if (reply === nbd.NBD_REP_META_CONTEXT) {
    return encodeOptionReply(option, reply, encodeMetaReply(1, nbd.NBD_CONTEXT_BASE_ALLOCATION))
  }
  return encodeOptionReply(option, reply)
}

function greeting(random: Random): Buffer {
  const parts = [encodeGreeting(below(random, 4))]
  for (let count = below(random, 6); count > 0; count--) parts.push(optionReply(random))
  return Buffer.concat(parts)
}

export const nbdGreeting: FuzzTarget = {
  name: 'nbd-greeting',
  inputBytesMax: 8192,
  allocationBytesMax: limits.NBD_OPTION_REPLY_BYTES_MAX,
  dictionary: NBD_WORDS,
  generate: greeting,
  run(input) {
    checkSplits(() => new ServerHandshakeDecoder(), input)
    checkSplits(() => {
      const decoder = new ServerHandshakeDecoder()
      decoder.expectExport(input.length % 2 === 0)
      return decoder
    }, input)
    for (const parse of [parseInfo, parseMetaReply, parseServerReply]) {
      const outcome = allowing([ProtocolError], () => parse(input))
      if (parse !== parseInfo || !('value' in outcome)) continue
      const found = outcome.value as ReturnType<typeof parseInfo>
      if (found.type === 'export') {
        assert.ok(encodeExportInfo(found.size, found.transmissionFlags).equals(input))
      }
      if (found.type === 'blockSize') assert.ok(encodeBlockSizeInfo(found).equals(input))
    }
  },
}

/** Requests in flight, by cookie; the rest of the input decides what the server says to them. */
const REQUESTS: readonly (readonly [kind: Expectation['kind'], offset: number, length: number])[] = [
  ['read', 0, 4096],
  ['read', 4096, 100],
  ['status', 0, SIZE],
  ['other', 0, 65_536],
  ['other', 0, 0],
]

function reply(random: Random): Buffer {
  const cookie = BigInt(1 + below(random, REQUESTS.length))
  const [, offset, length] = REQUESTS[Number(cookie) - 1]!
  const done = below(random, 2) === 0
  const bytes = Math.min(length, 1 + below(random, 200))
  switch (below(random, 7)) {
    case 0:
      return encodeSimpleReply(cookie, pick(random, [0, nbd.NBD_EIO, nbd.NBD_ENOSPC, 7]))
    case 1:
      return encodeNoneChunk(cookie)
    case 2:
      return Buffer.concat([encodeDataChunkHeader(cookie, offset, bytes, done), Buffer.alloc(bytes, 7)])
    case 3:
      return encodeHoleChunk(cookie, offset, Math.max(1, length), done)
    case 4:
      return encodeStatusChunk(cookie, 1, [{ length: SIZE, flags: below(random, 4) }], done)
    case 5:
      return encodeErrorChunk(cookie, nbd.NBD_EIO, 'broken', done)
    default:
      return Buffer.concat([encodeSimpleReply(cookie, 0), Buffer.alloc(length, 9)])
  }
}

function replies(random: Random): Buffer {
  return Buffer.concat(Array.from({ length: 1 + below(random, 6) }, () => reply(random)))
}

/** Shows what lies in the targets too: a lying server must not write outside of them, and splits change nothing. */
class WatchedReplies {
  readonly #decoder: ReplyDecoder
  readonly #targets: readonly Buffer[]
  constructor(structured: boolean) {
    const around = REQUESTS.map(([kind, , length]) => Buffer.alloc(kind === 'read' ? length + 64 : 0, 0xaa))
    this.#targets = around
    const expectations = REQUESTS.map(([kind, offset, length], index): Expectation => {
      const target = kind === 'read' ? around[index]!.subarray(32, 32 + length) : undefined
      return { kind, offset, length, target }
    })
    this.#decoder = new ReplyDecoder({ structured, expect: (cookie) => expectations[Number(cookie) - 1] })
  }
  *push(bytes: Buffer): Generator<string> {
    for (const message of this.#decoder.push(bytes)) {
      for (const target of this.#targets) {
        const edges = [...target.subarray(0, 32), ...target.subarray(-32)]
        assert.ok(
          edges.every((byte) => byte === 0xaa),
          'bytes were written beside the target',
        )
      }
      yield `${show(message)} ${this.#targets.map(show)}`
    }
  }
}

export const nbdReplies: FuzzTarget = {
  name: 'nbd-replies',
  inputBytesMax: 16_384,
  allocationBytesMax: 4 + 8 * limits.NBD_STATUS_EXTENTS_MAX,
  dictionary: NBD_WORDS,
  generate: replies,
  run(input) {
    for (const structured of [true, false]) checkSplits(() => new WatchedReplies(structured), input)
  },
}

export const nbdDial: FuzzTarget = {
  name: 'nbd-dial',
  inputBytesMax: 16_384,
  allocationBytesMax: 4 + 8 * limits.NBD_STATUS_EXTENTS_MAX,
  dictionary: NBD_WORDS,
  generate: (random) => {
    const structured = encodeOptionReply(nbd.NBD_OPT_STRUCTURED_REPLY, nbd.NBD_REP_ACK)
    const meta = encodeMetaReply(1, nbd.NBD_CONTEXT_BASE_ALLOCATION)
    return Buffer.concat([
      encodeGreeting(3),
      below(random, 8) === 0 ? encodeExportReply(SIZE, 0xffff, true) : structured,
      encodeOptionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_META_CONTEXT, meta),
      encodeOptionReply(nbd.NBD_OPT_SET_META_CONTEXT, nbd.NBD_REP_ACK),
      encodeOptionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_INFO, encodeExportInfo(SIZE, 0xffff)),
      encodeOptionReply(nbd.NBD_OPT_GO, nbd.NBD_REP_ACK),
      replies(random),
    ])
  },
  async run(input) {
    const [client, server] = duplexPair()
    server.on('error', () => {}).resume()
    const known = (error: unknown): void => {
      const classes = [ProtocolError, LostError, RefusedError, TimeoutError]
      if (!classes.some((one) => error instanceof one)) throw error
    }
    const negotiated = negotiateNbd(client).then(async (negotiation) => {
      if (input.length % 5 === 0) await negotiation.list().catch(known)
      if (input.length % 7 === 0) await negotiation.info('disk').catch(known)
      const device = await negotiation.go('disk')
      await Promise.all(dialRequests(device).map((request) => request.catch(known)))
      await device.close()
    })
    let start = 0
    for (const end of [...cutsOf(input), input.length]) {
      if (!server.destroyed) server.write(input.subarray(start, end))
      start = end
    }
    server.end()
    await negotiated.catch(known)
    client.destroy()
    server.destroy()
  },
}

/** What the client asks for; also when the corpus is recorded, so that recorded replies fit. */
export function dialRequests(device: BlockDevice): Promise<unknown>[] {
  return [
    device.read(0, 4096).then((data) => assert.equal(data.length, 4096)),
    device.read(4096, 100).then((data) => assert.equal(data.length, 100)),
    device.blockStatus(0, SIZE).then((extents) => {
      const bytes = extents.reduce((sum, extent) => sum + extent.length, 0)
      assert.ok(extents.length > 0 && bytes <= SIZE && extents.every((extent) => extent.length > 0))
    }),
    device.writeZeroes(0, 65_536),
    device.flush(),
  ]
}
