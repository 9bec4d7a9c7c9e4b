/**
 * The redirect in a host, while a migration is held up by a slow link or a slow hook: somebody flushes all of nft's rules or
 * deletes our table, a daemon is killed or ended, and others connect to the ports that are caught. Only libvirtd and QEMU are caught; nobody else gets
 * a byte from the listeners.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import type { Lab, MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import { addSlowHook, holdHook, releaseHook } from './swam-failing.ts'
import {
  assertDone,
  direct,
  entry,
  logs,
  MIB,
  moveThrough,
  QUIET,
  rowsUnless,
  SMALL,
  startBoth,
  status,
  swamLab,
} from './swam-lab.ts'

const SLOW_MBIT = 20
/** Something is always on its way while the rules are gone. */
const BUSY_MBIT = 60
const FAST_MBIT = 1000
/** libvirt takes the first two ports of the range: memory, then disks. */
const NBD_PORT = 49153
const EXPIRED_MS = 10_000

const FLUSH = ['flush', 'ruleset']
const DELETE = ['delete', 'table', 'inet', 'swam']

interface Element {
  readonly address: string
  readonly port: number
  readonly listenAddress: string
  readonly listenPort: number
}

/** What hosta's table catches now; undefined: there is no table. */
async function elements(lab: Lab): Promise<readonly Element[] | undefined> {
  const { code, stdout } = await lab.host('hosta').exec('nft', ['list', 'table', 'inet', 'swam'], {
    check: false,
  })
  if (code !== 0) return undefined
  const found = stdout.matchAll(/([0-9a-f.:]+) \. (\d+)[^:,{}]* : ([0-9a-f.:]+) \. (\d+)/g)
  return [...found].map(([, address = '', port, listenAddress = '', listenPort]) => ({
    address,
    port: Number(port),
    listenAddress,
    listenPort: Number(listenPort),
  }))
}

async function armed(lab: Lab): Promise<void> {
  await until('the ports to be caught', 30_000, async () =>
    ((await elements(lab)) ?? []).some(({ port }) => port === NBD_PORT) ? true : undefined,
  )
}

async function repairs(lab: Lab): Promise<number> {
  return (await status(lab, 'hosta'))?.redirect.repairs ?? 0
}

/** Connects as that user from hosta and reads: the first bytes, or '' when it is refused or closed. */
async function greeting(lab: Lab, user: string, address: string, port: number): Promise<string> {
  const script = `exec 3<>/dev/tcp/${address}/${port} && timeout 3 head -c 8 <&3`
  const words = ['--reuid', user, '--regid', 'nogroup', '--clear-groups', 'bash', '-c', script]
  const { stdout } = await lab.host('hosta').exec('setpriv', words, { check: false, timeoutMs: 20_000 })
  return stdout
}

