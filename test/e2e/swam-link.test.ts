/**
 * The link breaks in the middle: ridden out where nothing of QEMU waits too long, else failed with a reason. The rows that
 * are quickest; test/long/swam-link.test.ts has the others.
 */
import { test } from 'node:test'
import { type LinkRow, linkRows } from './swam-link.ts'

const ROWS: readonly LinkRow[] = [
  {
    name: 'the SSH connection of the disk is killed in the bulk',
    moment: 'bulk',
    fault: { kind: 'connection', bundle: 'disk' },
    outcome: 'done',
    resumes: 1,
  },
  {
    name: 'cut for ever in the bulk',
    moment: 'bulk',
    fault: { kind: 'cut', ms: undefined },
    outcome: 'failed',
    resumes: 0,
  },
]

test('the link breaks in the middle of a migration', { timeout: 600_000 }, async (t) => {
  await linkRows(t, 'link', ROWS)
})
