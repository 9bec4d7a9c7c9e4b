/** All rows: swamd at either side is killed, or hangs, in every moment of a migration (test/e2e/swam-failing.ts). */
import { test } from 'node:test'
import { addSlowHook, daemonFails, type Moment, RESTLESS, type Row, settle } from '../e2e/swam-failing.ts'
import { swamLab } from '../e2e/swam-lab.ts'
import type { HostName } from '../lab/state.ts'

const MOMENTS: readonly Moment[] = ['announced', 'bulk', 'ready', 'flush', 'memory', 'idle']
const EVERY: readonly Row[] = MOMENTS.flatMap((moment) =>
  (['SIGKILL', 'SIGSTOP'] as const).flatMap((signal) =>
    (['source', 'far'] as const).map((side) => ({ moment, signal, side })),
  ),
)
const ROWS: readonly Row[] = [
  ...EVERY,
  { side: 'source', moment: 'announced', signal: 'SIGKILL', imageMade: true },
  { side: 'source', moment: 'bulk', signal: 'SIGTERM' },
  { side: 'far', moment: 'ready', signal: 'SIGTERM' },
]

test('swamd is killed or hangs', { timeout: 3_600_000 }, async (t) => {
  await using lab = await swamLab('daemons')
  await addSlowHook(lab)
  const guest = lab.tinyGuest(RESTLESS)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of ROWS) {
    at = await settle(lab, guest, at)
    const image = row.imageMade === true ? ', into an image that SWAM made' : ''
    await t.test(`${row.moment}: ${row.signal} at the ${row.side}${image}`, async (u) => {
      const outcome = await daemonFails(lab, guest, at, row)
      at = outcome.at
      u.diagnostic(outcome.figures)
    })
  }
})
