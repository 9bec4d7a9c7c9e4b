/**
 * The variants of `virsh migrate` on other releases (variant-rows.ts), and those that take long: a disk of 10 GiB, and
 * four guests at once.
 */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { test } from 'node:test'
import { MIGRATION_IDLE_MS } from '../../lib/core/limits.ts'
import {
  assertDone,
  assertEqual,
  assertRecords,
  direct,
  entry,
  logs,
  MIB,
  resume,
  SMALL,
  startBoth,
  status,
  swamLab,
} from '../e2e/swam-lab.ts'
import { directRows, imageRows, optionRows, returnRows, selectionRows } from '../e2e/variant-rows.ts'
import { Traveller } from '../e2e/variants.ts'
import type { LabOptions } from '../lab/lab.ts'

const MACHINE = 'pc-i440fx-7.2'

const LABS: readonly { name: string; release: NonNullable<LabOptions['release']> }[] = [
  { name: 'bookworm', release: '' },
  { name: 'trixie', release: 'trixie' },
  { name: 'mixed', release: { hostb: 'trixie' } },
]

for (const { name, release } of LABS) {
  test(`variants of virsh migrate: ${name}`, { timeout: 2_400_000 }, async (t) => {
    await using lab = await swamLab(`variants-${name}`, { release })
    await startBoth(lab)
    await t.test('options', (group) => optionRows(group, lab))
    await t.test('past SWAM', (group) => directRows(group, lab))
    await t.test('images', (group) => imageRows(group, lab))
    await t.test('which disks', (group) => selectionRows(group, lab))
    if (name === 'trixie') await t.test('on a return trip', (group) => returnRows(group, lab))
  })
}

test('a disk of 10 GiB, out and back', { timeout: 1_200_000 }, async () => {
  await using lab = await swamLab('large')
  await startBoth(lab)
  const large = new Traveller(lab, { name: 'large', machine: MACHINE, diskMiB: 10_240, randomMiB: 1536 })
  await large.start()
  const out = await large.through({ timeoutMs: 900_000 })
  const bytes = (host: 'hosta' | 'hostb'): number => statSync(large.guest.imagePath(host)).blocks * 512
  assert.ok((out.out.disks[0]?.bySource.literal ?? 0) >= 1536 * MIB, JSON.stringify(out.out.disks))
  assert.ok(bytes('hostb') <= bytes('hosta') + 16 * MIB, `holes stay holes: ${bytes('hostb')}`)
  const back = await large.through({ timeoutMs: 900_000 })
  assert.ok((back.out.disks[0]?.bySource.literal ?? 0) < 8 * MIB, JSON.stringify(back.out.disks))
  await large.destroy()
})

test('disks past SWAM for longer than a minute: memory comes through it all the same', {
  timeout: 600_000,
}, async () => {
  await using lab = await swamLab('patient')
  await startBoth(lab)
  const one = new Traveller(lab, { name: 'patient', machine: MACHINE })
  await one.start()
  const since = Date.now()
  await lab.wan.set({ mbit: 3 })
  const migration = lab.migrate(one.guest, 'hosta', 'hostb', { args: ['--suspend', '--disks-port', '50000'] })
  await new Promise((resolve) => setTimeout(resolve, MIGRATION_IDLE_MS + 10_000))
  const running = (await status(lab, 'hosta'))?.migrations.find((report) => report.guest === one.guest.name)
  assert.equal(running?.ram.askedBytes, 0, `the disks are still on their way: ${JSON.stringify(running)}`)
  await lab.wan.set({ mbit: 1000 })
  const done = await migration
  assert.ok(done.ok, done.stderr)
  await assertEqual(lab, one.guest)
  await assertRecords(one.guest, 'hostb')
  for (const host of ['hosta', 'hostb'] as const) {
    const { phase, accelerated, reason, ram } = await entry(lab, host, one.guest, since)
    assert.deepEqual([phase, accelerated], ['done', false])
    assert.match(reason ?? '', /listens on 50000/)
    assert.ok(ram.askedBytes > MIB, `memory: ${ram.askedBytes}`)
  }
})

test('two guests to and two from the same host at once', { timeout: 900_000 }, async () => {
  await using lab = await swamLab('four')
  await startBoth(lab)
  const all = ['hosta', 'hosta', 'hostb', 'hostb'].map((at, index) => {
    const one = new Traveller(lab, { name: `guest-${index}`, machine: MACHINE, seed: `at once ${index}` })
    one.at = at === 'hosta' ? 'hosta' : 'hostb'
    return one
  })
  for (const one of all) await one.start()
  await lab.wan.reset()
  const since = Date.now()
  const done = await Promise.all(
    all.map(({ guest, at, to }) => lab.migrate(guest, at, to, { args: ['--suspend'], timeoutMs: 600_000 })),
  )
  for (const each of done) assert.ok(each.ok, `${each.stderr}\n${logs(lab)}`)
  const begun = Math.max(...done.map(({ startedAt }) => startedAt))
  const ended = Math.min(...done.map(({ endedAt }) => endedAt))
  assert.ok(begun < ended, 'all at the same time')
  for (const { guest, at, to } of all) {
    await assertEqual(lab, guest)
    await assertRecords(guest, to)
    const [out, into] = [await entry(lab, at, guest, since), await entry(lab, to, guest, since)]
    assert.equal(out.id, into.id)
    for (const report of [out, into]) {
      assertDone(report)
      const literal = report.disks[0]?.bySource.literal ?? 0
      // A record is the same in every guest that has come to its number: such ones are found in the others' images.
      const own = SMALL.randomMiB * MIB - guest.plan.areaBytes
      assert.ok(literal >= own, `${guest.name}: its own data: ${literal}`)
      assert.ok(literal < (SMALL.randomMiB + 16) * MIB, `${guest.name}: nobody else's data: ${literal}`)
    }
  }
  assert.deepEqual(direct(await lab.wan.stats()), [])
  for (const { guest, to } of all) await resume(lab, guest, to)
})
