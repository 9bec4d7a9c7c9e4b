/**
 * libvirtd is restarted at either side: before a migration, during the bulk, while memory moves. What becomes of the
 * migration is what becomes of a plain one in the same lab, and nothing of SWAM is left; the next one goes through.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { begin, nothingLeft, other, RESTLESS, reachByLibvirt, runsAt, settle } from '../e2e/swam-failing.ts'
import { history, moveThrough, resume, startBoth, swamLab } from '../e2e/swam-lab.ts'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'

interface Row {
  readonly side: 'source' | 'far'
  readonly moment: 'before' | 'bulk' | 'ready'
}

const ROWS: readonly Row[] = (['before', 'bulk', 'ready'] as const).flatMap((moment) =>
  (['source', 'far'] as const).map((side) => ({ side, moment })),
)

interface Outcome {
  readonly ok: boolean
  readonly at: HostName
  readonly stderr: string
}

/** One migration with that restart in it. The guest runs at exactly one host afterwards. */
async function restarted(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  row: Row,
  plain: boolean,
): Promise<Outcome> {
  const host = lab.host(row.side === 'source' ? from : other(from))
  if (row.moment === 'before') await host.restartLibvirtd()
  const under = await begin(lab, guest, from, { createTarget: plain })
  if (row.moment !== 'before') {
    await reachByLibvirt(lab, guest, from, row.moment, under)
    await host.restartLibvirtd()
  }
  const done = await under.result
  const at = await until('the guest to run at one host', 60_000, async () => {
    const runs = await Promise.all(lab.hosts().map(({ name }) => runsAt(lab, guest, name)))
    if (runs[0] === runs[1]) return undefined
    return runs[0] === true ? ('hosta' as const) : ('hostb' as const)
  })
  await guest.waitProgress(3)
  return { ok: done.ok, at, stderr: done.stderr.split('\n')[0] ?? '' }
}

test('libvirtd is restarted', { timeout: 3_600_000 }, async (t) => {
  await using lab = await swamLab('libvirtd')
  const guest = lab.tinyGuest(RESTLESS)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of ROWS) {
    await t.test(`${row.moment}, at the ${row.side}`, async (u) => {
      at = await settle(lab, guest, at)
      for (const host of lab.hosts()) await host.stopSwamd()
      const plain = await restarted(lab, guest, at, row, true)
      u.diagnostic(`plain: ${JSON.stringify(plain)}`)
      const stayed = plain.at === at
      at = await settle(lab, guest, plain.at)
      await startBoth(lab)
      const since = Date.now()
      const from = at
      const swam = await restarted(lab, guest, from, row, false)
      u.diagnostic(`SWAM: ${JSON.stringify(swam)}`)
      at = swam.at
      assert.equal(swam.ok, plain.ok)
      assert.equal(swam.at === from, stayed)
      await nothingLeft(lab, lab.now())
      for (const { name } of lab.hosts()) {
        const found = (await history(lab, name)).find(
          (one) => one.guest === guest.name && one.startedAt >= since,
        )
        u.diagnostic(`history at ${name}: ${found?.phase}, ${found?.error ?? found?.reason ?? 'accelerated'}`)
        assert.equal(found?.phase, swam.ok ? 'done' : 'failed', JSON.stringify(found))
        assert.equal(found?.accelerated, true)
      }
      if (swam.ok) return
      await lab.host(other(at)).shell(`rm -f /var/lib/libvirt/images/${guest.imageName}`)
      await moveThrough(lab, guest, at, other(at))
      at = other(at)
      await resume(lab, guest, at)
    })
  }
})
