/** The config: what is accepted, and for each kind of mistake the key, the line and the words of the finding. */
import assert from 'node:assert/strict'
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { exampleToml } from '../../../config/example.ts'
import { ConfigFindingsError, checkConfigText, findingText, loadConfig } from '../../../config/load.ts'
import { CONFIG_SCHEMA, type Group, isLeaf, PEER_SCHEMA } from '../../../config/schema.ts'
import { ConfigError } from '../../../lib/core/errors.ts'
import { CONFIG_TEXT_BYTES_MAX } from '../../../lib/core/limits.ts'

const HOST_KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
const PEER = `[[peers]]
name = "fra1"
addresses = ["192.0.2.7", "2001:db8::7"]
site = "fra"
ssh = { user = "swam", port = 22, key = "/etc/swam/id_ed25519", hostKey = "${HOST_KEY}" }
`

async function withFile<T>(text: string, use: (path: string) => Promise<T>): Promise<T> {
  const directory = await mkdtemp(join(tmpdir(), 'swam-config-'))
  try {
    const path = join(directory, 'swam.toml')
    await writeFile(path, text)
    return await use(path)
  } finally {
    await rm(directory, { recursive: true })
  }
}

test('a small config gets every default', async () => {
  const config = await withFile(`site = "ams"\n${PEER}`, loadConfig)
  assert.deepEqual(config, {
    site: 'ams',
    stateDir: '/var/lib/swam',
    runDir: '/run/swam',
    images: ['/var/lib/libvirt/images'],
    qcow2: [],
    redirect: 'nft',
    strict: false,
    migrationPorts: [49152, 49215],
    ram: 'on',
    throttle: false,
    verify: 'map',
    share: 'images',
    logLevel: 'info',
    qemuUser: 'libvirt-qemu',
    hookDeadlineMs: 20000,
    flushDeadlineMs: 2000,
    linkDeadlineMs: 20000,
    limits: {
      wanMbit: 0,
      windowMiB: 256,
      indexMiB: 256,
      scanMiBps: 64,
      salvageGiB: 256,
      salvageDays: 7,
      catalogGiB: 32,
      catalogDays: 400,
    },
    status: { listen: 'unix:/run/swam/status.sock' },
    peers: [
      {
        name: 'fra1',
        addresses: ['192.0.2.7', '2001:db8::7'],
        site: 'fra',
        ssh: { user: 'swam', port: 22, key: '/etc/swam/id_ed25519', hostKey: HOST_KEY },
      },
    ],
  })
  assert.ok(Object.isFrozen(config.peers[0]?.ssh))
})

test('the status socket follows runDir unless it is named', async () => {
  const follows = await withFile('site = "a"\nrunDir = "/run/other"\n', loadConfig)
  assert.equal(follows.status.listen, 'unix:/run/other/status.sock')
  const named = await withFile(
    'site = "a"\nrunDir = "/run/other"\nstatus.listen = "[::1]:8080"\n',
    loadConfig,
  )
  assert.equal(named.status.listen, '[::1]:8080')
})

test('two configs are independent of each other (convict keeps no state)', async () => {
  const first = await withFile('site = "a"\nimages = ["/srv/a"]\n', loadConfig)
  const second = await withFile('site = "b"\n', loadConfig)
  assert.deepEqual(first.images, ['/srv/a'])
  assert.deepEqual(second.images, ['/var/lib/libvirt/images'])
})

interface Case {
  readonly name: string
  readonly text: string
  readonly expected: readonly RegExp[]
}

