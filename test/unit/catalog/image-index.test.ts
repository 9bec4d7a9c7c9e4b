/** The image indexer on a real thread and real files: its chunks are those of the sender, whatever the pieces. */
import assert from 'node:assert/strict'
import {
  closeSync,
  ftruncateSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  renameSync,
  rmSync,
  symlinkSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ChunkIndex } from '../../../lib/catalog/chunk-index.ts'
import { type DataExtent, dataExtents, parseMap } from '../../../lib/catalog/data-extents.ts'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { ImageIndexer, type IndexProgress } from '../../../lib/catalog/image-index.ts'
import { scanImage } from '../../../lib/catalog/image-scan.ts'
import { Chunker } from '../../../lib/chunk/chunker.ts'
import { Describer } from '../../../lib/chunk/describer.ts'
import { DIGEST_BYTES, matchesDigest, sha256 } from '../../../lib/chunk/digest.ts'
import { RabinCutter } from '../../../lib/chunk/rabin.ts'
import { zeroRuns } from '../../../lib/chunk/zero.ts'
import { LostError, RefusedError } from '../../../lib/core/errors.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { patchyBytes, randomBytes, repeatedBytes } from '../chunk/samples.ts'

const root = mkdtempSync(join(tmpdir(), 'swam-index-'))
after(() => rmSync(root, { recursive: true }))

function imageOf(name: string, bytes: Uint8Array): string {
  const path = join(root, name)
  writeFileSync(path, bytes)
  return path
}

/** offset, length and digest of every chunk, from the whole image at once. */
function wholeChunks(bytes: Uint8Array): string[] {
  const cutter = new RabinCutter()
  const chunks: string[] = []
  for (const run of zeroRuns(bytes)) {
    if (run.zero) continue
    cutter.cut(bytes.subarray(run.offset, run.offset + run.length), (offset, length, chunk) => {
      chunks.push(`${run.offset + offset} ${length} ${sha256(chunk).toString('hex')}`)
    })
  }
  return chunks
}

const contents: readonly { name: string; bytes: Buffer }[] = [
  { name: 'empty', bytes: Buffer.alloc(0) },
  { name: 'shorter than a block', bytes: Buffer.alloc(7, 1) },
  { name: 'exactly one piece', bytes: randomBytes(4 * MIB, 1) },
  { name: 'random over several pieces, odd length', bytes: randomBytes(13 * MIB + 4097, 2) },
  { name: 'chunks of the maximum across pieces', bytes: repeatedBytes(12 * MIB + 5, 3, 3) },
  { name: 'a chunk that ends with its piece', bytes: repeatedBytes(9 * MIB, 1, 4) },
  { name: 'zero stretches', bytes: patchyBytes(21 * MIB, 5) },
  {
    name: 'zero pieces',
    bytes: Buffer.concat([Buffer.alloc(8 * MIB), randomBytes(MIB, 6), Buffer.alloc(8 * MIB)]),
  },
]

for (const { name, bytes } of contents) {
  test(`the scan in pieces finds the chunks of the whole image: ${name}`, async () => {
    await using source = await ImageSource.open(imageOf('scan.img', bytes))
    const chunks: string[] = []
    let zeroBytes = 0
    await scanImage(source, new Chunker(), {
      onChunk: (offset, length, digests, at) => {
        chunks.push(
          `${offset} ${length} ${Buffer.from(digests.subarray(at, at + DIGEST_BYTES)).toString('hex')}`,
        )
      },
      onProgress: (_bytesDone, zeroes) => {
        zeroBytes = zeroes
      },
    })
    assert.deepEqual(chunks, wholeChunks(bytes))
    assert.equal(
      zeroBytes,
      zeroRuns(bytes).reduce((sum, { zero, length }) => sum + (zero ? length : 0), 0),
    )
  })
}

