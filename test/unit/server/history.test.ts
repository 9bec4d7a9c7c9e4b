/** The history on disk: order kept, a torn line skipped, nothing swallowed after it. */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { History } from '../../../server/history.ts'
import type { MigrationReport } from '../../../server/report.ts'

const entry = (id: string): MigrationReport => ({ version: 1, id }) as MigrationReport

test('entries come back in order, also after a crash in the middle of a line', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  try {
    const history = new History(dir)
    assert.deepEqual(await history.read(), [])
    await Promise.all(['a', 'b', 'c'].map((id) => history.append(entry(id))))
    await appendFile(join(dir, 'history.jsonl'), '{"version":1,"id":"to')
    const later = new History(dir)
    await later.append(entry('d'))
    await later.settled()
    const ids = (await later.read()).map(({ id }) => id)
    assert.deepEqual(ids, ['a', 'b', 'c', 'd'])
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})
