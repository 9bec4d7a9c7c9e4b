/** The frame codec: golden bytes, every split, truncation, ceilings. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { FRAME_PAYLOAD_BYTES_MAX } from '../../../lib/core/limits.ts'
import {
  decodeU48,
  encodeFrame,
  encodeFrameHeader,
  encodeU48,
  FRAME_ABORT,
  FRAME_ACK,
  FRAME_CLOSE,
  FRAME_HEADER_BYTES,
  type Frame,
  type FrameClass,
  FrameDecoder,
  SEQUENCE_MAX,
} from '../../../lib/wire/frame.ts'
import { feed } from '../nbd/feed.ts'

const frames = fc.array(
  fc
    .tuple(
      fc.oneof(fc.integer({ min: 16, max: 255 }), fc.constant(FRAME_CLOSE)),
      fc.integer({ min: 0, max: 3 }),
      fc.integer({ min: 0, max: SEQUENCE_MAX }),
      fc.uint8Array({ maxLength: 200 }),
    )
    .map(([type, cls, sequence, bytes]): Frame => {
      return { type, cls: cls as FrameClass, sequence, payload: Buffer.from(bytes) }
    }),
  { minLength: 1, maxLength: 8 },
)

function encodeAll(list: readonly Frame[]): Buffer {
  return Buffer.concat(list.map((frame) => encodeFrame(frame.type, frame.cls, frame.sequence, frame.payload)))
}

test('the bytes of a frame', () => {
  const bytes = encodeFrame(0x12, 3, 0x010203040506, Buffer.from('abc'))
  assert.equal(bytes.toString('hex'), `00000003${'12'}${'03'}010203040506${'616263'}`)
  assert.equal(FRAME_HEADER_BYTES, 12)
})

test('frames come back however the bytes are split', () => {
  fc.assert(
    fc.property(frames, fc.array(fc.integer({ min: 1, max: 40 }), { minLength: 1 }), (list, sizes) => {
      const bytes = encodeAll(list)
      const decoder = new FrameDecoder()
      const got: Frame[] = []
      for (let at = 0, turn = 0; at < bytes.length; turn += 1) {
        const size = sizes[turn % sizes.length]!
        const piece = Buffer.from(bytes.subarray(at, at + size))
        got.push(...decoder.push(piece))
        piece.fill(0xff)
        at += size
      }
      assert.deepEqual(got, list)
      assert.equal(decoder.atBoundary, true)
    }),
  )
})

test('two frames come back at every single split', () => {
  const list: Frame[] = [
    { type: 16, cls: 0, sequence: 0, payload: Buffer.from('first') },
    { type: 17, cls: 3, sequence: 1, payload: Buffer.alloc(0) },
    { type: 18, cls: 1, sequence: 2, payload: Buffer.from('last') },
  ]
  const bytes = encodeAll(list)
  for (let split = 0; split <= bytes.length; split += 1) {
    const decoder = new FrameDecoder()
    const got = [...decoder.push(bytes.subarray(0, split)), ...decoder.push(bytes.subarray(split))]
    assert.deepEqual(got, list, `split at ${split}`)
  }
})

test('an empty payload at the end of a push is not held back', () => {
  assert.equal([...new FrameDecoder().push(encodeFrame(20, 0, 7, Buffer.alloc(0)))].length, 1)
})

test('the boundary is known', () => {
  const bytes = encodeFrame(20, 0, 7, Buffer.from('x'))
  const decoder = new FrameDecoder()
  feed(decoder, bytes.subarray(0, 5))
  assert.equal(decoder.atBoundary, false)
  feed(decoder, bytes.subarray(5, 12))
  assert.equal(decoder.atBoundary, false)
  feed(decoder, bytes.subarray(12))
  assert.equal(decoder.atBoundary, true)
})

const header = (length: number, type: number, cls: number, sequence: number): Buffer => {
  const bytes = Buffer.alloc(FRAME_HEADER_BYTES)
  bytes.writeUInt32BE(length, 0)
  bytes.writeUInt8(type, 4)
  bytes.writeUInt8(cls, 5)
  bytes.writeUIntBE(sequence, 6, 6)
  return bytes
}

for (const { name, bytes, message } of [
  {
    name: 'oversize',
    bytes: header(FRAME_PAYLOAD_BYTES_MAX + 1, 16, 0, 0),
    message: /1052673 bytes, expected at most 1052672/,
  },
  {
    name: 'text of some other program',
    bytes: Buffer.from('This account is not available'),
    message: /begins with "This account/,
  },
  { name: 'type 0', bytes: header(0, 0, 0, 0), message: /type 0 is not known/ },
  { name: 'a reserved type', bytes: header(0, FRAME_ABORT + 1, 0, 0), message: /type 8 is not known/ },
  { name: 'a class that is none', bytes: header(0, 16, 4, 0), message: /class 4 of type 16/ },
  {
    name: 'a sequence where none belongs',
    bytes: header(6, FRAME_ACK, 0, 1),
    message: /sequence 1 on type 3/,
  },
]) {
  test(`refused: ${name}`, () => {
    const decoder = new FrameDecoder()
    const matches = (error: unknown): boolean => error instanceof ProtocolError && message.test(error.message)
    assert.throws(() => feed(decoder, bytes), matches)
    assert.throws(() => feed(decoder, encodeFrame(16, 0, 0, Buffer.alloc(0))), matches, 'the failure stays')
  })
}

test('frames before a fault are given, in whatever pieces they come', () => {
  const bytes = Buffer.concat([encodeFrame(16, 0, 0, Buffer.from('good')), header(0, 0, 0, 0)])
  for (const split of [0, 7, 16, 20, bytes.length]) {
    const decoder = new FrameDecoder()
    const got: Frame[] = []
    const take = (): void => {
      for (const piece of [bytes.subarray(0, split), bytes.subarray(split)]) {
        for (const frame of decoder.push(piece)) got.push(frame)
      }
    }
    assert.throws(take, ProtocolError)
    assert.equal(got.length, 1, `split at ${split}`)
  }
})

test('a smaller ceiling holds', () => {
  const decoder = new FrameDecoder({ payloadBytesMax: 4 })
  assert.equal(feed(decoder, encodeFrame(16, 0, 0, Buffer.alloc(4))).length, 1)
  assert.throws(() => feed(decoder, encodeFrame(16, 0, 1, Buffer.alloc(5))), ProtocolError)
})

test('arbitrary bytes give frames or a ProtocolError, nothing else', () => {
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 400 }), (bytes) => {
      try {
        feed(new FrameDecoder(), Buffer.from(bytes))
      } catch (error) {
        assert.ok(error instanceof ProtocolError)
      }
    }),
  )
})

test('what is too long is not encoded', () => {
  assert.throws(() => encodeFrameHeader(16, 0, 0, FRAME_PAYLOAD_BYTES_MAX + 1), RangeError)
})

test('48-bit numbers', () => {
  for (const value of [0, 1, 0xffff_ffff, SEQUENCE_MAX]) assert.equal(decodeU48('x', encodeU48(value)), value)
  assert.throws(() => decodeU48('ACK', Buffer.alloc(5)), /ACK: expected a payload of 6 bytes, got 5/)
})