test('what the sender describes of an image is found in its index, although windows cut it elsewhere', async () => {
  const bytes = randomBytes(40 * MIB, 7)
  const path = imageOf('similar.img', bytes)
  const index = ChunkIndex.create({ bytesMax: MIB })
  await using indexer = new ImageIndexer({ index, blocks: ChunkIndex.create({ bytesMax: MIB }) })
  const progress: IndexProgress[] = []
  const indexed = await indexer.indexImage(path, 9, { onProgress: (step) => progress.push(step) })
  assert.equal(indexed.imageNumber, 9)
  assert.equal(indexed.stale, false)
  assert.equal(indexed.identity.size, bytes.length)
  assert.deepEqual(indexed.progress, progress.at(-1))
  assert.equal(indexed.progress.bytesDone, bytes.length)
  assert.equal(indexed.progress.inserted, index.count)
  assert.ok(progress.length >= 10)

  await using describer = new Describer({ workers: 1 })
  await using source = await ImageSource.open(path)
  const window = new Uint8Array(new SharedArrayBuffer(16 * MIB))
  let chunkBytes = 0
  let foundBytes = 0
  for (let offset = 100 * KIB; offset + window.length <= bytes.length; offset += window.length) {
    window.set(bytes.subarray(offset, offset + window.length))
    for (const { lengths, digests } of await describer.describe(window)) {
      for (const [number, length] of lengths.entries()) {
        chunkBytes += length
        const hit = index.lookup(digests, number * DIGEST_BYTES)[0]
        if (hit === undefined) continue
        assert.equal(hit.length, length)
        assert.ok(matchesDigest(await source.read(hit.offset, hit.length), digests, number * DIGEST_BYTES))
        foundBytes += length
      }
    }
  }
  assert.ok(foundBytes / chunkBytes > 0.97, `${foundBytes} of ${chunkBytes} bytes found`)
})

test('images are indexed one after the other, and one that fails does not stop the next', async () => {
  const index = ChunkIndex.create({ bytesMax: MIB })
  await using indexer = new ImageIndexer({ index, blocks: ChunkIndex.create({ bytesMax: MIB }) })
  const bytes = randomBytes(MIB, 8)
  const path = imageOf('good.img', bytes)
  const missing = indexer.indexImage(join(root, 'missing.img'), 1)
  const good = indexer.indexImage(path, 2)
  await assert.rejects(missing, RefusedError)
  assert.equal((await good).progress.chunks, wholeChunks(bytes).length)
  assert.equal((await indexer.indexImage(path, 2)).progress.inserted, 0)
  await assert.rejects(indexer.indexImage(path, 65_536), RangeError)
})

test('lookups work while the scan runs; an abort rejects at once, what was found stays, the thread is free', async () => {
  const bytes = randomBytes(64 * MIB, 9)
  const firstDigest = sha256(bytes.subarray(0, new RabinCutter().lengths(bytes)[0]))
  const path = imageOf('large.img', bytes)
  const index = ChunkIndex.create({ bytesMax: MIB })
  await using indexer = new ImageIndexer({ index, blocks: ChunkIndex.create({ bytesMax: MIB }) })
  const abort = new AbortController()
  const reason = new Error('enough')
  let found = 0
  const call = indexer.indexImage(path, 1, {
    signal: abort.signal,
    onProgress: ({ bytesDone }) => {
      assert.ok(bytesDone < bytes.length)
      found = index.lookup(firstDigest).length
      abort.abort(reason)
    },
  })
  await assert.rejects(call, (error) => error === reason)
  assert.equal(found, 1)
  const small = imageOf('small.img', randomBytes(100 * KIB, 10))
  assert.equal((await indexer.indexImage(small, 2)).progress.bytesDone, 100 * KIB)
  assert.equal(index.lookup(firstDigest).length, 1)
  await assert.rejects(
    indexer.indexImage(small, 2, { signal: AbortSignal.abort(reason) }),
    (error) => error === reason,
  )
})

test('a scan looks again and again whether there is room for its map, and goes on without', async () => {
  const [state, link, bytes] = [join(root, 'state'), join(root, 'link'), randomBytes(24 * MIB, 11)]
  mkdirSync(state)
  symlinkSync(state, link)
  const catalog = join(link, 'catalog')
  const index = ChunkIndex.create({ bytesMax: MIB })
  const blocks = ChunkIndex.create({ bytesMax: MIB })
  const limits = { freeBytesMin: 1, freeChunksMax: 8 }
  await using indexer = new ImageIndexer({ index, blocks, catalog, ...limits })
  const path = imageOf('room.img', bytes)
  // After what may be read at once it waits, until it is full.
  const full = Promise.withResolvers<void>()
  let pieces = 0
  const found = await indexer.indexImage(path, 1, {
    bytesPerSecond: 64 * KIB,
    hurry: full.promise,
    onProgress: () => {
      if (pieces++ > 0) return
      // Another file system in its place, one that never has any room.
      symlinkSync('/proc', `${link}.new`)
      renameSync(`${link}.new`, link)
      full.resolve()
    },
  })
  assert.match(found.problem ?? '', /catalog: 0 bytes free, expected at least 1: no maps are made$/)
  assert.equal(found.mapped, false)
  assert.equal(found.progress.chunks, wholeChunks(bytes).length)
})

