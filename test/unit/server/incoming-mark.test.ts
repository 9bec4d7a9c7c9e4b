/** The mark of a guest that comes in, when it would be, or is, longer than one may be: of its files nothing is said then. */
import assert from 'node:assert/strict'
import { mkdtemp, rm, stat, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { GUEST_DISKS_MAX, MARK_BYTES_MAX, PATH_BYTES_MAX } from '../../../lib/core/limits.ts'
import { readMark, writeMark } from '../../../server/incoming-mark.ts'

test('a mark has its bound, where it is written and where it is read', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-mark-'))
  try {
    const mark = join(folder, 'vm')
    const paths = (letter: string): string[] =>
      Array.from({ length: GUEST_DISKS_MAX }, (_, at) => `/${at}/`.padEnd(PATH_BYTES_MAX, letter))
    await writeMark(mark, 'id', paths('x'))
    assert.deepEqual([...(await readMark(mark))], paths('x'))
    // Each of these is six characters of JSON.
    await writeMark(mark, 'id', paths('\u0001'))
    assert.ok((await stat(mark)).size <= MARK_BYTES_MAX)
    assert.deepEqual([...(await readMark(mark))], [])
    const text = JSON.stringify({ id: 'id', missing: ['/a'] })
    await writeFile(mark, text.padEnd(MARK_BYTES_MAX))
    assert.deepEqual([...(await readMark(mark))], ['/a'])
    await writeFile(mark, text.padEnd(MARK_BYTES_MAX + 1))
    assert.deepEqual([...(await readMark(mark))], [])
  } finally {
    await rm(folder, { recursive: true })
  }
})
