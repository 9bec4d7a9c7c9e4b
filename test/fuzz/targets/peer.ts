/** What a far host may send before and in a bundle, as bytes: preamble, hello, frames, disk messages, stream blocks. */
import assert from 'node:assert/strict'
import { ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import * as limits from '../../../lib/core/limits.ts'
import { parsePreamble } from '../../../lib/peer/preamble.ts'
import { Reorder } from '../../../lib/peer/reorder.ts'
import { BlockDecoder, BlockEncoder } from '../../../lib/ram/blocks.ts'
import {
  DISK_OPEN,
  DISK_SURVEY,
  type DiskMessage,
  decodeDiskMessage,
  encodeDiskMessage,
  SOURCES,
} from '../../../lib/wire/disk.ts'
import { DISK_DISPROVED, DISK_PROVE, DISK_PROVED } from '../../../lib/wire/disk-proof.ts'
import { encodeFrame, type FrameClass, FrameDecoder, isSequenced } from '../../../lib/wire/frame.ts'
import {
  BUNDLE_KINDS,
  decodeHello,
  decodeRefusal,
  encodeHello,
  encodeRefusal,
  PROTOCOL_VERSION,
} from '../../../lib/wire/hello.ts'
import { allowing, checkSplits, show } from '../checks.ts'
import { below, encodeNumber, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'

export const PEER_WORDS: readonly Buffer[] = [
  ...['SWAM', '"bundle":', '"kind":"disk"', '"channel":', '"channels":', '"windowBytes":', '"features":[]'],
  ...['"peer":', '"version":1', '"connection":', '"port":', '"id":', '"method":', '"error":', 'null', '{}'],
].map((word) => Buffer.from(word))

function text(random: Random): string {
  return pick(random, ['', 'a', 'drive-virtio-disk0', 'No space left on device', 'ä€\u{1f600}'])
}

export const peerHello: FuzzTarget = {
  name: 'peer-hello',
  inputBytesMax: limits.HELLO_BYTES_MAX + 64,
  allocationBytesMax: limits.HELLO_BYTES_MAX,
  dictionary: PEER_WORDS,
  generate: (random) =>
    encodeHello({
      version: PROTOCOL_VERSION,
      bundle: below(random, 2 ** 31)
        .toString(16)
        .padStart(32, '0'),
      kind: pick(random, BUNDLE_KINDS),
      channel: 0,
      channels: 1 + below(random, 8),
      name: 'far',
      migration: '',
      features: ['zstd', 'ram'].slice(below(random, 3)),
      windowBytes: 32 * 1024 * 1024,
      instance: below(random, 2) === 0 ? '' : 'ab'.repeat(16),
      ...(below(random, 3) > 0 ? {} : { resume: { attempt: 1, deliveredBytes: below(random, 2 ** 31) } }),
    }),
  run(input) {
    const hello = allowing([ProtocolError, RefusedError], () => decodeHello(input))
    if ('value' in hello) {
      assert.ok(hello.value.channel < hello.value.channels)
      // What JSON says beside the known keys is left out, so it always fits again.
      // -0 is a channel too: nothing takes it for another one than 0.
      assert.equal(show(decodeHello(encodeHello(hello.value))), show(hello.value))
    }
    const refusal = allowing([ProtocolError], () => decodeRefusal(input))
    if ('value' in refusal) assert.deepEqual(decodeRefusal(encodeRefusal(refusal.value)), refusal.value)
    const preamble = allowing([ProtocolError], () => parsePreamble(input))
    if ('value' in preamble) assert.doesNotMatch(preamble.value.peer, /[\s\p{C}]/u)
  },
}

function frames(random: Random): Buffer {
  const order = Array.from({ length: 1 + below(random, 8) }, (_value, index) => index)
  if (below(random, 2) === 0) order.sort(() => random() - 0.5)
  return Buffer.concat(
    order.map((sequence) => {
      const type = pick(random, [3, 4, 5, 6, 7, 16, 18, 49, 64])
      const payload = Buffer.alloc(below(random, 40), sequence)
      return encodeFrame(type, below(random, 4) as FrameClass, isSequenced(type) ? sequence : 0, payload)
    }),
  )
}

export const peerFrames: FuzzTarget = {
  name: 'peer-frames',
  inputBytesMax: 16_384,
  allocationBytesMax: limits.FRAME_PAYLOAD_BYTES_MAX,
  dictionary: [...PEER_WORDS, encodeNumber(BigInt(limits.FRAME_PAYLOAD_BYTES_MAX), 4)],
  generate: frames,
  run(input) {
    checkSplits(() => new FrameDecoder(), input)
    const decoded = allowing([ProtocolError], () => [...new FrameDecoder().push(input)])
    if (!('value' in decoded)) return
    const bytesMax =
      limits.IN_FLIGHT_BYTES_MAX + limits.CONTROL_EXTRA_BYTES + limits.FRAME_PAYLOAD_BYTES_MAX + 12
    const reorder = new Reorder({
      bytesMax,
      framesMax: limits.IN_FLIGHT_FRAMES_MAX + limits.CONTROL_EXTRA_FRAMES,
    })
    let next = 0
    for (const frame of decoded.value) {
      const { type, cls, sequence, payload } = frame
      assert.deepEqual([...new FrameDecoder().push(encodeFrame(type, cls, sequence, payload))], [frame])
      if (!isSequenced(type)) continue
      if ('error' in allowing([ProtocolError], () => reorder.push(frame))) return
      for (let ready = reorder.take(); ready !== undefined; ready = reorder.take()) {
        assert.equal(ready.sequence, next++, 'frames leave in the order of their numbers')
      }
      assert.ok(reorder.heldBytes <= bytesMax && reorder.heldFrames <= decoded.value.length)
    }
  },
}

export function diskMessage(random: Random): DiskMessage {
  const head = { disk: below(random, 3), epoch: below(random, 2) }
  const number = (): number => pick(random, [0, 1, 2, 4096, 65_536, 2 ** 32, 2 ** 53 - 1])
  const runs = Array.from({ length: 1 + below(random, 4) }, () => ({
    first: number(),
    count: 1 + below(random, 9),
  }))
  const lengths = Uint32Array.from({ length: 1 + below(random, 4) }, () => 1 + below(random, 9000))
  const data = Buffer.alloc(below(random, 64), below(random, 256))
  const ranges = Array.from({ length: below(random, 4) }, (_, at) => ({
    first: 1000 * at + below(random, 900),
    end: 1000 * at + 901 + below(random, 50),
  }))
  switch (below(random, 16)) {
    case 0:
      return { ...head, type: 'open', port: below(random, 65_536), exportName: text(random) }
    case 1:
      return { ...head, type: 'opened', errno: below(random, 40), text: text(random) }
    case 2: {
      const digests = Buffer.alloc(32 * lengths.length, 5)
      return {
        ...head,
        type: 'describe',
        firstSeq: number(),
        offset: below(random, 9) * 4096,
        lengths,
        digests,
      }
    }
    case 3:
      return { ...head, type: 'zero', seq: number(), offset: 4096, length: 8192 }
    case 4:
      return { ...head, type: 'want', runs }
    case 5: {
      const chunks = [{ seq: number(), length: data.length + 1 }]
      return { ...head, type: 'literal', chunks, codec: 'raw', data: Buffer.alloc(data.length + 1) }
    }
    case 6:
      return {
        ...head,
        type: 'applied',
        runs: runs.map((run) => ({ ...run, source: pick(random, SOURCES) })),
      }
    case 7:
      return { ...head, type: 'flush', id: below(random, 9), barrier: number() }
    case 8:
      return { ...head, type: 'flushed', id: below(random, 9) }
    case 9:
      return { ...head, type: 'failed', errno: 28, text: text(random) }
    case 10:
      return { ...head, type: 'read', id: 1, offset: number(), length: 1 + below(random, 9000) }
    case 11:
      return { ...head, type: 'readReply', id: 1, errno: 0, data }
    case 12:
      return { ...head, type: 'prove', id: 1, barrier: number(), read: below(random, 2) === 1, open: ranges }
    case 13: {
      const root = Buffer.alloc(32, below(random, 256))
      return { ...head, type: 'proved', id: 1, root, unread: below(random, 9), excluded: ranges }
    }
    case 14:
      return { ...head, type: 'disproved', id: 1, root: Buffer.alloc(32, below(random, 256)) }
    default:
      return { ...head, type: 'close' }
  }
}

/** The type stands in the frame; here it is the first byte. */
export function diskBytes(message: DiskMessage): Buffer {
  const { type, payload } = encodeDiskMessage(message)
  return Buffer.concat([Buffer.from([type]), ...payload])
}

export const diskMessages: FuzzTarget = {
  name: 'disk-messages',
  inputBytesMax: 65_536,
  allocationBytesMax: 65_536,
  dictionary: PEER_WORDS,
  generate: (random) => diskBytes(diskMessage(random)),
  run(input) {
    if (input.length === 0) return
    // Half of the types are no disk messages at all: those are tried, but not half of the time.
    const first = input[0]!
    const type = first <= DISK_DISPROVED ? first : DISK_OPEN + (first % (DISK_DISPROVED - DISK_OPEN + 1))
    const decoded = allowing([ProtocolError], () => decodeDiskMessage(type, input.subarray(1)))
    if (!('value' in decoded)) return
    const again = encodeDiskMessage(decoded.value)
    assert.equal(again.type, type)
    // A text that was not UTF-8 is longer after it was read, and may then be too long to be read again.
    const bytes = Buffer.concat(again.payload)
    // And a number of variable length has more than one form.
    const varies = [DISK_SURVEY, DISK_PROVE, DISK_PROVED].includes(type)
    const replaced = 'text' in decoded.value || 'exportName' in decoded.value || varies
    if (!replaced) assert.ok(bytes.equals(input.subarray(1)))
    else if (bytes.length <= 4096) assert.equal(show(decodeDiskMessage(type, bytes)), show(decoded.value))
  },
}

export const streamBlocks: FuzzTarget = {
  name: 'stream-blocks',
  inputBytesMax: 16_384,
  allocationBytesMax: limits.RAM_BLOCK_BYTES_MAX,
  generate: (random) => {
    const encoder = new BlockEncoder()
    const parts: Buffer[] = []
    for (let count = 1 + below(random, 3); count > 0; count--) {
      const raw = Buffer.alloc(1 + below(random, 3000), below(random, 256))
      parts.push(...encoder.encode(raw, below(random, 4) > 0))
    }
    return Buffer.concat(parts)
  },
  run(input) {
    checkSplits(() => new BlockDecoder(), input)
    const decoder = new BlockDecoder()
    for (const piece of new BlockEncoder().encode(input, true)) {
      for (const raw of decoder.push(piece)) assert.ok(raw.equals(input), 'what went in comes out')
    }
    assert.ok(decoder.whole)
  },
}
