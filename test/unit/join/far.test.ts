/**
 * What the other side of `swam peer add` says, against whoever would have it lay down something else: JSON out of form, keys
 * and names that would break out of a file, lines without end; and the parts that read sshd, qemu.conf and names.
 */
import assert from 'node:assert/strict'
import { PassThrough } from 'node:stream'
import { test } from 'node:test'
import {
  JOIN_LINE_BYTES_MAX,
  JOIN_NOISE_BYTES_MAX,
  JOIN_NOTES_MAX,
  PEER_ADDRESSES_MAX,
} from '../../../lib/core/limits.ts'
import { inOrder, plainAddress } from '../../../lib/host/names.ts'
import { parseQemuConf } from '../../../lib/host/qemu-conf.ts'
import { parseSshdSettings, publicKeyText, sshdPort } from '../../../lib/host/sshd.ts'
import { findAddresses } from '../../../server/join/addresses.ts'
import { factsOf, linesOf, peerName } from '../../../server/join/facts.ts'
import { isTarget } from '../../../server/join/far-side.ts'
import { JsonLines, lineText } from '../../../server/join/lines.ts'

const KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
const FACTS = {
  release: '0.1.0',
  site: 'fra',
  user: 'swam',
  sshPort: 22,
  hostKey: KEY,
  publicKey: null,
  names: ['hostb', 'hostb.example.org'],
  addresses: ['192.0.2.7', '2001:db8::7'],
}

test('facts: what is as it should be passes', () => {
  assert.deepEqual(factsOf(FACTS, 'x'), FACTS)
  assert.equal(
    factsOf({ ...FACTS, publicKey: `${KEY} swam@hostb` }, 'x').publicKey,
    KEY,
    'without the comment',
  )
})

test('facts: what would stand in a file in another way is refused', () => {
  const wrong: readonly Readonly<Record<string, unknown>>[] = [
    { publicKey: `${KEY}\n${KEY}` },
    { publicKey: `command="id" ${KEY}` },
    { publicKey: 'ssh-ed25519 AAAA' },
    { publicKey: undefined },
    { hostKey: `x"\n[[peers]]` },
    { hostKey: null },
    { site: 'a b' },
    { site: '"\nstrict = true' },
    { user: 'root; id' },
    { user: '-oX' },
    { sshPort: 0 },
    { sshPort: '22' },
    { sshPort: 65_536 },
    { release: '\u001b[2J' },
    { names: 'hostb' },
    { names: ['-x'] },
    { names: ['a b'] },
    { names: Array.from({ length: 9 }, () => 'a') },
    { addresses: ['hostb'] },
    { addresses: ['fe80::1%eth0'] },
    { addresses: Array.from({ length: 300 }, () => '192.0.2.1') },
  ]
  for (const part of wrong) {
    assert.throws(
      () => factsOf({ ...FACTS, ...part }, 'far'),
      /^ProtocolError: far|RefusedError/,
      JSON.stringify(part),
    )
  }
  for (const value of [null, [], 'x', 7]) assert.throws(() => factsOf(value, 'far'), /JSON object/)
  for (const name of ['', '../x', 'a b', '-x', 'x'.repeat(64), 7]) assert.throws(() => peerName(name, 'far'))
  for (const lines of ['x', [7], ['x'.repeat(601)], Array.from({ length: 33 }, () => 'x')]) {
    assert.throws(() => linesOf(lines, 'far'))
  }
})

async function read(...pieces: string[]): Promise<unknown> {
  const stream = new PassThrough()
  const lines = new JsonLines(stream, 'far')
  for (const piece of pieces) stream.write(piece)
  stream.end()
  return await lines.next(1000)
}

test('lines: a greeting before the first one is passed over, in any pieces', async () => {
  assert.deepEqual(await read('Welcome!\n\n', lineText({ ok: true })), { version: 1, ok: true })
  assert.deepEqual(await read('Welc', 'ome\n{"ver', 'sion":1,"ok":true}\n'), { version: 1, ok: true })
  assert.equal(await read('only a greeting\n'), undefined)
  assert.equal(await read('{"version":1'), undefined)
})

test('lines: bounds, versions and forms', async () => {
  await assert.rejects(read('x'.repeat(JOIN_LINE_BYTES_MAX + 1)), /at most/)
  await assert.rejects(read(`${'x'.repeat(1000)}\n`.repeat(JOIN_NOISE_BYTES_MAX / 1000 + 1)), /at most/)
  await assert.rejects(read(`{"version":1,"x":"${'x'.repeat(JOIN_LINE_BYTES_MAX)}"}\n`), /at most/)
  await assert.rejects(read('{"version":2,"ok":true}\n'), /version 2, expected 1: install one release/)
  await assert.rejects(read('{"version":1,\n'), /JSON object/)
  const lines = new JsonLines(new PassThrough(), 'far')
  await assert.rejects(lines.next(20), /no answer within 20 ms/)
})

