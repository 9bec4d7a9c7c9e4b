/** `swam estimate` as a user calls it, against a real hook socket: what is printed, and what is said of wrong words. */
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { chownSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { SwamError } from '../../../lib/core/errors.ts'
import { GIB, MIB } from '../../../lib/core/units.ts'
import { estimateText } from '../../../server/cli/estimate.ts'
import { type ControlHandler, serveControl } from '../../../server/control.ts'
import type { EstimateReport } from '../../../server/estimate/estimate.ts'
import { emptyBySource } from '../../../server/report.ts'
import { swam } from '../analyze/rig.ts'

const REPORT: EstimateReport = {
  version: 1,
  guest: 'web\u001b[31m',
  uuid: '33333333-3333-4333-8333-333333333333',
  peer: 'fra1',
  disks: [
    {
      target: 'vda',
      path: '/var/lib/libvirt/images/web.raw',
      format: 'raw',
      size: 4 * GIB,
      dataBytes: 2 * GIB,
      wireBytes: 100 * MIB,
      bySource: {
        ...emptyBySource(),
        zero: 2 * GIB,
        inPlace: GIB,
        chunk: GIB - 256 * MIB,
        literal: 256 * MIB,
        digest: MIB,
      },
      mapAt: Date.UTC(2026, 0, 31, 12),
      reason: null,
      note: 'the far side knows it as qcow2\u001b',
    },
    {
      target: 'vdb',
      path: null,
      format: 'raw',
      size: 0,
      dataBytes: 0,
      wireBytes: 0,
      bySource: emptyBySource(),
      mapAt: null,
      reason: 'of type network: only files are looked at',
      note: null,
    },
  ],
  dataBytes: 2 * GIB,
  wireBytes: 100 * MIB,
  linkMbit: 94.13,
  rttMs: 20.1,
  seconds: 9.1,
  imagesScanning: 1,
  peerSilent: false,
  ramBytes: 512 * MIB,
}

async function served(context: TestContext, estimate: ControlHandler): Promise<string> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-cli-estimate-'))
  const server = await serveControl({
    path: join(folder, 'hook.sock'),
    mode: 0o600,
    requestBytesMax: 4096,
    handlers: { estimate },
  })
  context.after(async () => {
    await server.close()
    await rm(folder, { recursive: true })
  })
  return join(folder, 'control.sock')
}

test('for people', async (context) => {
  const asked: unknown[] = []
  const socket = await served(context, async (params) => {
    asked.push(params)
    return REPORT
  })
  const { code, out, err } = await swam('--socket', socket, 'estimate', 'web', 'fra1')
  assert.deepEqual([code, err], [0, ''])
  assert.deepEqual(asked, [{ guest: 'web', peer: 'fra1' }])
  const lines = out.split('\n')
  assert.equal(lines[0], 'web?[31m to fra1: 1 disk, 2.0 GiB not zero; on the wire 100.0 MiB, 4.9 %')
  assert.match(
    lines[1]!,
    /^about 9\.1 s at 94\.1 Mbit\/s \(one SSH channel; .*\) and 20\.1 ms round trip; the guest's memory, 512\.0 MiB, comes on top$/,
  )
  assert.match(lines[2]!, /^1 image of the far side not known yet: .*try again later$/)
  assert.match(out, /^vda, \/var\/lib\/libvirt\/images\/web\.raw: raw, 4\.0 GiB, as it was at 2026-01-31 /m)
  assert.match(out, /^in place +1\.0 GiB +50\.0 %$/m)
  assert.match(out, /^on the wire +100\.0 MiB +4\.9 %$/m)
  assert.match(out, /^of it digests .*\nthe far side knows it as qcow2\?$/m)
  assert.match(out, /^vdb, no file: not estimated: of type network/m)
  assert.ok(!out.includes('\u001b'))
})

test('a far side that says nothing, libvirt that does not tell the memory, and a scan', () => {
  const disks = [{ ...REPORT.disks[0]!, mapAt: null }]
  const text = estimateText({ ...REPORT, disks, peerSilent: true, ramBytes: null, imagesScanning: 0 })
  assert.match(text, /share = "none" there\): all counts as sent/)
  assert.doesNotMatch(text, /memory|not known yet/)
  assert.match(text, /4\.0 GiB, scanned now$/m)
})