test('an aborted scan ends before the next piece', async () => {
  await using source = await ImageSource.open(imageOf('aborted.img', randomBytes(16 * MIB, 12)))
  const abort = new AbortController()
  const reason = new Error('enough')
  let pieces = 0
  const scan = scanImage(source, new Chunker(), {
    signal: abort.signal,
    onChunk: () => {},
    onProgress: () => {
      if (++pieces === 2) abort.abort(reason)
    },
  })
  await assert.rejects(scan, (error) => error === reason)
  assert.equal(pieces, 2)
})

test('holes are not read, and change nothing', async () => {
  const size = 200 * MIB + 1000
  const places = [
    { offset: 0, bytes: randomBytes(3 * MIB + 7, 13) },
    { offset: 80 * MIB + 12_345, bytes: randomBytes(9 * MIB, 14) },
    { offset: 90 * MIB, bytes: randomBytes(100, 15) },
    { offset: size - 10, bytes: randomBytes(10, 16) },
  ]
  const whole = Buffer.alloc(size)
  const path = join(root, 'sparse.img')
  const file = openSync(path, 'w')
  ftruncateSync(file, size)
  for (const { offset, bytes } of places) {
    writeSync(file, bytes, 0, bytes.length, offset)
    bytes.copy(whole, offset)
  }
  closeSync(file)

  await using source = await ImageSource.open(path)
  assert.deepEqual(await dataExtents(source), [
    { offset: 0, end: 3 * MIB + 4096 },
    { offset: 80 * MIB + 12_288, end: 90 * MIB + 4096 },
    { offset: size - 1000, end: size },
  ])
  const chunks: string[] = []
  let zeroBytes = 0
  await scanImage(source, new Chunker(), {
    onChunk: (offset, length, digests, at) => {
      chunks.push(
        `${offset} ${length} ${Buffer.from(digests.subarray(at, at + DIGEST_BYTES)).toString('hex')}`,
      )
    },
    onProgress: (_bytesDone, zeroes) => {
      zeroBytes = zeroes
    },
  })
  assert.deepEqual(chunks, wholeChunks(whole))
  assert.equal(
    zeroBytes,
    zeroRuns(whole).reduce((sum, { zero, length }) => sum + (zero ? length : 0), 0),
  )
})

const maps: readonly { name: string; output: string; size: number; extents: DataExtent[] | undefined }[] = [
  { name: 'no JSON', output: '[', size: 4096, extents: undefined },
  { name: 'no array', output: '{}', size: 4096, extents: undefined },
  { name: 'null entries', output: '[null]', size: 4096, extents: undefined },
  { name: 'too short', output: '[{"start":0,"length":4096,"zero":true}]', size: 8192, extents: undefined },
  { name: 'too long', output: '[{"start":0,"length":8192,"zero":true}]', size: 4096, extents: undefined },
  { name: 'a gap', output: '[{"start":1,"length":4096,"zero":true}]', size: 4097, extents: undefined },
  {
    name: 'an endless entry',
    output: '[{"start":0,"length":0,"zero":true}]',
    size: 4096,
    extents: undefined,
  },
  { name: 'all hole', output: '[{"start":0,"length":4096,"zero":true}]', size: 4096, extents: [] },
  {
    name: 'rounded outward, to the size at the end',
    output: '[{"start":0,"length":5120,"zero":true},{"start":5120,"length":1024,"zero":false}]',
    size: 6000,
    extents: [{ offset: 4096, end: 6000 }],
  },
]

for (const { name, output, size, extents } of maps) {
  test(`a map of qemu-img: ${name}`, () => assert.deepEqual(parseMap(output, size), extents))
}

test('close rejects what is under way and may be called again', async () => {
  const indexer = new ImageIndexer({
    index: ChunkIndex.create({ bytesMax: MIB }),
    blocks: ChunkIndex.create({ bytesMax: MIB }),
  })
  const call = assert.rejects(indexer.indexImage(imageOf('closing.img', randomBytes(MIB, 11)), 1), LostError)
  await indexer.close()
  await call
  await indexer.close()
  await assert.rejects(indexer.indexImage('any', 1), LostError)
})