test('lines: the longest greeting and the longest answer, and more answers than are held at once, all come', async () => {
  const stream = new PassThrough()
  const lines = new JsonLines(stream, 'far')
  stream.write(`${'x'.repeat(JOIN_NOISE_BYTES_MAX - 1)}\n`)
  const answer = lineText({ text: 'x'.repeat(JOIN_LINE_BYTES_MAX - lineText({ text: '' }).length + 1) })
  for (let count = 0; count < 5; count++) stream.write(answer)
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.ok(stream.readableLength > 0, 'more than is asked for is not taken in')
  stream.end()
  for (let count = 0; count < 5; count++) assert.equal((await lines.next(1000))?.['version'], 1)
  assert.equal(await lines.next(1000), undefined)
})

test('targets: only user@host gets to ssh', () => {
  for (const text of ['root@hostb', 'hostb', 'a.b-c@192.0.2.7', 'root@2001:db8::7', 'x_y@h.example.org']) {
    assert.ok(isTarget(text), text)
  }
  for (const text of [
    '',
    '-oProxyCommand=id',
    'root@-oX',
    'a b@h',
    'root@h;id',
    'root@',
    '@h',
    'a@b@c',
    'ssh://h',
  ]) {
    assert.ok(!isTarget(text), text)
  }
})

test('addresses: of what names resolve to, those that the host has; the rest is said', async () => {
  const dns: Record<string, string[]> = {
    hostb: ['2001:db8::7', '192.0.2.7'],
    old: ['192.0.2.99'],
    full: ['192.0.2.7'],
  }
  const find = (names: string[], seen?: string) =>
    findAddresses(
      {
        what: 'hostb',
        where: 'hosta',
        names,
        theirs: ['192.0.2.7', '2001:DB8:0::7', '10.0.0.1'],
        ...(seen === undefined ? {} : { seen }),
      },
      async (name) => dns[name] ?? [],
    )
  assert.deepEqual(await find(['hostb', 'full', 'none']), {
    addresses: ['192.0.2.7', '2001:db8::7'],
    notes: [],
  })
  const mixed = await find(['old', 'full'])
  assert.deepEqual(mixed.addresses, ['192.0.2.7'])
  assert.match(mixed.notes[0]!, /left out: old is 192.0.2.99 at hosta/)
  assert.deepEqual((await find(['none'], '10.0.0.1')).addresses, ['10.0.0.1'])
  await assert.rejects(find(['none'], '10.0.0.2'), /add it to DNS or to \/etc\/hosts there/)
  await assert.rejects(find(['old']), /no name of hostb/)
  assert.deepEqual(inOrder(['::2', '1.1.1.1', '::2']), ['1.1.1.1', '::2'])
  assert.equal(plainAddress('::ffff:192.0.2.7'), '192.0.2.7')
  assert.equal(plainAddress('FE80:0::1%eth0'), 'fe80::1')
})

test('addresses: a host with many of them, and names without end, are a few addresses and a few lines', async () => {
  const theirs = Array.from({ length: 40 }, (_value, at) => `10.0.0.${at}`)
  const names = Array.from({ length: 40 }, (_value, at) => `name${at}`)
  const found = await findAddresses({ what: 'b', where: 'a', names, theirs }, async () => [
    ...theirs,
    '192.0.2.1',
  ])
  assert.deepEqual([found.addresses.length, found.notes.length], [PEER_ADDRESSES_MAX, JOIN_NOTES_MAX])
})

test('sshd -T: keys that come once and several times', () => {
  const settings = parseSshdSettings(
    'port 2222\nport 22\nhostkey /a\nHostKey /b\nallowusers\nmaxsessions 10\n\u0000\n',
  )
  assert.deepEqual(settings.get('hostkey'), ['/a', '/b'])
  assert.deepEqual(settings.get('allowusers'), [''])
  assert.equal(sshdPort(settings), 2222)
  assert.equal(sshdPort(parseSshdSettings('port 99999\n')), 22)
  assert.equal(publicKeyText(`${KEY} a comment\n`), KEY)
  assert.throws(() => publicKeyText('no key'), /TYPE BASE64/)
})

test('qemu.conf: what is set, in both quotes; comments and nonsense have the defaults', () => {
  const conf = parseQemuConf(
    '#migration_port_min = 1\n migration_port_min = 50000\nmigration_port_max=50063 # x\nmigration_host = "host1.example.org"\nuser = \'q\'\n',
  )
  assert.deepEqual(conf, {
    migrationPortMin: 50_000,
    migrationPortMax: 50_063,
    migrationHost: 'host1.example.org',
    user: 'q',
  })
  const wrong = parseQemuConf('migration_port_min = 99999999\nmigration_host = "$(id)"\n')
  assert.deepEqual(wrong, {
    migrationPortMin: 49_152,
    migrationPortMax: 49_215,
    migrationHost: undefined,
    user: undefined,
  })
  assert.equal(parseQemuConf('migration_host = "[2001:db8::7]"').migrationHost, '2001:db8::7')
})
