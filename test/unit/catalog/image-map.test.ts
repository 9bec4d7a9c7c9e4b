/** Maps of images on disk: what was found is found again without reading the image; what is wrong with one costs a scan. */
import assert from 'node:assert/strict'
import { hash, randomBytes } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  symlinkSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { ChunkIndex } from '../../../lib/catalog/chunk-index.ts'
import { type ImageIdentity, ImageSource, listImages } from '../../../lib/catalog/image-files.ts'
import { ImageIndexer, type IndexedImage } from '../../../lib/catalog/image-index.ts'
import {
  ImageMap,
  type MappedBlocks,
  type MappedChunk,
  type MapSummary,
} from '../../../lib/catalog/image-map.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { HANDPRINT_SAMPLES_MAX, MAP_PIECE_CHUNKS_MAX, MAP_RUN_BLOCKS_MAX } from '../../../lib/core/limits.ts'
import { GIB, KIB, MIB } from '../../../lib/core/units.ts'
import { patchyBytes } from '../chunk/samples.ts'

const IDENTITY: ImageIdentity = { dev: 66n, ino: 2n ** 63n + 5n, size: 16 * GIB, mtimeNs: -7n }
const PATH = '/images/a\u00e4.raw'

function folder(context: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'swam-map-'))
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

/** A chunk; a block has no length. */
interface Entry {
  readonly key: string
  readonly offset: number
  readonly length?: number
}

/** With gaps, and runs that are longer than a section. */
const blockOffset = (index: number): number => (index + Math.floor(index / 3000)) * 4096

function write(directory: string, count: number): Entry[] {
  const writer = new ImageMapWriter(directory, PATH, IDENTITY)
  const entries = Array.from({ length: count }, (_, index) => {
    const digest = randomBytes(32)
    const entry = {
      key: digest.toString('hex', 0, 8),
      offset: index * 256 * KIB,
      length: 1 + (index % (256 * KIB)),
    }
    writer.add(Buffer.concat([Buffer.alloc(32), digest]), 32, entry.offset, entry.length)
    return entry
  })
  const blocks = Array.from({ length: 2 * count }, (_, index) => {
    const hint = randomBytes(8)
    writer.addBlock(blockOffset(index), hint)
    return { key: hint.toString('hex'), offset: blockOffset(index) }
  })
  assert.equal(existsSync(mapPath(directory, PATH)), false, 'nothing is there before it is whole')
  writer.finish()
  writer.abort()
  return [...entries, ...blocks]
}

function read(directory: string, identity = IDENTITY, path = PATH): Entry[] | undefined {
  using map = ImageMap.open(directory, path, identity)
  if (map === undefined) return undefined
  const chunks: Entry[] = []
  const blocks: Entry[] = []
  for (const piece of map.pieces()) {
    if (Array.isArray(piece)) {
      assert.ok(piece.length <= MAP_PIECE_CHUNKS_MAX)
      for (const { key, offset, length } of piece) chunks.push({ key: key.toString('hex'), offset, length })
    } else {
      assert.ok(piece.hints.length <= 8 * MAP_RUN_BLOCKS_MAX)
      for (let at = 0; at < piece.hints.length; at += 8)
        blocks.push({ key: piece.hints.toString('hex', at, at + 8), offset: piece.offset + 512 * at })
    }
  }
  assert.deepEqual([chunks.length, blocks.length], [map.count, map.blockCount])
  return [...chunks, ...blocks]
}

for (const count of [0, 1, MAP_PIECE_CHUNKS_MAX, 3 * MAP_PIECE_CHUNKS_MAX + 1]) {
  test(`what is written is read: ${count} chunks`, (context) => {
    const directory = join(folder(context), 'catalog')
    assert.equal(read(directory), undefined, 'there is none yet')
    const entries = write(directory, count)
    assert.deepEqual(read(directory), entries)
    assert.deepEqual(readdirSync(directory), [mapPath('', PATH)])
    assert.equal(statSync(mapPath(directory, PATH)).mode & 0o777, 0o600)
    assert.equal(statSync(directory).mode & 0o777, 0o700)
    const bytes = statSync(mapPath(directory, PATH)).size
    assert.ok(bytes <= (17 + 2 * 8) * count * 1.01 + 250, `${bytes} bytes for ${count} chunks`)
  })
}

