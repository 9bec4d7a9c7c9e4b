/**
 * What a far host has is found among much that is of no use: an older version and another layout of the guest's disk among
 * twenty images. What comes back after a restart of both daemons costs next to nothing.
 */
import assert from 'node:assert/strict'
import { closeSync, copyFileSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs'
import { test } from 'node:test'
import { MIB, moveThrough, QUIET, resume, SMALL, startBoth, swamLab, wire } from '../e2e/swam-lab.ts'
import { Traveller } from '../e2e/variants.ts'
import { run, until } from '../lab/run.ts'
import { noise } from '../unit/engine/rig.ts'

const RANDOM_MIB = 64
const STRANGERS = 18
const BLOCK = 4096
const MACHINE = 'pc-i440fx-7.2'
const IMAGES = '/var/lib/libvirt/images'

/** Whole blocks of a disk in another order, as if its files had been written anew. */
function otherLayout(bytes: Buffer): Buffer {
  const blocks: Buffer[] = []
  for (let at = 0; at + BLOCK <= bytes.length; at += BLOCK) {
    const block = bytes.subarray(at, at + BLOCK)
    if (block.some((byte) => byte !== 0)) blocks.push(block)
  }
  // Files of 7 blocks, the last first.
  const files: Buffer[] = []
  for (let at = 0; at < blocks.length; at += 7) files.unshift(Buffer.concat(blocks.slice(at, at + 7)))
  return Buffer.concat(files)
}

/** Half of the blocks that are not zero lie before it. */
function middleOfData(bytes: Buffer): number {
  const places: number[] = []
  for (let at = 0; at < bytes.length; at += BLOCK)
    if (bytes.subarray(at, at + BLOCK).some((byte) => byte !== 0)) places.push(at)
  return places[places.length >> 1]!
}

test('of twenty images at the far side two are alike', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('catalog')
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, randomMiB: RANDOM_MIB, write: { ...QUIET, intervalMs: 1000 } })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  const images = lab.host('hostb').imagesDir
  const disk = readFileSync(guest.imagePath('hosta'))
  const half = middleOfData(disk)
  for (let at = 0; at < STRANGERS; at++)
    writeFileSync(`${images}/stranger-${at}.raw`, noise(16 * MIB, at + 1))
  // The first half in another layout; an older version of the second, with a block in 64 changed.
  writeFileSync(`${images}/layout.raw`, otherLayout(disk.subarray(0, half)))
  writeFileSync(`${images}/older.raw`, disk.subarray(half))
  const older = openSync(`${images}/older.raw`, 'r+')
  for (let at = 0; at < disk.length - half; at += 64 * BLOCK)
    writeSync(older, noise(BLOCK, at + 5), 0, BLOCK, at)
  closeSync(older)

  await t.test('they are known', async () => {
    // A first migration has them scanned; the guest's image at the far side goes with it.
    await moveThrough(lab, guest, 'hosta', 'hostb')
    await resume(lab, guest, 'hostb')
    await moveThrough(lab, guest, 'hostb', 'hosta')
    const known = (): number =>
      lab
        .host('hostb')
        .swamdLog()
        .split('\n')
        .filter((line) => line.includes('an image of this host is known')).length
    await until('all images to be known', 120_000, () => (known() >= STRANGERS + 2 ? true : undefined))
    for (const host of lab.hosts()) await host.stopSwamd()
    rmSync(guest.imagePath('hostb'))
    await startBoth(lab)
  })

  await t.test('what they have does not cross', async (t) => {
    await resume(lab, guest, 'hosta')
    const moved = await moveThrough(lab, guest, 'hosta', 'hostb')
    const [vda] = moved.out.disks
    assert.ok(vda !== undefined)
    const { chunk, block, session, literal } = vda.bySource
    const text = JSON.stringify(vda)
    t.diagnostic(text)
    assert.ok(chunk + block + session > 0.9 * RANDOM_MIB * MIB, text)
    assert.ok(block > 0.2 * RANDOM_MIB * MIB, text)
    assert.ok(literal < 0.08 * RANDOM_MIB * MIB, text)
  })

  await t.test('back again, after a restart of both daemons', async (t) => {
    for (const host of lab.hosts()) await host.stopSwamd()
    await startBoth(lab)
    await resume(lab, guest, 'hostb')
    const moved = await moveThrough(lab, guest, 'hostb', 'hosta')
    const [vda] = moved.out.disks
    const { linkDisk } = wire(moved.out, 'hostb', moved.link)
    const text = `${linkDisk} bytes at the link: ${JSON.stringify(vda)}`
    t.diagnostic(text)
    assert.ok(vda !== undefined && vda.bySource.inPlace > (RANDOM_MIB - 4) * MIB, text)
    assert.ok(linkDisk < 200_000 + vda.bySource.literal, text)
    assert.ok(vda.bySource.digest < 16 * 1024, 'roots, not digests')
  })
})

