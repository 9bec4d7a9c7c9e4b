/**
 * swam estimate of guests on qcow2 images and volumes, with the real qemu-img, qemu-nbd and loop devices: what it says is what
 * `swam analyze` says of the same images, whatever the far side has in the disk's place; a guest that writes meanwhile makes no
 * estimate fail, and nothing outside of `images` is opened.
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { mkdtempSync, rmSync } from 'node:fs'
import { chmod, open, readdir, readFile, symlink, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ImageRef } from '../../lib/catalog/open-image.ts'
import { ESTIMATE_EXPORTS_MAX, STOCK_EXPORTS_MAX } from '../../lib/core/limits.ts'
import { KIB, MIB } from '../../lib/core/units.ts'
import { mapOfDisk } from '../../server/estimate/disk-map.ts'
import { LiveImage, UnreadableDisk } from '../../server/estimate/live-image.ts'
import { image } from '../unit/analyze/rig.ts'
import { programBytes, randomBytes, treeBytes } from '../unit/chunk/samples.ts'
import { asAnalyzed, near } from '../unit/estimate/analyzed.ts'
import { diskXml, type Hosts, hosts } from '../unit/estimate/rig.ts'
import { createImage, inFolder, run, succeed, withServer } from './nbd-peers.ts'
import { withStock } from './stock-rig.ts'

const SIZE = 96 * MIB
const QCOW2 = "<driver type='qcow2'/>"
const NEVER = new AbortController().signal

type Parts = readonly (readonly [offset: number, bytes: Buffer])[]

/** A qcow2 whose disk holds this. */
async function qcow2(path: string, size: number, parts: Parts, ...options: string[]): Promise<string> {
  const flat = await image(`${path}.flat`, size, parts)
  await succeed('qemu-img', ['convert', '-f', 'raw', '-O', 'qcow2', ...options, flat, path])
  rmSync(flat)
  return path
}

/** base.raw and top.qcow2 on it in this directory: the top has some of its own, and zeroes some of the base's. */
async function chain(directory: string): Promise<{ base: string; top: string }> {
  const [base, top] = [join(directory, 'base.raw'), join(directory, 'web.qcow2')]
  await image(base, SIZE, [
    [MIB, programBytes(24 * MIB, 0)],
    [40 * MIB, treeBytes(12 * MIB)],
  ])
  await succeed('qemu-img', ['create', '-q', '-f', 'qcow2', '-b', base, '-F', 'raw', top])
  const own = await image(join(directory, 'own'), 6 * MIB, [[0, randomBytes(6 * MIB, 9)]])
  const writes = [`write -q -s ${own} 60M 6M`, 'write -q -z 4M 2M', `write -q -s ${own} 10M 64k`]
  await succeed('qemu-io', ['-f', 'qcow2', ...writes.flatMap((one) => ['-c', one]), top])
  rmSync(own)
  return { base, top }
}

async function qcow2Hosts(
  context: TestContext,
  more: Partial<Parameters<typeof hosts>[1]> = {},
): Promise<Hosts> {
  return await hosts(context, {
    disks: (folders) => diskXml('vda', join(folders.near, 'web.qcow2'), QCOW2),
    ...more,
  })
}

test('a backing chain to a host with its base: scanned, and from the map that the catalog has', async (context) => {
  const rig = await qcow2Hosts(context)
  const { base, top } = await chain(rig.near)
  const have = await qcow2(join(rig.far, 'template.img'), SIZE, [[3 * MIB, programBytes(24 * MIB, 0)]])
  const images = { target: `qcow2:${top}`, backing: [base], have: [`raw:${have}`] }
  const scanned = await asAnalyzed(context, await rig.estimate(), images)
  assert.equal(scanned.mapAt, null)
  assert.equal(scanned.format, 'qcow2')
  near(scanned.bySource.chunk + scanned.bySource.block, 22 * MIB, 'found', 2 * MIB)

  // As the daemon's catalog makes it.
  const state = { images: rig.near, isQcow2: (path: string) => path === top }
  await withStock(rig.nearState, state, async ({ tend, problems }) => {
    const hour = new Date(Date.now() - 3_600_000)
    for (const path of [base, top])
      await open(path).then(async (file) => file.utimes(hour, hour).then(() => file.close()))
    await tend()
    assert.deepEqual(problems, [])
  })
  const mapped = (await rig.estimate()).disks[0]!
  assert.ok(mapped.mapAt !== null && Math.abs(mapped.mapAt - Date.now()) < 120_000)
  assert.deepEqual({ ...mapped, mapAt: null }, scanned)
  // The guest writes: what the map has is what counts, of just this file.
  await succeed('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 3 70M 4M', top])
  assert.deepEqual((await rig.estimate()).disks[0], mapped)
})

