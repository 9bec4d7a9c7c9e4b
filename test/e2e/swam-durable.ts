/**
 * Nothing that a guest was told is durable is ever missing: it writes and syncs all the time while it goes back and
 * forth through SWAM, and after each migration, still suspended, its disk is held to what its console says. The image
 * at the far side is always the old one of two migrations before, so both literals and reused bytes are in play.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import { assertDone, direct, history, logs, resume, startBoth, swamLab } from './swam-lab.ts'

export async function migrations(t: TestContext, count: number): Promise<void> {
  await using lab = await swamLab('durable')
  await startBoth(lab)
  const write = { bytes: 16384, intervalMs: 20, areaBytes: 16 << 20 }
  const guest = lab.tinyGuest({ diskMiB: 64, randomMiB: 16, ramMiB: 80, write })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(10)
  await lab.wan.reset()
  let at: HostName = 'hosta'
  for (let i = 1; i <= count; i++) {
    const from: HostName = at
    const to: HostName = from === 'hosta' ? 'hostb' : 'hosta'
    const before = guest.durable()
    const done = await lab.migrate(guest, from, to, { args: ['--suspend'] })
    assert.ok(done.ok, `migration ${i}: ${done.stderr}\n${logs(lab)}`)
    at = to
    const durable = guest.durable()
    assert.ok(durable > before, `migration ${i}: no record became durable while it ran`)
    const check = await guest.check(guest.imagePath(to), durable)
    assert.ok(check.ok, `migration ${i}, record ${durable}: ${check.faults.join('\n')}`)
    assert.ok(check.blocks > 0)
    t.diagnostic(`migration ${i}: ${Math.round(done.totalMs)} ms, ${durable - before} records meanwhile`)
    await resume(lab, guest, to)
  }
  assert.deepEqual(direct(await lab.wan.stats()), [], 'nothing went around SWAM')
  for (const { name } of lab.hosts()) {
    const entries = await until(`${count} entries of the history at ${name}`, 60_000, async () => {
      const found = await history(lab, name)
      return found.length >= count ? found : undefined
    })
    assert.equal(entries.length, count)
    for (const entry of entries) assertDone(entry)
  }
}
