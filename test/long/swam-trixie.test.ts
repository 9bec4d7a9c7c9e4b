/**
 * SWAM with the libvirt and QEMU of Debian 13 (from a chroot that the lab makes and keeps), and from Debian 12 to 13.
 * QEMU 10 asks the NBD server for other things than QEMU 7.2 does; the job must come out the same.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { MIB, moveThrough, QUIET, resume, SMALL, startBoth, swamLab } from '../e2e/swam-lab.ts'
import type { LabOptions } from '../lab/lab.ts'

/** A machine type that both releases know, and goes on running when a guest comes back. */
const MACHINE = 'pc-i440fx-7.2'

const ROWS: readonly { name: string; release: NonNullable<LabOptions['release']>; back: boolean }[] = [
  { name: 'trixie', release: 'trixie', back: true },
  { name: 'mixed', release: { hostb: 'trixie' }, back: false },
]

for (const { name, release, back } of ROWS) {
  test(`out${back ? ' and back' : ''}: ${name}`, { timeout: 2_400_000 }, async () => {
    await using lab = await swamLab(name, { release })
    await startBoth(lab)
    const guest = lab.tinyGuest({ ...SMALL, machine: MACHINE, write: QUIET })
    await guest.create('hosta')
    await guest.waitBoot()
    await guest.waitProgress(2)
    const out = await moveThrough(lab, guest, 'hosta', 'hostb')
    assert.ok((out.out.disks[0]?.bySource.literal ?? 0) >= SMALL.randomMiB * MIB)
    const check = await guest.check(guest.imagePath('hostb'))
    assert.ok(check.ok, check.faults.join('\n'))
    await resume(lab, guest, 'hostb')
    if (!back) return
    const moved = await moveThrough(lab, guest, 'hostb', 'hosta')
    const [vda] = moved.out.disks
    assert.ok(vda && vda.bySource.literal < 4 * MIB, JSON.stringify(vda))
    await resume(lab, guest, 'hosta')
  })
}
