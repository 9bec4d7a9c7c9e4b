/** Who has a file open for writing: this process, by another name of the file, and never by reading it. */
import assert from 'node:assert/strict'
import { link, mkdtemp, open, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { writersOf } from '../../../lib/host/open-files.ts'

test('a writer is found through any name, a reader is none', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-open-'))
  try {
    const path = join(directory, 'a')
    await writeFile(path, 'a')
    await link(path, join(directory, 'b'))
    const reader = await open(path, 'r')
    assert.deepEqual(await writersOf(path), [])
    const writer = await open(join(directory, 'b'), 'a')
    const [found, ...more] = await writersOf(path)
    assert.equal(found?.pid, process.pid)
    assert.match(found?.name ?? '', /./)
    assert.deepEqual(more, [])
    await writer.close()
    assert.deepEqual(await writersOf(path), [])
    await reader.close()
    await assert.rejects(writersOf(join(directory, 'c')))
  } finally {
    await rm(directory, { recursive: true })
  }
})