const cases: readonly Case[] = [
  {
    name: 'not TOML',
    text: 'site = "a"\nimages = [\n',
    expected: [/^F:\d+: expected valid TOML, found an error: /],
  },
  { name: 'a key given twice', text: 'site = "a"\nsite = "b"\n', expected: [/^F:2: expected valid TOML/] },
  {
    name: 'an empty file',
    text: '',
    expected: [/^F:1: site: expected a name .*, found nothing: the key is required$/],
  },
  {
    name: 'an unknown key with a near one',
    text: 'site = "a"\n\nstatedir = "/x"\n',
    expected: [
      /^F:3: statedir: expected a key that exists \(did you mean "stateDir"\?\), found unknown key "statedir"$/,
    ],
  },
  {
    name: 'an unknown key with none near',
    text: 'site = "a"\nxylophone = 1\n',
    expected: [/^F:2: xylophone: expected a key that exists, found unknown key "xylophone"$/],
  },
  {
    name: 'an unknown table',
    text: 'site = "a"\n[limit]\nwanMbit = 1\n',
    expected: [/^F:2: limit: .*"limits"/],
  },
  {
    name: 'an unknown key in a table',
    text: 'site = "a"\n[limits]\nwanMbits = 1\n',
    expected: [/^F:3: limits\.wanMbits: .*"wanMbit"/],
  },
  {
    name: 'a hostile key',
    text: 'site = "a"\n__proto__ = 1\nconstructor = 2\n',
    expected: [/^F:2: __proto__: /, /^F:3: constructor: /],
  },
  { name: 'a wrong type', text: 'site = 5\n', expected: [/^F:1: site: expected a name .*, found 5$/] },
  {
    name: 'a number as text is not coerced',
    text: 'site = "a"\nhookDeadlineMs = "20000"\n',
    expected: [/^F:2: hookDeadlineMs: expected a whole number from 1000 to 120000, found "20000"$/],
  },
  {
    name: 'a wrong choice',
    text: 'site = "a"\nredirect = "iptables"\n',
    expected: [/^F:2: redirect: expected "nft" or "off", found "iptables"$/],
  },
  {
    name: 'a boolean as text',
    text: 'site = "a"\nstrict = "yes"\n',
    expected: [/^F:2: strict: expected true or false, found "yes"$/],
  },
  {
    name: 'ports in the wrong order',
    text: 'site = "a"\nmigrationPorts = [49215, 49152]\n',
    expected: [/^F:2: migrationPorts: expected two ports/],
  },
  {
    name: 'a relative path',
    text: 'site = "a"\nimages = ["images"]\n',
    expected: [/^F:2: images: expected a list of absolute paths/],
  },
  {
    name: 'a path that climbs',
    text: 'site = "a"\nstateDir = "/var/../etc"\n',
    expected: [/^F:2: stateDir: /],
  },
  { name: 'the root directory', text: 'site = "a"\nimages = ["/"]\n', expected: [/^F:2: images: /] },
  {
    name: 'a listener beyond loopback',
    text: 'site = "a"\n[status]\nlisten = "0.0.0.0:80"\n',
    expected: [/^F:3: status\.listen: .*found "0\.0\.0\.0:80"$/],
  },
  {
    name: 'a value where a table belongs',
    text: 'site = "a"\nlimits = 3\n',
    expected: [/^F:2: limits: expected a table, found 3$/],
  },
  {
    name: 'a runDir too long for sockets',
    text: `site = "a"\nrunDir = "/${'r'.repeat(100)}"\n`,
    expected: [/^F:2: runDir: expected a path of at most 94 bytes/],
  },
  {
    name: 'peers that are no tables',
    text: 'site = "a"\npeers = ["fra1"]\n',
    expected: [/^F:2: peers\[0\]: expected a table, found "fra1"$/],
  },
  {
    name: 'an unknown key in a peer',
    text: `site = "a"\n${PEER.replace('name =', 'naem =')}`,
    expected: [/^F:2: peers\[0\]\.name: .*required$/, /^F:3: peers\[0\]\.naem: .*did you mean "name"/],
  },
  {
    name: 'the port inside an inline table of the second peer',
    text: `site = "a"\n${PEER}${PEER.replace('fra1', 'fra2').replaceAll('::7', '::8').replace('0.2.7', '0.2.8').replace('22', '0')}`,
    expected: [/^F:11: peers\[1\]\.ssh\.port: expected a whole number from 1 to 65535, found 0$/],
  },
  {
    name: 'the port inside a table of its own',
    text: `site = "a"\n[[peers]]\nname = "x"\naddresses = ["192.0.2.1"]\n[peers.ssh]\nhostKey = "${HOST_KEY}"\nport = 70000\n`,
    expected: [/^F:7: peers\[0\]\.ssh\.port: /],
  },
  {
    name: 'a peer without ssh',
    text: 'site = "a"\n[[peers]]\nname = "x"\naddresses = ["192.0.2.1"]\n',
    expected: [/^F:2: peers\[0\]\.ssh\.hostKey: .*required$/],
  },
  {
    name: 'a cut host key',
    text: `site = "a"\n${PEER.replace(HOST_KEY, 'ssh-ed25519 AAAA')}`,
    expected: [/^F:6: peers\[0\]\.ssh\.hostKey: .*found "ssh-ed25519 AAAA"$/],
  },
  {
    name: 'an address with a zone',
    text: `site = "a"\n${PEER.replace('2001:db8::7', 'fe80::1%eth0')}`,
    expected: [/^F:4: peers\[0\]\.addresses: /],
  },
  {
    name: 'a name as an address',
    text: `site = "a"\n${PEER.replace('192.0.2.7', 'fra1.example')}`,
    expected: [/^F:4: peers\[0\]\.addresses: /],
  },
  {
    name: 'the same name and address twice, written differently',
    text: `site = "a"\n${PEER}${PEER.replace('192.0.2.7', '192.0.2.8').replace('2001:db8::7', '2001:db8:0::7')}`,
    expected: [
      /^F:8: peers\[1\]\.name: .*"fra1" as in peers\[0\]$/,
      /^F:9: peers\[1\]\.addresses\[1\]: .*as in peers\[0\]$/,
    ],
  },
  {
    name: 'everything at once, in the order of the lines',
    text: 'site = "a b"\nredirect = 1\nram = true\n',
    expected: [/^F:1: site: /, /^F:2: redirect: /, /^F:3: ram: /],
  },
]

