/**
 * What migrations cost the daemons, and that nothing of them stays: two at once, there and back.
 * Descriptors, threads, forced commands, SSH connections, listeners, armed elements and files are afterwards what they
 * were before; memory stays below its bound; the event loop is held up by no more than 50 ms of swamd's own work.
 * A hundred in a row, eight at once and the soak are in test/long.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { assertUnbusy, move, rested, say, settled, vitals } from './leftovers.ts'
import { logs, MIB, QUIET, SMALL, startBoth, swamLab } from './swam-lab.ts'

/** Two at once; docs/limits.md has the sum for many. */
const RSS_BYTES_MAX = 768 * MIB
test('migrations at once leave nothing behind', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('resources')
  await startBoth(lab)
  const guests = ['one', 'two'].map((name) =>
    lab.tinyGuest({ ...SMALL, name, write: { ...QUIET, areaBytes: 4 << 20 } }),
  )
  await Promise.all(guests.map((guest) => guest.create('hosta')))
  await Promise.all(guests.map((guest) => guest.waitBoot()))

  // What is made once (code, pools, open images) is made by then.
  for (const to of ['hostb', 'hosta'] as const) await move(lab, guests, to)
  const before = await rested(lab)
  await say(t, lab, 'warm')

  for (const to of ['hostb', 'hosta'] as const) await move(lab, guests, to)
  await say(t, lab, 'two at once')
  for (const [host, { rssBytes }] of Object.entries(await vitals(lab))) {
    assert.ok(rssBytes <= RSS_BYTES_MAX, `${host}: ${rssBytes} bytes of memory, at most ${RSS_BYTES_MAX}`)
  }
  await assertUnbusy(lab)
  for (const [at, host] of lab.hosts().entries()) {
    assert.deepEqual(await settled(host, before[at]!), before[at], `${host.name}\n${logs(lab)}`)
  }
})
