/** The chunk index against a Map, its bound, its limits of value, and a second thread's view of it. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { ChunkIndex, type ChunkLocation } from '../../../lib/catalog/chunk-index.ts'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { CHUNK_LOCATIONS_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { random } from '../../random.ts'

function digest(number: number): Buffer {
  return sha256(Buffer.from(`digest ${number}`))
}

test('finds what was inserted, and nothing else', () => {
  const index = ChunkIndex.create({ bytesMax: MIB })
  const expected = new Map<number, ChunkLocation>()
  for (let number = 0; number < 20_000; number++) {
    const location = { image: number % 65_536, offset: number * 7_919_000_001, length: 1 + number * 1000 }
    expected.set(number, location)
    assert.ok(index.insert(digest(number), 0, location))
  }
  assert.equal(index.count, 20_000)
  for (const [number, location] of expected) assert.deepEqual(index.lookup(digest(number)), [location])
  for (let number = 20_000; number < 30_000; number++) assert.deepEqual(index.lookup(digest(number)), [])
})

test('digests are found at their offset in a list', () => {
  const index = ChunkIndex.create({ bytesMax: 64 * KIB })
  const list = Buffer.concat([digest(1), digest(2)])
  index.insert(list, 32, { image: 3, offset: 4096, length: 5 })
  assert.deepEqual(index.lookup(list, 32), [{ image: 3, offset: 4096, length: 5 }])
  assert.deepEqual(index.lookup(digest(2)), [{ image: 3, offset: 4096, length: 5 }])
  assert.deepEqual(index.lookup(list, 0), [])
  assert.throws(() => index.lookup(list, 64), RangeError)
})

test('when full it refuses and counts, and goes on answering', () => {
  const index = ChunkIndex.create({ bytesMax: 28_000 })
  assert.ok(index.bytes <= 28_000)
  let accepted = 0
  for (let number = 0; number < 5000; number++) {
    if (index.insert(digest(number), 0, { image: 0, offset: number, length: 1 })) accepted++
  }
  assert.equal(index.count, accepted)
  assert.equal(index.refused, 5000 - accepted)
  assert.ok(accepted > 700 && accepted < 1000, `${accepted} accepted`)
  assert.deepEqual(index.lookup(digest(0)), [{ image: 0, offset: 0, length: 1 }])
  assert.deepEqual(index.lookup(digest(4999)), [])
})

test('a few candidates a digest, each place once', () => {
  const index = ChunkIndex.create({ bytesMax: 64 * KIB })
  const places = [1, 1, 2, 3, 4, 5, 6].map((image) => ({ image, offset: image * 10, length: 100 }))
  const inserted = places.map((location) => index.insert(digest(1), 0, location))
  assert.deepEqual(inserted, [true, false, true, true, true, false, false])
  assert.deepEqual(
    index.lookup(digest(1)).map(({ image }) => image),
    [1, 2, 3, 4],
  )
  assert.equal(index.repeated, 3)
})

test('the largest values fit, larger ones are refused', () => {
  const index = ChunkIndex.create({ bytesMax: 64 * KIB })
  const largest = { image: 65_535, offset: 2 ** 48 - 1, length: 2 ** 32 - 1 }
  index.insert(digest(1), 0, largest)
  assert.deepEqual(index.lookup(digest(1)), [largest])
  for (const wrong of [
    { ...largest, image: 65_536 },
    { ...largest, image: -1 },
    { ...largest, offset: 2 ** 48 },
    { ...largest, offset: -1 },
    { ...largest, offset: 0.5 },
    { ...largest, length: 2 ** 32 },
    { ...largest, length: 0 },
  ]) {
    assert.throws(() => index.insert(digest(2), 0, wrong), RangeError)
  }
  assert.throws(() => ChunkIndex.create({ bytesMax: 8192 }), RangeError)
  assert.throws(() => ChunkIndex.create({ bytesMax: Number.NaN }), RangeError)
})

test('what a forgotten image held is not found, and makes room', () => {
  const index = ChunkIndex.create({ bytesMax: 28_000 })
  // Versions of an image that is scanned anew after each change: together far more than the table holds.
  for (let image = 0; image < 50; image++) {
    const numbers = Array.from({ length: 500 }, (_, number) =>
      number < 250 ? number : image * 1000 + number,
    )
    const held = numbers.filter((number) =>
      index.insert(digest(number), 0, { image, offset: number, length: 1 }),
    )
    assert.equal(held.length, 500, `image ${image}`)
    for (const number of numbers) {
      const expected = held.includes(number) ? [{ image, offset: number, length: 1 }] : []
      assert.deepEqual(index.lookup(digest(number)), expected)
    }
    index.forget(image)
    for (const number of numbers) assert.deepEqual(index.lookup(digest(number)), [])
  }
  assert.ok(index.count < 1000)
  assert.ok(index.isForgotten(49) && !index.isForgotten(50) && !index.isForgotten(81))
  assert.throws(() => index.forget(65_536), RangeError)
})

test('a full table makes room of all that was forgotten, and keeps the rest', () => {
  const next = random(11)
  for (let round = 0; round < 10; round++) {
    // Runs of taken places that go round the end of a small table are common.
    const index = ChunkIndex.create({ bytesMax: 8192 + 32 + 20 * (8 + Math.floor(next() * 300)) })
    const held: { digest: number; location: ChunkLocation }[] = []
    for (let image = 0; image < 60; image++) {
      // Few digests: some of them in several images.
      const digests = Array.from({ length: 20 }, () => Math.floor(next() * 500))
      const free = index.capacity - held.length
      let taken = 0
      for (const number of new Set(digests)) {
        const location = { image, offset: number * 4096, length: 1 + number }
        const known = held.filter((entry) => entry.digest === number).length
        const inserted = index.insert(digest(number), 0, location)
        assert.equal(inserted, known < CHUNK_LOCATIONS_MAX && taken < free, `round ${round}, image ${image}`)
        if (inserted) held.push({ digest: number, location })
        if (inserted) taken++
      }
      if (next() < 0.6) {
        const gone = Math.floor(next() * (image + 1))
        index.forget(gone)
        index.forget(gone)
        held.splice(0, held.length, ...held.filter(({ location }) => location.image !== gone))
      }
      assert.ok(index.count >= held.length && index.count <= index.capacity)
      for (let number = 0; number < 500; number++) {
        const expected = held.filter((entry) => entry.digest === number).map(({ location }) => location)
        // One that took a forgotten one's place may come before older ones.
        const byImage = (a: ChunkLocation, b: ChunkLocation): number => a.image - b.image
        assert.deepEqual(index.lookup(digest(number)).sort(byImage), expected.sort(byImage))
      }
    }
  }
})

test('a table of two slots has room for a lookup that ends', () => {
  const index = ChunkIndex.create({ bytesMax: 32 + 8192 + 20 + 20 })
  index.insert(digest(1), 0, { image: 0, offset: 0, length: 1 })
  assert.equal(index.insert(digest(2), 0, { image: 0, offset: 0, length: 1 }), false)
  assert.deepEqual(index.lookup(digest(3)), [])
})

test('hostile: a disk full of chunks whose digests begin alike does not slow it down', () => {
  const count = 30_000
  const fill = (begin: (number: number) => Buffer): number => {
    const index = ChunkIndex.create({ bytesMax: MIB })
    const started = performance.now()
    for (let number = 0; number < count; number++) {
      assert.ok(index.insert(begin(number), 0, { image: 0, offset: number, length: 4096 }))
    }
    for (let number = 0; number < count; number++) assert.equal(index.lookup(begin(number)).length, 1)
    return performance.now() - started
  }
  const honest = fill((number) => sha256(Buffer.from(`${number}`)))
  // What a guest can search for in some hours: the first four bytes the same, or such as would fall next to each other.
  const alike = fill((number) => Buffer.concat([Buffer.from('swam'), digest(number).subarray(4)]))
  const near = fill((number) => {
    const bytes = digest(number)
    bytes.writeUInt32LE(0x40000000 + number, 0)
    return bytes
  })
  // Side by side in one cluster they took three hundred times as long.
  assert.ok(alike < 20 * honest && near < 20 * honest, `${honest}, then ${alike} and ${near} ms`)
})

test('another thread writes while this one reads: every entry seen is whole', async () => {
  const index = ChunkIndex.create({ bytesMax: 4 * MIB })
  const count = 100_000
  const worker = new Worker(new URL('./chunk-index-writer.ts', import.meta.url), {
    workerData: { shared: index.shared, count },
  })
  const exit = once(worker, 'exit')
  let exited = false
  void exit.then(() => {
    exited = true
  })
  let seen = 0
  while (!exited) {
    for (let number = 0; number < count; number += 97) {
      for (const { image, offset, length } of index.lookup(digest(number))) {
        assert.deepEqual([image, offset, length], [number % 1000, number * 4096, number + 1])
        seen++
      }
    }
    await new Promise((resolve) => setImmediate(resolve))
  }
  assert.ok(seen > 0)
  assert.equal(index.count, count)
})
