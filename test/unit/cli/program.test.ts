/**
 * The commands as a user calls them, against a real control socket: what is printed, as text and as JSON, and each exit
 * code. The rows about a socket that may not be opened run the real bin/swam as another user.
 */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chownSync } from 'node:fs'
import { chmod, mkdtemp, rename, rm, writeFile } from 'node:fs/promises'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { afterEach, beforeEach, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { SwamError } from '../../../lib/core/errors.ts'
import {
  bytesText,
  durationText,
  percentText,
  plainText,
  rateText,
  tableText,
} from '../../../server/cli/format.ts'
import { runSwam } from '../../../server/cli/program.ts'
import { type ControlServer, serveControl } from '../../../server/control.ts'
import {
  emptyBySource,
  type HistoryReport,
  type MigrationReport,
  type StatusReport,
} from '../../../server/report.ts'

const MIB = 2 ** 20

const migration: MigrationReport = {
  version: 1,
  id: 'm-1',
  guest: 'web\u001b[31m',
  uuid: '33333333-3333-4333-8333-333333333333',
  peer: 'fra1',
  direction: 'out',
  phase: 'copying',
  accelerated: true,
  reason: null,
  startedAt: Date.UTC(2026, 0, 31, 12),
  elapsedMs: 10_000,
  downtimeMs: null,
  disks: [
    {
      target: 'vda',
      size: 1000 * MIB,
      askedBytes: 500 * MIB,
      appliedBytes: 250 * MIB,
      bySource: { ...emptyBySource(), zero: 200 * MIB, inPlace: 40 * MIB, literal: 10 * MIB },
    },
  ],
  ram: { askedBytes: 64 * MIB, wireBytes: 64 * MIB, bySource: { ...emptyBySource(), literal: 64 * MIB } },
  wireBytes: 12_500_000,
  etaMs: 30_000,
  verified: null,
  error: null,
  connections: [
    { kind: 'disk', localAddress: '10.9.0.1', localPort: 40000, remoteAddress: '10.9.0.2', remotePort: 22 },
  ],
  breaks: 1,
  linkBroken: true,
  convergence: { dirtyBytesPerSecond: 20 * MIB, linkBytesPerSecond: 12 * MIB, converges: false },
}

const status: StatusReport = {
  version: 1,
  daemon: { pid: 4711, release: '0.1.0', startedAt: Date.now() - 90_000 },
  process: {
    rssBytes: 300 * MIB,
    heapBytes: 40 * MIB,
    externalBytes: 200 * MIB,
    openDescriptors: 41,
    eventLoop: {
      maxMs: 31.5,
      p99Ms: 4.2,
      busyMaxMs: 20,
      lastMinute: { maxMs: 12, p99Ms: 3, busyMaxMs: 9 },
    },
  },
  redirect: {
    mode: 'nft',
    ok: true,
    armed: 4,
    repairs: 1,
    lastRepair: 'the table inet swam was gone',
    error: null,
  },
  peers: [
    { name: 'fra1', site: 'fra', address: '192.0.2.7', up: true, rttMs: 12.4, error: null },
    { name: 'par1', site: '', address: '192.0.2.8', up: false, rttMs: null, error: 'host key differs' },
  ],
  migrations: [migration],
}

const history: HistoryReport = {
  version: 1,
  migrations: [
    { ...migration, phase: 'done', downtimeMs: 640, etaMs: null, verified: true },
    {
      ...migration,
      guest: 'db',
      direction: 'in',
      phase: 'done',
      accelerated: false,
      reason: 'TLS migration',
    },
    { ...migration, guest: 'mail', phase: 'failed', error: 'the link was lost' },
  ],
}

let directory: string
let socket: string
let server: ControlServer | undefined

beforeEach(async () => {
  directory = await mkdtemp(join(tmpdir(), 'swam-cli-'))
  await chmod(directory, 0o755)
  socket = join(directory, 'control.sock')
})

afterEach(async () => {
  await server?.close()
  server = undefined
  await rm(directory, { recursive: true })
})

async function serve(handlers?: Parameters<typeof serveControl>[0]['handlers'], mode = 0o660): Promise<void> {
  const reports = { status: async () => status, history: async () => history }
  server = await serveControl({ path: socket, mode, requestBytesMax: 4096, handlers: handlers ?? reports })
}

async function swam(...argv: string[]): Promise<{ code: number; out: string; err: string }> {
  let out = ''
  let err = ''
  const code = await runSwam(argv, Readable.from([]), {
    out: (text) => {
      out += text
    },
    err: (text) => {
      err += text
    },
  })
  return { code, out, err }
}

test('status for people', async () => {
  await serve()
  const { code, out, err } = await swam('--socket', socket, 'status')
  assert.deepEqual([code, err], [0, ''])
  assert.match(out, /^swamd 0\.1\.0, process 4711, up 1 min 3\d s\n/)
  assert.match(out, /redirect nft: ok, 4 armed, repaired 1 times \(the table inet swam was gone\)\n/)
  assert.match(out, /^fra1 {2}fra {3}192\.0\.2\.7 {2}up {5}12 ms/m)
  assert.match(out, /^par1 {2}- {5}192\.0\.2\.8 {2}down {3}- {11}host key differs$/m)
  assert.match(
    out,
    /^web\?\[31m {2}to {2}fra1 {2}copying {2}25 % {2}564\.0 MiB {2}11\.9 MiB {2}10\.0 Mbit\/s {2}30\.0 s$/m,
  )
  assert.match(out, /^web\?\[31m vda: zero 200\.0 MiB, in place 40\.0 MiB, sent 10\.0 MiB$/m)
  assert.match(
    out,
    /^web\?\[31m: the guest dirties 167\.8 Mbit\/s, the link takes 100\.7 Mbit\/s: it does not converge$/m,
  )
  assert.ok(!out.includes('\u001b'))
})

test('history for people', async () => {
  await serve()
  const { code, out } = await swam('history', '--socket', socket)
  assert.equal(code, 0)
  const lines = out.trimEnd().split('\n')
  assert.equal(lines.length, 4)
  assert.match(lines[1]!, /^2026-01-31 .* to .*fra1 .*done .*10\.0 s .*640 ms .*500\.0 MiB .*zero 200\.0 MiB/)
  assert.match(lines[2]!, /db .*from .*done, direct .*TLS migration$/)
  assert.match(lines[3]!, /mail .*failed .*the link was lost$/)
})

test('JSON is the report itself, wherever --json stands, and the socket may come from the config', async () => {
  await serve()
  const config = join(directory, 'swam.toml')
  await writeFile(config, `site = "a"\nrunDir = "${directory}"\n`)
  for (const argv of [
    ['--json', '--socket', socket, 'status'],
    ['--config', config, 'status', '--json'],
  ]) {
    const { code, out } = await swam(...argv)
    assert.equal(code, 0)
    assert.deepEqual(JSON.parse(out), status)
  }
  assert.deepEqual(JSON.parse((await swam('--socket', socket, 'history', '--json')).out), history)
})

test('nothing to show is said', async () => {
  await serve({
    status: async () => ({ ...status, peers: [], migrations: [] }),
    history: async () => ({ version: 1, migrations: [] }),
  })
  assert.match(
    (await swam('--socket', socket, 'status')).out,
    /no peers are configured\n\nno migration is running\n$/,
  )
  assert.equal((await swam('--socket', socket, 'history')).out, 'no migration yet\n')
})

for (const { name, argv, code, message } of [
  { name: 'no command', argv: [], code: 2, message: /Usage: swam/ },
  {
    name: 'an unknown command',
    argv: ['frobnicate'],
    code: 2,
    message: /^swam: unknown command 'frobnicate': see swam --help\n$/,
  },
  {
    name: 'nearly a command',
    argv: ['histroy'],
    code: 2,
    message: /^swam: unknown command 'histroy' \(Did you mean history\?\): see swam --help\n$/,
  },
  {
    name: 'an unknown option',
    argv: ['status', '--nope'],
    code: 2,
    message: /^swam: unknown option '--nope': see swam --help\n$/,
  },
  {
    name: 'too many arguments',
    argv: ['status', 'x', 'y'],
    code: 2,
    message: /^swam: too many arguments for 'status'\. .*: see swam --help\n$/,
  },
  {
    name: 'a missing argument',
    argv: ['peer', 'test'],
    code: 2,
    message: /^swam: missing required argument 'peer': see swam --help\n$/,
  },
  {
    name: 'no daemon',
    argv: ['--socket', '/nonexistent/control.sock', 'status'],
    code: 3,
    message: /^swam: swamd is not reachable at .*systemctl start swamd.*\n$/,
  },
  {
    name: 'no config',
    argv: ['--config', '/nonexistent/swam.toml', 'status'],
    code: 6,
    message:
      /^swam: \/nonexistent\/swam\.toml: cannot read the config: there is none: install the package swam, .*--config\)\n$/,
  },
  {
    name: 'no config to check',
    argv: ['config', 'check', '/nonexistent/swam.toml'],
    code: 6,
    message:
      /^swam: \/nonexistent\/swam\.toml: cannot read the config: there is none: install the package swam, .*--config\)\n$/,
  },
]) {
  test(`exit code ${code}: ${name}`, async () => {
    const outcome = await swam(...argv)
    assert.equal(outcome.code, code)
    assert.equal(outcome.out, '')
    assert.match(outcome.err, message)
  })
}

test('JSON is what it says, and moves no cursor: control characters beyond ASCII, and those that turn lines round', async () => {
  const guest = 'a\u001b[2J\u009b2J\u007f\u202eb\u2028\u{e0041}\u00e4'
  await serve({ history: async () => ({ ...history, migrations: [{ ...migration, guest }] }) })
  const { out } = await swam('--socket', socket, 'history', '--json')
  assert.doesNotMatch(out.trimEnd(), /[\p{Cc}\p{Cf}\u2028\u2029]/u)
  assert.equal((JSON.parse(out) as HistoryReport).migrations[0]?.guest, guest)
})

test('of one guest, by name or uuid; exit code 5: a guest that none is of', async () => {
  await serve()
  const guests = async (...words: string[]): Promise<string[]> =>
    (JSON.parse((await swam('--socket', socket, ...words, '--json')).out) as HistoryReport).migrations.map(
      ({ guest }) => guest,
    )
  assert.deepEqual(await guests('history', 'db'), ['db'])
  assert.deepEqual(await guests('history', migration.uuid), ['web\u001b[31m', 'db', 'mail'])
  assert.deepEqual(await guests('status', migration.guest), [migration.guest])
  for (const command of ['history', 'status']) {
    assert.deepEqual(await swam('--socket', socket, command, 'nobody'), {
      code: 5,
      out: '',
      err: `swam: no migration of a guest nobody here: swam ${command} shows all\n`,
    })
  }
})

test('help and version are no failures', async () => {
  assert.equal((await swam('--help')).code, 0)
  assert.match((await swam('--version')).out, /^\d+\.\d+\.\d+\n$/)
})

for (const { name, error, code } of [
  { name: 'a failure of the daemon', error: new Error('broken'), code: 1 },
  { name: 'no such guest', error: new SwamError('SWAM_NOT_FOUND', 'no such guest: vm'), code: 5 },
]) {
  test(`exit code ${code}: ${name}`, async () => {
    await serve({
      status: async () => {
        throw error
      },
    })
    assert.deepEqual(await swam('--socket', socket, 'status'), {
      code,
      out: '',
      err: `swam: ${error.message}\n`,
    })
  })
}

test('exit code 1: a daemon of another release', async () => {
  await serve({ status: async () => ({ version: 2 }) })
  const { code, err } = await swam('--socket', socket, 'status')
  assert.equal(code, 1)
  assert.match(err, /expected an answer of version 1/)
})

test('exit code 3: a socket file without a daemon', async () => {
  const dead = createServer()
  await new Promise<void>((resolve) => dead.listen(`${socket}.live`, resolve))
  await rename(`${socket}.live`, socket)
  await new Promise<void>((resolve) => dead.close(() => resolve()))
  assert.equal((await swam('--socket', socket, 'status')).code, 3)
})

test('config check: findings go to stdout, one a line, and exit 6', async () => {
  const path = join(directory, 'bad.toml')
  await writeFile(path, 'site = "a"\nram = true\n[[peers]]\nnaem = "x"\n')
  const { code, out, err } = await swam('config', 'check', path)
  assert.deepEqual([code, err], [6, ''])
  const lines = out.trimEnd().split('\n')
  assert.equal(lines[0], `${path}:2: ram: expected "on" or "off", found true`)
  assert.match(
    out,
    new RegExp(
      `^${path}:4: peers\\[0\\]\\.naem: expected a key that exists \\(did you mean "name"\\?\\)`,
      'm',
    ),
  )
  const asJson = await swam('config', 'check', path, '--json')
  assert.equal(asJson.code, 6)
  const report = JSON.parse(asJson.out)
  assert.deepEqual(
    [report.version, report.ok, report.findings[0].key, report.findings[0].line],
    [1, false, 'ram', 2],
  )
  assert.deepEqual(await swam('--config', path, 'status'), {
    code: 6,
    out: '',
    err: out.replaceAll(/^(?=.)/gm, 'swam: '),
  })
  const good = fileURLToPath(new URL('../../../config/swam.example.toml', import.meta.url))
  assert.deepEqual(await swam('config', 'check', good), { code: 0, out: `${good}: ok\n`, err: '' })
  assert.deepEqual(await swam('--config', good, 'config', 'check'), {
    code: 0,
    out: `${good}: ok\n`,
    err: '',
  })
})

test('exit code 4: the real program, as a user who may not open the socket', async () => {
  if (process.getuid?.() !== 0) throw new Error('this row needs root, to give the socket away')
  await serve(undefined, 0o600)
  // Somebody else's socket, and no right to pass over that. Another uid could not read a clone below /root.
  chownSync(socket, 65534, 65534)
  const program = fileURLToPath(new URL('../../../server/cli/main.ts', import.meta.url))
  const plain = ['--bounding-set=-dac_override,-dac_read_search', process.execPath]
  const { status: code, stderr } = spawnSync('setpriv', [...plain, program, '--socket', socket, 'status'], {
    encoding: 'utf8',
  })
  assert.equal(code, 4, stderr)
  assert.match(stderr, /^swam: not allowed to talk to swamd at .*adduser USER swam\)\n$/m)
})

test('numbers as people read them', () => {
  assert.deepEqual([0, 1023, 1024, 1536, MIB - 1, 2 ** 40].map(bytesText), [
    '0 B',
    '1023 B',
    '1.0 KiB',
    '1.5 KiB',
    '1.0 MiB',
    '1.0 TiB',
  ])
  assert.deepEqual([null, 0, 999, 1000, 61_000, 3_660_000, 200_000_000].map(durationText), [
    '-',
    '0 ms',
    '999 ms',
    '1.0 s',
    '1 min 1 s',
    '1 h 1 min',
    '2 d 7 h',
  ])
  assert.deepEqual(
    [percentText(1, 3), percentText(5, 4), percentText(1, 0), rateText(1, 0)],
    ['33 %', '100 %', '-', '-'],
  )
  assert.equal(plainText('a\u0000b\u202ec'), 'a?b?c')
  assert.equal(tableText(['a', 'long'], [['xyz', '1']]), 'A    LONG\nxyz  1')
})
