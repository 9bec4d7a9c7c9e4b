/** The link breaks in the middle: the rows that take longer. test/e2e/swam-link.test.ts has the quick ones. */
import { test } from 'node:test'
import { type LinkRow, linkRows } from '../e2e/swam-link.ts'

const ROWS: readonly LinkRow[] = [
  {
    name: 'cut for 1 s in the bulk',
    moment: 'bulk',
    fault: { kind: 'cut', ms: 1000 },
    outcome: 'done',
    resumes: 0,
  },
  {
    name: 'cut for 10 s while memory moves',
    moment: 'ready',
    fault: { kind: 'cut', ms: 10_000 },
    outcome: 'done',
    resumes: 1,
  },
  {
    name: 'cut for 1 s while memory moves',
    moment: 'ready',
    fault: { kind: 'cut', ms: 1000 },
    outcome: 'done',
    resumes: 0,
  },
  {
    // QEMU writes all the time, so a write waits too long.
    name: 'cut for 10 s in the bulk',
    moment: 'bulk',
    fault: { kind: 'cut', ms: 10_000 },
    outcome: 'failed',
    resumes: 0,
  },
  {
    name: 'cut for ever while memory moves',
    moment: 'ready',
    fault: { kind: 'cut', ms: undefined },
    outcome: 'failed',
    resumes: 0,
  },
  {
    name: 'cut for ever with the guest paused and its last memory under way',
    moment: 'memory',
    fault: { kind: 'cut', ms: undefined },
    outcome: 'failed',
    resumes: 0,
  },
  {
    name: 'cut for 1 s with the guest paused and its last blocks under way',
    moment: 'flush',
    fault: { kind: 'cut', ms: 1000 },
    // TCP repeats what was lost after 0.9 or after 2.1 s: the flush may have waited too long by then.
    outcome: 'either',
    resumes: 0,
  },
  {
    name: 'the SSH connection of the memory is killed while it moves',
    moment: 'ready',
    fault: { kind: 'connection', bundle: 'ram' },
    outcome: 'done',
    resumes: 1,
  },
  {
    name: 'sshd is killed while memory moves, and comes back after 3 s',
    moment: 'ready',
    fault: { kind: 'sshd', backMs: 3000 },
    outcome: 'done',
    resumes: 2,
  },
  {
    name: 'sshd is killed while memory moves, and stays away',
    moment: 'ready',
    fault: { kind: 'sshd', backMs: undefined },
    outcome: 'failed',
    resumes: 0,
  },
  {
    name: 'sshd is killed in the bulk, and stays away',
    moment: 'bulk',
    fault: { kind: 'sshd', backMs: undefined },
    outcome: 'failed',
    resumes: 0,
  },
  {
    name: '2% of all packets are lost',
    moment: 'bulk',
    fault: { kind: 'loss', share: 0.02 },
    outcome: 'done',
    resumes: 0,
  },
]

test('the link breaks in the middle of a migration', { timeout: 1_800_000 }, async (t) => {
  await linkRows(t, 'link-long', ROWS)
})
