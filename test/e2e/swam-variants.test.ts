/** The variants of `virsh migrate` on Debian 12, one lab for all: variant-rows.ts. The rest and other releases are in test/long. */
import { test } from 'node:test'
import { startBoth, swamLab } from './swam-lab.ts'
import { directRows, imageRows, optionRows, selectionRows } from './variant-rows.ts'

test('variants of virsh migrate', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('variants')
  await startBoth(lab)
  await t.test('options', (group) => optionRows(group, lab, true))
  await t.test('past SWAM', (group) => directRows(group, lab, true))
  await t.test('images', (group) => imageRows(group, lab, true))
  await t.test('which disks', (group) => selectionRows(group, lab))
})
