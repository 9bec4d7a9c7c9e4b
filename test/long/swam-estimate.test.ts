/**
 * What `swam estimate` says before a migration, and what the link's own counters and the history say after it: to a host that has
 * parts of the disk, and back again; of a raw image, and of a qcow2 on a backing chain.
 */
import assert from 'node:assert/strict'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import { type TestContext, test } from 'node:test'
import type { EstimateReport } from '../../server/estimate/estimate.ts'
import { MIB, moveThrough, QUIET, resume, SMALL, startBoth, swamLab, wire } from '../e2e/swam-lab.ts'
import type { Lab } from '../lab/lab.ts'
import { run, until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'

const RANDOM_MIB = 96
const IMAGES = '/var/lib/libvirt/images'
/** Beside 20 percent: SSH, TCP and IP, and what the guest has written since the map that was estimated by was made. */
const SLACK_BYTES = 512 * 1024
/** It writes 16 KiB a second, and a second or two go by unseen. */
const WRITTEN_BYTES_PER_SECOND = 24 * 1024

/** When the far side knows its images. */
async function estimated(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<EstimateReport> {
  return await until('the far side to know its images', 120_000, async () => {
    const { code, stdout, stderr } = await lab.host(from).swam('estimate', guest.name, to, '--json')
    assert.equal(code, 0, stderr)
    const report = JSON.parse(stdout) as EstimateReport
    if (report.imagesScanning === 0) return report
    // Each tests the link, which is done six times a minute at most.
    await new Promise((resolve) => setTimeout(resolve, 10_000))
    return undefined
  })
}

function near(found: number, expected: number, seconds: number, what: string): void {
  const within = Math.max(SLACK_BYTES + seconds * WRITTEN_BYTES_PER_SECOND, 0.2 * expected)
  const text = `${what}: estimated ${found}, came to ${expected} ${seconds.toFixed(0)} s later, ${within} more or less allowed`
  assert.ok(Math.abs(found - expected) <= within, text)
}

test('what is estimated is what comes', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('estimate', { mbit: 200 })
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, randomMiB: RANDOM_MIB, write: { ...QUIET, intervalMs: 1000 } })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  const disk = readFileSync(guest.imagePath('hosta'))
  // A third of the disk, elsewhere in another image.
  writeFileSync(
    `${lab.host('hostb').imagesDir}/other.raw`,
    Buffer.concat([Buffer.alloc(3 * MIB), disk.subarray(0, Math.floor(disk.length / 3))]),
  )
  await thereAndBack(t, lab, guest)
})

test('so it is of a qcow2 guest on a backing chain', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('estimate-qcow2', { mbit: 200 })
  // The guest is transient, so libvirt says nothing of its images where it does not run.
  for (const host of lab.hosts()) await host.configureSwam({ qcow2: [IMAGES] })
  await startBoth(lab)
  const guest = lab.tinyGuest({
    ...SMALL,
    randomMiB: RANDOM_MIB,
    format: 'qcow2',
    backed: true,
    write: { ...QUIET, intervalMs: 1000 },
  })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  const [hosta, hostb] = [lab.host('hosta'), lab.host('hostb')]
  // Its base lies there as a template; what it is written to is empty.
  copyFileSync(`${hosta.imagesDir}/${guest.disk().baseName}`, `${hostb.imagesDir}/template.qcow2`)
  const target = guest.imagePath('hostb')
  await run('qemu-img', ['create', '-q', '-f', 'qcow2', target, String(SMALL.diskMiB * MIB)])
  await thereAndBack(t, lab, guest)
})

async function thereAndBack(t: TestContext, lab: Lab, guest: TinyGuest): Promise<void> {
  for (const [from, to] of [
    ['hosta', 'hostb'],
    ['hostb', 'hosta'],
  ] as const) {
    await t.test(`from ${from} to ${to}`, async (t) => {
      if (from === 'hostb') await resume(lab, guest, 'hostb')
      const askedAt = Date.now()
      const report = await estimated(lab, guest, from, to)
      const text = await lab.host(from).swam('estimate', guest.name, to)
      t.diagnostic(text.stdout)
      const [vda] = report.disks
      assert.ok(vda !== undefined && report.guest === guest.name)
      assert.deepEqual([vda.format, vda.reason, vda.note], [guest.disk().format, null, null])
      assert.ok(report.linkMbit > 20 && report.linkMbit < 220, `${report.linkMbit} Mbit/s`)
      assert.ok(report.ramBytes !== null && report.ramBytes >= SMALL.ramMiB * MIB)
      const moved = await moveThrough(lab, guest, from, to)
      const seconds = (Date.now() - (vda.mapAt ?? askedAt)) / 1000
      const { linkDisk } = wire(moved.out, from, moved.link)
      const came = moved.out.disks[0]!.bySource
      t.diagnostic(`estimate ${report.wireBytes} ${JSON.stringify(vda.bySource)}`)
      t.diagnostic(`came     ${linkDisk} ${JSON.stringify(came)}`)
      near(report.wireBytes, linkDisk, seconds, 'bytes at the link')
      near(vda.bySource.literal, came.literal, seconds, 'sent')
      near(
        vda.bySource.inPlace + vda.bySource.chunk + vda.bySource.block,
        came.inPlace + came.chunk + came.block,
        seconds,
        'found',
      )
    })
  }
}