for (const { name, known, note } of [
  { name: 'known there as a qcow2', known: ['web.qcow2'], note: null },
  {
    name: 'that nobody there calls a qcow2',
    known: [],
    note: 'the far side knows what lies there as raw, not as qcow2: what is in place counts as found elsewhere, or as sent',
  },
]) {
  test(`back to an old qcow2 in its place ${name}`, async (context) => {
    const rig = await qcow2Hosts(context, { farQcow2: known })
    const bytes = programBytes(40 * MIB, 0)
    const changed = Buffer.from(bytes)
    for (let at = MIB; at < changed.length; at += 4 * MIB) randomBytes(4 * KIB, at).copy(changed, at)
    const top = await qcow2(join(rig.near, 'web.qcow2'), SIZE, [[MIB, changed]])
    // Compressed, so that its bytes are the disk's nowhere.
    const inPlace = await qcow2(join(rig.far, 'web.qcow2'), SIZE, [[MIB, bytes]], '-c')
    const report = await rig.estimate()
    const disk = report.disks[0]!
    assert.equal(disk.note, note)
    if (known.length > 0) {
      await asAnalyzed(context, report, { target: `qcow2:${top}`, inPlace: `qcow2:${inPlace}` })
      assert.ok(disk.bySource.inPlace > 38 * MIB && disk.wireBytes < MIB)
    } else {
      assert.equal(disk.bySource.inPlace, 0)
      assert.ok(disk.bySource.literal > 38 * MIB)
    }
  })
}

test('what a raw image that lies at the place of a qcow2 holds at the same offset is not in place', async (context) => {
  const rig = await qcow2Hosts(context)
  const bytes = randomBytes(20 * MIB, 4)
  await qcow2(join(rig.near, 'web.qcow2'), SIZE, [[MIB, bytes]])
  await image(join(rig.far, 'web.qcow2'), SIZE, [[MIB, bytes]])
  const { bySource, note } = (await rig.estimate()).disks[0]!
  assert.deepEqual([bySource.inPlace, bySource.chunk], [0, 20 * MIB])
  assert.match(note!, /as raw, not as qcow2/)
})

test('of more qcow2 images than may be open, what lies in the place is', async (context) => {
  const count = STOCK_EXPORTS_MAX + 4
  const names = Array.from({ length: count }, (_, at) => `${at}.qcow2`)
  const rig = await qcow2Hosts(context, { farQcow2: ['web.qcow2', ...names] })
  for (const [at, name] of names.entries())
    await qcow2(join(rig.far, name), 2 * MIB, [[0, randomBytes(MIB, at)]])
  // Last of all by its name and its size.
  const bytes = randomBytes(20 * MIB, 99)
  for (const host of [rig.near, rig.far]) await qcow2(join(host, 'web.qcow2'), SIZE, [[MIB, bytes]])
  const { bySource } = (await rig.estimate()).disks[0]!
  assert.equal(bySource.inPlace, 20 * MIB)
})

// ---- volumes --------------------------------------------------------------------------------------------------------

/** A directory of root's below /dev that names a loop device `guest` with this file's bytes, as udev would a volume. */
async function group(context: TestContext, file: string): Promise<string> {
  const device = (await succeed('losetup', ['--find', '--show', file])).trim()
  const directory = mkdtempSync('/dev/swam-test-')
  context.after(async () => {
    rmSync(directory, { recursive: true })
    await succeed('losetup', ['--detach', device])
  })
  await chmod(directory, 0o755)
  await symlink(device, join(directory, 'guest'))
  return directory
}

