/**
 * What the doctor reads: the report of a far doctor, what a peer says of itself and of us, and the texts of sshd, libvirt's
 * qemu.conf, the resolver and AppArmor. Its findings are for a terminal, its mends for a shell of root.
 */
import assert from 'node:assert/strict'
import { isIP, isIPv6 } from 'node:net'
import type { PeerConfig } from '../../../config/schema.ts'
import { ProtocolError, RefusedError, SwamError } from '../../../lib/core/errors.ts'
import { DOCTOR_FINDINGS_MAX, JOIN_ADDRESSES_MAX, PEER_ADDRESSES_MAX } from '../../../lib/core/limits.ts'
import { addressesOf, plainAddress } from '../../../lib/host/names.ts'
import { isHostName, parseQemuConf } from '../../../lib/host/qemu-conf.ts'
import { parseSshdSettings, publicKeyText, sshdPort } from '../../../lib/host/sshd.ts'
import { type About, Abouts, aboutOf } from '../../../server/about.ts'
import { findingsText } from '../../../server/cli/doctor.ts'
import { apparmorFindings } from '../../../server/doctor/apparmor.ts'
import type { Finding } from '../../../server/doctor/finding.ts'
import {
  clockFindings,
  downFinding,
  nameHereFindings,
  nameThereFindings,
} from '../../../server/doctor/peers.ts'
import { findingsOf, reportOf } from '../../../server/doctor/report.ts'
import { sshdFindings } from '../../../server/doctor/sshd.ts'
import type { Site } from '../../../server/site.ts'
import { allowing, show } from '../checks.ts'
import type { FuzzTarget } from '../target.ts'

function words(text: string): Buffer[] {
  return text.split(' ').map((word) => Buffer.from(word))
}

/** As it is printed: three lines for each, and nothing that moves a cursor. */
function printable(findings: readonly Finding[]): void {
  const text = findingsText('far: ', findings)
  assert.doesNotMatch(text, /[^\P{Cc}\n]|[\p{Cf}\u2028\u2029]/u)
  assert.equal(text.split('\n').length, 1 + Math.max(1, 3 * findings.length))
}

export const doctorReport: FuzzTarget = {
  name: 'doctor-report',
  inputBytesMax: 16_384,
  allocationBytesMax: 65_536,
  dictionary: [
    ...words(
      '{"version":1,"ok":false,"findings":[ {"id":"x","level":"error","what":"w","why":"y","mend":"m"} "level": null',
    ),
    ...words(
      '\\u001b[2J \\u0000 \\r \\n \\u009b \\u202e \\u2028 \u009b1m \u202e [] {} 7 "toString" "__proto__":',
    ),
    ...['\n', 'Welcome\n', '{"version":1,'].map((word) => Buffer.from(word)),
  ],
  run(input) {
    const text = input.toString('utf8')
    const made = allowing([ProtocolError], () => reportOf(text, 'far'))
    if (!('value' in made)) return
    const findings = made.value
    assert.ok(findings.length <= DOCTOR_FINDINGS_MAX)
    for (const { id, level, what, why, mend } of findings) {
      assert.ok(level === 'error' || level === 'warning')
      assert.ok([id, what, why, mend].every((one) => typeof one === 'string' && one.length <= 2000))
    }
    printable(findings)
    assert.deepEqual(
      findingsOf(JSON.parse(JSON.stringify(findings)), 'far'),
      findings,
      'what passed passes again',
    )
    const again = `${JSON.stringify({ version: 1, ok: false, findings })}\n`
    assert.deepEqual(reportOf(again, 'far'), findings)
  },
}

// ---- peers ---------------------------------------------------------------------------------------------------------

const PEER: PeerConfig = {
  name: 'fra1',
  addresses: ['192.0.2.7', '2001:db8::7'],
  site: 'fra',
  ssh: { user: 'swam', port: 22, key: '/k', hostKey: 'h' },
}
const ADDRESS = '[0-9a-f.:]+'
const NAME = '[A-Za-z0-9_.-]+'
const EDIT = `-e '1i ${ADDRESS} ${NAME}' -e 's/\\[\\[:space:\\]\\]\\+[A-Za-z0-9_.[\\]-]+\\(\\[\\[:space:\\]\\]\\|\\$\\)/\\\\1/'`
/** A mend holds of a peer's words nothing but names of hosts and addresses. */
const MENDS = new RegExp(
  [
    `^sed -i '1i ${ADDRESS} ${NAME}' /etc/hosts$`,
    `^sed -i -E ${EDIT} /etc/hosts$`,
    `^ssh root@${ADDRESS} "sed -i -E ${EDIT} /etc/hosts"$`,
    `^ssh root@192\\.0\\.2\\.7 "sed -i -E '[^']*' /etc/libvirt/qemu\\.conf && systemctl restart libvirtd"$`,
    `^swam peer add fra1 root@192\\.0\\.2\\.7 --replace$`,
    '^timedatectl set-ntp true; ssh root@192\\.0\\.2\\.7 timedatectl set-ntp true$',
  ].join('|'),
)

function siteThatHears(text: string): Site {
  return {
    libvirt: { hostName: async () => 'here.example.org' },
    commands: { run: async () => text },
  } as unknown as Site
}

