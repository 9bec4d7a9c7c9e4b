/**
 * A scan that takes what an overlay has of its base from the base's map reports the same chunks and blocks, in an order that a map
 * can be written in, as one that reads everything; and it reads little more than what is the overlay's own.
 */
import assert from 'node:assert/strict'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import type { DataExtent } from '../../../lib/catalog/data-extents.ts'
import type { ExtentSource } from '../../../lib/catalog/extent-source.ts'
import { ImageMap } from '../../../lib/catalog/image-map.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { scanImage } from '../../../lib/catalog/image-scan.ts'
import { KnownParts } from '../../../lib/catalog/known-parts.ts'
import { Chunker } from '../../../lib/chunk/chunker.ts'
import { CHUNK_BYTES_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { random } from '../../random.ts'

const CLUSTER = 64 * KIB
const root = mkdtempSync(join(tmpdir(), 'swam-known-'))
after(() => rmSync(root, { recursive: true }))
const chunker = new Chunker()

class MemorySource implements ExtentSource {
  readonly path = '/images/top.qcow2'
  readonly #bytes: Buffer
  readonly #extents: DataExtent[]
  bytesRead = 0

  constructor(bytes: Buffer, extents: DataExtent[] = [{ offset: 0, end: bytes.length }]) {
    this.#bytes = bytes
    this.#extents = extents
  }

  get size(): number {
    return this.#bytes.length
  }

  async extents(): Promise<DataExtent[]> {
    return this.#extents
  }

  async read(offset: number, length: number): Promise<Buffer> {
    return this.#bytes.subarray(offset, offset + length)
  }

  async readInto(target: Uint8Array, offset: number): Promise<number> {
    const length = this.#bytes.copy(target, 0, offset, offset + target.length)
    this.bytesRead += length
    return length
  }

  async isStale(): Promise<boolean> {
    return false
  }

  async close(): Promise<void> {}
}

interface Found {
  readonly lines: string[]
  readonly zeroBytes: number
}

async function found(source: ExtentSource, known?: KnownParts): Promise<Found> {
  const lines: string[] = []
  let blocksEnd = 0
  let zeroBytes = 0
  await scanImage(source, chunker, {
    ...(known === undefined ? {} : { known }),
    onChunk: (offset, length, digests, at) => {
      assert.ok(
        offset + length <= blocksEnd || offset + length === source.size,
        'its blocks come before a chunk',
      )
      lines.push(`chunk ${offset} ${length} ${Buffer.from(digests.subarray(at, at + 8)).toString('hex')}`)
    },
    onBlock: (offset, hint) => {
      assert.ok(offset >= blocksEnd, 'blocks come in order, each once')
      blocksEnd = offset + 4096
      lines.push(`block ${offset} ${hint.toString('hex')}`)
    },
    onProgress: (_, zeroes) => {
      zeroBytes = zeroes
    },
  })
  return { lines: lines.sort(), zeroBytes }
}

let maps = 0

async function mapOf(bytes: Buffer, extents?: DataExtent[]): Promise<ImageMap> {
  const directory = join(root, String(maps++))
  const identity = { dev: 1n, ino: 1n, size: bytes.length, mtimeNs: 1n }
  const writer = new ImageMapWriter(directory, '/images/base', identity)
  await scanImage(new MemorySource(bytes, extents), chunker, {
    onChunk: (offset, length, digests, at) => writer.add(digests, at, offset, length),
    onBlock: (offset, hint) => writer.addBlock(offset, hint),
  })
  writer.finish()
  const map = ImageMap.open(directory, '/images/base', identity)
  assert.ok(map !== undefined)
  return map
}

function fill(bytes: Buffer, from: number, to: number, next: () => number): void {
  for (let at = from; at + 4 <= to; at += 4) bytes.writeUInt32LE(Math.floor(next() * 2 ** 32), at)
}

/** A file system's worth of data, zero blocks and holes. */
function someBase(size: number, next: () => number): Buffer {
  const bytes = Buffer.alloc(size)
  for (let at = 0; at < size; ) {
    const length = Math.floor(next() * (next() < 0.2 ? 3 * MIB : 300 * KIB))
    const kind = next()
    if (kind < 0.7) fill(bytes, at, Math.min(size, at + length), next)
    // A long row of the same bytes: chunks of the largest size.
    else if (kind < 0.8) bytes.fill(7, at, Math.min(size, at + length))
    at += length
  }
  return bytes
}

/** Holes of 1 MiB and more left out, as both kinds of sources do. */
function extentsOf(bytes: Buffer): DataExtent[] {
  const extents: { offset: number; end: number }[] = []
  for (let at = 0; at < bytes.length; at += CLUSTER) {
    const end = Math.min(bytes.length, at + CLUSTER)
    if (bytes.subarray(at, end).every((byte) => byte === 0)) continue
    const last = extents.at(-1)
    if (last !== undefined && at - last.end < MIB) last.end = end
    else extents.push({ offset: at, end })
  }
  return extents
}

let savedBytes = 0

for (let seed = 1; seed <= 30; seed++) {
  test(`an overlay from its base's map is the overlay as it is read (seed ${seed})`, async () => {
    const next = random(seed)
    const base = someBase((4 + Math.floor(next() * 20)) * MIB + Math.floor(next() * 3) * 4196, next)
    const size = next() < 0.5 ? base.length : Math.floor(next() * 24 * MIB)
    const top = Buffer.alloc(size)
    base.copy(top)
    const parts: DataExtent[] = []
    // Clusters that are its own, some of them zeroes, some alike.
    for (let at = 0; at < size; at += CLUSTER) {
      const own = next()
      const end = Math.min(size, at + CLUSTER)
      if (own < 0.02) fill(top, at, end, next)
      else if (own < 0.03) top.fill(0, at, end)
      else if (own < 0.04) fill(top, at + 4096 * Math.floor(next() * 15), Math.min(end, at + 40_960), next)
      if (own < 0.05) continue
      const last = parts.at(-1)
      if (last?.end === at) parts[parts.length - 1] = { offset: last.offset, end }
      else parts.push({ offset: at, end })
    }
    const [baseExtents, topExtents] =
      next() < 0.5 ? [extentsOf(base), extentsOf(top)] : [undefined, undefined]
    const whole = new MemorySource(top, topExtents)
    const expected = await found(whole)
    using map = await mapOf(base, baseExtents)
    const source = new MemorySource(top, topExtents)
    assert.deepEqual(await found(source, new KnownParts(map, parts)), expected)
    savedBytes += whole.bytesRead - source.bytesRead
    // And with everything its own.
    assert.deepEqual(await found(new MemorySource(top, topExtents), new KnownParts(map, [])), expected)
  })
}

test('those seeds were not read as a whole', () => {
  assert.ok(savedBytes > 30 * MIB, `${savedBytes} bytes were not read in all seeds`)
})

test('a chunk that ended because zeroes followed goes on where the overlay has data there', async () => {
  const next = random(79)
  const base = Buffer.alloc(6 * MIB)
  fill(base, 0, 2 * MIB, next)
  const top = Buffer.from(base)
  fill(top, 2 * MIB, 4 * MIB, next)
  using map = await mapOf(base)
  const known = new KnownParts(map, [
    { offset: 0, end: 2 * MIB },
    { offset: 4 * MIB, end: 6 * MIB },
  ])
  assert.deepEqual(await found(new MemorySource(top), known), await found(new MemorySource(top)))
})

test('of a block that is the overlay’s own in part nothing is known', async () => {
  const next = random(80)
  const top = Buffer.alloc(6 * MIB)
  fill(top, 0, top.length, next)
  let begin = 0
  for (const length of chunker.describe(top).lengths) {
    begin += length
    if (begin % 4096 > 1024) break
  }
  // A chunk of the largest size, which ends in the middle of a block whose first sector is the overlay's own. The rest of the
  // block is zero in both: so there is nothing of it in the base's map, and in the overlay another chunk begins in it.
  const block = begin + CHUNK_BYTES_MAX - (begin % 4096)
  assert.ok(begin % 4096 > 1024 && block < 3 * MIB)
  top.fill(7, begin, block + 512)
  top.fill(0, block + 512, block + 4096)
  const base = Buffer.from(top)
  base.fill(0, block, block + 4096)
  using map = await mapOf(base)
  const known = new KnownParts(map, [{ offset: block + 512, end: top.length }])
  assert.deepEqual(await found(new MemorySource(top), known), await found(new MemorySource(top)))
})

test('of an overlay with little of its own little is read', async () => {
  const next = random(77)
  const base = Buffer.alloc(96 * MIB)
  fill(base, 0, 90 * MIB, next)
  const top = Buffer.from(base)
  const own = [10, 30, 31, 70].map((at) => ({ offset: at * MIB, end: at * MIB + CLUSTER }))
  for (const { offset, end } of own) fill(top, offset, end, next)
  const parts = [0, ...own.map(({ end }) => end)].map((offset, index) => ({
    offset,
    end: own[index]?.offset ?? top.length,
  }))
  using map = await mapOf(base)
  const source = new MemorySource(top)
  const expected = await found(new MemorySource(top))
  assert.deepEqual(await found(source, new KnownParts(map, parts)), expected)
  // Each of the four, what was read ahead at it, and the zeroes at the end.
  assert.ok(source.bytesRead < 16 * MIB, `${source.bytesRead} bytes read`)
})

test('a scan that is told to end does, in the middle of what is known', async () => {
  const next = random(78)
  const base = Buffer.alloc(400 * MIB)
  // 16 KiB and a zero block in turn: as many chunks as can be.
  fill(base, 0, 16 * KIB, next)
  for (let at = 20 * KIB; at + 16 * KIB <= base.length; at += 20 * KIB) base.copy(base, at, 0, 16 * KIB)
  using map = await mapOf(base)
  const abort = new AbortController()
  let chunks = 0
  const scan = scanImage(new MemorySource(base), chunker, {
    known: new KnownParts(map, [{ offset: 0, end: base.length }]),
    signal: abort.signal,
    onChunk: () => {
      if (++chunks === 10) setImmediate(() => abort.abort(new Error('enough')))
    },
  })
  await assert.rejects(scan, /enough/)
  assert.ok(chunks < map.count / 2, `${chunks} of ${map.count}`)
})