function blockXml(path: string, format: string): string {
  return `<disk type='block' device='disk'><driver type='${format}'/><source dev='${path}'/><target dev='vda'/></disk>`
}

const OLD = programBytes(24 * MIB, 0)
const MOVED = treeBytes(8 * MIB)
const NEAR: Parts = [
  [MIB, OLD],
  [40 * MIB, MOVED],
  [60 * MIB, randomBytes(6 * MIB, 5)],
]
const FAR: Parts = [
  [MIB, OLD],
  [50 * MIB, MOVED],
]

for (const share of ['images', 'listed'] as const) {
  test(`a volume to a volume with an old version (share: ${share})`, async (context) => {
    await inFolder(async (folder) => {
      const near = await group(context, await image(join(folder, 'near'), SIZE, NEAR))
      const far = await group(context, await image(join(folder, 'far'), SIZE, FAR))
      const rig = await hosts(context, {
        disks: () => blockXml(join(near, 'guest'), 'raw'),
        nearMore: [near],
        farMore: [far],
        share: share === 'images' ? 'images' : [far],
      })
      const images = { target: join(near, 'guest'), inPlace: join(far, 'guest') }
      const disk = await asAnalyzed(context, await rig.estimate(), images)
      assert.ok(disk.bySource.inPlace > 23 * MIB && disk.bySource.chunk > 7 * MIB)
      if (share !== 'images') return
      await withStock(rig.nearState, { images: near }, async ({ tend }) => await tend())
      const mapped = (await rig.estimate()).disks[0]!
      assert.ok(mapped.mapAt !== null)
      assert.deepEqual({ ...mapped, mapAt: null }, disk, 'from its map, which is never exact')
    })
  })
}

test('of volumes that share does not name nothing is told', async (context) => {
  await inFolder(async (folder) => {
    const near = await group(context, await image(join(folder, 'near'), SIZE, NEAR))
    const far = await group(context, await image(join(folder, 'far'), SIZE, FAR))
    const rig = await hosts(context, {
      disks: () => blockXml(join(near, 'guest'), 'raw'),
      nearMore: [near],
      farMore: [far],
      // The directory that names a volume, and not the one in which it lies.
      share: [dirname(far), folder],
    })
    const { bySource } = (await rig.estimate()).disks[0]!
    assert.deepEqual([bySource.inPlace, bySource.chunk, bySource.block], [0, 0, 0])
  })
})

test('a qcow2 on a volume; the same bytes are another disk where the guest has them as raw', async (context) => {
  await inFolder(async (folder) => {
    const file = await qcow2(join(folder, 'near'), SIZE, NEAR)
    await open(file, 'r+').then(async (handle) => handle.truncate(64 * MIB).then(() => handle.close()))
    const near = await group(context, file)
    const place = join(near, 'guest')
    const rig = await hosts(context, { disks: () => blockXml(place, 'qcow2'), nearMore: [near] })
    const disk = await asAnalyzed(context, await rig.estimate(), { target: `qcow2:${place}` })
    assert.equal(disk.size, SIZE)
    const raw = await hosts(context, { disks: () => blockXml(place, 'raw'), nearMore: [near] })
    assert.equal((await raw.estimate()).disks[0]?.size, 64 * MIB)
  })
})

// ---- what stays impossible ------------------------------------------------------------------------------------------