test('the map of another image, or of what this one was, is none', (context) => {
  const directory = folder(context)
  write(directory, 3)
  for (const other of [{ dev: 67n, size: 17 * GIB }, { ino: 5n }, { size: 17 * GIB }, { mtimeNs: 7n }])
    assert.equal(read(directory, { ...IDENTITY, ...other }), undefined, JSON.stringify(Object.keys(other)))
  assert.equal(read(directory, IDENTITY, '/images/b.raw'), undefined)
  assert.equal(read(directory)?.length, 9)
})

test('a map of what the file was, or of one that was written to meanwhile, is an old one', (context) => {
  const directory = folder(context)
  const digests = Array.from({ length: 2000 }, (_, index) => hash('sha256', String(index), 'buffer'))
  const made = (changed: boolean): void => {
    const writer = new ImageMapWriter(directory, PATH, IDENTITY)
    for (const [index, digest] of digests.entries()) writer.add(digest, 0, index * 64 * KIB, 64 * KIB)
    writer.addBlock(0, Buffer.alloc(8, 1))
    writer.finish(changed)
  }
  const summary = (identity: ImageIdentity): Omit<MapSummary, 'madeAtMs'> | undefined => {
    const peeked = ImageMap.peek(directory, PATH, identity)
    if (peeked === undefined) return undefined
    const { madeAtMs, ...rest } = peeked
    assert.ok(Math.abs(Date.now() - madeAtMs) < 60_000)
    return rest
  }
  const handprint = digests.map((digest) => digest.toString('latin1', 0, 8)).sort()
  const whole = { chunks: 2000, blocks: 1, handprint: handprint.slice(0, 64) }
  assert.equal(summary(IDENTITY), undefined, 'there is none')
  for (const changed of [false, true]) {
    made(changed)
    assert.deepEqual(summary(IDENTITY), { exact: !changed, ...whole })
    assert.equal(read(directory)?.length, changed ? undefined : 2001)
    using any = ImageMap.openAny(directory, PATH, IDENTITY)
    assert.deepEqual([any?.changed, any?.count, any?.isOf(IDENTITY)], [changed, 2000, !changed])
  }
  made(false)
  const later = { ...IDENTITY, mtimeNs: 9n, size: 20 * GIB }
  assert.deepEqual(summary(later), { exact: false, ...whole })
  using old = ImageMap.openAny(directory, PATH, later)
  assert.deepEqual([old?.changed, old?.isOf(later), old?.identity], [false, false, IDENTITY])
  for (const other of [{ dev: 1n }, { ino: 1n }]) {
    assert.equal(summary({ ...later, ...other }), undefined)
    assert.equal(ImageMap.openAny(directory, PATH, { ...later, ...other }), undefined)
  }
  assert.equal(ImageMap.peek(directory, PATH, IDENTITY, 'qcow2'), undefined)
  assert.equal(ImageMap.openAny(directory, PATH, IDENTITY, 'qcow2'), undefined)
})

test('one that is torn anywhere, or has any byte changed, is refused, and the next one takes its place', (context) => {
  const directory = folder(context)
  const entries = write(directory, 5)
  const place = mapPath(directory, PATH)
  const whole = readFileSync(place)
  for (let at = 0; at < whole.length; at++) {
    writeFileSync(place, whole)
    truncateSync(place, at)
    assert.throws(() => read(directory), RefusedError, `cut off at ${at}`)
    const changed = Buffer.from(whole)
    changed[at]! ^= 1 << (at % 8)
    writeFileSync(place, changed)
    // A changed identity or path is another image's; nothing of it is believed either.
    assert.deepEqual(
      outcomeOf(() => read(directory)),
      'none',
      `byte ${at} changed`,
    )
  }
  writeFileSync(place, Buffer.concat([whole, Buffer.alloc(17)]))
  assert.throws(() => read(directory), RefusedError)
  rmSync(place)
  writeFileSync(`${place}.new`, whole.subarray(0, 100))
  assert.deepEqual(write(directory, 5).length, entries.length)
  assert.equal(existsSync(`${place}.new`), false)
})

