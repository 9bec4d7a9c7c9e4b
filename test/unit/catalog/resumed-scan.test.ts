/** A scan that was cut short goes on where its map's whole part ends, and the map is the same as if nothing had been. */
import assert from 'node:assert/strict'
import {
  copyFileSync,
  mkdtempSync,
  readFileSync,
  rmSync,
  statSync,
  truncateSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { ChunkIndex } from '../../../lib/catalog/chunk-index.ts'
import { type ImageIdentity, ImageSource } from '../../../lib/catalog/image-files.ts'
import { ImageIndexer, type IndexProgress } from '../../../lib/catalog/image-index.ts'
import { ImageMap, type PartialMap } from '../../../lib/catalog/image-map.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { type ScanStart, scanImage } from '../../../lib/catalog/image-scan.ts'
import { Chunker } from '../../../lib/chunk/chunker.ts'
import { MAP_PIECE_CHUNKS_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, KIB, MIB } from '../../../lib/core/units.ts'
import { randomBytes } from '../chunk/samples.ts'

const root = mkdtempSync(join(tmpdir(), 'swam-resumed-'))
after(() => rmSync(root, { recursive: true }))

/** Chunks of one block, so that a section of chunks is soon full, after 64 MiB; around its end a stretch that Rabin cuts, within blocks. */
const FEW = MAP_PIECE_CHUNKS_MAX - 6

function contents(): Buffer {
  const bytes = Buffer.alloc(129 * MIB)
  const block = (at: number, seed: number): void => void randomBytes(BLOCK_BYTES, seed).copy(bytes, at)
  for (let number = 0; number < FEW; number++) block(number * 2 * BLOCK_BYTES, number + 1)
  randomBytes(MIB, 7).copy(bytes, FEW * 2 * BLOCK_BYTES)
  for (
    let at = FEW * 2 * BLOCK_BYTES + MIB + BLOCK_BYTES;
    at < bytes.length - BLOCK_BYTES;
    at += 2 * BLOCK_BYTES
  )
    block(at, at)
  return bytes
}

const path = join(root, 'disk.raw')
writeFileSync(path, contents())

class Cut extends Error {}

async function scan(
  source: ImageSource,
  writer: ImageMapWriter,
  options: { readonly from?: ScanStart; readonly stopAt?: number } = {},
): Promise<number> {
  const { from, stopAt = Number.POSITIVE_INFINITY } = options
  let zeroes = 0
  await scanImage(source, new Chunker(), {
    ...(from === undefined ? {} : { from }),
    onChunk: (offset, length, digests, at) => writer.add(digests, at, offset, length),
    onBlock: (offset, hint) => writer.addBlock(offset, hint),
    onProgress: (bytesDone, zeroBytes) => {
      zeroes = zeroBytes
      if (bytesDone >= stopAt) throw new Cut()
    },
  })
  return zeroes
}

function read(catalog: string, identity: ImageIdentity): object[] {
  using map = ImageMap.open(catalog, path, identity)
  assert.ok(map !== undefined)
  return [...map.pieces()]
    .flatMap((piece): object[] => {
      if (Array.isArray(piece))
        return piece.map(({ key, offset, length }) => ({ key: key.toString('hex'), offset, length }))
      const { offset, hints } = piece
      return Array.from({ length: hints.length / 8 }, (_, at) => ({
        block: hints.toString('hex', 8 * at, 8 * at + 8),
        offset: offset + at * BLOCK_BYTES,
      }))
    })
    .toSorted((one, other) => (JSON.stringify(one) < JSON.stringify(other) ? -1 : 1))
}

function startOf(partial: PartialMap): ScanStart {
  const { chunksEnd, blocksEnd } = partial
  let data = 0
  for (const { kind, entries } of partial.sections())
    if (kind === 1) for (let at = 0; at < entries.length; at += 17) data += entries.readUIntBE(at + 14, 3)
  return { chunksEnd, blocksEnd, zeroBytes: chunksEnd - data }
}

const options = (source: ImageSource) => ({
  disk: { format: 'raw', bytes: source.size } as const,
  ageMsMax: 60_000,
})

test('wherever it is cut, what is whole is kept, and the rest follows', async () => {
  const whole = join(root, 'whole')
  await using source = await ImageSource.open(path)
  const { identity } = source
  const writer = new ImageMapWriter(whole, path, identity)
  const zeroes = await scan(source, writer)
  writer.finish()
  const expected = read(whole, identity)
  assert.ok(expected.length > 4 * FEW)

  const starts = new Set<number>()
  for (const stopAt of [4, 68, 124].map((mib) => mib * MIB)) {
    const catalog = join(root, `cut-${stopAt}`)
    await assert.rejects(scan(source, new ImageMapWriter(catalog, path, identity), { stopAt }), Cut)
    const beside = `${mapPath(catalog, path)}.new`
    const left = readFileSync(beside)
    // As it is, and with its end torn off.
    for (const bytes of [left.length, left.length - 1]) {
      writeFileSync(beside, left.subarray(0, bytes))
      const resumed = ImageMapWriter.resume(catalog, path, identity, options(source))
      if (resumed === undefined) {
        assert.ok(stopAt < 68 * MIB || bytes < left.length, `nothing left at ${stopAt}`)
        continue
      }
      const { partial } = resumed
      assert.ok(partial.chunksEnd > 60 * MIB && partial.chunksEnd <= partial.blocksEnd)
      assert.ok(partial.blocksEnd <= stopAt)
      starts.add(partial.chunksEnd % BLOCK_BYTES)
      const found = await scan(source, resumed.writer, { from: startOf(partial) })
      partial.close()
      resumed.writer.finish()
      assert.equal(found, zeroes)
      assert.deepEqual(read(catalog, identity), expected, `cut at ${stopAt}, ${bytes} bytes left`)
    }
  }
  assert.ok(
    [...starts].some((start) => start !== 0),
    'a chunk ended within a block',
  )
})

test('what is left of another file, of another format, or too old, or no map at all, is not gone on with', async () => {
  const catalog = join(root, 'others')
  await using source = await ImageSource.open(path)
  const { identity } = source
  await assert.rejects(scan(source, new ImageMapWriter(catalog, path, identity), { stopAt: 80 * MIB }), Cut)
  const beside = `${mapPath(catalog, path)}.new`
  const left = readFileSync(beside)
  const resumes = (other: Partial<ImageIdentity> = {}, more: object = {}): boolean => {
    const resumed = ImageMapWriter.resume(
      catalog,
      path,
      { ...identity, ...other },
      { ...options(source), ...more },
    )
    resumed?.partial.close()
    return resumed !== undefined
  }
  assert.equal(resumes(), true)
  assert.equal(resumes({ mtimeNs: 5n }), true, 'it was written to: a map of what it was')
  assert.equal(resumes({ ino: identity.ino + 1n }), false)
  assert.equal(resumes({}, { disk: { format: 'qcow2', bytes: source.size } }), false)
  assert.equal(resumes({}, { disk: { format: 'raw', bytes: source.size - 1 } }), false)
  assert.equal(resumes({}, { ageMsMax: 0 }), false)
  for (const when of [Date.now() / 1000 - 61, Date.now() / 1000 + 61]) {
    utimesSync(beside, when, when)
    assert.equal(resumes(), false)
  }
  // A byte of its head, of the first section's, of an entry's place.
  for (const at of [3, 9, 20, 57 + path.length, 58 + path.length, 67 + path.length]) {
    const changed = Buffer.from(left)
    changed[at]! ^= 0x81
    writeFileSync(beside, changed)
    assert.equal(resumes(), false, `byte ${at}`)
  }
  truncateSync(beside, 0)
  assert.equal(resumes(), false)
  rmSync(beside)
  assert.equal(resumes(), false)
})

test('a daemon that ends in the middle of a scan: the next one goes on, and knows all of it', async () => {
  const catalog = join(root, 'daemon')
  const index = (): { index: ChunkIndex; blocks: ChunkIndex } => ({
    index: ChunkIndex.create({ bytesMax: 2 * MIB }),
    blocks: ChunkIndex.create({ bytesMax: 2 * MIB }),
  })
  const first = new ImageIndexer({ ...index(), catalog })
  const beside = `${mapPath(catalog, path)}.new`
  // So slowly that it cannot be done before it is closed.
  const scanning = first.indexImage(path, null, {
    bytesPerSecond: 128 * MIB,
    onProgress: ({ bytesDone }) => {
      if (bytesDone >= 80 * MIB) void first.close()
    },
  })
  await assert.rejects(scanning, /closed/)
  assert.ok(statSync(beside).size > MAP_PIECE_CHUNKS_MAX * 17)
  copyFileSync(beside, join(root, 'left'))

  const tables = index()
  await using second = new ImageIndexer({ ...tables, catalog })
  const steps: IndexProgress[] = []
  const done = await second.indexImage(path, 7, { onProgress: (progress) => steps.push(progress) })
  assert.ok(steps[0]!.bytesDone > 60 * MIB, `${steps[0]!.bytesDone} bytes were known`)
  assert.deepEqual([done.mapped, done.stale, done.problem], [false, false, undefined])
  using map = ImageMap.open(catalog, path, done.identity)
  assert.deepEqual([map?.count, map?.blockCount], [done.progress.chunks, tables.blocks.count])
  assert.equal(tables.index.count, map?.count)

  // The image was written to between the two: a map of both times, which is an old one.
  copyFileSync(join(root, 'left'), beside)
  utimesSync(path, new Date(), new Date())
  const stale = await second.indexImage(path, null)
  assert.equal(stale.stale, true)
  await using source = await ImageSource.open(path)
  assert.equal(ImageMap.open(catalog, path, source.identity), undefined)
  using old = ImageMap.openAny(catalog, path, source.identity)
  assert.equal(old?.count, done.progress.chunks)

  // Anew is anew.
  copyFileSync(join(root, 'left'), beside)
  steps.length = 0
  await second.indexImage(path, null, { anew: true, onProgress: (progress) => steps.push(progress) })
  assert.ok(steps[0]!.bytesDone <= 4 * MIB + 64 * KIB)
})
