/**
 * Migrations without a swamd at the source, at the far side, or both: they go direct and are right, and where a daemon
 * lives, its history says that the migration was not accelerated, and why. A strict host refuses instead, and whoever
 * typed virsh reads the reason; so it is with a target image that cannot be created.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import type { Lab } from '../lab/lab.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import { direct, entry, logs, QUIET, resume, rowsUnless, SMALL, startBoth, swamLab } from './swam-lab.ts'

const CONFIG = '/etc/swam/swam.toml'

async function goesDirect(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<void> {
  await lab.wan.reset()
  const done = await lab.migrate(guest, from, to, { args: ['--suspend'], createTarget: true })
  assert.ok(done.ok, `${done.stderr}\n${logs(lab)}`)
  await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'))
  const check = await guest.check(guest.imagePath(to))
  assert.ok(check.ok, check.faults.join('\n'))
  assert.equal(direct(await lab.wan.stats()).length, 2, 'a RAM and a disk connection of its own')
  await resume(lab, guest, to)
}

async function runsAt(lab: Lab, guest: TinyGuest, host: HostName): Promise<void> {
  assert.equal((await lab.host(host).virsh('domstate', guest.name)).trim(), 'running')
  await guest.waitProgress(2)
}

/** With another setting; a daemon that runs is started again. */
async function configure(lab: Lab, host: HostName, strict: boolean): Promise<void> {
  const there = lab.host(host)
  await there.stopSwamd()
  await there.shell(`sed -i '/^strict *=/d' ${CONFIG}; sed -i '1i strict = ${strict}' ${CONFIG}`)
  await there.startSwamd()
}

export async function absentRows(t: TestContext, haste = false): Promise<void> {
  await using lab = await swamLab('absent')
  const guest = lab.tinyGuest({ ...SMALL, write: { ...QUIET, areaBytes: 4 << 20 } })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)

  await t.test('at both', async () => {
    await goesDirect(lab, guest, 'hosta', 'hostb')
  })

  await t.test('at the far side', async () => {
    await lab.host('hostb').startSwamd()
    await goesDirect(lab, guest, 'hostb', 'hosta')
  })

  await t.test('at the source', async () => {
    const since = Date.now()
    await goesDirect(lab, guest, 'hosta', 'hostb')
    const found = await entry(lab, 'hostb', guest, since)
    assert.equal(found.accelerated, false)
    assert.equal(found.direction, 'in')
    assert.match(
      found.reason ?? '',
      /no peer runs this guest with a swamd that answers \(asked: hosta: .*cannot reach swamd/,
    )
    assert.match(lab.host('hostb').swamdLog(), /a migration goes direct/)
  })

  await t.test('at the source, and the destination is strict', async () => {
    await lab.host('hostb').stopSwamd()
    await lab.host('hosta').startSwamd()
    await configure(lab, 'hosta', true)
    const done = await lab.migrate(guest, 'hostb', 'hosta', { createTarget: true })
    assert.ok(!done.ok, 'a strict host refuses')
    assert.match(done.stderr, /refused \(strict = true\).*no peer runs this guest/s)
    await runsAt(lab, guest, 'hostb')
  })

  await t.test('no daemon at all at a strict destination', async () => {
    await lab.host('hosta').stopSwamd()
    const done = await lab.migrate(guest, 'hostb', 'hosta', { createTarget: true })
    assert.ok(!done.ok, 'a strict host refuses')
    assert.match(done.stderr, /refused \(strict = true\)/)
    await runsAt(lab, guest, 'hostb')
    await lab.host('hostb').virsh('destroy', guest.name)
  })

  // Guests whose target image nobody may or can create at hosta.
  const outside = '/srv/elsewhere/tiny.raw'
  const volume = '/dev/lab-volume'
  const cases = [
    { what: 'outside of `images`', name: 'outside', path: outside, xml: fileAt, reason: /images/ },
    {
      what: 'a block device',
      name: 'block',
      path: volume,
      xml: blockAt,
      reason: /\(block\).*create it first/,
    },
  ]
  for (const { what, name, path, xml, reason } of cases) {
    await rowsUnless(haste, t)(`a target that cannot be created: ${what}`, async () => {
      const odd = lab.tinyGuest({ ...SMALL, name, write: { ...QUIET, areaBytes: 4 << 20 } })
      await using place = await sourceDisk(lab, odd, path)
      await place.start(xml(odd, path))
      await odd.waitBoot()
      for (const strict of [true, false]) {
        await configure(lab, 'hosta', strict)
        await startBoth(lab)
        const before = lab.host('hosta').swamdLog().length
        const done = await lab.migrate(odd, 'hostb', 'hosta')
        assert.ok(!done.ok, 'libvirt finds no disk there')
        const said = strict ? done.stderr : lab.host('hosta').swamdLog().slice(before)
        assert.ok(said.includes(path), `the path is named: ${said}`)
        assert.match(said, reason)
        if (strict) assert.match(said, /refused \(strict = true\)/)
        await runsAt(lab, odd, 'hostb')
      }
    })
  }
}

function fileAt(guest: TinyGuest, path: string): string {
  return guest.xml().replace(`/var/lib/libvirt/images/${guest.imageName}`, path)
}

function blockAt(guest: TinyGuest, path: string): string {
  return guest
    .xml()
    .replace("<disk type='file'", "<disk type='block'")
    .replace(/<source file='[^']*images[^']*'\/>/, `<source dev='${path}'/>`)
}

/** The guest's disk under another path at hostb: a copy, or a loop device over one. */
async function sourceDisk(
  lab: Lab,
  guest: TinyGuest,
  path: string,
): Promise<AsyncDisposable & { start: (xml: string) => Promise<void> }> {
  const host = lab.host('hostb')
  const image = `/var/lib/libvirt/images/${guest.imageName}`
  let loop = ''
  await guest.makeDisk('hostb')
  if (path.startsWith('/dev/')) {
    loop = (await host.exec('losetup', ['--find', '--show', image])).stdout.trim()
    await host.shell(`ln -sf ${loop} ${path}`)
  } else {
    for (const each of lab.hosts()) await each.shell(`mkdir -p ${path.slice(0, path.lastIndexOf('/'))}`)
    await host.exec('mv', [image, path])
  }
  return {
    start: async (xml) => await host.startGuest(xml),
    [Symbol.asyncDispose]: async () => {
      await host.exec('virsh', ['-c', 'qemu:///system', 'destroy', guest.name], { check: false })
      if (loop !== '') await host.exec('losetup', ['--detach', loop])
    },
  }
}
