/**
 * The ideal that benches compare with, on images of a few blocks: what is in its stream is counted by hand here.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { zstdDecompressSync } from 'node:zlib'
import { BLOCK_BYTES, imageFacts } from '../../bench/blocks.ts'
import { idealBytes } from '../../bench/ideal.ts'

/** An image with a letter for each block; `.` is a block of zeroes. */
function image(letters: string): Buffer {
  return Buffer.concat([...letters].map((letter) => Buffer.alloc(BLOCK_BYTES, letter === '.' ? 0 : letter)))
}

async function inFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-ideal-'))
  try {
    await work(folder)
  } finally {
    await rm(folder, { recursive: true })
  }
}

const cases = [
  { name: 'nothing is there', target: '.ab.ba..', have: [], stream: 'ab' },
  { name: 'a clone', target: 'abxc..', have: ['abc...'], stream: 'x' },
  { name: 'another layout', target: 'c.b.a.', have: ['abc...'], stream: '' },
  { name: 'two images', target: 'axbycz', have: ['abc', 'zz.x'], stream: 'y' },
  { name: 'blocks that repeat', target: 'qqqq.q', have: ['a'], stream: 'q' },
  { name: 'zeroes', target: '....', have: ['a'], stream: '' },
]

for (const { name, target, have, stream } of cases) {
  test(`${name}: ${target} | ${have.join(', ')}`, async () => {
    await inFolder(async (folder) => {
      const path = join(folder, 'target')
      await writeFile(path, image(target))
      const paths = have.map((_, number) => join(folder, `have${number}`))
      for (const [number, letters] of have.entries()) await writeFile(paths[number]!, image(letters))
      const ideal = await idealBytes(path, paths, folder)
      assert.equal(ideal.blocks, stream.length)
      assert.equal(ideal.sha256, createHash('sha256').update(image(target)).digest('hex'))
      const packed = await readFile(join(folder, 'ideal.zst'))
      assert.equal(ideal.bytes, packed.length)
      assert.deepEqual(zstdDecompressSync(packed), image(stream))
    })
  })
}

test('what an image is', async () => {
  await inFolder(async (folder) => {
    const path = join(folder, 'image')
    await writeFile(path, image(`${'.'.repeat(300)}ab.a`))
    const sha256 = createHash('sha256')
      .update(image(`${'.'.repeat(300)}ab.a`))
      .digest('hex')
    assert.deepEqual(await imageFacts(path), { size: 304 * BLOCK_BYTES, dataBytes: 3 * BLOCK_BYTES, sha256 })
    await writeFile(path, 'short')
    await assert.rejects(imageFacts(path), /expected a multiple of 4096 bytes, found 5/)
  })
})
