/** Hosts, disks and guests that fail in the middle: every row, with plain libvirt beside it in the same lab. */
import { test } from 'node:test'
import { settle } from '../e2e/swam-failing.ts'
import {
  type Command,
  type CommandMoment,
  commandRow,
  diskFails,
  FAR_ERROR,
  FULL,
  IMMUTABLE,
  LARGER,
  NBD_SOCKET,
  NO_PLACE,
  READ_ONLY_MODE,
  READ_ONLY_MOUNT,
  SMALL_GUEST,
  SMALLER,
  SOURCE_ERROR,
  serveDisk,
} from '../e2e/swam-hosts.ts'
import { swamLab } from '../e2e/swam-lab.ts'
import type { HostName } from '../lab/state.ts'

const COMMANDS: readonly Command[] = ['suspend', 'domjobabort', 'destroy', 'off']
const MOMENTS: readonly CommandMoment[] = ['bulk', 'ready']

test('the far disk: each row also plain', { timeout: 1_800_000 }, async (t) => {
  await using lab = await swamLab('hosts-long')
  const guest = lab.tinyGuest(SMALL_GUEST)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of [FULL, SMALLER, LARGER, READ_ONLY_MOUNT, READ_ONLY_MODE, IMMUTABLE, NO_PLACE]) {
    await t.test(row.name, async (one) => {
      at = await settle(lab, guest, at)
      const outcome = await diskFails(lab, guest, at, row, { plain: true })
      at = outcome.at
      one.diagnostic(outcome.figures)
    })
  }
})

test('an I/O error on either disk: each row also plain', { timeout: 1_800_000 }, async (t) => {
  await using lab = await swamLab('hosts-long-io')
  const guest = lab.tinyGuest({ ...SMALL_GUEST, nbdSocket: NBD_SOCKET })
  await guest.makeDisk('hosta')
  for (const host of lab.hosts())
    await serveDisk(host, `/var/lib/libvirt/images/${guest.imageName}`, guest.diskBytes)
  await guest.create('hosta', { keepDisk: true })
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of [FAR_ERROR, SOURCE_ERROR]) {
    await t.test(row.name, async (one) => {
      const outcome = await diskFails(lab, guest, at, row, { plain: true })
      at = outcome.at
      one.diagnostic(outcome.figures)
    })
  }
})

test('what is done to a guest in the middle: every command, every moment', {
  timeout: 1_800_000,
}, async (t) => {
  await using lab = await swamLab('hosts-long-guest')
  const guest = lab.tinyGuest({ ...SMALL_GUEST, control: true })
  for (const command of COMMANDS) {
    for (const moment of MOMENTS) {
      await t.test(`${command}, ${moment}`, async (row) => {
        row.diagnostic(await commandRow(lab, guest, command, moment))
      })
    }
  }
})