test('a qcow2 that cannot be read says why, opens nothing elsewhere, and the others are estimated', async (context) => {
  const names = ['luks', 'out', 'unsaid', 'odd', 'cut', 'data', 'small']
  const rig = await hosts(context, {
    disks: ({ near }) =>
      names.map((name, at) => diskXml(`vd${'abcdefg'[at]}`, join(near, name), QCOW2)).join(''),
  })
  const at = (name: string): string => join(rig.near, name)
  const create = async (name: string, ...options: string[]): Promise<void> =>
    await createImage(['-f', 'qcow2', ...options, at(name), '8M'])
  const luks = 'encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10'
  await create('luks', '--object', 'secret,id=s,data=abc', '-o', luks)
  // Who opens it waits for ever.
  const secret = join(rig.nearState, 'secret')
  execFileSync('mkfifo', [secret])
  await create('out', '-u', '-b', secret, '-F', 'raw')
  await image(at('base'), 8 * MIB, [[MIB, randomBytes(2 * MIB, 7)]])
  // As older programs made them: what it stands on would have to be probed.
  await create('unsaid', '-b', at('base'), '-F', 'raw')
  await succeed('qemu-img', ['amend', '-f', 'qcow2', '-o', 'compat=1.1', at('unsaid')])
  const bytes = await readFile(at('unsaid'))
  const extension = bytes.indexOf(Buffer.from('e2792aca', 'hex'))
  assert.ok(extension > 0)
  bytes.writeUInt32BE(0x12345678, extension)
  await writeFile(at('unsaid'), bytes)
  await create('odd', '-u', '-b', at('base'), '-F', 'vmdk')
  await create('cut')
  await writeFile(at('cut'), (await readFile(at('cut'))).subarray(0, 50))
  await create('data', '-o', `data_file=${at('x')}`)
  // Less than an image has, and more on it.
  await create('small', '-b', at('base'), '-F', 'raw')
  const report = await rig.estimate()
  assert.deepEqual(
    report.disks.map(({ reason }) => reason?.replace(secret, 'SECRET').replaceAll(rig.near, 'DIR') ?? null),
    [
      'DIR/luks: it is encrypted: what is in it cannot be told without its key',
      'DIR/out: it stands on SECRET, which lies in no directory of images',
      'DIR/unsaid: expected raw or qcow2 as the format of DIR/base, found none',
      'DIR/odd: expected raw or qcow2 as the format of DIR/base, found "vmdk"',
      'DIR/cut: not readable as a qcow2: qcow2 header too short',
      'DIR/data: its data lie in another file (DIR/x): that is not supported',
      null,
    ],
  )
  assert.equal(report.dataBytes, 2 * MIB)
})

// ---- a guest that writes --------------------------------------------------------------------------------------------

test('a guest that writes, zeroes and makes clusters anew meanwhile makes no estimate fail', async (context) => {
  const rig = await qcow2Hosts(context)
  const path = await qcow2(join(rig.near, 'web.qcow2'), SIZE, [[0, treeBytes(48 * MIB)]], '-c')
  const socket = join(rig.nearState, 'guest.sock')
  const served = ['--socket', socket, '--shared=2', '--persistent', '--discard=unmap', '-f', 'qcow2', path]
  await withServer('qemu-nbd', served, socket, async () => {
    const stop = new AbortController()
    let turns = 0
    const writing = (async () => {
      while (!stop.signal.aborted) {
        const at = (turns * 7) % 90
        const writes = [`write -q -P ${1 + (turns % 250)} ${at}M 3M`, `discard -q ${(at + 40) % 90}M 2M`]
        const uri = `nbd+unix:///?socket=${socket}`
        const done = await run('qemu-io', [
          '-f',
          'raw',
          ...writes.flatMap((one) => ['-c', one]),
          '-c',
          'flush',
          uri,
        ])
        assert.equal(done.code, 0, done.stderr)
        turns++
      }
    })()
    for (let estimate = 0; estimate < 3; estimate++) {
      const report = await rig.estimate()
      assert.equal(report.disks[0]?.reason, null)
      assert.ok(report.dataBytes > MIB)
    }
    stop.abort()
    await writing
    assert.ok(turns > 3, `${turns}`)
  })
})

