/**
 * The rows themselves, in groups that share a lab: options of virsh with one guest that goes to and fro, what goes past
 * SWAM, kinds of images, and which disks are copied. The tests choose groups and releases.
 */
import assert from 'node:assert/strict'
import { copyFileSync, existsSync } from 'node:fs'
import type { TestContext } from 'node:test'
import type { Lab } from '../lab/lab.ts'
import { layOutCertificates } from '../lab/tls.ts'
import { entry, logs, MIB, rowsUnless, SMALL } from './swam-lab.ts'
import { copyImage, Traveller, targetXml } from './variants.ts'

/** Of Debian 12 and newer. */
const MACHINE = 'pc-i440fx-7.2'
const BANDWIDTH_MIB = 24

/** Options that change how libvirt and QEMU talk, not what must come out. In haste: without those that take long. */
export async function optionRows(t: TestContext, lab: Lab, haste = false): Promise<void> {
  const one = new Traveller(lab, { name: 'options', machine: MACHINE })
  await one.start()
  await t.test('--p2p', async () => {
    await one.through({ args: ['--p2p'] })
  })
  await t.test('--parallel', async () => {
    const { out } = await one.through({ args: ['--parallel', '--parallel-connections', '3'] })
    assert.ok(out.ram.askedBytes > MIB, JSON.stringify(out.ram))
  })
  const longRow = rowsUnless(haste, t)
  await longRow('--disks-port inside the range', async () => {
    await one.through({ args: ['--disks-port', '49200'] })
    assert.match(lab.host(one.to).swamdLog(), /"ports":\[49152,49200\]|"ports":\[49200,49152\]/)
  })
  await longRow('--bandwidth caps logical bytes, also of what never crosses the link', async () => {
    const { done, out } = await one.through({ args: ['--bandwidth', String(BANDWIDTH_MIB)] })
    assert.ok((out.disks[0]?.bySource.literal ?? 0) < 4 * MIB, JSON.stringify(out.disks))
    // One after the other; what is zero on the disk may go faster.
    const leastMs = ((SMALL.randomMiB + out.ram.askedBytes / MIB) / BANDWIDTH_MIB) * 1000
    assert.ok(done.totalMs > 0.9 * leastMs, `${done.totalMs} ms, at least ${leastMs} ms at the cap`)
  })
  await longRow('--copy-storage-synchronous-writes', async () => {
    await one.through({ args: ['--copy-storage-synchronous-writes'] })
  })
  await longRow('qemu+ssh', async () => {
    const { link } = await one.through({ transport: 'ssh' })
    assert.ok(link.connections.some(({ a, b }) => (one.at === 'hosta' ? a : b).endsWith(':22')))
  })
  await t.test('--persistent --undefinesource', async () => {
    const [from, to] = [lab.host(one.at), lab.host(one.to)]
    // A running transient guest becomes a persistent one.
    await from.shell(`virsh dumpxml ${one.guest.name} >/tmp/define.xml; virsh define /tmp/define.xml`)
    await one.through({ args: ['--persistent', '--undefinesource'] })
    assert.doesNotMatch(await from.virsh('list', '--all', '--name'), /options/)
    assert.match(await to.virsh('dominfo', one.guest.name), /Persistent:\s+yes/)
    await to.virsh('undefine', one.guest.name)
  })
  await one.destroy()
}