function outcomeOf(work: () => unknown): string {
  try {
    return work() === undefined ? 'none' : 'believed'
  } catch (error) {
    assert.ok(error instanceof RefusedError, String(error))
    return 'none'
  }
}

test('a trailer that counts more samples than the file holds, or than any has, is none', (context) => {
  const directory = folder(context)
  write(directory, 3)
  const place = mapPath(directory, PATH)
  const whole = readFileSync(place)
  const at = whole.length - 32 - 5
  assert.equal(whole.readUInt32BE(at), 3)
  for (const samples of [
    Math.ceil(whole.length / 8),
    HANDPRINT_SAMPLES_MAX,
    HANDPRINT_SAMPLES_MAX + 1,
    2 ** 32 - 1,
  ]) {
    const bytes = Buffer.concat([
      whole.subarray(0, 200),
      Buffer.alloc(samples < 1e6 ? 8 * samples : 0),
      whole.subarray(200),
    ])
    bytes.writeUInt32BE(samples, bytes.length - 32 - 5)
    const short = Buffer.from(whole)
    short.writeUInt32BE(samples, at)
    for (const text of samples <= HANDPRINT_SAMPLES_MAX ? [short] : [short, bytes]) {
      writeFileSync(place, text)
      assert.throws(() => ImageMap.peek(directory, PATH, IDENTITY), RefusedError, `${samples} samples`)
      assert.throws(() => read(directory), RefusedError)
    }
  }
})

test('a handprint that is not the last section is refused, however well it is signed', (context) => {
  const directory = folder(context)
  write(directory, 3)
  const place = mapPath(directory, PATH)
  const whole = readFileSync(place)
  const trailer = whole.length - 61
  const samples = trailer - 5 - 3 * 8
  const chunks = whole.indexOf(Buffer.from([1, 0, 0, 0, 3]), 50)
  assert.equal(whole.readUInt8(samples), 3)
  const body = Buffer.concat([
    whole.subarray(0, chunks),
    whole.subarray(samples, trailer),
    whole.subarray(chunks, samples),
    whole.subarray(trailer, -32),
  ])
  writeFileSync(place, Buffer.concat([body, hash('sha256', body, 'buffer')]))
  assert.throws(() => read(directory), /a section after the handprint/)
})

test('a section of more entries than one may have is refused, however well it is signed', (context) => {
  const directory = folder(context)
  const place = mapPath(directory, PATH)
  /** Two sections of one kind become one. */
  const merged = (kind: number, most: number, entryBytes: number, before: number): void => {
    const whole = readFileSync(place)
    const head = Buffer.alloc(5)
    head.writeUInt8(kind)
    head.writeUInt32BE(most, 1)
    const first = whole.indexOf(head, 50)
    const second = first + 5 + before + most * entryBytes
    assert.equal(whole.readUInt32BE(second + 1), 1, 'one entry is left over')
    whole.writeUInt32BE(most + 1, first + 1)
    const body = Buffer.concat([whole.subarray(0, second), whole.subarray(second + 5 + before, -32)])
    writeFileSync(place, Buffer.concat([body, hash('sha256', body, 'buffer')]))
    assert.throws(() => read(directory), new RegExp(`a section of kind ${kind} with ${most + 1} entries`))
  }
  const chunks = new ImageMapWriter(directory, PATH, IDENTITY)
  for (let at = 0; at <= MAP_PIECE_CHUNKS_MAX; at++) chunks.add(randomBytes(32), 0, at * 4096, 4096)
  chunks.finish()
  merged(1, MAP_PIECE_CHUNKS_MAX, 17, 0)
  const blocks = new ImageMapWriter(directory, PATH, IDENTITY)
  for (let at = 0; at <= MAP_RUN_BLOCKS_MAX; at++) blocks.addBlock(at * 4096, randomBytes(8))
  blocks.finish()
  merged(2, MAP_RUN_BLOCKS_MAX, 8, 6)
})

