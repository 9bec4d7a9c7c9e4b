/** What the record of a migration says of its disks. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { MigrationRecord } from '../../../server/migration/record.ts'

test('disks are told in the order of their names, in whatever order QEMU connects for them', () => {
  const record = new MigrationRecord({ id: '1', guest: 'vm', uuid: '2', peer: 'far', direction: 'out' })
  for (const target of ['vdb', 'vdaa', 'sda', 'vda', 'vdz']) record.addDisk(new DiskAccount(target, MIB))
  assert.deepEqual(
    record.report().disks.map(({ target }) => target),
    ['sda', 'vda', 'vdb', 'vdz', 'vdaa'],
  )
})
