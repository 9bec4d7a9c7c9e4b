/**
 * The Rabin cutter against its plain twin and the reference on small inputs, its golden cuts (a promise of the wire
 * protocol: if this table changes, so does the protocol's version), and its committed WebAssembly.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import fc from 'fast-check'
import { RabinCutter } from '../../../lib/chunk/rabin.ts'
import { plainChunkLengths } from '../../../lib/chunk/rabin-plain.ts'
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { referenceChunkLengths } from './rabin-reference.ts'
import { patchyBytes, randomBytes, repeatedBytes, textBytes } from './samples.ts'

const ROOT: string = join(import.meta.dirname, '../../..')

const small: readonly { name: string; bytes: Buffer }[] = [
  ...[
    0,
    1,
    47,
    48,
    49,
    CHUNK_BYTES_MIN - 1,
    CHUNK_BYTES_MIN,
    CHUNK_BYTES_MIN + 1,
    CHUNK_BYTES_MIN + 4096,
  ].map((length) => ({ name: `${length} random bytes`, bytes: randomBytes(length, 1) })),
  { name: 'zeroes', bytes: Buffer.alloc(100_000) },
  { name: 'ones, longer than the maximum', bytes: Buffer.alloc(CHUNK_BYTES_MAX + 1, 1) },
  { name: 'exactly the maximum', bytes: Buffer.alloc(CHUNK_BYTES_MAX, 1) },
  { name: 'a short pattern', bytes: repeatedBytes(300_000, 5, 2) },
  { name: 'random', bytes: randomBytes(600_000, 3) },
  { name: 'text', bytes: textBytes(300_000, 4) },
  { name: 'zero stretches', bytes: patchyBytes(300_000, 5) },
]

for (const { name, bytes } of small) {
  test(`cuts equal the plain twin's and the reference's: ${name}`, async () => {
    const own = new RabinCutter().lengths(bytes)
    assert.deepEqual(own, plainChunkLengths(bytes))
    assert.deepEqual(own, await referenceChunkLengths(bytes))
  })
}

test('cuts equal the reference: any mixture, any length', async () => {
  const cutter = new RabinCutter()
  const piece = fc.record({
    length: fc.integer({ min: 1, max: 400 * KIB }),
    seed: fc.integer({ min: 0, max: 1000 }),
    period: fc.constantFrom(0, 1, 7, 4096, 20_000),
  })
  await fc.assert(
    fc.asyncProperty(fc.array(piece, { minLength: 1, maxLength: 5 }), async (pieces) => {
      const bytes = Buffer.concat(
        pieces.map(({ length, seed, period }) =>
          period === 0 ? randomBytes(length, seed) : repeatedBytes(length, period, seed),
        ),
      )
      assert.deepEqual(cutter.lengths(bytes), await referenceChunkLengths(bytes))
    }),
    { numRuns: 25 },
  )
})

test('golden cuts', () => {
  const cutter = new RabinCutter()
  assert.deepEqual(cutter.lengths(randomBytes(2 * MIB, 1)), GOLDEN_RANDOM)
  assert.deepEqual(cutter.lengths(textBytes(MIB, 2)), GOLDEN_TEXT)
  assert.deepEqual(cutter.lengths(Buffer.alloc(40_000)), [16384, 16384, 7232])
})

test('chunks are visited in order with their bytes, across refills and from shared memory', () => {
  const bytes = new Uint8Array(new SharedArrayBuffer(3 * MIB + 11))
  bytes.set(randomBytes(bytes.length, 9))
  let end = 0
  new RabinCutter().cut(bytes, (offset, length, chunk) => {
    assert.equal(offset, end)
    assert.equal(Buffer.compare(chunk, bytes.subarray(offset, offset + length)), 0)
    assert.ok(length <= CHUNK_BYTES_MAX)
    end = offset + length
    assert.ok(length >= CHUNK_BYTES_MIN || end === bytes.length)
  })
  assert.equal(end, bytes.length)
})

test('rabin.wasm is what the source compiles to', () => {
  const directory = mkdtempSync(join(tmpdir(), 'swam-wasm-'))
  try {
    const output = join(directory, 'rabin.wasm')
    const source = 'lib/chunk/assembly/rabin.ts'
    const config = 'lib/chunk/assembly/asconfig.json'
    execFileSync(
      process.execPath,
      [
        'node_modules/assemblyscript/bin/asc.js',
        source,
        '--config',
        config,
        '--target',
        'release',
        '--outFile',
        output,
      ],
      { cwd: ROOT },
    )
    assert.ok(
      readFileSync(output).equals(readFileSync(join(ROOT, 'lib/chunk/rabin.wasm'))),
      'lib/chunk/rabin.wasm differs from its source: run `npm run build:wasm`',
    )
  } finally {
    rmSync(directory, { recursive: true })
  }
})

const GOLDEN_RANDOM: readonly number[] = [
  86036, 89517, 73988, 26965, 34432, 45336, 110774, 67965, 85500, 73318, 53232, 120145, 80818, 145558, 89042,
  62861, 20203, 18259, 51741, 106880, 109682, 232369, 113210, 61014, 55214, 46538, 36555,
]
const GOLDEN_TEXT: readonly number[] = [
  24679, 96118, 129696, 28510, 72353, 81784, 262144, 50101, 134413, 16525, 21979, 51425, 60203, 18646,
]