test('JSON is the report itself', async (context) => {
  const socket = await served(context, async () => REPORT)
  const { code, out } = await swam('--socket', socket, 'estimate', 'web', 'fra1', '--json')
  assert.equal(code, 0)
  assert.deepEqual(JSON.parse(out), REPORT)
})

test('nobody waits any more: the daemon hears of it', async (context) => {
  const { promise: heard, resolve } = Promise.withResolvers<void>()
  const socket = await served(context, async (_params, signal) => {
    signal.addEventListener('abort', () => resolve())
    return await new Promise(() => undefined)
  })
  const client = connect(socket.replace('control.sock', 'hook.sock'))
  client.write('{"version":1,"method":"estimate","params":{"guest":"web","peer":"fra1"}}\n')
  setTimeout(() => client.destroy(), 50)
  await heard
})

const LONG = 'x'.repeat(300)

for (const { name, argv, code, message } of [
  {
    name: 'no guest',
    argv: [],
    code: 2,
    message: /^swam: missing required argument 'guest': see swam --help\n$/,
  },
  {
    name: 'no peer',
    argv: ['web'],
    code: 2,
    message: /^swam: missing required argument 'peer': see swam --help\n$/,
  },
  {
    name: 'too many words',
    argv: ['web', 'a', 'b'],
    code: 2,
    message: /^swam: too many arguments for 'estimate'.*\n$/,
  },
  {
    name: 'an unknown option',
    argv: ['--fast', 'web', 'a'],
    code: 2,
    message: /^swam: unknown option '--fast'.*\n$/,
  },
  {
    name: 'what is no name of a guest',
    argv: ['../w\u001b', 'a'],
    code: 2,
    message: /^swam: \.\.\/w\?: expected the name of a guest .*\n$/,
  },
  { name: 'a long name of a guest', argv: [LONG, 'a'], code: 2, message: /^swam: x{64}: expected .*\n$/ },
  {
    name: 'what is no name of a peer',
    argv: ['web', 'a b'],
    code: 5,
    message: /^swam: no peer is called a b: see swam peer list\n$/,
  },
  {
    name: 'a peer that is none',
    argv: ['web', 'b'],
    code: 5,
    message: /^swam: no peer is called b: see swam peer list\n$/,
  },
  {
    name: 'a guest that does not run',
    argv: ['off', 'a'],
    code: 5,
    message: /^swam: no guest "off" runs here: see virsh list\n$/,
  },
  { name: 'what fails', argv: ['web', 'a'], code: 1, message: /^swam: another estimate is under way\n$/ },
]) {
  test(`exit code ${code}: ${name}`, async (context) => {
    const socket = await served(context, async (params) => {
      const { guest, peer } = params as { guest: string; peer: string }
      if (peer === 'b') throw new SwamError('SWAM_NOT_FOUND', 'no peer is called b: see swam peer list')
      if (guest === 'off') throw new SwamError('SWAM_NOT_FOUND', 'no guest "off" runs here: see virsh list')
      throw new SwamError('SWAM_REFUSED', 'another estimate is under way')
    })
    const outcome = await swam('--socket', socket, 'estimate', ...argv)
    assert.deepEqual([outcome.code, outcome.out], [code, ''])
    assert.match(outcome.err, message)
  })
}

test('exit code 4: the real program, as a user who may not open the socket', async (context) => {
  if (process.getuid?.() !== 0) throw new Error('this row needs root, to give the socket away')
  const socket = await served(context, async () => REPORT)
  chownSync(socket.replace('control.sock', 'hook.sock'), 65534, 65534)
  const program = fileURLToPath(new URL('../../../server/cli/main.ts', import.meta.url))
  const plain = ['--bounding-set=-dac_override,-dac_read_search', process.execPath, program]
  const { status: code, stderr } = spawnSync(
    'setpriv',
    [...plain, '--socket', socket, 'estimate', 'web', 'fra1'],
    { encoding: 'utf8' },
  )
  assert.equal(code, 4, stderr)
  assert.match(stderr, /^swam: not allowed: estimate is for root: .*\n$/)
})

test('exit code 3: no daemon', async () => {
  const { code, err } = await swam('--socket', '/nonexistent/control.sock', 'estimate', 'web', 'fra1')
  assert.equal(code, 3)
  assert.match(err, /^swam: swamd is not reachable at .*\n$/)
})