/** What cannot be accelerated, or not all of it. */
export async function directRows(t: TestContext, lab: Lab, haste = false): Promise<void> {
  const longRow = rowsUnless(haste, t)
  const one = new Traveller(lab, { name: 'direct', machine: MACHINE })
  await one.start()
  await layOutCertificates(lab)
  await t.test('--tls', async () => {
    await one.direct(/encrypts the disk connection itself \(--tls\)/, [], { args: ['--tls'] })
  })
  await t.test('--disks-port outside of the range', async () => {
    await one.direct(/do not come to a port of migrationPorts 49152 to 49215: it listens on 50000/, [50000], {
      args: ['--disks-port', '50000'],
    })
  })
  await longRow('--migrateuri and --disks-port outside of the range', async () => {
    const uri = `tcp://${one.to}:50001`
    await one.direct(/uses no port of migrationPorts.*: it listens on 5000[01], 5000[01]/, [50000, 50001], {
      args: ['--migrateuri', uri, '--disks-port', '50000'],
    })
  })
  await t.test('--migrateuri outside of the range: the disks are accelerated, memory is not', async () => {
    const { link } = await one.through({
      args: ['--migrateuri', `tcp://${one.to}:50001`],
      memoryDirect: true,
    })
    assert.ok(link.connections.some(({ a, b }) => (one.at === 'hosta' ? a : b).endsWith(':50001')))
  })
  await longRow('--disks-uri unix:', async () => {
    const directory = '/tmp/lab-nbd'
    for (const host of lab.hosts()) await host.shell(`mkdir -p ${directory}; chmod 1777 ${directory}`)
    const socket = `${directory}/disks.sock`
    const forward = `-o StreamLocalBindUnlink=yes -o StreamLocalBindMask=0111 -N -L ${socket}:${socket}`
    const from = lab.host(one.at)
    const { stdout } = await from.shell(`ssh ${forward} ${one.to} </dev/null >/dev/null 2>&1 & echo $!`)
    try {
      await one.direct(/no other TCP port is open \(--disks-uri unix:/, [], {
        args: ['--disks-uri', `unix://${socket}`],
      })
    } finally {
      await from.shell(`kill ${stdout.trim()}`)
    }
  })
  await one.destroy()
}

/** Kinds of images and disks. */
export async function imageRows(t: TestContext, lab: Lab, haste = false): Promise<void> {
  const longRow = rowsUnless(haste, t)
  await t.test('four disks: raw, ext4, qcow2, XFS', async () => {
    const more = [
      { diskMiB: 64, randomMiB: 4, content: 'ext4' },
      { diskMiB: 96, randomMiB: 16, format: 'qcow2' },
      { diskMiB: 320, randomMiB: 4, content: 'xfs' },
    ] as const
    const four = new Traveller(lab, { name: 'four', machine: MACHINE, ramMiB: 96, more })
    await four.start()
    const out = await four.through()
    assert.equal(out.in.disks.length, 4)
    const back = await four.through()
    const literal = back.out.disks.reduce((sum, disk) => sum + disk.bySource.literal, 0)
    assert.ok(literal < 8 * MIB, JSON.stringify(back.out.disks))
    await four.destroy()
  })
  await longRow('raw to a block device, and back', async () => {
    const volume = new Traveller(lab, { name: 'volume', machine: MACHINE, volumes: ['hostb'] })
    await using made = await volume.guest.disk().makeVolume(lab.host('hostb'))
    assert.ok(made)
    await volume.start()
    await volume.through({ args: ['--xml', await targetXml(volume)] })
    await volume.through({ args: ['--xml', await targetXml(volume)] })
    await volume.destroy()
  })
  await t.test('--copy-storage-inc with a backing chain', async () => {
    const chain = new Traveller(lab, { name: 'chain', machine: MACHINE, format: 'qcow2', backed: true })
    await chain.start()
    const disk = chain.guest.disk()
    const [hosta, hostb] = lab.hosts()
    assert.ok(hosta && hostb)
    await chain.refused(/chain\.qcow2 for vda, which lies on a backing file: create it first/, {
      storage: 'inc',
    })
    copyFileSync(`${hosta.imagesDir}/${disk.baseName}`, `${hostb.imagesDir}/${disk.baseName}`)
    await disk.makeOverlay(hostb)
    const out = await chain.through({ storage: 'inc', partial: true })
    const asked = out.out.disks[0]?.askedBytes ?? 0
    assert.ok(asked > 0 && asked < SMALL.randomMiB * MIB, `the top alone is copied: ${asked} bytes`)
    await chain.through({ storage: 'inc', partial: true })
    await chain.through()
    await chain.destroy()
  })
}

/** Which disks are copied, when libvirt's hook does not say. */
export async function selectionRows(t: TestContext, lab: Lab): Promise<void> {
  const two = new Traveller(lab, {
    name: 'picked',
    machine: MACHINE,
    more: [{ diskMiB: 64, randomMiB: 8, format: 'qcow2', content: 'none' }],
  })
  await two.start()
  await t.test('--migrate-disks, and the other disk is missing at the far side', async () => {
    const since = Date.now()
    await two.refused(/libvirt does not copy .*picked-vdb\.qcow2 \(vdb\)/, {
      args: ['--migrate-disks', 'vda', '--unsafe'],
    })
    for (const { name } of lab.hosts()) {
      const { phase, error } = await entry(lab, name, two.guest, since)
      assert.equal(phase, 'failed')
      assert.match(error ?? '', /libvirt does not copy .*vdb/)
    }
  })
  await t.test('no --copy-storage at all, and the disks are missing at the far side', async () => {
    await two.refused(/libvirt does not copy .*picked\.raw \(vda\), .*picked-vdb\.qcow2 \(vdb\)/, {
      storage: 'none',
      args: ['--unsafe'],
    })
  })
  await t.test('the same, with memory past SWAM', async () => {
    const args = ['--unsafe', '--migrateuri', `tcp://${two.to}:50001`]
    await two.refused(/picked\.raw, .*missing here, create it first/, { storage: 'none', args })
  })
  await t.test('--migrate-disks', async () => {
    copyImage(two.guest, 'vdb', two.at)
    const { out } = await two.through({ args: ['--migrate-disks', 'vda', '--unsafe'], copied: ['vda'] })
    assert.equal(out.disks[0]?.size, two.guest.diskBytes)
  })
  await t.test('two disks', async () => {
    assert.ok(existsSync(two.guest.imagePath(two.to, 'vdb')))
    await two.through()
  })
  await two.destroy()
  assert.doesNotMatch(logs(lab), /SWAM_INTERNAL/)
}

/** `--migrate-disks-detect-zeroes` (libvirt 11.3): the copy may open with zeroes over the whole disk. */
export async function returnRows(t: TestContext, lab: Lab): Promise<void> {
  const one = new Traveller(lab, { name: 'zeroes', machine: MACHINE })
  await one.start()
  await t.test('--migrate-disks-detect-zeroes, out and back to the old image', async () => {
    const args = ['--migrate-disks-detect-zeroes', 'vda']
    const out = await one.through({ args })
    assert.ok((out.out.disks[0]?.bySource.literal ?? 0) >= SMALL.randomMiB * MIB, JSON.stringify(out.out))
    const { out: back } = await one.through({ args })
    const [vda] = back.disks
    assert.ok(vda && vda.bySource.literal < 4 * MIB, JSON.stringify(vda))
    assert.ok(vda.bySource.inPlace > (SMALL.randomMiB - 4) * MIB, JSON.stringify(vda))
  })
  await one.destroy()
}
