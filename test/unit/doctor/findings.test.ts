/**
 * Findings that the lab cannot provoke (another OpenSSH, AppArmor, clocks), and the pure parts of those that it does: what
 * sshd's patterns mean, and that nothing of a far host's words becomes part of a command unchecked.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PeerConfig } from '../../../config/schema.ts'
import { DOCTOR_CLOCK_MS } from '../../../lib/core/limits.ts'
import { parseSshdSettings } from '../../../lib/host/sshd.ts'
import { type About, aboutOf } from '../../../server/about.ts'
import { findingsText } from '../../../server/cli/doctor.ts'
import { apparmorFindings } from '../../../server/doctor/apparmor.ts'
import { quoted } from '../../../server/doctor/finding.ts'
import {
  checkPeers,
  clockFindings,
  downFinding,
  nameHereFindings,
  nameThereFindings,
} from '../../../server/doctor/peers.ts'
import type { Place } from '../../../server/doctor/place.ts'
import { findingsOf, reportOf } from '../../../server/doctor/report.ts'
import { sshdFindings } from '../../../server/doctor/sshd.ts'

const PEER: PeerConfig = {
  name: 'fra1',
  addresses: ['192.0.2.7', '2001:db8::7'],
  site: 'fra',
  ssh: { user: 'swam', port: 22, key: '/k', hostKey: 'h' },
}
const ABOUT: About = {
  release: '0.1.0',
  wallMs: 0,
  name: 'fra1.example.org',
  addresses: ['192.0.2.7', '2001:db8::7', '10.0.0.7'],
  resolved: ['192.0.2.1'],
  configured: ['192.0.2.1'],
}
const ids = (findings: readonly { id: string }[]): string[] => findings.map(({ id }) => id)
const sshd = (text: string, groups = ['swam'], peers: string[] = []): string[] =>
  ids(sshdFindings(parseSshdSettings(text), groups, peers))

test('sshd: settings as Debian has them are well', () => {
  assert.deepEqual(
    sshd(
      'maxsessions 10\npubkeyauthentication yes\nforcecommand none\nauthenticationmethods any\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n',
    ),
    [],
  )
})

test('sshd: users and groups by pattern', () => {
  const cases: readonly [text: string, found: readonly string[]][] = [
    ['allowusers root\nallowusers swam\n', []],
    ['allowusers root admin\n', ['sshd-allow-users']],
    ['allowusers s*\n', []],
    ['allowusers sw?m@192.0.2.*\n', []],
    ['allowusers swa\n', ['sshd-allow-users']],
    ['allowusers s.am\n', ['sshd-allow-users']],
    ['allowgroups ssh\n', ['sshd-allow-groups']],
    ['allowgroups ssh sw*\n', []],
    ['denyusers swamp\n', []],
    ['denyusers games swam\n', ['sshd-deny-users']],
    ['denygroups s*\n', ['sshd-deny-groups']],
    ['authenticationmethods publickey,password\n', ['sshd-methods']],
    ['authenticationmethods publickey,password publickey\n', []],
  ]
  for (const [text, found] of cases) assert.deepEqual(sshd(text), found, text)
})

test('sshd: odd patterns neither take long nor become part of a command', () => {
  assert.deepEqual(sshd(`denyusers ${'*'.repeat(2000)}x\n`), [])
  const [found] = sshdFindings(parseSshdSettings("denyusers swam@';id;'\n"), [], [])
  assert.match(found?.mend ?? '', /^editor /)
  const listed = parseSshdSettings(
    "persourcepenalties crash:90\npersourcepenaltyexemptlist 10.0.0.0/8,';id;'\n",
  )
  assert.match(sshdFindings(listed, [], ['192.0.2.7'])[0]!.mend, /ExemptList 10\.0\.0\.0\/8,192\.0\.2\.7'/)
})

test('sshd: penalties of OpenSSH 9.8 and later, unless every peer is exempt', () => {
  const on = 'persourcepenalties crash:90 authfail:5 noauth:1\n'
  assert.deepEqual(sshd('persourcepenalties no\n', [], PEER.addresses as string[]), [])
  assert.deepEqual(sshd(on), [], 'without peers')
  const [found] = sshdFindings(
    parseSshdSettings(`${on}persourcepenaltyexemptlist 192.0.2.7,10.0.0.0/8\n`),
    [],
    PEER.addresses,
  )
  assert.equal(found?.id, 'sshd-penalties')
  assert.match(found.mend, /1i PerSourcePenaltyExemptList 192\.0\.2\.7,10\.0\.0\.0\/8,2001:db8::7'/)
  assert.deepEqual(
    sshd(
      `${on}persourcepenaltyexemptlist 192.0.2.7,10.0.0.0/8,2001:db8::7\n`,
      [],
      PEER.addresses as string[],
    ),
    [],
  )
  assert.match(
    sshdFindings(parseSshdSettings(`${on}persourcepenaltyexemptlist none\n`), [], ['192.0.2.7'])[0]!.mend,
    /ExemptList 192\.0\.2\.7'/,
  )
})

test('AppArmor: a profile that is enforced must let the hook and swam run', () => {
  const loaded = 'libvirtd (enforce)\nvirt-aa-helper (enforce)\n'
  const debian = '  /bin/* PUx,\n  /sbin/* PUx,\n  /usr/bin/* PUx,\n  /etc/libvirt/hooks/** rmix,\n'
  assert.deepEqual(apparmorFindings('libvirtd', loaded, debian), [])
  assert.deepEqual(apparmorFindings('libvirtd', 'libvirtd (complain)\n', ''), [])
  assert.deepEqual(apparmorFindings('virtqemud', loaded, ''), [])
  const [found] = apparmorFindings('libvirtd', loaded, '#  /etc/libvirt/hooks/** rmix,\n/usr/bin/* PUx,\n')
  assert.match(found?.what ?? '', /\/etc\/libvirt\/hooks\//)
  const added = /printf '(.*)\\n' >>/.exec(found!.mend)?.[1]?.replaceAll('\\n', '\n') ?? ''
  assert.deepEqual(
    apparmorFindings('libvirtd', loaded, `/usr/bin/* PUx,\n${added}`),
    [],
    'gone with its mend',
  )
})

test('clocks: some seconds are nothing', () => {
  for (const ms of [null, 0, DOCTOR_CLOCK_MS, -DOCTOR_CLOCK_MS]) assert.deepEqual(clockFindings(PEER, ms), [])
  assert.match(clockFindings(PEER, 61_000)[0]!.what, /61 s ahead/)
  assert.match(clockFindings(PEER, -61_000)[0]!.what, /61 s behind/)
})

test('names: each must lead to a configured address, and to no other', () => {
  assert.deepEqual(nameHereFindings(PEER, ABOUT, ['192.0.2.7', '2001:DB8:0::7']), [])
  assert.deepEqual(nameHereFindings(PEER, { ...ABOUT, name: '192.0.2.7' }, []), [])
  assert.deepEqual(ids(nameHereFindings(PEER, ABOUT, [])), ['name-unknown'])
  const stranger = nameHereFindings(PEER, ABOUT, ['192.0.2.7', '192.0.2.99'])[0]!
  assert.equal(stranger.id, 'name-elsewhere')
  assert.match(stranger.mend, /^sed .*1i 192\.0\.2\.7 fra1\.example\.org.*\/etc\/hosts$/)
  const other = nameHereFindings(PEER, ABOUT, ['10.0.0.7'])[0]!
  assert.match(other.mend, /^swam peer add fra1 /, 'an address of that host')
  const [address] = nameHereFindings(PEER, { ...ABOUT, name: '192.0.2.99' }, [])
  assert.match(
    address?.mend ?? '',
    /^ssh root@192\.0\.2\.7 .*migration_host/,
    'an address needs no line in /etc/hosts',
  )
  const [nothing] = nameThereFindings(PEER, { ...ABOUT, configured: [] }, 'ams1')
  assert.match(nothing?.mend ?? '', /^swam peer add fra1 /, 'no address, no line of it')
  assert.deepEqual(nameThereFindings(PEER, ABOUT, 'ams1'), [])
  assert.deepEqual(ids(nameThereFindings(PEER, { ...ABOUT, resolved: [] }, 'ams1')), ['name-there'])
  assert.deepEqual(ids(nameThereFindings(PEER, { ...ABOUT, resolved: ['192.0.2.50'] }, 'ams1')), [
    'name-there',
  ])
})

test("names: what a peer calls itself becomes part of a command only if it is a host's name", () => {
  for (const name of ["x'; reboot; '", '$(reboot)', '-e', 'a b', '`id`', '']) {
    assert.deepEqual(nameHereFindings(PEER, { ...ABOUT, name }, []), [], name)
    assert.deepEqual(nameThereFindings(PEER, ABOUT, name), [], name)
  }
  for (const part of [
    { addresses: ['x'] },
    { resolved: 'x' },
    { configured: ["'"] },
    { name: 7 },
    { release: null },
  ]) {
    assert.throws(() => aboutOf({ ...ABOUT, ...part }), /about/)
  }
})

test('a peer that was down and answers when it is asked is up', async () => {
  const report = { name: 'fra1', site: '', address: '', up: false, rttMs: null, error: 'ended with status 3' }
  const place = (about: About | null): Place =>
    ({
      config: { peers: [PEER] },
      status: { peers: [report] },
      about: { name: '', peers: [{ name: 'fra1', about, clockMs: 0, error: null }] },
    }) as unknown as Place
  assert.deepEqual(ids(await checkPeers(place(null))), ['peer-down'])
  const found = ids(await checkPeers(place({ ...ABOUT, name: '' })))
  assert.ok(!found.includes('peer-down'), found.join())
})

test('a peer that is down: the mend follows from the reason', () => {
  const mend = (error: string): string =>
    downFinding(PEER, { name: 'fra1', site: '', address: '', up: false, rttMs: null, error }).mend
  assert.match(
    mend('the host key SHA256:x is not the one in the config'),
    /^swam peer add fra1 root@192\.0\.2\.7 --replace$/,
  )
  assert.match(mend('the far sshd does not take this key for user swam'), /^swam peer add/)
  assert.match(mend("ENOENT: no such file or directory, open '/k'"), /^swam peer add/)
  assert.match(
    mend('ended with status 3: cannot reach swamd: connect ENOENT'),
    /^ssh root@192\.0\.2\.7 systemctl start swamd$/,
  )
  assert.match(mend('192.0.2.7: connect ECONNREFUSED'), /systemctl start ssh swamd$/)
  assert.match(mend('speaks protocol version 2, this swamd speaks version 1'), /apt-get install/)
})

test('the report of a far doctor is held to its form', () => {
  const finding = { id: 'x', level: 'error', what: 'w', why: 'y', mend: 'm' }
  const report = (value: object): string =>
    `Welcome\n${JSON.stringify({ version: 1, ok: false, ...value })}\n`
  assert.deepEqual(reportOf(report({ findings: [finding] }), 'far'), [finding])
  assert.equal(reportOf(report({ findings: [{ ...finding, level: 7 }] }), 'far')[0]?.level, 'warning')
  for (const text of [
    '',
    'x',
    report({}),
    report({ version: 2, findings: [] }),
    report({ findings: [{}] }),
    report({ findings: [null] }),
  ]) {
    assert.throws(() => reportOf(text, 'far'), /far: /, text)
  }
  assert.throws(
    () => reportOf(report({ findings: Array.from({ length: 1001 }, () => finding) }), 'far'),
    /at most/,
  )
})

test('what a far doctor says is three lines of bounded length, without control characters', () => {
  const odd = `a\u001b[2J\r\n\u009b\u202e${'x'.repeat(5000)}`
  const findings = findingsOf([{ id: odd, level: odd, what: odd, why: odd, mend: odd }], 'far')
  for (const text of Object.values(findings[0]!)) assert.ok(text.length <= 2000)
  const printed = findingsText('far: ', findings)
  assert.equal(printed.split('\n').length, 4)
  assert.doesNotMatch(printed, /[^\P{C}\n]/u)
})

test('words for a shell stay words', () => {
  assert.equal(quoted('/var/lib/x-1.raw'), '/var/lib/x-1.raw')
  assert.equal(quoted("/a b'c"), "'/a b'\\''c'")
  assert.equal(quoted('$(id)'), "'$(id)'")
})
