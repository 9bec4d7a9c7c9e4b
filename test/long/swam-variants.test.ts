/**
 * The variants of `virsh migrate` on other releases (variant-rows.ts), and those that take long: a disk of 10 GiB, and
 * four guests at once.
 */
import assert from 'node:assert/strict'
import { statSync } from 'node:fs'
import { test } from 'node:test'
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
  swamLab,
} from '../e2e/swam-lab.ts'
import { directRows, imageRows, optionRows, returnRows, selectionRows } from '../e2e/variant-rows.ts'
import { Traveller } from '../e2e/variants.ts'
import type { LabOptions } from '../lab/lab.ts'

const MACHINE = 'pc-i440fx-7.2'

const LABS: readonly { name: string; release: NonNullable<LabOptions['release']> }[] = [
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
      assert.ok(literal >= SMALL.randomMiB * MIB, `${guest.name}: its own data: ${literal}`)
      assert.ok(literal < (SMALL.randomMiB + 16) * MIB, `${guest.name}: nobody else's data: ${literal}`)
    }
  }
  assert.deepEqual(direct(await lab.wan.stats()), [])
  for (const { guest, to } of all) await resume(lab, guest, to)
})
