/** The map of a disk, piece by piece: the same from its map as from its image, and never far ahead of who takes it. */

import assert from 'node:assert/strict'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { truncate } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { Worker } from 'node:worker_threads'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { MapFolder } from '../../../lib/catalog/map-folder.ts'
import type { ImageRef } from '../../../lib/catalog/open-image.ts'
import { hintOf, sha256 } from '../../../lib/chunk/digest.ts'
import { ESTIMATE_CALL_CHUNKS_MAX, ESTIMATE_PIECES_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, KIB, MIB } from '../../../lib/core/units.ts'
import { hintsOf } from '../../../lib/engine/chunk-blocks.ts'
import { mapOfDisk } from '../../../server/estimate/disk-map.ts'
import { chunkOf, type DiskChunk } from '../../../server/estimate/disk-piece.ts'
import { image } from '../analyze/rig.ts'
import { patchyBytes, randomBytes } from '../chunk/samples.ts'

const NEVER = new AbortController().signal

function folder(context: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'swam-disk-map-'))
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  return directory
}

const raw = (path: string): ImageRef => ({ path, format: 'raw', directories: [] })

async function chunksOf(path: string, catalog: string) {
  const map = await mapOfDisk(raw(path), catalog, NEVER)
  const chunks: DiskChunk[] = []
  for await (const piece of map.pieces()) {
    assert.ok(piece.count >= 1 && piece.count <= ESTIMATE_CALL_CHUNKS_MAX)
    for (let index = 0; index < piece.count; index++) chunks.push(chunkOf(piece, index))
  }
  await map.close()
  return { chunks, madeAt: map.madeAt, problem: map.problem }
}

test('each chunk with the hints of its blocks, from its map as from the image', async (context) => {
  const directory = folder(context)
  const twice = randomBytes(512 * KIB, 3)
  const bytes = Buffer.concat([
    patchyBytes(20 * MIB, 1),
    Buffer.alloc(64 * KIB),
    twice,
    Buffer.alloc(64 * KIB),
    twice,
  ])
  // The last block is not whole.
  const size = bytes.length + 3 * KIB
  const path = await image(join(directory, 'a.raw'), size, [
    [0, bytes],
    [bytes.length, Buffer.alloc(3 * KIB, 7)],
  ])
  const whole = Buffer.concat([bytes, Buffer.alloc(3 * KIB, 7)])
  const scanned = await chunksOf(path, join(directory, 'catalog'))
  assert.equal(scanned.madeAt, null)
  let end = 0
  let data = 0
  let repeated = 0
  const seen = new Set<string>()
  for (const { key, offset, length, hints, repeated: again } of scanned.chunks) {
    assert.ok(offset >= end)
    end = offset + length
    data += length
    const digest = sha256(whole.subarray(offset, end))
    assert.deepEqual(Buffer.from(key), digest.subarray(0, 8))
    assert.deepEqual(Buffer.from(hints), hintsOf(whole, 0, offset, end))
    assert.equal(again, seen.has(digest.toString('hex')))
    seen.add(digest.toString('hex'))
    if (again) repeated += length
  }
  let expected = 0
  for (let at = 0; at < whole.length; at += BLOCK_BYTES) {
    const block = whole.subarray(at, at + BLOCK_BYTES)
    if (block.some((byte) => byte !== 0)) expected += block.length
  }
  assert.equal(data, expected, 'all that is not zero')
  assert.ok(repeated >= 512 * KIB - 256 * KIB)
  await new MapFolder({ stateDir: directory, images: [directory] }).make(path)
  const mapped = await chunksOf(path, join(directory, 'catalog'))
  assert.notEqual(mapped.madeAt, null)
  assert.deepEqual(mapped.chunks, scanned.chunks)
  // What is no map is said, and the image scanned.
  writeFileSync(mapPath(join(directory, 'catalog'), path), 'no map')
  const damaged = await chunksOf(path, join(directory, 'catalog'))
  assert.match(damaged.problem ?? '', /expected a map/)
  assert.deepEqual(damaged.chunks, scanned.chunks)
})

async function manyChunks(directory: string, count: number): Promise<string> {
  const path = await image(join(directory, 'large.raw'), MIB, [])
  await truncate(path, count * 16 * KIB)
  await using source = await ImageSource.open(path)
  const writer = new ImageMapWriter(join(directory, 'catalog'), path, source.identity)
  for (let chunk = 0; chunk < count; chunk++) {
    writer.add(sha256(Buffer.from(`${chunk}`)), 0, chunk * 16 * KIB, 16 * KIB)
    for (let block = 0; block < 4; block++)
      writer.addBlock((chunk * 4 + block) * BLOCK_BYTES, hintOf(Buffer.from(`${chunk} ${block}`)))
  }
  writer.finish()
  return path
}

test('never more pieces ahead than there may be; blocks and chunks of many sections meet', async (context) => {
  const directory = folder(context)
  const count = 7 * ESTIMATE_CALL_CHUNKS_MAX + 5
  const path = await manyChunks(directory, count)
  const worker = new Worker(new URL('../../../server/estimate/disk-map-worker.ts', import.meta.url), {
    workerData: { image: raw(path), catalog: join(directory, 'catalog') },
  })
  let pieces = 0
  worker.on('message', ({ type }: { type: string }) => {
    if (type === 'piece') pieces++
  })
  for (let turn = 0; turn < 200 && pieces < ESTIMATE_PIECES_MAX; turn++) await sleep(20)
  await sleep(200)
  assert.equal(pieces, ESTIMATE_PIECES_MAX)
  worker.postMessage('taken')
  for (let turn = 0; turn < 200 && pieces === ESTIMATE_PIECES_MAX; turn++) await sleep(20)
  assert.equal(pieces, ESTIMATE_PIECES_MAX + 1)
  await worker.terminate()
  const { chunks } = await chunksOf(path, join(directory, 'catalog'))
  assert.equal(chunks.length, count)
  for (const at of [0, 1, 5000, count - 1]) {
    const blocks = [0, 1, 2, 3].map((block) => hintOf(Buffer.from(`${at} ${block}`)))
    assert.deepEqual(Buffer.from(chunks[at]!.hints), Buffer.concat(blocks))
  }
})

test('it ends when nobody wants it any more, and says why it cannot begin', async (context) => {
  const directory = folder(context)
  const path = await manyChunks(directory, 3 * ESTIMATE_CALL_CHUNKS_MAX)
  const abort = new AbortController()
  const map = await mapOfDisk(raw(path), join(directory, 'catalog'), abort.signal)
  const pieces = map.pieces()
  await pieces.next()
  abort.abort(new Error('over'))
  await assert.rejects(async () => {
    for await (const piece of pieces) assert.ok(piece.count > 0)
  }, /over/)
  await map.close()
  await assert.rejects(mapOfDisk(raw(path), directory, abort.signal), /over/)
  await assert.rejects(mapOfDisk(raw(join(directory, 'none')), directory, NEVER), /ENOENT/)
  await assert.rejects(mapOfDisk(raw(directory), directory, NEVER), /a regular file expected/)
})