test('built in the background while guests ran: a qcow2 guest on a backing chain, a template, a twin of a guest', {
  timeout: 900_000,
}, async (t) => {
  await using lab = await swamLab('catalog-qcow2')
  const hostb = lab.host('hostb')
  await hostb.configureSwam({ qcow2: [`${IMAGES}/template.qcow2`] })
  await startBoth(lab)
  const chain = new Traveller(lab, { name: 'chain', machine: MACHINE, format: 'qcow2', backed: true })
  const resident = new Traveller(lab, { name: 'resident', machine: MACHINE, seed: 'resident' })
  resident.at = 'hostb'
  await resident.start()
  await chain.start()
  const { imagesDir } = lab.host('hosta')
  copyFileSync(`${imagesDir}/${chain.guest.disk().baseName}`, `${hostb.imagesDir}/template.qcow2`)

  await t.test('no migration came yet, and they are known', async () => {
    const formats = await until('maps of both', 180_000, async () => {
      const { stdout } = await hostb.swam('catalog', 'list', '--json')
      const { maps } = JSON.parse(stdout) as { maps: { path: string; format: string; chunks: number }[] }
      const found = new Map(maps.filter(({ chunks }) => chunks > 0).map(({ path, format }) => [path, format]))
      return found.size >= 2 ? found : undefined
    })
    assert.equal(formats.get(`${IMAGES}/template.qcow2`), 'qcow2')
    assert.equal(formats.get(`${IMAGES}/resident.raw`), 'raw')
  })

  await t.test('the guest on a backing chain goes, and its base does not cross', async (t) => {
    const there = `${hostb.imagesDir}/chain.qcow2`
    await run('qemu-img', ['create', '-q', '-f', 'qcow2', there, String(SMALL.diskMiB * MIB)])
    const [vda] = (await chain.through()).out.disks
    const text = JSON.stringify(vda)
    t.diagnostic(text)
    assert.ok(vda !== undefined)
    const { chunk, block, session, literal } = vda.bySource
    assert.ok(chunk + block + session > 0.9 * SMALL.randomMiB * MIB, text)
    assert.ok(literal < 0.08 * SMALL.randomMiB * MIB + 4 * MIB, text)
  })

  await t.test('a twin of a guest that runs there goes, and next to nothing crosses', async (t) => {
    const twin = new Traveller(lab, { name: 'twin', machine: MACHINE, seed: 'resident' })
    await twin.start()
    const [vda] = (await twin.through()).out.disks
    const text = JSON.stringify(vda)
    t.diagnostic(text)
    assert.ok(vda !== undefined)
    const { chunk, block, session, literal } = vda.bySource
    assert.ok(chunk + block + session > 0.85 * SMALL.randomMiB * MIB, text)
    assert.ok(literal < 0.08 * SMALL.randomMiB * MIB + 4 * MIB, text)
  })
})