export const peerAbout: FuzzTarget = {
  name: 'peer-about',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: words(
    '"release": "wallMs": "name": "addresses":[ "resolved":[ "configured":[ "192.0.2.7" "::1" "fe80::1%eth0" "::ffff:192.0.2.7" [] null 1e999 -1 \\u0000 \\n $(id) \' "1.1.1.1" 192.0.2.7_STREAM',
  ),
  async run(input) {
    const text = input.toString('utf8')
    let value: unknown
    try {
      value = JSON.parse(text)
    } catch {
      return
    }
    // As a question: whatever it is, the answer is one that the other end takes.
    const abouts = new Abouts(siteThatHears(text))
    const answer = await abouts.answer(value, PEER).catch((error: unknown) => {
      if (!(error instanceof SwamError)) throw error
    })
    if (answer !== undefined) {
      assert.deepEqual(aboutOf(JSON.parse(JSON.stringify(answer))), answer)
      assert.ok(answer.resolved.length <= PEER_ADDRESSES_MAX)
    }
    // As an answer.
    const made = allowing([ProtocolError, RefusedError], () => aboutOf(value))
    if (!('value' in made)) return
    const about: About = made.value
    // -0 is a time too.
    assert.equal(show(aboutOf(JSON.parse(JSON.stringify(about)))), show(about), 'what passed passes again')
    assert.ok(about.addresses.length <= JOIN_ADDRESSES_MAX && about.configured.length <= PEER_ADDRESSES_MAX)
    for (const address of [...about.addresses, ...about.resolved, ...about.configured]) {
      assert.ok(isIP(address) !== 0 && isIP(plainAddress(address)) !== 0)
    }
    const findings = [
      ...clockFindings(PEER, about.wallMs - 1e12),
      ...nameHereFindings(PEER, about, []),
      ...nameHereFindings(PEER, about, about.resolved),
      ...nameThereFindings(PEER, about, 'here.example.org'),
    ]
    printable(findings)
    for (const { mend } of findings) assert.match(mend, MENDS)
    const report = { name: 'fra1', site: '', address: '', up: false, rttMs: null, error: text }
    const down = downFinding(PEER, report)
    printable([down])
    assert.ok(!down.mend.includes(text) || text.length < 20)
  },
}

// ---- texts of this host --------------------------------------------------------------------------------------------

/** The words of a shell are closed: no text has broken out of its quotes, and there is one line. */
function closedForShell(mend: string): void {
  assert.doesNotMatch(mend, /\p{Cc}/u)
  let quote = ''
  for (let at = 0; at < mend.length; at++) {
    const one = mend[at]!
    if (quote === "'") quote = one === "'" ? '' : quote
    else if (one === '\\') at++
    else if (quote === '"') quote = one === '"' ? '' : quote
    else if (one === "'" || one === '"') quote = one
  }
  assert.equal(quote, '', `open quotes: ${mend}`)
}

export const hostSettings: FuzzTarget = {
  name: 'host-settings',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: [
    ...words(
      'port 22 hostkey maxsessions allowusers allowgroups denyusers denygroups swam sw?m s* *@10.0.0.* ' +
        "forcecommand none '",
    ),
    ...words(
      'authenticationmethods publickey,password authorizedkeysfile .ssh/authorized_keys persourcepenalties persourcepenaltyexemptlist',
    ),
    ...words(
      'migration_port_min = 49152 migration_port_max migration_host user "host1" \'h\' [::1] STREAM DGRAM 192.0.2.7 fe80::1 ::ffff:1.2.3.4',
    ),
    ...words(
      'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE libvirtd (enforce) PUx, /usr/bin/* /etc/libvirt/hooks/**',
    ),
    ...['\n', '\r\n', '\t', '\u0000', '\u00a0'].map((word) => Buffer.from(word)),
  ],
  async run(input) {
    const text = input.toString('utf8')
    const settings = parseSshdSettings(text)
    for (const [key, values] of settings) {
      assert.match(key, /^[a-z0-9]{1,64}$/)
      assert.ok(values.length > 0 && values.every((value) => !value.includes('\n')))
    }
    const port = sshdPort(settings)
    assert.ok(Number.isInteger(port) && port > 0 && port < 65_536)
    const findings = [
      ...sshdFindings(settings, ['swam', 'ssh'], PEER.addresses),
      ...apparmorFindings('libvirtd', text, text),
      ...apparmorFindings('libvirtd', 'libvirtd (enforce)', text),
    ]
    printable(findings)
    for (const { mend } of findings) closedForShell(mend)

    const conf = parseQemuConf(text)
    for (const one of [conf.migrationPortMin, conf.migrationPortMax]) {
      assert.ok(Number.isInteger(one) && one > 0 && one < 65_536)
    }
    const { migrationHost } = conf
    assert.ok(migrationHost === undefined || isHostName(migrationHost) || isIP(migrationHost) !== 0)

    const found = await addressesOf('far.example.org', async () => text)
    assert.equal(new Set(found).size, found.length)
    assert.ok(
      found.every(
        (one) => isIP(one) !== 0 && plainAddress(one) === one && !/^(127\.|::1$|fe80|169\.254)/.test(one),
      ),
    )
    assert.deepEqual(found.map(isIPv6), found.map(isIPv6).sort(), 'IPv4 first')

    const key = allowing([RefusedError], () => publicKeyText(text))
    if ('value' in key) assert.match(key.value, /^[a-z0-9@.-]+ [A-Za-z0-9+/]+={0,2}$/)
  },
}
