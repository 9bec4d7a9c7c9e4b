/** PacedReads: the bytes are the file's, a rate is kept, and who is in a hurry waits no longer. */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { PacedReads } from '../../../lib/catalog/paced-reads.ts'
import { MIB } from '../../../lib/core/units.ts'

function image(context: TestContext, bytes: Buffer): Promise<ImageSource> {
  const directory = mkdtempSync(join(tmpdir(), 'swam-paced-'))
  context.after(() => rmSync(directory, { recursive: true, force: true }))
  const path = join(directory, 'disk.raw')
  writeFileSync(path, bytes)
  return ImageSource.open(path)
}

test('reads are what the file holds, and end where it ends', async (context) => {
  const bytes = randomBytes(3 * MIB + 17)
  await using source = await image(context, bytes)
  const reads = new PacedReads(source, 0)
  const target = Buffer.alloc(2 * MIB)
  assert.equal(await reads.readInto(target, MIB), 2 * MIB)
  assert.ok(target.equals(bytes.subarray(MIB, 3 * MIB)))
  assert.equal(await reads.readInto(target, 3 * MIB), 17)
  assert.equal(await reads.readInto(target, 4 * MIB), 0)
  assert.deepEqual(await reads.read(5, 9), bytes.subarray(5, 14))
  assert.deepEqual([reads.size, reads.path, await reads.isStale()], [bytes.length, source.path, false])
})

test('no more than the rate and one burst is read', async (context) => {
  await using source = await image(context, Buffer.alloc(16 * MIB, 1))
  const rate = 32 * MIB
  const reads = new PacedReads(source, rate)
  const target = Buffer.alloc(MIB)
  const since = performance.now()
  for (let at = 0; at < 16; at++) {
    await reads.readInto(target, at * MIB)
    // A timer may fire a millisecond early.
    const seconds = (performance.now() - since + 2) / 1000
    assert.ok((at + 1) * MIB <= 8 * MIB + seconds * rate, `${at + 1} MiB after ${seconds} s`)
  }
})

test('a hurry ends the wait of a read, and the rate', async (context) => {
  await using source = await image(context, Buffer.alloc(12 * MIB, 1))
  // A burst, and then an hour for each MiB.
  const reads = new PacedReads(source, MIB / 3600)
  const target = Buffer.alloc(8 * MIB)
  await reads.readInto(target, 0)
  const waiting = reads.readInto(target, MIB)
  reads.hurry()
  assert.equal(await waiting, 8 * MIB)
  assert.equal(await reads.readInto(target, 4 * MIB), 8 * MIB)
})