for (const { name, text, expected } of cases) {
  test(`finding: ${name}`, () => {
    const found = checkConfigText(text, 'F').map(findingText)
    assert.equal(found.length, expected.length, found.join('\n'))
    for (const [index, pattern] of expected.entries()) assert.match(found[index]!, pattern)
  })
}

test('loadConfig throws all findings, and a ConfigError for what it cannot read', async () => {
  await assert.rejects(withFile('site = 1\nram = 2\n', loadConfig), (error) => {
    assert.ok(error instanceof ConfigFindingsError)
    assert.deepEqual(
      error.findings.map((finding) => [finding.key, finding.line]),
      [
        ['site', 1],
        ['ram', 2],
      ],
    )
    return true
  })
  await assert.rejects(loadConfig('/nonexistent/swam.toml'), ConfigError)
  await assert.rejects(loadConfig('/dev/zero'), (error) => {
    assert.ok(error instanceof ConfigError)
    assert.match(error.message, new RegExp(`at most ${CONFIG_TEXT_BYTES_MAX} bytes`))
    return true
  })
})

test('the example file is what the schema says, and is accepted', async () => {
  const path = new URL('../../../config/swam.example.toml', import.meta.url)
  const text = await readFile(path, 'utf8')
  assert.equal(text, exampleToml())
  assert.deepEqual(checkConfigText(text, 'F').map(findingText), [])
  const withPeer = text.replaceAll(/^#! /gm, '')
  assert.deepEqual(checkConfigText(withPeer, 'F').map(findingText), [])
  const config = await withFile(withPeer, loadConfig)
  assert.equal(config.peers.length, 1)
  const keys = (schema: Group): string[] =>
    Object.entries(schema).flatMap(([key, node]) => (isLeaf(node) ? [key] : keys(node)))
  for (const key of [...keys(CONFIG_SCHEMA).filter((key) => key !== 'peers'), ...keys(PEER_SCHEMA)]) {
    assert.match(withPeer, new RegExp(`\\n# (Required|May be): .*\\n${key} = `), `${key} with its comment`)
  }
})

test('every default is accepted by its own format', () => {
  const walk = (schema: Group): void => {
    for (const node of Object.values(schema)) {
      if (!isLeaf(node)) walk(node)
      else if (node.default !== null) node.format(node.default)
    }
  }
  walk(CONFIG_SCHEMA)
  walk(PEER_SCHEMA)
})
