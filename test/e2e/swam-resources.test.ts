/**
 * What migrations cost the daemons, and that nothing of them stays: some in a row, there and back, then two at once.
 * Descriptors, threads, forced commands, SSH connections, listeners, armed elements and files are afterwards what they
 * were before; memory stays below its bound; the event loop is held up by no more than 50 ms of swamd's own work.
 * A hundred in a row, eight at once and the soak are in test/long.
 */
import assert from 'node:assert/strict'
import { type TestContext, test } from 'node:test'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import { type Held, held, settled, vitals, vitalsText } from './leftovers.ts'
import { assertDone, entry, logs, QUIET, SMALL, startBoth, swamLab } from './swam-lab.ts'

const IN_A_ROW = 6

test('migrations in a row and at once leave nothing behind', { timeout: 300_000 }, async (t) => {
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

  for (let i = 0; i < IN_A_ROW; i++) await move(lab, guests.slice(0, 1), i % 2 === 0 ? 'hostb' : 'hosta')
  await say(t, lab, `${IN_A_ROW} in a row`)
  for (const to of ['hostb', 'hosta'] as const) await move(lab, guests, to)
  await say(t, lab, 'two at once')
  for (const [at, host] of lab.hosts().entries()) {
    assert.deepEqual(await settled(host, before[at]!), before[at], `${host.name}\n${logs(lab)}`)
  }
})

/** What the hosts hold when nothing of a migration is left but what a daemon keeps. */
async function rested(lab: Lab): Promise<Held[]> {
  return await Promise.all(
    lab.hosts().map((host) =>
      until(`${host.name} to be at rest`, 20_000, async () => {
        const now = await held(host)
        return now['listeners'] === 0 && now['elements'] === 0 && now['ssh'] === 2 ? now : undefined
      }),
    ),
  )
}

async function say(t: TestContext, lab: Lab, when: string): Promise<void> {
  for (const [host, report] of Object.entries(await vitals(lab))) {
    t.diagnostic(`${when}: ${host}: ${vitalsText(report)}`)
  }
}

/** All at once to that host, from the other one. */
async function move(lab: Lab, guests: readonly TinyGuest[], to: HostName): Promise<void> {
  const from: HostName = to === 'hosta' ? 'hostb' : 'hosta'
  const since = Date.now()
  const done = await Promise.all(guests.map((guest) => lab.migrate(guest, from, to)))
  for (const each of done) assert.ok(each.ok, `${each.stderr}\n${logs(lab)}`)
  for (const guest of guests) {
    assertDone(await entry(lab, from, guest, since))
    assertDone(await entry(lab, to, guest, since))
  }
}