/** A qcow2 with 1 MiB of data, opened; then its table of level 2 moves, as a guest's QEMU may do, and others' bytes take its place. */
async function movedTable(
  folder: string,
): Promise<{ ref: ImageRef; live: LiveImage; mend: () => Promise<void> }> {
  const path = await qcow2(join(folder, 'a.qcow2'), 8 * MIB, [[0, randomBytes(MIB, 3)]])
  const ref: ImageRef = { path, format: 'qcow2', directories: [folder] }
  const live = await LiveImage.open(ref, NEVER)
  await using file = await open(path, 'r+')
  const bytes = await readFile(path)
  const l1 = Number(bytes.readBigUInt64BE(40))
  const table = Number(bytes.readBigUInt64BE(l1) & 0x00fffffffffffe00n)
  await file.write(bytes, table, 64 * KIB, bytes.length)
  const stray = Buffer.alloc(64 * KIB, Buffer.from('8000000000000201', 'hex'))
  await file.write(stray, 0, stray.length, table)
  const mend = async (): Promise<void> => {
    await using mended = await open(path, 'r+')
    const entry = Buffer.alloc(8)
    entry.writeBigUInt64BE(BigInt(bytes.length) | (1n << 63n))
    await mended.write(entry, 0, 8, l1)
  }
  return { ref, live, mend }
}

test('what is read through a table that has moved is read again through the new one', async () => {
  await inFolder(async (folder) => {
    const { live, mend } = await movedTable(folder)
    await mend()
    assert.ok((await live.read(0, MIB)).equals(randomBytes(MIB, 3)))
    assert.deepEqual(await live.extents(), [{ offset: 0, end: MIB }])
    await live.close()
  })
})

test('an export that is ended is begun anew', async () => {
  await inFolder(async (folder) => {
    const path = await qcow2(join(folder, 'a.qcow2'), 8 * MIB, [[0, randomBytes(MIB, 3)]])
    const live = await LiveImage.open({ path, format: 'qcow2', directories: [folder] }, NEVER)
    for (let turn = 0; turn < 2 * ESTIMATE_EXPORTS_MAX; turn++) {
      const [exporter] = await exporters()
      process.kill(exporter!, 'SIGKILL')
      const target = new Uint8Array(MIB)
      assert.equal(await live.readInto(target, 0), MIB)
      assert.ok(randomBytes(MIB, 3).equals(target))
    }
    await live.close()
    assert.deepEqual(await exporters(), [])
  })
})

test('one that cannot be read at all is given up, and leaves no process', async () => {
  await inFolder(async (folder) => {
    const { ref, live } = await movedTable(folder)
    await assert.rejects(live.read(0, MIB), (error: Error) => {
      assert.ok(error instanceof UnreadableDisk)
      assert.match(error.message, /a\.qcow2: read 1048576 bytes at 0: .+/)
      return true
    })
    await live.close()
    const map = await mapOfDisk(ref, join(folder, 'catalog'), NEVER)
    await assert.rejects(async () => {
      for await (const piece of map.pieces()) assert.ok(piece.count > 0)
    }, UnreadableDisk)
    await map.close()
    assert.deepEqual(await exporters(), [])
  })
})

test('a scan that nobody waits for any more takes its export with it', async () => {
  await inFolder(async (folder) => {
    const path = await qcow2(join(folder, 'a.qcow2'), SIZE, [[0, randomBytes(80 * MIB, 3)]])
    const ref: ImageRef = { path, format: 'qcow2', directories: [folder] }
    const abort = new AbortController()
    const map = await mapOfDisk(ref, join(folder, 'catalog'), abort.signal)
    assert.equal((await exporters()).length, 1)
    abort.abort(new Error('over'))
    await assert.rejects(async () => {
      for await (const piece of map.pieces()) assert.ok(piece.count > 0)
    }, /over/)
    await map.close()
    assert.deepEqual(await exporters(), [])
  })
})

/** The qemu-nbd processes that this one started. */
async function exporters(): Promise<number[]> {
  await sleep(50)
  const found: number[] = []
  for (const pid of (await readdir('/proc')).map(Number).filter(Number.isInteger)) {
    const stat = await readFile(`/proc/${pid}/stat`, 'latin1').catch(() => '')
    const [, comm, state, parent] = /^\d+ \((.*)\) (\S) (\d+)/s.exec(stat) ?? []
    if (comm === 'qemu-nbd' && state !== 'Z' && Number(parent) === process.pid) found.push(pid)
  }
  return found
}
