/**
 * Hosts whose names are IPv6 addresses: a redirect for IPv4 only would be passed by silently, and the migration would
 * go around SWAM. So what counts here is that the link sees no connection to a port of the migration range.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { moveThrough, QUIET, resume, SMALL, startBoth, swamLab } from './swam-lab.ts'

test('over IPv6, out and back', { timeout: 300_000 }, async () => {
  await using lab = await swamLab('ipv6', { ipFamily: 6 })
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, write: QUIET })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  const out = await moveThrough(lab, guest, 'hosta', 'hostb')
  assert.ok(
    out.link.connections.some(({ b }) => b === '[fd08::2]:16509'),
    'virsh went over IPv6',
  )
  await resume(lab, guest, 'hostb')
  const back = await moveThrough(lab, guest, 'hostb', 'hosta', { transport: 'ssh' })
  const [vda] = back.out.disks
  assert.ok(vda && vda.bySource.literal < 4 << 20, JSON.stringify(vda))
  await resume(lab, guest, 'hosta')
})
