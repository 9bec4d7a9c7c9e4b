/**
 * Hosts, disks and guests that fail in the middle (swam-hosts.ts), the fast half: the rows that take most different
 * ways. The others, and plain libvirt beside each of them, are in test/long.
 */
import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, statSync, utimesSync, writeFileSync } from 'node:fs'
import { test } from 'node:test'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import { settle } from './swam-failing.ts'
import { commandRow, diskFails, FULL, SMALL_GUEST, SMALLER } from './swam-hosts.ts'
import { moveThrough, resume, startBoth, status, swamLab } from './swam-lab.ts'

test('a far disk that is full, of another size', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('hosts')
  await startBoth(lab)
  const guest = lab.tinyGuest(SMALL_GUEST)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of [FULL, SMALLER]) {
    await t.test(row.name, async (one) => {
      at = await settle(lab, guest, at)
      const outcome = await diskFails(lab, guest, at, row)
      at = outcome.at
      one.diagnostic(outcome.figures)
    })
  }
})

test('a hostile guest writes qcow2 headers into its raw disk', { timeout: 600_000 }, async () => {
  await using lab = await swamLab('hosts-evil')
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL_GUEST, control: true })
  await guest.create('hosta')
  await guest.waitBoot()
  const baits = lab.hosts().flatMap((host) => ['bait1', 'bait2'].map((name) => `${host.labDir}/${name}`))
  for (const bait of baits) {
    writeFileSync(bait, Buffer.alloc(65536, 's'))
    // So that the first read shows, however rarely the file system writes access times.
    utimesSync(bait, new Date(1e12), new Date())
  }
  const touched = (): string[] => baits.filter((bait) => statSync(bait).atimeMs !== 1e12)
  await guest.order('hosta', 'qcow2 /var/lib/libvirt/lab/bait1')
  const { imagesDir } = lab.host('hostb')
  // Also as an image that lies about at the far side, and is searched for content.
  copyFileSync(guest.imagePath('hosta'), `${imagesDir}/stock.raw`)
  const again = until('the copy to be under way', 60_000, async () =>
    (await status(lab, 'hosta'))?.migrations.some(({ phase }) => phase === 'copying') ? true : undefined,
  ).then(() => guest.order('hosta', 'qcow2 /var/lib/libvirt/lab/bait2'))
  const [moved] = await Promise.all([moveThrough(lab, guest, 'hosta', 'hostb'), again])
  const image = guest.imagePath('hostb')
  assert.ok((moved.in.disks[0]?.bySource.chunk ?? 0) > 32 << 20, JSON.stringify(moved.in.disks))
  const start = readFileSync(image).subarray(0, 1024)
  assert.equal(start.toString('latin1', 0, 4), 'QFI\xfb')
  assert.match(start.toString('latin1'), /lab\/bait2/, 'the header that was written while it migrated')
  assert.match(await lab.host('hostb').virsh('dumpxml', guest.name), /<driver name='qemu' type='raw'\/>/)
  assert.equal(statSync(image).size, guest.diskBytes)
  await resume(lab, guest, 'hostb')
  await lab.host('hostb').virsh('suspend', guest.name)
  assert.deepEqual(touched(), [], 'nothing took the disk for a qcow2 image')

  // The bait is good: who probes the format reads it.
  const probe = await lab
    .host('hostb')
    .exec('qemu-io', ['-r', '-U', '-c', 'read 0 64k', `/var/lib/libvirt/images/${guest.imageName}`], {
      check: false,
    })
  assert.deepEqual(touched(), [`${lab.host('hostb').labDir}/bait2`], `${probe.stdout}${probe.stderr}`)
})

test('what is done to a guest in the middle, as quick as with plain libvirt', {
  timeout: 600_000,
}, async (t) => {
  await using lab = await swamLab('hosts-guest')
  const guest = lab.tinyGuest({ ...SMALL_GUEST, control: true })
  t.diagnostic(await commandRow(lab, guest, 'destroy', 'ready'))
})
