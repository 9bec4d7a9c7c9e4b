/**
 * From two hosts that have SWAM and no peers to an accelerated migration: `swam peer add` over the administrator's own
 * SSH, twice, with other values, with a fault in the middle; then list, test, a migration through SWAM, and remove.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { LinkTestReport } from '../../server/link-test.ts'
import type { LabHost } from '../lab/host.ts'
import { until } from '../lab/run.ts'
import { moveThrough, QUIET, SMALL, startBoth, status, swamLab } from './swam-lab.ts'

const FILES = '/etc/swam /var/lib/swam/.ssh'

/** Every file of SWAM's configuration at that host, with owner, mode and content. */
async function laidDown(host: LabHost): Promise<string> {
  const script = `find ${FILES} -type f -printf '%p %u %m\\n' -exec sha256sum {} ';' 2>/dev/null | sort || true`
  return (await host.shell(script)).stdout
}

test('two hosts become peers', { timeout: 300_000 }, async (t) => {
  await using lab = await swamLab('peer', { joined: false, ipFamily: 'both' })
  const hosta = lab.host('hosta')
  const hostb = lab.host('hostb')
  const comment = '# kept as it is: site = "x"   \n\n'
  await hosta.exec('tee', ['-a', '/etc/swam/swam.toml'], { input: comment })
  await hostb.startSwamd()

  await t.test('--dry-run says what it would do, and changes nothing at either side', async () => {
    const before = [await laidDown(hosta), await laidDown(hostb)]
    const { code, stdout, stderr } = await hosta.swam('peer', 'add', 'hostb', 'root@hostb', '--dry-run')
    assert.equal(code, 0, stderr)
    assert.match(stdout, /here: would make the key \/etc\/swam\/id_ed25519/)
    assert.match(stdout, /here: would add peer hostb .*10\.8\.0\.2, fd08::2 port 22, site fra/)
    assert.match(stdout, /at root@hostb: would add peer hosta .*10\.8\.0\.1, fd08::1/)
    assert.deepEqual([await laidDown(hosta), await laidDown(hostb)], before)
  })

  await t.test('what fails in the middle is taken back at both sides', async () => {
    const before = [await laidDown(hosta), await laidDown(hostb)]
    // The far side is done when this side finds that it cannot write its own line.
    await hosta.shell(
      'mkdir -p /var/lib/swam/.ssh && chown root:root /var/lib/swam/.ssh && chmod 755 /var/lib/swam/.ssh',
    )
    const { code, stderr } = await hosta.swam('peer', 'add', 'hostb', 'root@hostb')
    await hosta.shell('rmdir /var/lib/swam/.ssh')
    assert.equal(code, 1)
    assert.match(stderr, /nothing was changed here; the far side takes back its part/)
    assert.equal(await laidDown(hosta), before[0])
    await until('the far side to take it back', 10_000, async () => {
      const now = await laidDown(hostb)
      return !now.includes('id_ed25519') && !(await hostb.read('/etc/swam/swam.toml')).includes('[[peers]]')
        ? now
        : undefined
    })
    assert.equal((await hostb.read('/var/lib/swam/.ssh/authorized_keys')).trim(), '')
  })

  await t.test('add: keys, restricted entries, host keys and addresses at both', async () => {
    const { code, stdout, stderr } = await hosta.swam('peer', 'add', 'hostb', 'root@hostb')
    assert.equal(code, 0, stderr)
    assert.match(stdout, /here: swamd does not run: start it/)
    assert.match(stdout, /at root@hostb: swamd read its peers anew \(added: hosta\)/)
    assert.match(stdout, /here: error: no swamd answers .*\[daemon-down\][\s\S]*mend: systemctl start swamd/)
    assert.match(stdout, /at root@hostb: error: peer hosta is down: .*\[peer-down\]/)
    for (const [host, other] of [
      [hosta, 'hostb'],
      [hostb, 'hosta'],
    ] as const) {
      const text = await host.read('/etc/swam/swam.toml')
      assert.match(text, new RegExp(`name = "${other}"`))
      assert.match(await laidDown(host), /\/etc\/swam\/id_ed25519 swam 600/)
      assert.match(await laidDown(host), /authorized_keys swam 600/)
      const keys = await host.read('/var/lib/swam/.ssh/authorized_keys')
      const entry = `restrict,command="/usr/lib/swam/bin/swam-peer --peer ${other} --socket /run/swam/peer.sock" ssh-ed25519 `
      assert.ok(keys.startsWith(entry) && keys.trim().split('\n').length === 1, keys)
    }
    assert.ok((await hosta.read('/etc/swam/swam.toml')).includes(comment), 'comments stay')
    // Whoever dials checks the host key that was exchanged: both must get through.
    await startBoth(lab)
    for (const { name } of lab.hosts()) assert.equal((await status(lab, name))?.peers.length, 1)
    for (const host of lab.hosts()) {
      const doctor = await host.swam('doctor')
      assert.equal(doctor.code, 0, doctor.stdout + doctor.stderr)
    }
  })

  await t.test('twice changes nothing, and other values are refused', async () => {
    const before = [await laidDown(hosta), await laidDown(hostb)]
    const again = await hosta.swam('peer', 'add', 'hostb', 'root@hostb')
    assert.equal(again.code, 0, again.stderr)
    assert.match(again.stdout, /hostb is a peer already, here and there: nothing to change/)
    assert.deepEqual([await laidDown(hosta), await laidDown(hostb)], before)

    await hosta.shell(`sed -i 's/^site = "fra"/site = "par"/' /etc/swam/swam.toml`)
    const other = await hosta.swam('peer', 'add', 'hostb', 'root@hostb')
    assert.equal(other.code, 1)
    assert.match(other.stderr, /--replace.*here \/etc\/swam\/swam.toml: site is par, would be fra/)
    const replaced = await hosta.swam('peer', 'add', 'hostb', 'root@hostb', '--replace')
    assert.equal(replaced.code, 0, replaced.stderr)
    assert.match(replaced.stdout, /replaced peer hostb/)
    // The table has the place and the form that it had before.
    assert.deepEqual([await laidDown(hosta), await laidDown(hostb)], before)
  })

  await t.test('wrong words and missing rights: a line and a code', async () => {
    const cases: readonly [code: number, said: RegExp, ...words: string[]][] = [
      [2, /expected user@host/, 'peer', 'add', 'hostb', '-oProxyCommand=id'],
      [2, /NAME/, 'peer', 'add', '../x', 'root@hostb'],
      [2, /--port/, 'peer', 'add', 'hostb', 'root@hostb', '--port', '0'],
      [1, /ssh root@nowhere/, 'peer', 'add', 'hostb', 'root@nowhere'],
      [1, /the same host \(same SSH host key\)/, 'peer', 'add', 'self', 'root@hosta'],
      [5, /no peer is called mars/, 'peer', 'test', 'mars'],
      [5, /no peer is called mars/, 'peer', 'remove', 'mars'],
      [5, /no peer is called mars/, 'doctor', '--peer', 'mars'],
      [5, /no migration of a guest mars here: swam history shows all/, 'history', 'mars'],
      [5, /no migration of a guest mars here: swam status shows all/, 'status', 'mars'],
      [2, /unknown command 'histroy' \(Did you mean history\?\): see swam --help/, 'histroy'],
      [6, /cannot read the config/, '--config', '/nowhere.toml', 'peer', 'list'],
    ]
    for (const [code, said, ...words] of cases) {
      const words2 = words.includes('-oProxyCommand=id')
        ? [...words.slice(0, 3), '--', ...words.slice(3)]
        : words
      const result = await hosta.swam(...words2)
      assert.equal(result.code, code, `${words.join(' ')}: ${result.stderr}`)
      assert.match(result.stderr, said)
      assert.equal(result.stderr.trim().split('\n').length, 1, result.stderr)
    }
    const forRoot = /^swam: not allowed: .* is for root: become root \(sudo swam …\)\n$/
    const forGroup = /^swam: not allowed to talk to swamd at .*: become root, or a member of its group .*\n$/
    for (const [said, ...words] of [
      [forRoot, 'peer', 'add', 'x', 'root@hostb'],
      [forRoot, 'peer', 'test', 'hostb'],
      [forRoot, 'peer', 'remove', 'hostb'],
      [forRoot, 'peer', 'accept'],
      [forRoot, 'doctor'],
      [forGroup, 'status'],
      [forGroup, 'history'],
    ] as const) {
      const asNobody = ['--reuid', 'nobody', '--clear-groups', '/usr/bin/swam', ...words]
      const result = await hosta.exec('setpriv', asNobody, { check: false })
      assert.equal(result.code, 4, `${words.join(' ')}: ${result.stderr}`)
      assert.match(result.stderr, said)
    }
    await hosta.stopSwamd()
    for (const words of [['status'], ['history'], ['history', 'mars'], ['peer', 'test', 'hostb']]) {
      const result = await hosta.swam(...words)
      assert.equal(result.code, 3, `${words.join(' ')}: ${result.stderr}`)
      assert.match(
        result.stderr,
        /^swam: swamd is not reachable at .*: start it \(systemctl start swamd\).*\n$/,
      )
    }
    await startBoth(lab)
  })

  await t.test('list and test', async () => {
    const list = await hosta.swam('peer', 'list')
    assert.match(list.stdout, /hostb +fra +10\.8\.0\.2 fd08::2 +22 +up/)
    const { code, stdout, stderr } = await hosta.swam('peer', 'test', 'hostb', '--json')
    assert.equal(code, 0, stderr)
    const report = JSON.parse(stdout) as LinkTestReport
    t.diagnostic(stdout)
    assert.ok(report.rttMs >= 9 && report.rttMs < 500, stdout)
    assert.ok(Math.abs(report.clockMs) < 1000, stdout)
    for (const way of [report.out, report.in]) {
      assert.ok(way.verified && way.bytes > 1 << 20 && way.bytes <= 64 << 20, stdout)
      // The link carries 1000 Mbit/s: more would be a digest of nothing.
      assert.ok((way.bytes * 8) / way.elapsedMs / 1000 < 1100, stdout)
    }
    const text = await hosta.swam('peer', 'test', 'hostb')
    assert.match(text.stdout, /digest verified[\s\S]*digest verified/)
  })

  await t.test('a migration goes through SWAM', async () => {
    const guest = lab.tinyGuest({ ...SMALL, write: QUIET })
    await guest.create('hosta')
    await guest.waitBoot()
    await guest.waitProgress(2)
    // Its peer changes in the middle of it: that has to wait.
    const changed = async (): Promise<void> => {
      await until('the migration to run', 60_000, async () =>
        (await status(lab, 'hosta'))?.migrations.some(({ phase }) => phase === 'copying') === true
          ? true
          : undefined,
      )
      await hosta.shell(`sed -i 's/^site = "fra"/site = "par"/' /etc/swam/swam.toml`)
      await hosta.killSwamd('SIGHUP')
      await until('the change to wait', 10_000, () =>
        hosta.swamdLog().includes('"busy":["hostb"]') ? true : undefined,
      )
    }
    await Promise.all([moveThrough(lab, guest, 'hosta', 'hostb'), changed()])
    await until('the change to be taken up', 20_000, async () => {
      const [peer] = (await status(lab, 'hosta'))?.peers ?? []
      return peer?.site === 'par' && peer.up ? true : undefined
    })
  })

  await t.test('remove: the far side is shut out, and told in words what to run', async () => {
    const { code, stdout, stderr } = await hosta.swam('peer', 'remove', 'hostb')
    assert.equal(code, 0, stderr)
    assert.match(stdout, /swamd read its peers anew \(removed: hostb\)/)
    assert.match(stdout, /run there: swam peer remove hosta/)
    assert.equal(await hosta.read('/var/lib/swam/.ssh/authorized_keys'), '')
    assert.ok((await hosta.read('/etc/swam/swam.toml')).endsWith(comment), 'the text is what it was')
    assert.deepEqual((await status(lab, 'hosta'))?.peers, [])
    await until('hostb to lose its peer', 20_000, async () =>
      (await status(lab, 'hostb'))?.peers[0]?.up === false ? true : undefined,
    )
    assert.equal((await hosta.swam('peer', 'remove', 'hostb')).code, 5)
    assert.equal((await hostb.swam('peer', 'remove', 'hosta')).code, 0)
  })
})