export async function redirectRows(t: TestContext, haste = false): Promise<void> {
  await using lab = await swamLab('redirect')
  await addSlowHook(lab)
  const guest = lab.tinyGuest({ ...SMALL, randomMiB: 96, write: { ...QUIET, areaBytes: 4 << 20 } })
  await guest.create('hosta')
  await guest.waitBoot()

  /** Starts one from hosta with an empty far side, and waits until its disk is being copied, slowly. */
  const begin = async (): Promise<Promise<MigrateResult>[]> => {
    await startBoth(lab)
    await guest.waitProgress(2)
    await lab.host('hostb').shell(`rm -f /var/lib/libvirt/images/${guest.imageName}`)
    await lab.wan.set({ mbit: SLOW_MBIT })
    await lab.wan.reset()
    const migration = lab.migrate(guest, 'hosta', 'hostb', { args: ['--suspend'] })
    let over: MigrateResult | undefined
    void migration.then((result) => {
      over = result
    })
    await until('the bulk', 60_000, async () => {
      if (over !== undefined) assert.fail(`it ended before the bulk: ${over.stderr}\n${logs(lab)}`)
      const found = (await status(lab, 'hosta'))?.migrations.find((one) => one.guest === guest.name)
      return found?.phase === 'copying' && found.disks.some((disk) => disk.appliedBytes > MIB)
        ? true
        : undefined
    })
    // In a list: awaiting this function must not await the migration.
    return [migration]
  }

  await t.test('a daemon that is killed: what it caught expires', async () => {
    const [migration] = await begin()
    assert.ok(((await elements(lab)) ?? []).length >= 2)
    const killedAt = lab.now()
    await lab.host('hosta').killSwamd()
    await until('the elements to expire', 30_000, async () => {
      const left = await elements(lab)
      return left === undefined || left.length === 0 ? true : undefined
    })
    assert.ok(lab.now() - killedAt < EXPIRED_MS, `after ${lab.now() - killedAt} ms`)
    await lab.wan.set({ mbit: FAST_MBIT })
    assert.equal((await migration)?.ok, false)
  })

  const longRow = rowsUnless(haste, t)
  await longRow('a daemon that is ended takes its table along', async () => {
    const [migration] = await begin()
    await lab.host('hosta').stopSwamd()
    const { stdout } = await lab.host('hosta').exec('nft', ['list', 'ruleset'])
    assert.ok(!stdout.includes('swam'), stdout)
    await lab.wan.set({ mbit: FAST_MBIT })
    assert.equal((await migration)?.ok, false)
  })

  await t.test('who is caught, who is not, who is refused; and a flush of all rules', async (u) => {
    const since = Date.now()
    const [migration] = await begin()
    const armed = (await elements(lab)) ?? []
    const nbd = armed.find(({ address, port }) => address === '10.8.0.2' && port === NBD_PORT)
    assert.ok(nbd, JSON.stringify(armed))
    assert.ok(armed.every(({ listenPort }) => listenPort < 49152 || listenPort > 49215))

    await u.test('root and QEMU are caught', async () => {
      for (const user of ['root', 'libvirt-qemu']) {
        assert.equal(await greeting(lab, user, '10.8.0.2', NBD_PORT), 'NBDMAGIC', user)
      }
      assert.deepEqual(direct(await lab.wan.stats()), [])
    })
    await u.test('others go direct', async () => {
      assert.equal(await greeting(lab, 'nobody', '10.8.0.2', NBD_PORT), 'NBDMAGIC')
      assert.equal(direct(await lab.wan.stats()).length, 1)
    })
    await u.test('the listener itself answers nobody', async () => {
      for (const user of ['nobody', 'libvirt-qemu', 'root']) {
        assert.equal(await greeting(lab, user, nbd.listenAddress, nbd.listenPort), '', user)
      }
      assert.match(lab.host('hosta').swamdLog(), /not from libvirtd or QEMU/)
    })
    await u.test('flushed in the middle, it is repaired and said, and the migration completes', async () => {
      await lab.wan.set({ mbit: BUSY_MBIT })
      for (const words of [FLUSH, DELETE, FLUSH]) {
        const before = await repairs(lab)
        await lab.host('hosta').exec('nft', words)
        await until('the repair', 15_000, async () => ((await repairs(lab)) > before ? true : undefined))
      }
      assert.equal((await status(lab, 'hosta'))?.redirect.ok, true)
      const armedAgain = (await elements(lab)) ?? []
      assert.ok(
        armedAgain.some(({ port }) => port === NBD_PORT),
        JSON.stringify(armedAgain),
      )
      await lab.wan.set({ mbit: FAST_MBIT })
      const done = await migration
      assert.ok(done?.ok, `${done?.stderr}\n${logs(lab)}`)
      await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'))
      assertDone(await entry(lab, 'hosta', guest, since))
      assert.equal(direct(await lab.wan.stats()).length, 1, "only nobody's")
    })
  })
  // What waits in the far hook has been armed, and nobody has connected.
  for (const words of [FLUSH, DELETE]) {
    await longRow(`between arming and connecting: nft ${words.join(' ')}`, async () => {
      await lab.host('hostb').virsh('destroy', guest.name)
      await guest.create('hosta')
      await guest.waitBoot()
      await startBoth(lab)
      await lab.wan.set({ mbit: FAST_MBIT })
      await lab.host('hostb').shell(`rm -f /var/lib/libvirt/images/${guest.imageName}`)
      await holdHook(lab.host('hostb'), 'started/begin')
      const moving = moveThrough(lab, guest, 'hosta', 'hostb')
      moving.catch(() => undefined)
      try {
        await armed(lab)
        const before = await repairs(lab)
        await lab.host('hosta').exec('nft', words)
        await until('the repair', 15_000, async () => ((await repairs(lab)) > before ? true : undefined))
        await armed(lab)
      } finally {
        await releaseHook(lab.host('hostb'))
      }
      await moving
    })
  }
}
