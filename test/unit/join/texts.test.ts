/**
 * What `swam peer add` and `remove` make of the texts of swam.toml and authorized_keys: what is not theirs stays byte for
 * byte, and the result is what the daemon, or sshd, is to read.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parse } from 'smol-toml'
import { exampleToml } from '../../../config/example.ts'
import { checkConfigText } from '../../../config/load.ts'
import type { PeerConfig } from '../../../config/schema.ts'
import { keyLines, keyOptions, planKey, withoutPeerKey } from '../../../server/join/authorized-keys.ts'
import { withoutPeer, withPeer, withPeerReplaced } from '../../../server/join/config-text.ts'

const HOST_KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
const OTHER_KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'

function peer(name: string, last: number): PeerConfig {
  return {
    name,
    addresses: [`192.0.2.${last}`, `2001:db8::${last}`],
    site: 'fra',
    ssh: { user: 'swam', port: 22, key: '/etc/swam/id_ed25519', hostKey: HOST_KEY },
  }
}

const peersOf = (text: string): unknown => parse(text)['peers'] ?? []

test('config: a peer is added at the end, and taken away again without a trace', () => {
  for (const text of [
    '',
    'site = "ams"\n',
    '# c\r\nsite = "ams"\r\n',
    exampleToml(),
    'site = "ams"\n[limits]\nwanMbit = 1 # mine\n\n\n# last\n',
  ]) {
    const added = withPeer(text, peer('fra1', 1))
    assert.ok(added.startsWith(text))
    assert.deepEqual(structuredClone(peersOf(added)), [structuredClone(peer('fra1', 1))])
    assert.equal(/(^|[^\r])\n/.test(added), !text.includes('\r\n'), 'one kind of line end')
    assert.equal(withoutPeer(added, 0), text)
    if (text.includes('site')) assert.deepEqual(checkConfigText(added, 'x'), [])
    const two = withPeer(added, peer('par1', 2))
    assert.equal(withoutPeer(two, 1), added)
    assert.deepEqual(checkConfigText(two.includes('site = "ams"') ? two : `site = "ams"\n${two}`, 'x'), [])
  }
})

test('config: a text with quotes and backslashes in it stays one text', () => {
  const odd = { ...peer('a', 1), ssh: { ...peer('a', 1).ssh, key: '/etc/"x\\y"\u00e4' } }
  assert.deepEqual(structuredClone(peersOf(withPeer('', odd))), [structuredClone(odd)])
})

test('config: a text without a last line end gets one', () => {
  assert.ok(withPeer('site = "ams"', peer('fra1', 1)).startsWith('site = "ams"\n\n[[peers]]\n'))
})

test('config: a table in another form is replaced where it stands, and the tables around it stay', () => {
  const middle = [
    '[[peers]]',
    'name = "old" # why',
    'addresses = ["192.0.2.9"]',
    '',
    '[peers.ssh]',
    `hostKey = "${HOST_KEY}"`,
    'port = 2222 # odd',
    '',
  ].join('\n')
  const first = withPeer('site = "ams"\n', peer('a', 1))
  const last = `\n# about c\n${withPeer('', peer('c', 3))}`
  const text = `${first}\n# about old\n${middle}${last}`
  assert.deepEqual(checkConfigText(text, 'x'), [])
  const replaced = withPeerReplaced(text, 1, peer('old', 7))
  assert.deepEqual(
    structuredClone(peersOf(replaced)),
    structuredClone([peer('a', 1), peer('old', 7), peer('c', 3)]),
  )
  assert.ok(replaced.startsWith(`${first}\n# about old\n[[peers]]\nname = "old"\n`), replaced)
  assert.ok(replaced.endsWith(last), replaced)
  const removed = withoutPeer(text, 1)
  assert.deepEqual(structuredClone(peersOf(removed)), structuredClone([peer('a', 1), peer('c', 3)]))
  assert.ok(removed.startsWith(first) && removed.includes('# about old\n') && removed.endsWith(last), removed)
})

test('config: what swamd starts with can be changed: a byte order mark, and inline tables over several lines', () => {
  for (const mark of ['', '\ufeff']) {
    const text = `${mark}site = "ams"\n\n[[peers]]\nname = "a"\naddresses = ["192.0.2.1"]\nssh = {\n  hostKey = "${HOST_KEY}",\n}\n`
    assert.deepEqual(checkConfigText(text, 'x'), [])
    assert.equal(withoutPeer(text, 0), `${mark}site = "ams"\n`)
    assert.equal(withoutPeer(withPeer(text, peer('b', 2)), 1), text)
    assert.deepEqual(
      structuredClone(peersOf(withPeerReplaced(text, 0, peer('a', 7)))),
      structuredClone([peer('a', 7)]),
    )
    const wrong = checkConfigText(text.replace('hostKey', 'hostkey'), 'x')
    assert.deepEqual(
      wrong.map(({ line }) => line),
      [6, 7],
      'and what is wrong in it has its line',
    )
  }
})

test('config: peers that are no tables of their own are left to their owner', () => {
  assert.throws(() => withoutPeer('peers = [{ name = "a" }]\n', 0), /by hand/)
  assert.throws(() => withoutPeer('site = \n', 0), /no valid TOML/)
})

const WANTED = { peer: 'fra1', socket: '/run/swam/peer.sock', key: HOST_KEY }
const OPTIONS = 'restrict,command="/usr/lib/swam/bin/swam-peer --peer fra1 --socket /run/swam/peer.sock"'

test('authorized_keys: one line a peer, others stay', () => {
  assert.equal(keyOptions(WANTED), OPTIONS)
  const others = `# mine\n${OTHER_KEY} me@desk\n\nfrom="a b",command="echo \\"x\\"" ssh-rsa AAAAB3NzaC1yc2E= x y z\n`
  for (const text of ['', others, others.trimEnd()]) {
    const added = planKey(text, WANTED)
    assert.equal(added.state, 'new')
    assert.ok(
      added.text.startsWith(text) &&
        added.text.endsWith(`\n${OPTIONS} ${HOST_KEY} fra1\n`.slice(text === '' ? 1 : 0)),
    )
    assert.deepEqual(planKey(added.text, WANTED), { state: 'same', differs: [], text: added.text })
    const away = withoutPeerKey(added.text, 'fra1')
    assert.deepEqual(away, { text: text === '' || text.endsWith('\n') ? text : `${text}\n`, removed: 1 })
    assert.equal(withoutPeerKey(added.text, 'fra').removed, 0)
  }
  assert.deepEqual(
    keyLines(others).map(({ line, options, key }) => [line, options, key]),
    [
      [1, '', OTHER_KEY],
      [3, 'from="a b",command="echo \\"x\\""', 'ssh-rsa AAAAB3NzaC1yc2E='],
    ],
  )
})

test('authorized_keys: what stands there instead is named, and replaced by one line', () => {
  const cases = [
    { text: `${OPTIONS} ${OTHER_KEY} x\n`, said: /line 1: another key for fra1/ },
    { text: `${HOST_KEY}\n`, said: /the same key with no restriction/ },
    {
      text: `#\n${OPTIONS.replace('fra1', 'par1')} ${HOST_KEY}\n`,
      said: /line 2: the same key under the name par1/,
    },
    { text: `${OPTIONS.replace('restrict,', '')} ${HOST_KEY}\n`, said: /the same key with "command=/ },
    { text: `${OPTIONS} ${HOST_KEY}\n${OPTIONS} ${HOST_KEY}\n`, said: /the same key twice/ },
    { text: `${OPTIONS} ${OTHER_KEY}\n${OPTIONS} ${HOST_KEY}\n`, said: /another key/ },
  ]
  for (const { text, said } of cases) {
    const plan = planKey(text, WANTED)
    assert.equal(plan.state, 'replaced', text)
    assert.match(plan.differs.join('\n'), said)
    assert.equal(planKey(plan.text, WANTED).state, 'same', plan.text)
    assert.equal(keyLines(plan.text).length, 1)
  }
})

test('authorized_keys: what sshd takes a key from is seen, however it is written', () => {
  const base64 = HOST_KEY.split(' ')[1]!
  const rsa = 'AAAAB3NzaC1yc2EAAAADAQABAAAAgQDDAAAA'
  const cases: readonly [line: string, options: string, key: string][] = [
    [`rsa-sha2-256 ${rsa} x`, '', `rsa-sha2-256 ${rsa}`],
    [`${HOST_KEY}\0more`, '', HOST_KEY],
    [`ssh-ed25519 ${base64.slice(0, 20)}\r${base64.slice(20)} x`, '', HOST_KEY],
    [`${HOST_KEY}\r`, '', HOST_KEY],
    [`a\\"b,c="d \\" e" \t${HOST_KEY}`, 'a\\"b,c="d \\" e"', HOST_KEY],
  ]
  for (const [line, options, key] of cases) {
    assert.deepEqual(keyLines(line), [{ line: 0, options, key, peer: undefined }], JSON.stringify(line))
  }
  // The key of a peer under another name of its type, and with another end of its BASE64, is the same key.
  const plan = planKey(`ssh-rsa ${rsa}\nrsa-sha2-512 ${rsa} x\n`, { ...WANTED, key: `ssh-rsa ${rsa}` })
  assert.equal(plan.text, `${OPTIONS} ssh-rsa ${rsa} fra1\n`)
  assert.match(
    plan.differs.join('\n'),
    /line 1: the same key with no restriction\n.*line 2: the same key with no/,
  )
  // Quotes that could be read in many ways took years.
  assert.deepEqual(keyLines(`"${'\\"'.repeat(1000)} x`), [])
})

test('authorized_keys: a commented line is none, and a socket with odd characters cannot stand there', () => {
  for (const text of [`# ${OPTIONS} ${HOST_KEY}`, `# ${HOST_KEY}`, `#${HOST_KEY}`, ` \t# ${HOST_KEY}`]) {
    assert.deepEqual(keyLines(`${text}\n`), [], text)
  }
  for (const socket of ['/run/a b', '/run/$(id)', '/run/"x', "/run/'x", '/run/`x`']) {
    assert.throws(() => planKey('', { ...WANTED, socket }), /cannot stand in authorized_keys/)
  }
})
