/** Literals as one zstd stream: what is packed is unpacked, piece by piece; what lies about its length ends the stream. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { constants, zstdCompressSync } from 'node:zlib'
import { compress } from '../../../lib/chunk/zstd.ts'
import { LostError, ProtocolError } from '../../../lib/core/errors.ts'
import {
  LITERAL_BYTES_MAX,
  LITERAL_STREAM_WINDOW_LOG_MAX,
  LITERAL_WIDE_WINDOW_LOG_MAX,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { LiteralPacker, LiteralUnpacker } from '../../../lib/engine/literal-stream.ts'
import { ENGINE_FEATURES, FEATURE_WIDE } from '../../../lib/wire/disk.ts'
import { noise } from './rig.ts'

const WIDE = new Set(ENGINE_FEATURES)
const NARROW = new Set(ENGINE_FEATURES.filter((feature) => feature !== FEATURE_WIDE))

const texts = (count: number): Buffer =>
  Buffer.from(Array.from({ length: count }, (_, at) => `line ${at * 7919} of a log`).join('\n'))

test('pieces of every kind and size, packed at once, unpack one by one', async () => {
  const packer = new LiteralPacker(WIDE)
  const unpacker = new LiteralUnpacker(WIDE)
  const pieces = [1, 3, 511, 4096, 65_537, 200 * KIB, LITERAL_BYTES_MAX].flatMap((length) => [
    noise(alignUp4(length), length).subarray(0, length),
    Buffer.alloc(length, 7),
    texts(60_000).subarray(0, length),
  ])
  const packed = await Promise.all(pieces.map((piece) => packer.pack(piece)))
  const unpacked = await Promise.all(packed.map((piece, at) => unpacker.unpack(piece, pieces[at]!.length)))
  for (const [at, piece] of unpacked.entries()) assert.ok(piece.equals(pieces[at]!), `piece ${at}`)
  packer.close()
  unpacker.close()
})

test('a stream knows what came before', async () => {
  const packer = new LiteralPacker(WIDE)
  const piece = noise(64 * KIB, 5)
  const first = await packer.pack(piece)
  const second = await packer.pack(Buffer.from(piece))
  assert.ok(first.length >= piece.length)
  assert.ok(second.length < 100, `${second.length} bytes for what came before`)
  packer.close()
})

test('a piece that is longer or shorter than announced ends the stream, and so does rubbish', async () => {
  for (const [name, length, bytes] of [
    ['longer', 999, undefined],
    ['shorter', 1001, undefined],
    ['rubbish', 1000, randomBytes(500)],
    ['cut off', 1000, null],
  ] as const) {
    const packer = new LiteralPacker(WIDE)
    const unpacker = new LiteralUnpacker(WIDE)
    const good = await packer.pack(texts(100))
    await unpacker.unpack(good, texts(100).length)
    const packed = await packer.pack(noise(1000, 3))
    const sent = bytes === undefined ? packed : (bytes ?? packed.subarray(0, 300))
    await assert.rejects(unpacker.unpack(sent, length), ProtocolError, name)
    await assert.rejects(unpacker.unpack(good, texts(100).length), Error, `${name}: it is over`)
    packer.close()
    unpacker.close()
  }
})

test('a bomb is put out at its announced length', async () => {
  const unpacker = new LiteralUnpacker(WIDE)
  const bomb = await compress(Buffer.alloc(512 * MIB))
  const before = process.memoryUsage().arrayBuffers
  await assert.rejects(unpacker.unpack(bomb, 4096), ProtocolError)
  assert.ok(process.memoryUsage().arrayBuffers - before < 16 * MIB)
})

for (const { name, features, windowLogMax } of [
  { name: 'wide', features: WIDE, windowLogMax: LITERAL_WIDE_WINDOW_LOG_MAX },
  { name: 'as older peers have it', features: NARROW, windowLogMax: LITERAL_STREAM_WINDOW_LOG_MAX },
]) {
  test(`a stream that wants a larger window gets no memory: ${name}`, async () => {
    const params = { [constants.ZSTD_c_windowLog]: windowLogMax + 1 }
    const packed = zstdCompressSync(noise(16 * MIB, 4), { params })
    const unpacker = new LiteralUnpacker(features)
    await assert.rejects(unpacker.unpack(packed, 16 * MIB), /memory/i)
  })

  test(`what came before is known as far as the window goes, and no further: ${name}`, async () => {
    const packer = new LiteralPacker(features)
    const unpacker = new LiteralUnpacker(features)
    const window = 2 ** windowLogMax
    const far = noise(256 * KIB, 6)
    const pieces = [far, ...Array.from({ length: 10 }, (_, at) => noise(window / 16, 10 + at)), far]
    for (let round = 0; round < 2; round++) {
      const packed = await packer.pack(pieces.at(-1)!)
      assert.ok((await unpacker.unpack(packed, far.length)).equals(far))
      assert.equal(packed.length < far.length / 4, round === 1, `${packed.length} bytes in round ${round}`)
      if (round === 1) break
      for (const piece of pieces.slice(1, -1)) {
        const bytes = await packer.pack(piece)
        assert.ok((await unpacker.unpack(bytes, piece.length)).equals(piece))
      }
    }
  })
}

test('an older peer is not sent what it would refuse', async () => {
  const packer = new LiteralPacker(NARROW)
  const unpacker = new LiteralUnpacker(NARROW)
  const wide = await new LiteralPacker(WIDE).pack(texts(100))
  await assert.rejects(new LiteralUnpacker(NARROW).unpack(wide, texts(100).length), ProtocolError)
  const narrow = await packer.pack(texts(100))
  assert.ok((await unpacker.unpack(narrow, texts(100).length)).equals(texts(100)))
})

test('what is under way when it is closed is rejected', async () => {
  const packer = new LiteralPacker(WIDE)
  const packing = packer.pack(texts(40_000))
  packer.close()
  await assert.rejects(packing, LostError)
  await assert.rejects(packer.pack(texts(1)), LostError)
})

function alignUp4(length: number): number {
  return Math.ceil(length / 4) * 4
}
