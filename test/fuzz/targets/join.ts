/**
 * What `swam peer add` hears of the other host and what it makes of it: lines of JSON, the facts, and the two files of this
 * host in which they end, swam.toml and authorized_keys.
 */
import assert from 'node:assert/strict'
import { isIP } from 'node:net'
import { PassThrough } from 'node:stream'
import { crc32 } from 'node:zlib'
import { parse } from 'smol-toml'
import { checkConfigText } from '../../../config/load.ts'
import type { PeerConfig } from '../../../config/schema.ts'
import { ProtocolError, RefusedError } from '../../../lib/core/errors.ts'
import { JOIN_LINE_CHARACTERS_MAX, JOIN_LINES_MAX, PEER_ADDRESSES_MAX } from '../../../lib/core/limits.ts'
import { isHostName } from '../../../lib/host/qemu-conf.ts'
import { findAddresses } from '../../../server/join/addresses.ts'
import { keyLines, keyOptions, planKey, withoutPeerKey } from '../../../server/join/authorized-keys.ts'
import { withoutPeer, withPeer, withPeerReplaced } from '../../../server/join/config-text.ts'
import { factsOf, linesOf, peerName } from '../../../server/join/facts.ts'
import { JOIN_VERSION, JsonLines } from '../../../server/join/lines.ts'
import { allowing, cutsOf } from '../checks.ts'
import { below, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'
import { turn } from './script.ts'

const KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
const OTHER_KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'

function words(text: string): Buffer[] {
  return text.split(' ').map((word) => Buffer.from(word))
}

// ---- lines ---------------------------------------------------------------------------------------------------------

const CEILINGS = { lineBytesMax: 300, noiseBytesMax: 200 }

/** What the same bytes are by a reader that has them all at once. */
function naiveLines(input: Buffer): string[] {
  const values: string[] = []
  const lines = input.toString('latin1').split('\n')
  const last = lines.pop()!
  let noise = 0
  let begun = false
  for (const line of lines) {
    begun ||= line.startsWith('{"version":')
    if (!begun) noise += line.length + 1
    if (begun ? line.length > CEILINGS.lineBytesMax : noise > CEILINGS.noiseBytesMax)
      return [...values, 'error']
    if (!begun) continue
    let value: unknown
    try {
      value = JSON.parse(Buffer.from(line, 'latin1').toString('utf8'))
    } catch {
      return [...values, 'error']
    }
    if (typeof value !== 'object' || value === null || Array.isArray(value)) return [...values, 'error']
    if ((value as { version?: unknown }).version !== JOIN_VERSION) return [...values, 'error']
    values.push(JSON.stringify(value))
  }
  return last.length > CEILINGS.lineBytesMax ? [...values, 'error'] : values
}

/** Values until the end, or until an error. `eager`: somebody reads while they come. */
async function readLines(input: Buffer, cuts: readonly number[], eager: boolean): Promise<string[]> {
  const stream = new PassThrough({ highWaterMark: 64 })
  const lines = new JsonLines(stream, 'far', CEILINGS)
  let taken = 0
  let pieceMax = 0
  stream.on('data', (bytes: Buffer) => {
    taken += bytes.length
    pieceMax = Math.max(pieceMax, bytes.length)
  })
  const write = async (): Promise<void> => {
    let start = 0
    for (const end of [...cuts, input.length]) {
      if (end > start) stream.write(Buffer.from(input.subarray(start, end)))
      start = end
      if (eager) await turn()
    }
    stream.end()
  }
  const writing = write()
  if (!eager) {
    await writing
    for (let turns = 0; turns < 3; turns++) await turn()
    const most = CEILINGS.lineBytesMax + CEILINGS.noiseBytesMax + pieceMax
    assert.ok(taken <= most, `${taken} bytes are held that nobody asked for`)
  }
  const values: string[] = []
  try {
    for (;;) {
      const value = await lines.next(3000)
      if (value === undefined) break
      values.push(JSON.stringify(value))
    }
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    values.push('error')
    await assert.rejects(lines.next(3000), ProtocolError, 'a failure stays one')
  }
  await writing
  stream.destroy()
  return values
}

export const joinLines: FuzzTarget = {
  name: 'join-lines',
  inputBytesMax: 2048,
  allocationBytesMax: 65_536,
  dictionary: [
    ...words(
      '{"version":1,"ok":true} {"version":1} {"version":2} {"version": "step":"look" [] null {} \\u0000 1e999',
    ),
    ...['\n', '{"version":1,"ok":true}\n', 'Welcome\n', 'x'.repeat(90), '\r\n', '\ufeff'].map((word) =>
      Buffer.from(word),
    ),
  ],
  generate: (random) => {
    const parts: string[] = []
    for (let count = below(random, 4); count > 0; count--)
      parts.push(`${'noise '.repeat(below(random, 16))}\n`)
    for (let count = below(random, 6); count > 0; count--) {
      parts.push(`${JSON.stringify({ version: 1, text: 'ä'.repeat(below(random, 150)) })}\n`)
    }
    return Buffer.from(parts.join(''))
  },
  async run(input) {
    const expected = naiveLines(input)
    assert.deepEqual(await readLines(input, [], false), expected, 'in one piece')
    assert.deepEqual(await readLines(input, cutsOf(input), true), expected, 'in pieces')
    if (crc32(input) % 16 !== 0 || input.length > 512) return
    const each = Array.from({ length: input.length }, (_value, index) => index)
    assert.deepEqual(await readLines(input, each, false), expected, 'byte by byte')
  },
}

// ---- facts ---------------------------------------------------------------------------------------------------------

const HOST_FACTS = {
  release: '0.1.0',
  site: 'fra',
  user: 'swam',
  sshPort: 22,
  hostKey: KEY,
  publicKey: `${OTHER_KEY} swam@hostb`,
  names: ['hostb', 'hostb.example.org', '192.0.2.7'],
  addresses: ['192.0.2.7', '2001:db8::7', '::ffff:192.0.2.8', '127.0.0.1'],
}

export const joinFacts: FuzzTarget = {
  name: 'join-facts',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: words(
    `"release": "site": "user": "sshPort": "hostKey": "publicKey":null "names":[ "addresses":[ \\n \\" \\u0000 \\u007f \\u0085 ${KEY} ssh-rsa command=\\"id\\" [[peers]] 2001:db8::1 fe80::1%eth0 ::ffff:1.2.3.4 $(id) ' -oX 65536`,
  ),
  generate: (random) => {
    const odd = [
      '',
      'a b',
      '\n',
      '"',
      "'",
      '\u0085',
      '-x',
      'x'.repeat(70),
      7,
      null,
      [],
      {},
      '::1',
      '10.0.0.1',
      KEY,
    ]
    const facts: Record<string, unknown> = structuredClone(HOST_FACTS)
    const key = pick(random, Object.keys(facts))
    const value = facts[key]
    if (Array.isArray(value)) value.push(pick(random, odd))
    else
      facts[key] =
        typeof value === 'string' && below(random, 2) === 0
          ? `${value} ${pick(random, odd)}`
          : pick(random, odd)
    return Buffer.from(JSON.stringify(facts))
  },
  async run(input) {
    let value: unknown
    try {
      value = JSON.parse(input.toString('utf8'))
    } catch {
      return
    }
    const lines = allowing([ProtocolError], () => linesOf(value, 'far'))
    if ('value' in lines) {
      assert.ok(lines.value.length <= JOIN_LINES_MAX)
      assert.ok(lines.value.every((line) => line.length <= JOIN_LINE_CHARACTERS_MAX))
    }
    const name = allowing([ProtocolError], () => peerName(value, 'far'))
    if ('value' in name) assert.match(name.value, /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/)
    const made = allowing([ProtocolError, RefusedError], () => factsOf(value, 'far'))
    if (!('value' in made)) return
    const facts = made.value
    assert.deepEqual(factsOf(JSON.parse(JSON.stringify(facts)), 'far'), facts, 'what passed passes again')
    for (const text of [
      facts.release,
      facts.site,
      facts.user,
      facts.hostKey,
      facts.publicKey ?? '',
      ...facts.names,
    ]) {
      assert.doesNotMatch(text, /[^\x20-\x7e]|["'\\]/)
    }

    // What it is told resolves to half of its addresses, and to a stranger's.
    const resolve = async (): Promise<string[]> => [...facts.addresses.slice(1), '198.51.100.1']
    const names = facts.names.length > 0 ? facts.names : ['far']
    const sought = {
      what: 'far',
      where: 'here',
      names,
      theirs: facts.addresses,
      seen: facts.addresses[0] ?? '',
    }
    const found = await findAddresses(sought, resolve).catch((error: unknown) => {
      if (!(error instanceof RefusedError)) throw error
    })
    if (found === undefined) return
    assert.ok(
      found.addresses.length > 0 && found.addresses.length <= PEER_ADDRESSES_MAX && found.notes.length <= 8,
    )
    assert.ok(!found.addresses.includes('198.51.100.1') || facts.addresses.includes('198.51.100.1'))

    const peer: PeerConfig = {
      name: 'far',
      addresses: found.addresses,
      site: facts.site,
      ssh: { user: facts.user, port: facts.sshPort, key: '/etc/swam/id_ed25519', hostKey: facts.hostKey },
    }
    const text = withPeer('site = "ams"\n', peer)
    assert.deepEqual(checkConfigText(text, 'x'), [])
    const { site, ...others } = peer
    assert.deepEqual(
      peersOf(text),
      plainly([site === '' ? others : peer]),
      'the config has that peer and nothing else',
    )
    if (facts.publicKey === null) return
    const wanted = { peer: 'far', socket: '/run/swam/peer.sock', key: facts.publicKey }
    const plan = planKey('', wanted)
    assert.equal(plan.text.split('\n').length, 2)
    assert.deepEqual(keyLines(plan.text), [
      { line: 0, options: keyOptions(wanted), key: facts.publicKey, peer: 'far' },
    ])
    assert.ok(facts.names.every((one) => isHostName(one) || isIP(one) !== 0))
  },
}

// ---- swam.toml -----------------------------------------------------------------------------------------------------

function plainly(value: unknown): unknown {
  return JSON.parse(JSON.stringify(value))
}

function peersOf(text: string): unknown[] {
  return plainly(parse(text)['peers'] ?? []) as unknown[]
}

function restOf(text: string): unknown {
  return plainly({ ...parse(text), peers: [] })
}

const PEER: PeerConfig = {
  name: 'joined',
  addresses: ['198.51.100.7', '2001:db8:7::7'],
  site: 'fra',
  ssh: { user: 'swam', port: 22, key: '/etc/swam/id_ed25519', hostKey: KEY },
}

/** A config in forms that people write: comments, other line ends, tables apart from each other, TOML 1.1. */
function anyConfig(random: Random): Buffer {
  const end = pick(random, ['\n', '\n', '\r\n'])
  const gap = (): string =>
    pick(random, ['', '', end, `${end}${end}`, `# a comment [[peers]]${end}`, `  ${end}`])
  const tail = (): string => pick(random, ['', '', ' # why', '   ', '\t# name = "x"'])
  const head = (key: string): string => pick(random, [key, key, ` ${key} `, `"${key}"`])
  const indent = pick(random, ['', '', '  '])
  const line = (text: string): string => `${indent}${text}${tail()}${end}`
  const tables: string[] = []
  const peers = below(random, 4)
  for (let at = 0; at < peers; at++) {
    const addresses = pick(random, [
      `addresses = ["192.0.2.${at}"]`,
      `addresses = [${end}  "192.0.2.${at}", # first${end}  "2001:db8::${at}",${end}]`,
    ])
    const ssh = pick(random, [
      [line(`ssh = { hostKey = "${KEY}" }`)],
      [line(`ssh = {${end}  hostKey = '${KEY}',${end}  port = 2222,${end}}`)],
      [line(`ssh.hostKey = "${KEY}"`), line('ssh.port = 22')],
      [gap(), line(`[peers.${head('ssh')}]`), line(`hostKey = """${KEY}"""`)],
      [gap(), line('[limits]'), gap(), line('[peers.ssh]'), line(`hostKey = "${KEY}"`)],
    ])
    const name = pick(random, [`name = "p${at}"`, `name = 'p${at}'`, `"name" = "p${at}"`])
    tables.push(`${line(`[[${head('peers')}]]`)}${line(name)}${gap()}${line(addresses)}${ssh.join('')}`)
  }
  const other = pick(random, ['', line('[limits]') + line('wanMbit = 1'), line('[status]') + gap()])
  tables.splice(below(random, tables.length + 1), 0, other)
  const text = `${pick(random, ['', '', '\ufeff'])}${gap()}${line('site = "ams"')}${tables.map((one) => gap() + one).join('')}${gap()}`
  return Buffer.from(below(random, 4) === 0 ? text.trimEnd() : text)
}

export const configText: FuzzTarget = {
  name: 'config-text',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: words(
    `[[peers]] [["peers"]] [peers.ssh] [peers] peers=[] peers=[{ name="x" name="joined" addresses=["192.0.2.1"] ssh={ hostKey="${KEY}" port=22 [limits] [status] # """ ''' \r \r\n \n \n\n \ufeff [[peers]]\nname="y" ssh.port=1 }`,
  ),
  generate: anyConfig,
  run(input) {
    const text = input.toString('utf8')
    // Only what a daemon would start with is ever changed, and only a name and addresses that are not there are added.
    if (!Buffer.from(text).equals(input) || checkConfigText(text, 'x').length > 0) return
    const peers = peersOf(text)
    if (JSON.stringify(peers).includes('joined') || JSON.stringify(peers).includes('198.51.100.7')) return
    const inline = peers.length > 0 && 'error' in allowing([RefusedError], () => withoutPeer(text, 0))
    // An empty list of peers can be written in one way only.
    const written = inline || /peers["']?[ \t]*=/.test(text)

    const added = withPeer(text, PEER)
    assert.ok(added.startsWith(text), 'what was there stays')
    if (checkConfigText(added, 'x').length > 0) {
      assert.ok(written, 'a peer can be added as text')
    } else {
      assert.deepEqual(peersOf(added), [...peers, plainly(PEER)])
      assert.deepEqual(restOf(added), restOf(text))
      const end = added.includes('\r\n', text.length) ? '\r\n' : '\n'
      const closed = text === '' || text.endsWith('\n') ? text : text + end
      assert.equal(withoutPeer(added, peers.length), closed, 'taken away without a trace')
      assert.equal(withPeerReplaced(added, peers.length, PEER), added, 'replaced by itself')
    }
    if (inline) {
      assert.ok(written, 'a table can be taken away as text')
      return
    }
    for (let at = 0; at < peers.length; at++) {
      const removed = withoutPeer(text, at)
      assert.deepEqual(checkConfigText(removed, 'x'), [])
      assert.deepEqual(peersOf(removed), peers.toSpliced(at, 1))
      assert.deepEqual(restOf(removed), restOf(text))
      const replaced = withPeerReplaced(text, at, PEER)
      assert.deepEqual(checkConfigText(replaced, 'x'), [])
      assert.deepEqual(peersOf(replaced), peers.toSpliced(at, 1, plainly(PEER)))
      assert.deepEqual(restOf(replaced), restOf(text))
      outsideStays(text, removed)
      outsideStays(text, replaced)
    }
  },
}

/** In front of the first table nothing changes, but for the empty line there; behind it lines go, and ours come. */
function outsideStays(before: string, after: string): void {
  const first = before.search(/^[ \t]*\[\[/m)
  assert.ok(after.startsWith(before.slice(0, first).trimEnd()))
  const own = withPeer('', PEER).split('\n')
  const left = before.split('\n').map((line) => line.trim())
  for (const line of after.split('\n').map((one) => one.trim())) {
    const at = left.indexOf(line)
    if (at >= 0) left.splice(0, at + 1)
    else
      assert.ok(
        own.some((one) => line.startsWith(one)),
        `a line that was not there: ${line}`,
      )
  }
}

// ---- authorized_keys -----------------------------------------------------------------------------------------------

const WANTED = { peer: 'fra1', socket: '/run/swam/peer.sock', key: KEY }
const WANTED_OPTIONS = keyOptions(WANTED)
const KEY_TYPE =
  /^(ssh-(rsa|dss|ed25519)|rsa-sha2-(256|512)|ecdsa-sha2-nistp(256|384|521)|sk-ssh-ed25519@openssh\.com|(webauthn-)?sk-ecdsa-sha2-nistp256@openssh\.com)(-cert-v01@openssh\.com)?$/

/** A key as sshd reads one: TYPE, blanks, BASE64 up to the next blank. */
function sshdKey(text: string): string | undefined {
  const [, type, given] = /^([^ \t]+)[ \t]+([^ \t]+)/.exec(text) ?? []
  if (type === undefined || given === undefined || !KEY_TYPE.test(type)) return undefined
  const base64 = given.replaceAll(/[\r\v\f]/g, '')
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) return undefined
  const bytes = Buffer.from(base64, 'base64')
  if (bytes.length < 19 || bytes.readUInt32BE(0) > 64) return undefined
  return KEY_TYPE.test(bytes.toString('latin1', 4, 4 + bytes.readUInt32BE(0))) ? base64 : undefined
}

/** The way that sshd goes through a line (auth2-pubkeyfile.c): a key, or options up to a blank outside of quotes and a key. */
function sshdLine(raw: string): { options: string; base64: string } | undefined {
  const line = raw
    .split('\0')[0]!
    .replace(/^[ \t]+/, '')
    .replace(/[\r\n]+$/, '')
  if (line === '' || line.startsWith('#')) return undefined
  const bare = sshdKey(line)
  if (bare !== undefined) return { options: '', base64: bare }
  let at = 0
  let quoted = false
  while (at < line.length && (quoted || (line[at] !== ' ' && line[at] !== '\t'))) {
    if (line[at] === '\\' && line[at + 1] === '"') at++
    else if (line[at] === '"') quoted = !quoted
    at++
  }
  const base64 = sshdKey(line.slice(at).replace(/^[ \t]+/, ''))
  return base64 === undefined ? undefined : { options: line.slice(0, at), base64 }
}

function blob(key: string): string {
  return key.split(' ')[1]!
}

/** The same bytes may be written in two ways. */
function isOurs(base64: string | undefined): boolean {
  return base64 !== undefined && Buffer.from(base64, 'base64').equals(Buffer.from(blob(KEY), 'base64'))
}

/** Every key that sshd would take is seen, with its options. */
function seesWhatSshdSees(text: string): void {
  const seen = new Map(keyLines(text).map((one) => [one.line, one]))
  text.split('\n').forEach((raw, line) => {
    const found = sshdLine(raw)
    if (found === undefined) return
    const one = seen.get(line)
    assert.ok(
      one !== undefined,
      `line ${line + 1}: sshd takes a key that is not seen: ${JSON.stringify(raw)}`,
    )
    assert.deepEqual({ options: one.options, base64: blob(one.key) }, found)
  })
}

export const authorizedKeys: FuzzTarget = {
  name: 'authorized-keys',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: [
    ...words(
      `${WANTED_OPTIONS.replace(' ', '_')} restrict, command=" \\" " ${KEY.replace(' ', '_')} # from="a" ,`,
    ),
    ...[
      ...[
        `${WANTED_OPTIONS} ${KEY} fra1\n`,
        `${WANTED_OPTIONS} `,
        `${KEY} x\n`,
        `${OTHER_KEY}\n`,
        '\n',
        ' ',
        '\t',
        '\r\n',
      ],
      ...[
        '\0',
        'rsa-sha2-256 ',
        'ssh-rsa ',
        '--peer fra1',
        '--peer par1',
        '"\\"\\"\\"\\"',
        '\u00a0',
        '\u00fc',
      ],
    ].map((word) => Buffer.from(word, 'latin1')),
  ],
  generate: (random) => {
    const line = (): string => {
      const peer = pick(random, ['fra1', 'par1', 'fra'])
      const command = `command="${pick(random, ['/usr/lib/swam/bin', '/x'])}/swam-peer --peer ${peer} --socket /run/swam/peer.sock"`
      const options = pick(random, [
        '',
        `restrict,${command} `,
        `${command} `,
        'from="a b",command="echo \\"x\\"" ',
        `no-pty,RESTRICT,${command}\t`,
      ])
      const key = pick(random, [KEY, KEY, OTHER_KEY, OTHER_KEY, KEY.replace(' ', '  ')])
      return pick(random, [
        `${options}${key}${pick(random, ['', ' c', ' a b'])}`,
        `# ${key}`,
        '',
        ' ',
        'nonsense',
        `\t${key}`,
      ])
    }
    const lines = Array.from({ length: below(random, 7) }, line)
    const end = pick(random, ['\n', '\n', '\r\n'])
    return Buffer.from(lines.join(end) + pick(random, ['', end]), 'latin1')
  },
  run(input) {
    const text = input.toString('latin1')
    seesWhatSshdSees(text)
    const related = keyLines(text).filter(({ peer, key }) => peer === WANTED.peer || isOurs(blob(key)))
    const isRelated = new Set(related.map(({ line }) => line))
    const strangers = text.split('\n').filter((_line, at) => !isRelated.has(at))

    const plan = planKey(text, WANTED)
    assert.equal(plan.state === 'new', related.length === 0)
    assert.equal(plan.state === 'replaced', plan.differs.length > 0)
    seesWhatSshdSees(plan.text)
    const lines = plan.text.split('\n')
    const ours = lines.map(sshdLine).filter((one) => isOurs(one?.base64))
    assert.deepEqual(
      ours,
      [{ options: WANTED_OPTIONS, base64: blob(KEY) }],
      'the key opens one line, which is restricted',
    )
    const others = lines.filter((line) => !isOurs(sshdLine(line)?.base64))
    // A last line without an end gets one.
    assert.equal(
      others.join('\n').replace(/\n+$/, ''),
      strangers.join('\n').replace(/\n+$/, ''),
      'strangers stay',
    )
    assert.equal(keyLines(plan.text).filter(({ peer }) => peer === WANTED.peer).length, 1)
    assert.deepEqual(
      planKey(plan.text, WANTED),
      { state: 'same', differs: [], text: plan.text },
      'twice is once',
    )

    const away = withoutPeerKey(plan.text, WANTED.peer)
    assert.equal(away.removed, 1)
    if (plan.state === 'new') {
      assert.equal(
        away.text,
        text === '' || text.endsWith('\n') ? text : `${text}\n`,
        'taken away without a trace',
      )
    }
    const without = withoutPeerKey(text, 'fra1')
    assert.ok(keyLines(without.text).every(({ peer }) => peer !== 'fra1'))
    const kept = text
      .split('\n')
      .filter((_line, at) => keyLines(text).every((one) => one.line !== at || one.peer !== 'fra1'))
    assert.equal(without.text, kept.join('\n'))
    assert.equal(withoutPeerKey(without.text, 'fra1').removed, 0)
  },
}