test('chunks that lie beyond the image, overlap, or are none are refused, however well they are signed', (context) => {
  const directory = folder(context)
  const signed = (entries: readonly (readonly [offset: number, length: number])[], size: number): void => {
    const identity = { ...IDENTITY, size }
    const writer = new ImageMapWriter(directory, PATH, identity)
    for (const [offset, length] of entries) writer.add(randomBytes(32), 0, offset, length)
    writer.finish()
    assert.throws(() => read(directory, identity), RefusedError, JSON.stringify(entries))
  }
  signed([[MIB - 4096, 4097]], MIB)
  signed([[2 ** 47, 4096]], MIB)
  signed([[0, 0]], MIB)
  signed([[0, 256 * KIB + 1]], MIB)
  signed(
    [
      [0, 4096],
      [4095, 4096],
    ],
    MIB,
  )
  signed(
    [
      [8192, 4096],
      [0, 4096],
    ],
    MIB,
  )
  signed(
    Array.from({ length: 257 }, (_, index) => [index, 1] as const),
    MIB,
  )
})

test('blocks that lie beyond the image, between blocks or before others are refused', (context) => {
  const directory = folder(context)
  for (const [offsets, size] of [
    [[MIB], MIB],
    [[MIB - 4096], MIB - 1],
    [[100], MIB],
    [[8192, 4096], MIB],
    [[4096, 4096], MIB],
  ] as const) {
    const identity = { ...IDENTITY, size }
    const writer = new ImageMapWriter(directory, PATH, identity)
    for (const offset of offsets) writer.addBlock(offset, randomBytes(8))
    writer.finish()
    assert.throws(() => read(directory, identity), RefusedError, JSON.stringify(offsets))
  }
})

test('a link, a directory and a FIFO in the place of a map are no map', (context) => {
  const directory = folder(context)
  write(directory, 1)
  const place = mapPath(directory, PATH)
  const elsewhere = join(directory, 'elsewhere')
  writeFileSync(elsewhere, readFileSync(place))
  rmSync(place)
  symlinkSync(elsewhere, place)
  assert.throws(() => read(directory))
  rmSync(place)
  mkdirSync(place)
  assert.throws(() => read(directory))
})

test('the map of an image whose file system has another number now is good, as long as nobody touched it', (context) => {
  const directory = folder(context)
  write(directory, 1)
  const elsewhere = { ...IDENTITY, dev: IDENTITY.dev + 1n }
  assert.equal(ImageMap.peek(directory, PATH, elsewhere)?.exact, true)
  using map = ImageMap.open(directory, PATH, elsewhere)
  assert.equal(map?.isOf(elsewhere), true)
  for (const other of [
    { ...elsewhere, mtimeNs: elsewhere.mtimeNs + 1n },
    { ...elsewhere, size: elsewhere.size + 1 },
    { ...elsewhere, ino: elsewhere.ino + 1n },
  ]) {
    assert.equal(ImageMap.peek(directory, PATH, other), undefined)
    assert.equal(ImageMap.openAny(directory, PATH, other), undefined)
    assert.equal(map?.isOf(other), false)
  }
})

/** Everything that the indexes hold of these contents, by place. */
function places(
  { index, blocks }: { index: ChunkIndex; blocks: ChunkIndex },
  pieces: readonly (MappedChunk[] | MappedBlocks)[],
): string[] {
  const found = (table: ChunkIndex, key: Buffer, offset: number): string[] =>
    table
      .lookup(key)
      .filter((one) => one.offset === offset)
      .map((one) => `${one.image} ${one.offset} ${one.length}`)
  return pieces.flatMap((piece) => {
    if (Array.isArray(piece)) return piece.flatMap(({ key, offset }) => found(index, key, offset))
    const { offset, hints } = piece
    return Array.from({ length: hints.length / 8 }, (_, at) =>
      found(blocks, hints.subarray(8 * at), offset + 4096 * at),
    ).flat()
  })
}

