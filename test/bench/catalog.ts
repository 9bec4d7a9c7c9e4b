/**
 * Bench of the catalog: how fast maps are made of 10 GiB of real data, beside SHA-256 of the same bytes on one thread; what they take
 * on disk; and what a stock of 1 TiB costs in memory, whose maps are synthetic (keys from a generator, files of holes): lookups
 * per second, and how long an image that found no room takes to be in the index once it is asked for. A sample of what the index
 * says is read and digested, and one map is made again and compared.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import {
  closeSync,
  mkdirSync,
  openSync,
  readSync,
  statSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { type ImageFile, ImageSource, listImages } from '../../lib/catalog/image-files.ts'
import { ImageMap } from '../../lib/catalog/image-map.ts'
import { mapPath } from '../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../lib/catalog/image-map-writer.ts'
import { MapFolder } from '../../lib/catalog/map-folder.ts'
import { ImageStock } from '../../lib/catalog/stock.ts'
import { indexBudgets } from '../../lib/catalog/stock-choice.ts'
import { sha256 } from '../../lib/chunk/digest.ts'
import { GIB, KIB, MIB } from '../../lib/core/units.ts'
import { imagePairs } from './pairs.ts'
import { inScratch } from './scratch.ts'

const REAL_BYTES = 10 * GIB
const SYNTHETIC_IMAGES = 64
const SYNTHETIC_BYTES = 16 * GIB
const CHUNK_BYTES = 64 * KIB
const BLOCK_BYTES = 4 * KIB
const INDEX_BYTES = 256 * MIB
const LOOKUPS = 1_000_000
const NO_ONE: ReadonlySet<string> = new Set()

export async function run(): Promise<object> {
  return await inScratch(async (folder) => ({
    version: 1,
    name: 'catalog',
    real: await real(join(folder, 'real')),
    synthetic: await synthetic(join(folder, 'synthetic')),
  }))
}

function stockAt(folder: string, onProblem: (text: string) => void): ImageStock {
  return new ImageStock({
    ...indexBudgets(INDEX_BYTES),
    imagesMax: 256,
    catalog: join(folder, 'state', 'catalog'),
    restMs: 0,
    onProblem,
  })
}

async function settled(stock: ImageStock): Promise<void> {
  while (stock.busy) await new Promise((resolve) => setTimeout(resolve, 10))
}

function throwing(text: string): void {
  throw new Error(text)
}

// ---- real ------------------------------------------------------------------------------------------------------

async function real(folder: string): Promise<object> {
  const images = join(folder, 'images')
  mkdirSync(images, { recursive: true })
  mkdirSync(join(folder, 'state'))
  const dataBytes = await makeImages(images)
  const files = await listImages([images])
  const stock = stockAt(folder, throwing)
  try {
    const since = performance.now()
    await stock.tend(async () => files, { busy: () => NO_ONE, bytesPerSecond: 1024 * GIB })
    const seconds = (performance.now() - since) / 1000
    const sha = sha256Rate(files)
    let mapBytes = 0
    for (const { path } of files) mapBytes += statSync(mapPath(join(folder, 'state', 'catalog'), path)).size
    await stock.refresh(async () => files, NO_ONE)
    await settled(stock)
    const verified = await verify(stock, files, join(folder, 'state', 'catalog'))
    const exact = await new MapFolder({ stateDir: join(folder, 'state'), images: [images] }).isExact(
      files[0]!.path,
    )
    assert.ok(exact, 'a map that is made again is the same')
    return {
      images: files.length,
      dataBytes,
      seconds,
      mbPerSecond: dataBytes / 1e6 / seconds,
      sha256MbPerSecond: sha,
      mapBytesPerGiB: mapBytes / (dataBytes / GIB),
      mapShare: mapBytes / dataBytes,
      chunksVerified: verified,
    }
  } finally {
    await stock.close()
  }
}

/** Copies of real images, each with its data changed by one byte's value so that none is like another, and holes kept. */
async function makeImages(images: string): Promise<number> {
  const sources = new Set((await imagePairs()).map(({ target }) => target.path))
  const buffer = Buffer.alloc(MIB)
  let total = 0
  for (let copy = 0; total < REAL_BYTES; copy++) {
    for (const [number, path] of [...sources].entries()) {
      if (total >= REAL_BYTES) break
      await using source = await ImageSource.open(path)
      const made = join(images, `${copy}-${number}.raw`)
      const fd = openSync(made, 'wx')
      for (const { offset, end } of await source.extents()) {
        for (let at = offset; at < end; at += buffer.length) {
          const bytes = buffer.subarray(
            0,
            await source.readInto(buffer.subarray(0, Math.min(MIB, end - at)), at),
          )
          for (let block = 0; block < bytes.length; block += BLOCK_BYTES) {
            const part = bytes.subarray(block, block + BLOCK_BYTES)
            if (part.every((byte) => byte === 0)) continue
            if (copy > 0) for (let index = 0; index < part.length; index++) part[index]! ^= copy
            total += writeSync(fd, part, 0, part.length, at + block)
          }
        }
      }
      closeSync(fd)
      truncateSync(made, source.size)
    }
  }
  return total
}

/** One thread, 64 KiB at a time, of what the page cache holds: 1 GiB of it. */
function sha256Rate(files: readonly ImageFile[]): number {
  const buffer = Buffer.alloc(CHUNK_BYTES)
  let bytes = 0
  let ms = 0
  const fd = openSync(files[0]!.path, 'r')
  for (let at = 0; bytes < GIB; at += buffer.length) {
    const got = readSync(fd, buffer, 0, buffer.length, at)
    if (got < buffer.length) at = -buffer.length
    const since = performance.now()
    sha256(buffer)
    ms += performance.now() - since
    bytes += buffer.length
  }
  closeSync(fd)
  return bytes / 1000 / ms
}

