/**
 * An empty mount point is no deleted image: with file systems that are really mounted, and taken away, in a mount namespace of the test's
 * own. Needs root, as whoever mounts.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'

const PROGRAM = join(import.meta.dirname, 'mounts-program.ts')

test('maps outlive the absence of their file system, and not their images', (context) => {
  const root = mkdtempSync(join(tmpdir(), 'swam-mounts-'))
  context.after(() => rmSync(root, { recursive: true }))
  const text = execFileSync('unshare', ['-m', '--propagation', 'private', process.execPath, PROGRAM, root], {
    encoding: 'utf8',
    timeout: 120_000,
  })
  assert.deepEqual(JSON.parse(text), {
    mounted: { maps: ['a.raw', 'b.raw', 'c.raw'], scanned: 3, states: ['good', 'good', 'good'], away: [] },
    'not mounted': {
      maps: ['a.raw', 'b.raw', 'c.raw'],
      scanned: 3,
      states: ['away', 'away', 'away'],
      away: [3],
    },
    'deleted where nobody sees it': {
      maps: ['a.raw', 'b.raw', 'c.raw'],
      scanned: 3,
      states: ['away', 'away', 'away'],
      away: [3],
    },
    // Of one that was deleted meanwhile the map is dropped, and the others are not read again.
    'mounted again': { maps: ['a.raw', 'c.raw'], scanned: 3, states: ['good', 'good'], away: [] },
    deleted: { maps: ['a.raw'], scanned: 3, states: ['good'], away: [] },
    'another one': { maps: ['a.raw', 'b.raw'], scanned: 4, states: ['away', 'good'], away: [1] },
    'too long': { maps: [], scanned: 4, states: [], away: [] },
  })
})
