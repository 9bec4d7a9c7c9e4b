/**
 * The main job, with an unmodified virsh: a guest goes through SWAM to a host that has nothing of it, and back to where
 * its old image lies, and out again to a host that has a copy under another name. What the history says is held to
 * what the link counted.
 */
import assert from 'node:assert/strict'
import { copyFileSync, existsSync, rmSync, statSync } from 'node:fs'
import { test } from 'node:test'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import { assertNear, MIB, moveThrough, QUIET, resume, SMALL, startBoth, swamLab, wire } from './swam-lab.ts'

const RANDOM_MIB = 64

function allocated(path: string): number {
  return statSync(path).blocks * 512
}

async function uidAt(lab: Lab, host: HostName, user: string): Promise<number> {
  return Number((await lab.host(host).exec('id', ['-u', user])).stdout)
}

/** Waits until the image is at that host, and says how the hook left it. */
async function created(
  guest: TinyGuest,
  host: HostName,
): Promise<{ uid: number; size: number; bytes: number }> {
  const path = guest.imagePath(host)
  return await until(
    `${path} to be created`,
    60_000,
    () => {
      if (!existsSync(path)) return undefined
      const { uid, size } = statSync(path)
      return size === 0 ? undefined : { uid, size, bytes: allocated(path) }
    },
    5,
  )
}