/** Chunks of each image by their keys: found, read, and of the digest that the key begins. */
async function verify(stock: ImageStock, files: readonly ImageFile[], catalog: string): Promise<number> {
  let verified = 0
  for (const { path, identity } of files) {
    using map = ImageMap.open(catalog, path, identity)
    assert.ok(map !== undefined, `${path}: no map`)
    let seen = 0
    for (const piece of map.pieces()) {
      if (!Array.isArray(piece)) continue
      for (const { key, offset, length } of piece) {
        if (seen++ % 500 !== 0) continue
        const place = stock.lookup(key).find(({ image }) => stock.image(image) !== undefined)
        assert.ok(place !== undefined, `${path}: the chunk at ${offset} is not found`)
        const bytes = await stock.image(place.image)!.source.read(place.offset, length)
        assert.ok(sha256(bytes).subarray(0, 8).equals(key), `${path}: the chunk at ${offset} is another one`)
        verified++
      }
    }
  }
  return verified
}

// ---- synthetic -------------------------------------------------------------------------------------------------

/** Key `index` of an image: eight bytes that look like a digest's. */
function fillKey(key: Buffer, image: number, kind: number, index: number): void {
  let a = (Math.imul(index + 1, 0x9e3779b1) ^ Math.imul(image + 1, 0x85ebca6b) ^ kind) >>> 0
  for (const at of [0, 4]) {
    a = Math.imul(a ^ (a >>> 16), 0x7feb352d) >>> 0
    a = Math.imul(a ^ (a >>> 15), 0x846ca68b) >>> 0
    a = (a ^ (a >>> 16) ^ (at === 0 ? 0 : index)) >>> 0
    key.writeUInt32BE(a, at)
  }
}

async function synthetic(folder: string): Promise<object> {
  const images = join(folder, 'images')
  const catalog = join(folder, 'state', 'catalog')
  mkdirSync(images, { recursive: true })
  mkdirSync(join(folder, 'state'))
  const chunks = SYNTHETIC_BYTES / CHUNK_BYTES
  const key = Buffer.alloc(8)
  for (let image = 0; image < SYNTHETIC_IMAGES; image++) {
    const path = join(images, `${String(image).padStart(3, '0')}.raw`)
    writeFileSync(path, '')
    truncateSync(path, SYNTHETIC_BYTES)
    await using source = await ImageSource.open(path)
    const writer = new ImageMapWriter(catalog, path, source.identity)
    for (let chunk = 0; chunk < chunks; chunk++) {
      fillKey(key, image, 1, chunk)
      writer.add(key, 0, chunk * CHUNK_BYTES, CHUNK_BYTES)
    }
    for (let block = 0; block < SYNTHETIC_BYTES / BLOCK_BYTES; block++) {
      fillKey(key, image, 2, block)
      writer.addBlock(block * BLOCK_BYTES, key)
    }
    writer.finish()
  }
  const files = await listImages([images])
  let mapBytes = 0
  for (const { path } of files) mapBytes += statSync(mapPath(catalog, path)).size

  const rssBefore = process.memoryUsage().rss
  const stock = stockAt(folder, throwing)
  try {
    const loadSince = performance.now()
    await stock.refresh(async () => files, NO_ONE)
    await settled(stock)
    const loadMs = performance.now() - loadSince
    const found = (image: number, kind: 1 | 2, count: number): number => {
      let hits = 0
      for (let index = 0; index < count; index++) {
        fillKey(key, image, kind, index)
        const places = kind === 1 ? stock.lookup(key) : stock.lookupBlock(key, 0)
        if (places.some(({ offset }) => offset === index * (kind === 1 ? CHUNK_BYTES : BLOCK_BYTES))) hits++
      }
      return hits
    }
    const known = files.map((_, image) => found(image, 2, 100) > 90)
    const missing = known.indexOf(false)
    assert.ok(missing >= 0 && known.includes(true), 'some find room, some do not')

    const lookupSince = performance.now()
    found(known.indexOf(true), 1, LOOKUPS)
    const lookupsPerSecond = LOOKUPS / ((performance.now() - lookupSince) / 1000)

    // What comes in is like the one that is missing, from its start.
    const selectSince = performance.now()
    let asked = 0
    let selectMs = Number.POSITIVE_INFINITY
    while (performance.now() - selectSince < 120_000) {
      if (asked < chunks) {
        for (let index = 0; index < 256; index++) {
          fillKey(key, missing, 1, asked++)
          stock.lookup(key)
        }
      }
      // 16 MiB of what comes in, at some 100 MB/s.
      await new Promise((resolve) => setTimeout(resolve, 160))
      if (found(missing, 2, 1000) < 900) continue
      selectMs = performance.now() - selectSince
      break
    }
    assert.ok(Number.isFinite(selectMs), 'what is asked for comes into the index')
    const digest = createHash('sha256').update('no such chunk').digest()
    assert.deepEqual(stock.lookup(digest), [])
    return {
      images: files.length,
      imageBytes: SYNTHETIC_IMAGES * SYNTHETIC_BYTES,
      mapBytesPerGiB: mapBytes / ((SYNTHETIC_IMAGES * SYNTHETIC_BYTES) / GIB),
      loadMs,
      chunksInIndex: stock.chunkCount,
      blocksInIndex: stock.blockCount,
      withBlocks: known.filter(Boolean).length,
      lookupsPerSecond,
      selectMs,
      selectAfterBytes: asked * CHUNK_BYTES,
      indexBytes: INDEX_BYTES * 1.5,
      rssBytes: process.memoryUsage().rss - rssBefore,
    }
  } finally {
    await stock.close()
  }
}
