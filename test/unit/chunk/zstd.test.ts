/** zstd's ceilings, and the digest, against hostile and honest input. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { zstdCompressSync } from 'node:zlib'
import { matchesDigest, sha256 } from '../../../lib/chunk/digest.ts'
import { compress, decompress } from '../../../lib/chunk/zstd.ts'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { ZSTD_OUTPUT_BYTES_MAX, ZSTD_WINDOW_LOG_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { randomBytes, textBytes, windowed } from './samples.ts'

for (const length of [1, 4096, 65_536, 262_144, MIB + 1, ZSTD_OUTPUT_BYTES_MAX]) {
  test(`zstd round trip of ${length} bytes`, async () => {
    for (const bytes of [textBytes(length, 1), randomBytes(length, 2), Buffer.alloc(length)]) {
      const shared = new Uint8Array(new SharedArrayBuffer(length))
      shared.set(bytes)
      const packed = await compress(shared)
      assert.ok((await decompress(packed, length)).equals(bytes))
    }
  })
}

test('zstd refuses what is not exactly the announced length', async () => {
  const packed = await compress(Buffer.alloc(100_000, 7))
  const bomb = zstdCompressSync(Buffer.alloc(64 * MIB))
  const cases: readonly { name: string; bytes: Uint8Array; length: number; message?: RegExp }[] = [
    {
      name: 'one byte more than announced',
      bytes: packed,
      length: 99_999,
      message: /larger than 99999 bytes/,
    },
    {
      name: 'one byte less than announced',
      bytes: packed,
      length: 100_001,
      message: /100000 found after decompression/,
    },
    // Its 64 MiB are not put together first.
    { name: 'far more than announced', bytes: bomb, length: 65_536, message: /larger than 65536 bytes/ },
    {
      // Refused before anything of that length is allocated.
      name: 'an announced length beyond the ceiling',
      bytes: packed,
      length: ZSTD_OUTPUT_BYTES_MAX + 1,
      message: /a length of 1 to 16777216 bytes expected, 16777217 announced/,
    },
    { name: 'an announced length of none', bytes: packed, length: 0 },
    { name: 'a length that is no number', bytes: packed, length: Number.NaN },
    { name: 'truncated', bytes: packed.subarray(0, packed.length - 1), length: 100_000 },
    { name: 'something behind the frame', bytes: Buffer.concat([packed, Buffer.from('x')]), length: 100_000 },
    { name: 'empty', bytes: Buffer.alloc(0), length: 1 },
    { name: 'no zstd', bytes: Buffer.from('not a frame'), length: 11 },
  ]
  for (const { name, bytes, length, message } of cases) {
    await assert.rejects(decompress(bytes, length), (error) => {
      assert.ok(error instanceof ProtocolError, name)
      if (message !== undefined) assert.match(error.message, message, name)
      return true
    })
  }
})

test('zstd gives no memory to a frame that asks for a large window, however short it is', async () => {
  const bytes = textBytes(100_000, 3)
  assert.ok((await decompress(await windowed(bytes, ZSTD_WINDOW_LOG_MAX), bytes.length)).equals(bytes))
  await assert.rejects(
    decompress(await windowed(bytes, ZSTD_WINDOW_LOG_MAX + 1), bytes.length),
    /requires too much memory/,
  )
})

test('sha256 of a view on shared memory, and its comparison', () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(6)).subarray(1, 4)
  bytes.set([0x61, 0x62, 0x63])
  const digest = sha256(bytes)
  assert.equal(digest.toString('hex'), 'ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad')
  const digests = Buffer.concat([Buffer.alloc(32), digest])
  assert.ok(matchesDigest(bytes, digests, 32))
  assert.ok(!matchesDigest(bytes, digests, 0))
  assert.ok(!matchesDigest(bytes, digests, 33), 'a digest that is cut off matches nothing')
})