test('an image is scanned once: the next index takes it from its map, chunk for chunk', async (context) => {
  const directory = folder(context)
  const catalog = join(directory, 'catalog')
  const path = join(directory, 'disk.raw')
  writeFileSync(path, patchyBytes(21 * MIB, 5))
  const indexed = async (): Promise<{ image: IndexedImage; index: ChunkIndex; blocks: ChunkIndex }> => {
    const index = ChunkIndex.create({ bytesMax: MIB })
    const blocks = ChunkIndex.create({ bytesMax: MIB })
    await using indexer = new ImageIndexer({ index, blocks, catalog })
    return { image: await indexer.indexImage(path, 7), index, blocks }
  }
  const first = await indexed()
  assert.deepEqual([first.image.mapped, first.image.problem, first.image.stale], [false, undefined, false])
  await using source = await ImageSource.open(path)
  using map = ImageMap.open(catalog, path, source.identity)
  assert.ok(map !== undefined && map.count === first.image.progress.chunks && map.count > 10)
  const pieces = [...map.pieces()]
  const second = await indexed()
  assert.deepEqual([second.image.mapped, second.image.problem], [true, undefined])
  assert.deepEqual(second.image.progress, { ...first.image.progress })
  assert.deepEqual(places(second, pieces), places(first, pieces))
  assert.equal(places(first, pieces).length, map.count + map.blockCount)
  assert.ok(map.blockCount > 1000 && map.count === first.image.progress.inserted)

  // A bit is flipped: it is said, the image is scanned, and the map is a good one again.
  const place = mapPath(catalog, path)
  const bytes = readFileSync(place)
  bytes[bytes.length - 80]! ^= 4
  writeFileSync(place, bytes)
  const third = await indexed()
  assert.equal(third.image.mapped, false)
  assert.match(third.image.problem ?? '', /its digest does not fit|a chunk of/)
  assert.deepEqual(places(third, pieces), places(first, pieces))
  assert.equal((await indexed()).image.mapped, true)

  // It was written to.
  writeFileSync(path, patchyBytes(20 * MIB, 6))
  const fourth = await indexed()
  assert.deepEqual([fourth.image.mapped, fourth.image.problem], [false, undefined])
  assert.equal((await indexed()).image.mapped, true)
})

test('a catalog that cannot be written costs nothing but a scan', async (context) => {
  const directory = folder(context)
  const path = join(directory, 'disk.raw')
  writeFileSync(path, patchyBytes(4 * MIB, 7))
  const catalog = join(directory, 'catalog')
  writeFileSync(catalog, 'a file in its place')
  const index = ChunkIndex.create({ bytesMax: MIB })
  await using indexer = new ImageIndexer({ index, blocks: ChunkIndex.create({ bytesMax: MIB }), catalog })
  const image = await indexer.indexImage(path, 0)
  assert.deepEqual([image.mapped, image.progress.inserted > 0], [false, true])
  assert.match(image.problem ?? '', /ENOTDIR|EEXIST/)
})

test('a stock that begins anew takes the images from their maps', async (context) => {
  const directory = folder(context)
  const images = join(directory, 'images')
  const catalog = join(directory, 'catalog')
  mkdirSync(images)
  const names = ['a.raw', 'b.raw']
  const when = new Date(2020, 1, 1)
  for (const name of names) {
    writeFileSync(join(images, name), randomBytes(2 * MIB))
    utimesSync(join(images, name), when, when)
  }
  const filled = async (): Promise<[mapped: number, chunks: number]> => {
    let mapped = 0
    const onIndexed = (image: IndexedImage): void => {
      if (image.mapped) mapped++
    }
    const stock = new ImageStock({
      indexBytesMax: MIB,
      blockIndexBytesMax: MIB,
      imagesMax: 16,
      catalog,
      onIndexed,
    })
    try {
      await stock.refresh(() => listImages([images]), new Set())
      const end = Date.now() + 10_000
      while (stock.scanning > 0 && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 10))
      return [mapped, stock.chunkCount]
    } finally {
      await stock.close()
    }
  }
  const [scanned, chunks] = await filled()
  assert.deepEqual([scanned, readdirSync(catalog).length], [0, 2])
  assert.deepEqual(await filled(), [2, chunks])
  rmSync(join(images, 'a.raw'))
  assert.equal((await filled())[0], 1)
  assert.deepEqual(
    readdirSync(catalog).filter((name) => name !== 'seen'),
    [mapPath('', join(images, 'b.raw'))],
    'the map of what is gone is dropped',
  )
})
