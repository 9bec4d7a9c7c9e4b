/** Maps of images as they lie in the state directory: as they are, and with a digest that fits whatever else was changed. */
import assert from 'node:assert/strict'
import { hash } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ImageIdentity } from '../../../lib/catalog/image-files.ts'
import { ImageMap, PartialMap } from '../../../lib/catalog/image-map.ts'
import { CHUNKS, mapPath } from '../../../lib/catalog/image-map-format.ts'
import { RefusedError } from '../../../lib/core/errors.ts'
import { CHUNK_BYTES_MAX, HANDPRINT_SAMPLES_MAX, MAP_RUN_BLOCKS_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { allowing } from '../checks.ts'
import type { FuzzTarget } from '../target.ts'

/** Of the image whose map is in the corpus. */
export const MAPPED_PATH: string = '/var/lib/libvirt/images/vm.raw'
export const MAPPED: ImageIdentity = { dev: 259n, ino: 77n, size: 16 * MIB, mtimeNs: 1_700_000_000n }
const SHA256_BYTES = 32

let folder: string | undefined

function place(): { directory: string; path: string } {
  if (folder === undefined) {
    const made = mkdtempSync(join(tmpdir(), 'swam-fuzz-map-'))
    process.once('exit', () => rmSync(made, { recursive: true, force: true }))
    folder = made
  }
  return { directory: folder, path: mapPath(folder, MAPPED_PATH) }
}

function signed(input: Buffer): Buffer {
  const body = input.subarray(0, Math.max(0, input.length - SHA256_BYTES))
  return Buffer.concat([body, Buffer.from(hash('sha256', body, 'hex'), 'hex')])
}

export const imageMap: FuzzTarget = {
  name: 'image-map',
  inputBytesMax: 4096,
  allocationBytesMax: 256 * 1024,
  dictionary: [
    'SWAMMAP\0',
    'SWAMEND\0',
    '\u0001\0\0\0',
    '\u0002\0\0\0',
    '\u0003\0\0\0',
    '\0\0\0\u0001',
    '\0\0\u0010\0',
  ].map((text) => Buffer.from(text, 'latin1')),
  run(input) {
    const { directory, path } = place()
    for (const bytes of [input, signed(input)]) {
      writeFileSync(path, bytes)
      const found = allowing([RefusedError], () => ImageMap.at(path))
      if ('value' in found) {
        assert.equal(found.value.path, MAPPED_PATH, 'a map says whose it is, and lies where that one belongs')
        found.value.map.close()
      }
      const peeked = allowing([RefusedError], () => ImageMap.peek(directory, MAPPED_PATH, MAPPED))
      if ('value' in peeked && peeked.value !== undefined) {
        const { handprint } = peeked.value
        assert.ok(handprint.length <= HANDPRINT_SAMPLES_MAX && handprint.every(({ length }) => length === 8))
      }
      const partial = PartialMap.open(path, MAPPED_PATH)
      if (partial !== undefined) {
        const { chunksEnd, blocksEnd, disk } = partial
        assert.ok(
          chunksEnd > 0 && chunksEnd <= blocksEnd && blocksEnd <= disk.bytes,
          'blocks reach as far as chunks',
        )
        assert.ok(partial.bytes <= bytes.length)
        let last = 0
        for (const { kind } of partial.sections()) last = kind
        assert.equal(last, CHUNKS, 'chunks come last')
        partial.close()
      }
      const opened = allowing([RefusedError], () => ImageMap.open(directory, MAPPED_PATH, MAPPED))
      if (!('value' in opened) || opened.value === undefined) continue
      using map = opened.value
      let end = 0
      let count = 0
      let blocksEnd = 0
      let blockCount = 0
      for (const piece of map.pieces()) {
        if (Array.isArray(piece)) {
          for (const { key, offset, length } of piece) {
            assert.equal(key.length, 8)
            assert.ok(length >= 1 && length <= CHUNK_BYTES_MAX && offset >= end, 'chunks follow one another')
            end = offset + length
            count++
          }
        } else {
          const { offset, hints } = piece
          assert.ok(hints.length > 0 && hints.length % 8 === 0 && hints.length <= 8 * MAP_RUN_BLOCKS_MAX)
          assert.ok(offset % 4096 === 0 && offset >= blocksEnd, 'blocks follow one another')
          blocksEnd = offset + 512 * hints.length
          blockCount += hints.length / 8
        }
      }
      assert.deepEqual([count, blockCount], [map.count, map.blockCount])
      assert.ok(end <= MAPPED.size && blocksEnd <= MAPPED.size, 'within the image')
    }
  },
}
