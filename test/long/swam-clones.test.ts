/**
 * Two clones leave at once for a host that has nothing: what they have in common crosses the link once, whichever of them asks
 * for it, and both disks are whole.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  assertDone,
  assertEqual,
  assertRecords,
  direct,
  entry,
  logs,
  MIB,
  QUIET,
  resume,
  SMALL,
  startBoth,
  swamLab,
  wire,
} from '../e2e/swam-lab.ts'

const RANDOM_MIB = 96
/** What each has of its own: the guest's records, what it writes meanwhile; and what is asked for twice near the last FLUSH. */
const OWN_MIB = 8

test('two clones at once to an empty host', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('clones', { mbit: 200 })
  await startBoth(lab)
  const guests = ['clone-one', 'clone-two'].map((name) =>
    lab.tinyGuest({ ...SMALL, name, seed: 'a clone', randomMiB: RANDOM_MIB, write: QUIET }),
  )
  for (const guest of guests) {
    await guest.create('hosta')
    await guest.waitBoot()
    await guest.waitProgress(2)
  }
  await lab.wan.reset()
  const since = Date.now()
  const done = await Promise.all(
    guests.map((guest) => lab.migrate(guest, 'hosta', 'hostb', { args: ['--suspend'] })),
  )
  for (const each of done) assert.ok(each.ok, `${each.stderr}\n${logs(lab)}`)
  const begun = Math.max(...done.map(({ startedAt }) => startedAt))
  assert.ok(begun < Math.min(...done.map(({ endedAt }) => endedAt)), 'both at the same time')
  const link = await lab.wan.stats()
  let literal = 0
  let session = 0
  let linkDisk = 0
  for (const guest of guests) {
    await assertEqual(lab, guest)
    await assertRecords(guest, 'hostb')
    const out = await entry(lab, 'hosta', guest, since)
    const into = await entry(lab, 'hostb', guest, since)
    for (const report of [out, into]) assertDone(report)
    t.diagnostic(JSON.stringify(out.disks))
    assert.deepEqual(out.disks[0]?.bySource.session, into.disks[0]?.bySource.session)
    literal += out.disks[0]?.bySource.literal ?? 0
    session += out.disks[0]?.bySource.session ?? 0
    linkDisk += wire(out, 'hosta', link).linkDisk
  }
  const text = `${literal} bytes of literals, ${session} from each other, ${linkDisk} at the link`
  t.diagnostic(text)
  assert.ok(literal >= RANDOM_MIB * MIB && literal <= (RANDOM_MIB + 2 * OWN_MIB) * MIB, text)
  assert.ok(session >= (RANDOM_MIB - 2 * OWN_MIB) * MIB, text)
  assert.ok(linkDisk < 1.2 * (RANDOM_MIB + 2 * OWN_MIB) * MIB, text)
  assert.deepEqual(direct(link), [], 'nothing goes around SWAM')
  for (const guest of guests) await resume(lab, guest, 'hostb')
})
