/**
 * swamd ends or hangs in the middle, at either side. The migration fails within seconds; the guest runs on with all that it was told on its disk, the guest, libvirt and QEMU's monitor stand
 * still no longer than the watchdog takes, nothing is left at either host, and the histories say why. Ten seconds later,
 * the daemon still gone, the next migration goes direct and is right. A daemon that dies idle is no hindrance either.
 * test/long/swam-daemons.test.ts has every moment with every signal at either side.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { HostName } from '../lab/state.ts'
import { daemonFails, FORGOTTEN_MS, goesDirect, other, RESTLESS, type Row, settle } from './swam-failing.ts'
import { startBoth, swamLab } from './swam-lab.ts'

const ROWS: readonly (Row & { readonly thenDirect?: boolean })[] = [
  { side: 'source', moment: 'bulk', signal: 'SIGKILL', thenDirect: true },
  { side: 'far', moment: 'ready', signal: 'SIGKILL', thenDirect: true },
  { side: 'far', moment: 'bulk', signal: 'SIGSTOP' },
]

test('swamd ends or hangs in the middle of a migration', { timeout: 1_200_000 }, async (t) => {
  await using lab = await swamLab('kill')
  const guest = lab.tinyGuest(RESTLESS)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'

  for (const row of ROWS) {
    at = await settle(lab, guest, at)
    await t.test(`${row.signal} at the ${row.side}, ${row.moment}`, async (u) => {
      const outcome = await daemonFails(lab, guest, at, row, row)
      at = outcome.at
      u.diagnostic(outcome.figures)
    })
  }

  await t.test('a daemon that dies idle', async () => {
    at = await settle(lab, guest, at)
    await startBoth(lab)
    await lab.host(at).killSwamd()
    await new Promise((resolve) => setTimeout(resolve, FORGOTTEN_MS))
    await goesDirect(lab, guest, at)
    at = other(at)
  })

  await t.test('a second daemon with the same runDir leaves without touching the first', async () => {
    await startBoth(lab)
    const host = lab.host('hosta')
    const before = (await host.exec('nft', ['-a', 'list', 'ruleset'])).stdout
    await host.shell('touch /run/swam/incoming/mark && chown swam: /run/swam/incoming/mark')
    const { code, stderr } = await host.exec(
      'setpriv',
      [
        '--reuid',
        'swam',
        '--regid',
        'swam',
        '--init-groups',
        '/usr/sbin/swamd',
        '--config',
        '/etc/swam/swam.toml',
      ],
      { check: false },
    )
    assert.equal(code, 6)
    assert.match(stderr, /another swamd listens here/)
    assert.equal((await host.exec('nft', ['-a', 'list', 'ruleset'])).stdout, before)
    // Guests whose migration failed stay marked for a while, beside it.
    assert.match((await host.exec('ls', ['/run/swam/incoming'])).stdout, /^mark$/m)
    await host.shell('rm /run/swam/incoming/mark')
    assert.equal((await host.swam('status')).code, 0)
  })
})
