/** The history on disk: order kept, a torn line skipped, nothing swallowed after it, nothing lost that was under way. */
import assert from 'node:assert/strict'
import { appendFile, mkdtemp, readFile, rm, stat } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { CONTROL_ANSWER_BYTES_MAX, HISTORY_BYTES_MAX, HISTORY_ENTRIES_MAX } from '../../../lib/core/limits.ts'
import { History } from '../../../server/history.ts'
import { emptyBySource, type MigrationReport } from '../../../server/report.ts'
import { BUSY_MS_MAX, leastBusyMs } from '../../busy.ts'

const entry = (id: string): MigrationReport => ({
  version: 1,
  id,
  guest: 'vm',
  uuid: '8950abfd-a7b7-4763-8760-dd35bcf5c3da',
  peer: 'far',
  direction: 'in',
  phase: 'done',
  accelerated: true,
  reason: null,
  startedAt: 0,
  elapsedMs: 0,
  downtimeMs: null,
  disks: [],
  ram: { askedBytes: 0, wireBytes: 0, bySource: emptyBySource() },
  wireBytes: 0,
  etaMs: null,
  verified: null,
  error: null,
  connections: [],
  breaks: 0,
  linkBroken: false,
})

test('a line that is no report is left out, and the others are still there', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  try {
    const history = new History(dir)
    await history.append(entry('a'))
    for (const damaged of [
      { id: 'x' },
      { ...entry('y'), disks: [null] },
      { ...entry('z'), peer: 7 },
      7,
      null,
    ]) {
      await appendFile(join(dir, 'history.jsonl'), `${JSON.stringify(damaged)}\n`)
    }
    // Infinity, which no JSON can say again.
    const infinite = JSON.stringify(entry('i')).replace('"elapsedMs":0', '"elapsedMs":1e999')
    await appendFile(join(dir, 'history.jsonl'), `${infinite}\n`)
    await history.append(entry('b'))
    assert.deepEqual(
      (await history.read()).map(({ id }) => id),
      ['a', 'b'],
    )
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})

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

test('what a killed daemon left unfinished is history for the next one, once', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  const running = (id: string, accelerated: boolean): MigrationReport => ({
    ...entry(id),
    accelerated,
    phase: 'copying',
    reason: null,
    error: null,
    etaMs: 5,
  })
  try {
    const history = new History(dir)
    await history.running([running('a', true), running('b', false), running('c', true)])
    // It ended, and the daemon was killed before it wrote down what runs since.
    await history.append({ ...running('c', true), phase: 'done' })
    const later = new History(dir)
    assert.equal(await later.recover('it was killed'), 3)
    const found = (await later.read()).map(({ id, phase, error, reason, etaMs }) => ({
      id,
      phase,
      error,
      reason,
      etaMs,
    }))
    assert.deepEqual(found, [
      { id: 'c', phase: 'done', error: null, reason: null, etaMs: 5 },
      { id: 'a', phase: 'failed', error: 'it was killed', reason: null, etaMs: null },
      { id: 'b', phase: 'failed', error: 'it was killed', reason: 'it was killed', etaMs: null },
    ])
    assert.equal(await new History(dir).recover('it was killed'), 0)
    assert.equal((await later.read()).length, 3)
    await later.running([running('d', true)])
    await later.running([])
    assert.equal(await new History(dir).recover('it was killed'), 0)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})

test('five thousand entries are read without holding up the event loop', { timeout: 60_000 }, async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  try {
    const disk = { target: 'vda', size: 1, askedBytes: 1, appliedBytes: 1, bySource: emptyBySource() }
    const large = { ...entry('x'), disks: Array.from({ length: 6 }, () => disk) }
    const lines = Array.from({ length: 6000 }, (_, at) => JSON.stringify({ ...large, id: String(at) }))
    await appendFile(join(dir, 'history.jsonl'), `\n${lines.join('\n\n')}\n`)
    const busyMs = await leastBusyMs(async (begin) => {
      begin()
      const found = await new History(dir).lines()
      assert.equal(found.length, 5000)
      assert.deepEqual([JSON.parse(found[0]!).id, JSON.parse(found.at(-1)!).id], ['1000', '5999'])
    })
    assert.ok(busyMs <= BUSY_MS_MAX, `a turn of ${busyMs} ms`)
  } finally {
    await rm(dir, { recursive: true })
  }
})

test('long names make entries long: the newest are kept, the answer and the file stay short', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  try {
    const history = new History(dir)
    const disks = Array.from({ length: 64 }, () => ({
      target: 'x'.repeat(16_000),
      size: 1,
      askedBytes: 0,
      appliedBytes: 0,
      bySource: emptyBySource(),
    }))
    for (let at = 0; at < 40; at++) await history.append({ ...entry(`${at}`), disks })
    const read = await history.read()
    assert.equal(read.at(-1)?.id, '39')
    assert.ok(read.length >= 8 && JSON.stringify(read).length <= CONTROL_ANSWER_BYTES_MAX, `${read.length}`)
    assert.ok((await stat(join(dir, 'history.jsonl'))).size <= HISTORY_BYTES_MAX)
  } finally {
    await rm(dir, { recursive: true, force: true })
  }
})

test('a file that is shortened keeps half of the entries that are given', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'swam-history-'))
  try {
    const lines = Array.from({ length: 2 * HISTORY_ENTRIES_MAX }, (_, at) =>
      JSON.stringify({ ...entry(`${at}`), guest: 'x'.repeat(HISTORY_BYTES_MAX / HISTORY_ENTRIES_MAX / 2) }),
    )
    await appendFile(join(dir, 'history.jsonl'), `${lines.join('\n')}\n`)
    const history = new History(dir)
    await history.append(entry('last'))
    const kept = (await readFile(join(dir, 'history.jsonl'), 'utf8')).trim().split('\n')
    assert.equal(kept.length, HISTORY_ENTRIES_MAX / 2)
    assert.equal((JSON.parse(kept.at(-1)!) as MigrationReport).id, 'last')
  } finally {
    await rm(dir, { recursive: true })
  }
})
