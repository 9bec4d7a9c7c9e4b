/**
 * swamd ends in the middle, at either side: by SIGKILL, or by SIGTERM. The migration fails within seconds, the guest
 * runs on at the source with all that it was told on its disk, nothing is left at the far side; and ten seconds later,
 * the daemon still gone, the next migration goes direct and is right. A daemon that dies idle is no hindrance either.
 *
 * Memory is held up by libvirt's own speed limit, set during the bulk: so the moment after READY lasts for seconds.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { MigrationPhase } from '../../server/report.ts'
import type { Lab, MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import { direct, logs, MIB, QUIET, resume, startBoth, status, swamLab } from './swam-lab.ts'

/** virsh must give up in this time after the kill. */
const FAILS_WITHIN_MS = 15_000
/** As the user is promised: from here on it is as if SWAM were not there. */
const FORGOTTEN_MS = 10_000
/** For how long the guest's memory would take after READY, about. */
const RAM_MIB_PER_SECOND = 2
const UNLIMITED_MIB_PER_SECOND = 100_000

type Moment = 'bulk' | 'ready'

interface Row {
  readonly side: 'source' | 'far'
  readonly moment: Moment
  readonly signal: 'SIGKILL' | 'SIGTERM'
}

const ROWS: readonly Row[] = [
  { side: 'source', moment: 'bulk', signal: 'SIGKILL' },
  { side: 'far', moment: 'bulk', signal: 'SIGKILL' },
  { side: 'source', moment: 'ready', signal: 'SIGKILL' },
  { side: 'far', moment: 'ready', signal: 'SIGKILL' },
  { side: 'source', moment: 'bulk', signal: 'SIGTERM' },
  { side: 'far', moment: 'ready', signal: 'SIGTERM' },
]

test('swamd ends in the middle of a migration', { timeout: 900_000 }, async (t) => {
  await using lab = await swamLab('kill', { mbit: 200 })
  const write = { ...QUIET, areaBytes: 4 << 20 }
  const guest = lab.tinyGuest({ diskMiB: 192, randomMiB: 128, ramMiB: 80, write })
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'

  for (const { side, moment, signal } of ROWS) {
    const from: HostName = at
    const to: HostName = from === 'hosta' ? 'hostb' : 'hosta'
    const victim = side === 'source' ? from : to
    // What the last row left would make the bulk short.
    await lab.host(to).shell(`rm -f /var/lib/libvirt/images/${guest.imageName}`)
    await t.test(`${signal} at the ${side}, ${moment}`, async (row) => {
      await startBoth(lab)
      await guest.waitProgress(2)
      await lab.wan.set({ mbit: 200 })
      const migration = lab.migrate(guest, from, to)
      await reached(lab, guest, from, moment, migration)
      const told = guest.durable()
      const killedAt = lab.now()
      await lab.host(victim).killSwamd(signal)
      const done = await migration
      row.diagnostic(
        `virsh failed after ${Math.round(done.endedAt - killedAt)} ms: ${done.stderr.split('\n')[0]}`,
      )
      assert.ok(!done.ok, `the migration must fail\n${logs(lab)}`)
      assert.ok(done.endedAt - killedAt < FAILS_WITHIN_MS, `after ${done.endedAt - killedAt} ms`)
      await runsOn(lab, guest, from, to, told)
      assert.equal(await lab.host(victim).swamdPid(), undefined, 'nobody started it again')

      const rest = FORGOTTEN_MS - (lab.now() - killedAt)
      await new Promise((resolve) => setTimeout(resolve, Math.max(0, rest)))
      await goesDirect(lab, guest, from, to)
      at = to
    })
    // The rows build on each other: the guest must be where the next one expects it.
    if (!(await runsAt(lab, guest, at))) break
  }

  await t.test('a daemon that dies idle', async () => {
    const from: HostName = at
    const to: HostName = from === 'hosta' ? 'hostb' : 'hosta'
    await startBoth(lab)
    await lab.host(from).killSwamd()
    await new Promise((resolve) => setTimeout(resolve, FORGOTTEN_MS))
    await goesDirect(lab, guest, from, to)
  })
})

/** Waits until the migration is in the middle of that phase, as the source's daemon says. */
async function reached(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  moment: Moment,
  migration: Promise<MigrateResult>,
): Promise<void> {
  let over: MigrateResult | undefined
  void migration.then((result) => {
    over = result
  })
  const ask = async (wanted: MigrationPhase): Promise<{ applied: number; ram: number } | undefined> => {
    if (over !== undefined) assert.fail(`it ended before it was ${moment}: ${over.stderr}\n${logs(lab)}`)
    const found = (await status(lab, from))?.migrations.find((one) => one.guest === guest.name)
    if (found === undefined || found.phase !== wanted) return undefined
    return {
      applied: found.disks.reduce((sum, disk) => sum + disk.appliedBytes, 0),
      ram: found.ram.askedBytes,
    }
  }
  await until('the bulk', 60_000, async () => {
    const found = await ask('copying')
    return found !== undefined && found.applied > 4 * MIB ? true : undefined
  })
  if (moment === 'bulk') return
  await lab.host(from).virsh('migrate-setspeed', guest.name, String(RAM_MIB_PER_SECOND))
  await lab.wan.set({ mbit: 1000 })
  await until('memory to move', 60_000, async () => {
    const found = await ask('ready')
    return found !== undefined && found.ram > MIB ? true : undefined
  })
}

async function runsAt(lab: Lab, guest: TinyGuest, host: HostName): Promise<boolean> {
  const { stdout } = await lab.host(host).exec('virsh', ['-r', 'domstate', guest.name], { check: false })
  return stdout.trim() === 'running'
}

/** The guest runs at the source, with its disk whole, and the far side has nothing of it but files. */
async function runsOn(lab: Lab, guest: TinyGuest, from: HostName, to: HostName, told: number): Promise<void> {
  const source = lab.host(from)
  assert.equal((await source.virsh('domstate', guest.name)).trim(), 'running')
  assert.ok((await guest.waitProgress(3)) > told, 'it goes on writing')
  const beat = (await guest.heartbeats()).at(-1)
  assert.equal(beat?.host, from)
  await until(`no QEMU at ${to}`, 15_000, async () => {
    const names = await lab.host(to).virsh('list', '--all', '--name')
    const { stdout } = await lab.host(to).exec('pgrep', ['-f', 'qemu-system'], { check: false })
    return names.trim() === '' && stdout.trim() === '' ? true : undefined
  })
  await source.virsh('suspend', guest.name)
  const check = await guest.check(guest.imagePath(from))
  await source.virsh('resume', guest.name)
  assert.ok(check.ok, check.faults.join('\n'))
}

async function goesDirect(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<void> {
  await lab.host(from).virsh('migrate-setspeed', guest.name, String(UNLIMITED_MIB_PER_SECOND))
  await lab.wan.set({ mbit: 1000 })
  await lab.wan.reset()
  const done = await lab.migrate(guest, from, to, { args: ['--suspend'], createTarget: true })
  assert.ok(done.ok, `${done.stderr}\n${logs(lab)}`)
  await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'))
  const check = await guest.check(guest.imagePath(to))
  assert.ok(check.ok, check.faults.join('\n'))
  assert.equal(direct(await lab.wan.stats()).length, 2, 'a RAM and a disk connection of its own')
  await resume(lab, guest, to)
}