test('out, back, and out again to a copy', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('basic')
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, randomMiB: RANDOM_MIB, write: { ...QUIET, intervalMs: 1000 } })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  let firstDiskBytes = 0

  await t.test('out to a host that has nothing', async () => {
    const qemu = await uidAt(lab, 'hostb', 'libvirt-qemu')
    assert.ok(!existsSync(guest.imagePath('hostb')))
    const [image, moved] = await Promise.all([
      created(guest, 'hostb'),
      moveThrough(lab, guest, 'hosta', 'hostb', { watch: true }),
    ])
    assert.equal(image.size, guest.diskBytes)
    assert.ok(image.uid === qemu || image.uid === 0, `owner ${image.uid}`)
    assert.ok(image.bytes < 8 * MIB, `created with ${image.bytes} bytes allocated`)
    assert.equal(statSync(guest.imagePath('hostb')).size, guest.diskBytes)

    for (const [host, report] of [
      ['hosta', moved.out],
      ['hostb', moved.in],
    ] as const) {
      const { disk, ram, linkDisk, linkRam } = wire(report, host, moved.link)
      assertNear(disk, linkDisk, `${host}: disk bytes on the wire`)
      assertNear(ram, linkRam, `${host}: RAM bytes on the wire`)
      firstDiskBytes = linkDisk
      const [vda] = report.disks
      assert.ok(
        vda && vda.bySource.literal >= RANDOM_MIB * MIB,
        `random data must be sent: ${JSON.stringify(vda)}`,
      )
      assert.equal(vda.size, guest.diskBytes)
      assert.ok(linkDisk < 1.2 * (RANDOM_MIB + 16) * MIB, `disk bytes at the link: ${linkDisk}`)
    }
    for (const host of ['hosta', 'hostb'] as const) {
      const seen = moved.seen[host]
      const copying = seen.filter(({ phase }) => phase === 'copying')
      assert.ok(copying.length > 0, `status at ${host}: ${JSON.stringify(seen.map(({ phase }) => phase))}`)
      assert.ok(
        copying.some(({ disks, connections }) => disks.length === 1 && connections.length >= 2),
        JSON.stringify(copying.at(-1)),
      )
      assert.ok(seen.every(({ id }) => id === moved.out.id))
    }
    assert.ok(
      allocated(guest.imagePath('hostb')) <= allocated(guest.imagePath('hosta')) + 4 * MIB,
      `holes stay holes: ${allocated(guest.imagePath('hosta'))}, then ${allocated(guest.imagePath('hostb'))}`,
    )
    const check = await guest.check(guest.imagePath('hostb'))
    assert.ok(check.ok, check.faults.join('\n'))
  })

  await t.test('back to its old image', async () => {
    const before = guest.durable()
    await resume(lab, guest, 'hostb')
    const moved = await moveThrough(lab, guest, 'hostb', 'hosta')
    const { disk, ram, linkDisk, linkRam } = wire(moved.out, 'hostb', moved.link)
    assertNear(disk, linkDisk, 'disk bytes on the wire')
    assertNear(ram, linkRam, 'RAM bytes on the wire')
    assert.ok(linkDisk < 0.05 * firstDiskBytes, `disk bytes at the link: ${linkDisk} after ${firstDiskBytes}`)
    const [vda] = moved.out.disks
    // A write dirties its 64 KiB of the mirror, and such a piece may be sent with the chunk around it.
    const changed = (guest.durable() - before + 1) * 2 * 65536 + MIB
    assert.ok(vda && vda.bySource.literal <= changed, `literal of ${changed} changed: ${JSON.stringify(vda)}`)
    assert.ok(vda.bySource.inPlace > (RANDOM_MIB - 4) * MIB, JSON.stringify(vda))
    assert.ok(allocated(guest.imagePath('hosta')) <= allocated(guest.imagePath('hostb')) + 4 * MIB)
    const check = await guest.check(guest.imagePath('hosta'))
    assert.ok(check.ok, check.faults.join('\n'))
  })

  await t.test('out again: the far side has a copy under another name', async () => {
    rmSync(guest.imagePath('hostb'))
    copyFileSync(guest.imagePath('hosta'), `${lab.host('hostb').imagesDir}/base.raw`)
    await resume(lab, guest, 'hosta')
    const moved = await moveThrough(lab, guest, 'hosta', 'hostb')
    const [vda] = moved.out.disks
    assert.ok(vda && vda.bySource.chunk > 0.8 * RANDOM_MIB * MIB, JSON.stringify(vda))
    assert.ok(vda.bySource.literal < 0.2 * RANDOM_MIB * MIB, JSON.stringify(vda))
    assert.ok(
      allocated(guest.imagePath('hostb')) <= allocated(guest.imagePath('hosta')) + 4 * MIB,
      'holes stay holes',
    )
    await lab.host('hostb').virsh('destroy', guest.name)
  })

  const knownAtHostb = (): string[] =>
    lab
      .host('hostb')
      .swamdLog()
      .split('\n')
      .filter(
        (line) => line.includes('"path":"/var/lib/libvirt/images/base.raw"') && line.includes('is known'),
      )

  await t.test('what was found of an image is kept for the next daemon', async () => {
    await until('the scan', 60_000, () => (knownAtHostb().length > 0 ? true : undefined))
    assert.match(knownAtHostb()[0]!, /"mapped":false,"stale":false/)
    for (const host of lab.hosts()) await host.stopSwamd()
    await startBoth(lab)
  })

  await t.test('a qcow2 guest out and back', async () => {
    const other = lab.tinyGuest({ ...SMALL, name: 'cow', format: 'qcow2', write: QUIET })
    await other.create('hosta')
    await other.waitBoot()
    await other.waitProgress(2)
    for (const [from, to] of [
      ['hosta', 'hostb'],
      ['hostb', 'hosta'],
    ] as const) {
      const moved = await moveThrough(lab, other, from, to)
      const check = await other.check(other.imagePath(to))
      assert.ok(check.ok, check.faults.join('\n'))
      const limit =
        from === 'hosta' ? allocated(other.imagePath('hosta')) + 4 * MIB : Number.POSITIVE_INFINITY
      assert.ok(allocated(other.imagePath('hostb')) <= limit, 'holes stay holes')
      const [vda] = moved.out.disks
      assert.equal(vda?.size, other.diskBytes, 'the size of the disk, not of the file')
      if (to === 'hosta') assert.ok(vda.bySource.literal < 4 * MIB, JSON.stringify(vda))
      await resume(lab, other, to)
    }
    await until('the image to be taken from its map', 30_000, () =>
      knownAtHostb().at(-1)?.includes('"mapped":true') === true ? true : undefined,
    )
  })

  await t.test('what a guest stores in its memory on the way is there at the end of it', async () => {
    await lab.host('hosta').virsh('destroy', 'cow')
    const worker = lab.tinyGuest({ ...SMALL, name: 'worker', hammerMiB: 16, write: QUIET })
    await worker.create('hosta')
    await worker.waitBoot()
    for (const [from, to] of [
      ['hosta', 'hostb'],
      ['hostb', 'hosta'],
      ['hosta', 'hostb'],
    ] as const) {
      const { done } = await moveThrough(lab, worker, from, to, { maxDowntimeMs: 1 })
      assert.ok(Number(done.jobinfo['Iteration']) > 3, JSON.stringify(done.jobinfo))
      await resume(lab, worker, to)
      await worker.waitProgress(8)
    }
  })
})
