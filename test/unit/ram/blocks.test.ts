/** Blocks of a passed-through stream: what goes in comes out, in any split; hostile blocks are refused before allocation. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import fc from 'fast-check'
import { RAM_BLOCK_BYTES_MAX, RAM_ZSTD_WINDOW_LOG_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_HEADER_BYTES, BlockDecoder, BlockEncoder } from '../../../lib/ram/blocks.ts'
import { windowed } from '../chunk/samples.ts'

function decode(decoder: BlockDecoder, bytes: Buffer): Buffer {
  return Buffer.concat([...decoder.push(bytes)])
}

test('what goes in comes out, whatever the splits and whether it compresses', () => {
  const piece = fc.oneof(
    fc.uint8Array({ minLength: 1, maxLength: 3000 }).map((bytes) => Buffer.from(bytes)),
    fc.integer({ min: 1, max: 300_000 }).map((length) => Buffer.alloc(length, 'page ')),
    fc.integer({ min: 1, max: 200_000 }).map((length) => randomBytes(length)),
  )
  fc.assert(
    fc.property(
      fc.array(piece, { maxLength: 6 }),
      fc.boolean(),
      fc.integer({ min: 1, max: 70_000 }),
      (pieces, on, step) => {
        const encoder = new BlockEncoder()
        const wire = Buffer.concat(pieces.flatMap((bytes) => encoder.encode(bytes, on)))
        const decoder = new BlockDecoder()
        const out: Buffer[] = []
        for (let at = 0; at < wire.length; at += step) {
          // A copy that is overwritten afterwards: the decoder must not keep views of it.
          const part = Buffer.from(wire.subarray(at, at + step))
          out.push(decode(decoder, part))
          part.fill(0xee)
        }
        assert.ok(Buffer.concat(out).equals(Buffer.concat(pieces)))
        assert.equal(decoder.whole, true)
      },
    ),
    { numRuns: 60 },
  )
})

test('every split of a small stream', () => {
  const encoder = new BlockEncoder()
  const raw = Buffer.alloc(2000, 'abc')
  const wire = Buffer.concat(encoder.encode(raw, true))
  assert.ok(wire.length < 200)
  for (let at = 1; at < wire.length; at++) {
    const decoder = new BlockDecoder()
    const first = decode(decoder, wire.subarray(0, at))
    assert.equal(decoder.whole, false)
    assert.ok(Buffer.concat([first, decode(decoder, wire.subarray(at))]).equals(raw))
  }
})

test('what does not shrink goes as it is', () => {
  const raw = randomBytes(65536)
  const wire = Buffer.concat(new BlockEncoder().encode(raw, true))
  assert.equal(wire.length, raw.length + BLOCK_HEADER_BYTES)
})

function header(codec: number, raw: number, coded: number): Buffer {
  const bytes = Buffer.alloc(BLOCK_HEADER_BYTES)
  bytes.writeUInt8(codec, 0)
  bytes.writeUInt32BE(raw, 1)
  bytes.writeUInt32BE(coded, 5)
  return bytes
}

test('hostile blocks are refused', () => {
  const cases = [
    { name: 'empty', bytes: header(0, 0, 0), message: /block of 0 bytes/ },
    {
      name: 'too large',
      bytes: header(0, RAM_BLOCK_BYTES_MAX + 1, RAM_BLOCK_BYTES_MAX + 1),
      message: /expected 1 to/,
    },
    { name: 'unknown codec', bytes: header(2, 10, 5), message: /codec 2/ },
    { name: 'raw of two lengths', bytes: header(0, 10, 9), message: /9 bytes for 10/ },
    { name: 'coded longer than raw', bytes: header(1, 10, 0xffff_ffff), message: /4294967295 bytes for 10/ },
    { name: 'no zstd', bytes: Buffer.concat([header(1, 100, 5), Buffer.from('hello')]), message: /not zstd/ },
  ]
  for (const { name, bytes, message } of cases) {
    assert.throws(() => decode(new BlockDecoder(), bytes), message, name)
  }
  const bomb = Buffer.concat(new BlockEncoder().encode(Buffer.alloc(100_000), true))
  bomb.writeUInt32BE(50_000, 1)
  assert.throws(() => decode(new BlockDecoder(), bomb), /not zstd of 50000 bytes: .*larger than 50000 bytes/)
  bomb.writeUInt32BE(100_001, 1)
  assert.throws(() => decode(new BlockDecoder(), bomb), /100000 bytes came out, 100001 were announced/)
})

test('a block that asks for a large window gets no memory', async () => {
  const raw = Buffer.alloc(RAM_BLOCK_BYTES_MAX, 'page ')
  const block = async (windowLog: number): Promise<Buffer> => {
    const packed = await windowed(raw, windowLog)
    return Buffer.concat([header(1, raw.length, packed.length), packed])
  }
  const most = await block(RAM_ZSTD_WINDOW_LOG_MAX)
  assert.ok(decode(new BlockDecoder(), most).equals(raw))
  const more = await block(RAM_ZSTD_WINDOW_LOG_MAX + 1)
  assert.throws(() => decode(new BlockDecoder(), more), /requires too much memory/)
})
