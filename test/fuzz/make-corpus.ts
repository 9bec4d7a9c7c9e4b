/**
 * Writes the corpus anew: `bin/node test/fuzz/make-corpus.ts`. NBD exchanges are recorded between our server and real
 * clients, and between our client and real servers; the rest is made by our own encoders and from the example config.
 * Domain XML, tables of /proc and output of virsh, ss and nft were captured in the lab (libvirt 9.0 and 11.3) and are only
 * in the tree, as is what sshd -T and getent print and qemu.conf has: this program leaves them alone, as it does what stands in the folders `regressions`.
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { readFile, truncate, writeFile } from 'node:fs/promises'
import { connect, createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { basename, join } from 'node:path'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { mapPath } from '../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../lib/catalog/image-map-writer.ts'
import { negotiateNbd } from '../../lib/nbd/client.ts'
import { encodeOption } from '../../lib/nbd/protocol/handshake.ts'
import { emptyBySource, type MigrationReport } from '../../server/report.ts'
import { dial, inFolder, run, serving, withServer } from '../interop/nbd-peers.ts'
import { random } from '../random.ts'
import { corpusOf, saveSeed } from './corpus.ts'
import { GROUPS } from './groups.ts'
import { ESTIMATE_LINES } from './targets/estimate.ts'
import { MAPPED, MAPPED_PATH } from './targets/image-map.ts'
import { dialRequests } from './targets/nbd-client.ts'

const GENERATED = 12
const BYTES_MAX = 16_384
const SIZE = 1024 * 1024

interface Recording {
  readonly toServer: Buffer
  readonly toClient: Buffer
}

/** Relays to the socket at `path` while `work` runs, and gives what passed on each connection. */
async function recorded(path: string, proxy: string, work: () => Promise<unknown>): Promise<Recording[]> {
  const recordings: { toServer: Buffer[]; toClient: Buffer[] }[] = []
  const ends: Promise<unknown>[] = []
  const server = createServer({ allowHalfOpen: true }, (client) => {
    const record = { toServer: [] as Buffer[], toClient: [] as Buffer[] }
    recordings.push(record)
    const upstream = connect({ path, allowHalfOpen: true })
    client.on('data', (bytes: Buffer) => record.toServer.push(bytes)).pipe(upstream)
    upstream.on('data', (bytes: Buffer) => record.toClient.push(bytes)).pipe(client)
    client.on('error', () => upstream.destroy())
    upstream.on('error', () => client.destroy())
    ends.push(new Promise((resolve) => client.once('close', resolve)))
  })
  server.listen(proxy)
  await once(server, 'listening')
  await work()
  await Promise.all(ends)
  server.close()
  return recordings.map(({ toServer, toClient }) => ({
    toServer: Buffer.concat(toServer),
    toClient: Buffer.concat(toClient),
  }))
}

function firstOf(bytes: Buffer, magics: readonly string[]): number {
  const places = magics.map((magic) => bytes.indexOf(Buffer.from(magic, 'hex'))).filter((at) => at >= 0)
  return places.length === 0 ? bytes.length : Math.min(...places)
}

function save(target: string, name: string, bytes: Buffer): void {
  if (bytes.length > 0) saveSeed(target, name, bytes.subarray(0, BYTES_MAX))
}

/** Real clients at our server. */
async function clients(): Promise<void> {
  const image = (proxy: string): string => `nbd+unix:///disk?socket=${proxy}`
  const commands: readonly (readonly [name: string, command: string, args: (proxy: string) => string[]])[] = [
    ['nbdinfo', 'nbdinfo', (proxy) => [image(proxy)]],
    ['nbdinfo-list', 'nbdinfo', (proxy) => ['--list', image(proxy)]],
    ['nbdinfo-map', 'nbdinfo', (proxy) => ['--map', image(proxy)]],
    ['qemu-img-info', 'qemu-img', (proxy) => ['info', image(proxy)]],
    [
      'qemu-io',
      'qemu-io',
      (proxy) => [
        ...['-f', 'raw', '-c', 'write -P 7 0 4k', '-c', 'write -z 64k 64k', '-c', 'read 0 8k'],
        ...['-c', 'discard 8k 8k', '-c', 'write -f 512 512', '-c', 'flush', image(proxy)],
      ],
    ],
    ['qemu-img-map', 'qemu-img', (proxy) => ['map', '--output=json', image(proxy)]],
  ]
  await serving(new MemoryDevice({ size: SIZE }), async ({ socket, folder }) => {
    for (const [name, command, args] of commands) {
      const proxy = join(folder, `${name}.sock`)
      const recordings = await recorded(socket, proxy, () => run(command, args(proxy)))
      recordings.forEach(({ toServer }, index) => {
        const at = firstOf(toServer, ['25609513'])
        const numbered = index === 0 ? name : `${name}-${index}`
        save('nbd-options', numbered, toServer.subarray(0, at))
        save('nbd-requests', numbered, toServer.subarray(at))
        save('nbd-serve', numbered, toServer)
      })
    }
  })
}

/** Our client at real servers. */
async function servers(): Promise<void> {
  await inFolder(async (folder) => {
    const file = join(folder, 'disk.img')
    await writeFile(file, Buffer.alloc(8192, 1))
    await truncate(file, SIZE)
    const config = join(folder, 'nbd-server.conf')
    const socket = (name: string): string => join(folder, `${name}.sock`)
    await writeFile(
      config,
      `[generic]\nunixsock = ${socket('nbd-server')}\nallowlist = true\nport = 0\n[disk]\nexportname = ${file}\n`,
    )
    const unix = ['--foreground', '--unix']
    const peers: readonly (readonly [name: string, command: string, args: string[], exported: string])[] = [
      ['qemu-nbd', 'qemu-nbd', ['-t', '-f', 'raw', '-k', socket('qemu-nbd'), '-x', 'disk', file], 'disk'],
      ['nbdkit', 'nbdkit', [...unix, socket('nbdkit'), 'file', file], ''],
      [
        'nbdkit-error',
        'nbdkit',
        [...unix, socket('nbdkit-error'), '--filter=error', 'memory', '1M', 'error-rate=1'],
        '',
      ],
      ['nbdkit-old', 'nbdkit', [...unix, socket('nbdkit-old'), '--mask-handshake=0', 'memory', '1M'], ''],
    ]
    for (const [name, command, args, exported] of peers) {
      await withServer(command, args, socket(name), async () => {
        const proxy = socket(`${name}-proxy`)
        const [recording] = await recorded(socket(name), proxy, async () => {
          const negotiation = await negotiateNbd(await dial(proxy))
          const device = await negotiation.go(exported)
          await Promise.allSettled(dialRequests(device))
          await device.close()
        })
        const { toClient } = recording!
        const at = firstOf(toClient, ['67446698', '668e33ef'])
        save('nbd-greeting', name, toClient.subarray(0, at))
        save('nbd-replies', name, toClient.subarray(at))
        save('nbd-dial', name, toClient)
      })
    }
    save('nbd-options', 'starttls', Buffer.concat([Buffer.from([0, 0, 0, 3]), encodeOption(5)]))
  })
}

function generated(): void {
  for (const { name, generate, inputBytesMax } of Object.values(GROUPS).flat()) {
    if (generate === undefined) continue
    for (let seed = 1; seed <= GENERATED; seed++) {
      save(
        name,
        `generated-${String(seed).padStart(2, '0')}`,
        generate(random(seed)).subarray(0, inputBytesMax),
      )
    }
  }
}

async function texts(): Promise<void> {
  const example = await readFile(new URL('../../config/swam.example.toml', import.meta.url), 'utf8')
  save('config', 'example.toml', Buffer.from(example))
  save('config', 'example-peers.toml', Buffer.from(example.replaceAll(/^#! /gm, '')))

  // Short ones, which are tried many times in the time of a long one.
  const key = 'AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f'
  const peer = `[[peers]]\nname = "b"\naddresses = ["10.8.0.2"]\nssh = { key = "/k", hostKey = "ssh-ed25519 ${key}" }\n`
  save('config', 'peer.toml', Buffer.from(`site = "a"\nimages = ["/i"]\n${peer}`))
  save('config', 'tables.toml', Buffer.from('site = "a"\nlimits.wanMbit = 7\n[status]\nlisten = "unix:/s"\n'))

  const uuid = '8950abfd-a7b7-4763-8760-dd35bcf5c3da'
  const request = (method: string, params: unknown): Buffer =>
    Buffer.from(`${JSON.stringify({ version: 1, method, params })}\n`)
  for (const { name, bytes } of corpusOf('domain-xml')) {
    if (name.includes('regressions')) continue
    const xml = bytes.toString('utf8')
    const guest = /<name>(.*)<\/name>/.exec(xml)?.[1]
    const event = { guest, op: 'migrate', sub: 'begin', xml }
    save('control-request', `begin-${basename(name)}`, request('hook', event))
  }
  const ports = [{ address: '::', port: 49152 }]
  const events: Record<string, Buffer> = {
    started: request('hook', { guest: 'tiny', op: 'started', sub: 'begin', xml: '', ports }),
    stopped: request('hook', { guest: 'tiny', op: 'stopped', sub: 'end', xml: '' }),
    report: request('hookReport', {
      guest: 'tiny',
      uuid,
      images: [
        { path: '/images/a.img', created: true, error: null },
        { path: '/images/b.img', created: false, error: 'no space left' },
      ],
    }),
    status: request('status', null),
    echo: request('echo', { a: [1, 2, 3] }),
  }
  for (const [name, bytes] of Object.entries(events)) save('control-request', name, bytes)

  const bySource = emptyBySource()
  const disks = [{ target: 'vda', size: SIZE, askedBytes: SIZE, appliedBytes: SIZE, bySource }]
  const report: MigrationReport = {
    ...{ version: 1, id: uuid, guest: 'tiny', uuid, peer: 'hostb', direction: 'out', phase: 'done' },
    ...{ accelerated: true, reason: null, startedAt: 1.7e12, elapsedMs: 5000, downtimeMs: 200, disks },
    ...{ ram: { askedBytes: 1, wireBytes: 1, bySource }, wireBytes: 2, etaMs: null, verified: null },
    ...{ error: null, connections: [], breaks: 0, linkBroken: false },
  }
  const failed = { ...report, phase: 'failed', error: 'lost\u0007', disks: [], downtimeMs: null }
  const lines = [report, failed].map((line) => JSON.stringify(line))
  save('history', 'two', Buffer.from(`\n${lines.join('\n\n')}\n`))
  save('running', 'two', Buffer.from(`${lines.join('\n')}\n`))
  save(
    'running',
    'direct',
    Buffer.from(`${JSON.stringify({ ...report, accelerated: false, reason: 'no peer' })}\n`),
  )
  save('history', 'torn', Buffer.from(`\n${lines[0]}\n\n${lines[1]!.slice(0, 200)}`))

  const missing = ['/images/a.img', '/images/b\u00e9 "c".qcow2']
  save('incoming-mark', 'two', Buffer.from(`${JSON.stringify({ id: 'id', missing })}\n`))
  save('incoming-mark', 'none', Buffer.from('{"id":"id","missing":[]}\n'))
  save('incoming-mark', 'others', Buffer.from('{"missing":[1,null,{},["a"]]}'))
  save('incoming-mark', 'name', Buffer.from('8950abfd-a7b7-4763-8760-dd35bcf5c3da-vda.qcow2'))

  const answer = (result: unknown): Buffer =>
    Buffer.from(`${JSON.stringify({ version: 1, ok: true, result })}\n`)
  const create = { path: '/images/a.img', format: 'raw', size: SIZE }
  save('control-answer', 'create', answer({ action: 'create', create: [create], message: '' }))
  save('control-answer', 'image', answer(create))
  save('control-answer', 'history', answer({ version: 1, migrations: [report] }))
  const refusal = { version: 1, ok: false, code: 'SWAM_REFUSED', message: 'no' }
  save('control-answer', 'refused', Buffer.from(`${JSON.stringify(refusal)}\n`))

  for (const text of ['null', '7', '[]', '"a"', '{}']) {
    const name = `bare-${text.replaceAll(/[^a-z0-9]/g, '_')}`
    save('control-answer', name, Buffer.from(`${text}\n`))
    save('control-request', name, Buffer.from(`${text}\n`))
  }

  const blockSizes = { minimum: 1, preferred: 4096, maximum: 32 * SIZE }
  const given = {
    ...{ migrationId: uuid, uuid, guest: 'tiny', port: 49153, ports: [49152], found: true, error: null },
    ...{ capacity: SIZE, images: [], exports: [{ name: 'drive-virtio-disk0', size: SIZE, blockSizes }] },
  }
  save('params', 'all', Buffer.from(JSON.stringify(given)))
  save('params', 'wrong', Buffer.from(JSON.stringify({ ...given, port: 0, uuid: 'x', exports: [null] })))
}

/** What `swam peer add`, the doctor and the test of a link hear and read. */
function joining(): void {
  const key = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
  const other = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA'
  const json = (value: unknown): Buffer => Buffer.from(JSON.stringify(value))
  const facts = {
    ...{
      release: '0.1.0',
      site: 'fra',
      user: 'swam',
      sshPort: 22,
      hostKey: key,
      publicKey: `${other} swam@hostb`,
    },
    ...{ names: ['hostb', 'hostb.example.org'], addresses: ['192.0.2.7', '2001:db8::7', '10.0.0.7'] },
  }
  save('join-facts', 'host', json(facts))
  save('join-facts', 'no-key', json({ ...facts, publicKey: null }))
  save('join-facts', 'lines', json(['left out: old is 192.0.2.99 at hosta, which is no address of hostb']))
  save('join-facts', 'name', json('hostb'))
  save('join-lines', 'refused', Buffer.from('Welcome!\n\n{"version":1,"ok":false,"message":"no"}\n'))
  save(
    'join-lines',
    'look',
    Buffer.concat([json({ version: 1, step: 'look', name: 'a', replace: false }), Buffer.from('\n')]),
  )

  const options = 'restrict,command="/usr/lib/swam/bin/swam-peer --peer fra1 --socket /run/swam/peer.sock"'
  const foreign = `# mine\n${other} me@desk\n\nfrom="a b",command="echo \\"x\\"" ssh-rsa AAAAB3NzaC1yc2EAAAADAQABAAAAgQ== x y z\n`
  save('authorized-keys', 'peer', Buffer.from(`${options} ${key} fra1\n`))
  save('authorized-keys', 'others', Buffer.from(foreign))
  save('authorized-keys', 'both', Buffer.from(`${foreign}${options} ${key} fra1\n${other}\n`))
  save('authorized-keys', 'open', Buffer.from(`${key}\n${options.replace('fra1', 'par1')} ${key}\n`))

  const finding = {
    id: 'peer-down',
    level: 'error',
    what: 'peer fra1 is down: ECONNREFUSED',
    why: 'y',
    mend: 'ssh x',
  }
  const report = {
    version: 1,
    ok: false,
    findings: [finding, { ...finding, level: 'warning', what: 'a\u001b[2Jb' }],
  }
  save('doctor-report', 'two', Buffer.from(`Welcome\n${JSON.stringify(report)}\n`))
  save('doctor-report', 'well', Buffer.from(`${JSON.stringify({ version: 1, ok: true, findings: [] })}\n`))

  const about = {
    ...{ release: '0.1.0', wallMs: 1.7e12, name: 'fra1.example.org', addresses: ['192.0.2.7', '10.0.0.7'] },
    ...{ resolved: ['192.0.2.1'], configured: ['192.0.2.1', '2001:db8::1'] },
  }
  save('peer-about', 'as-configured', json(about))
  save(
    'peer-about',
    'elsewhere',
    json({ ...about, name: '192.0.2.9', resolved: ['10.0.0.7', '2001:db8::9'] }),
  )
  save('peer-about', 'nothing', json({ ...about, name: '', addresses: [], resolved: [], wallMs: null }))
  save('peer-about', 'asked', json({ name: 'hosta.example.org' }))

  const calls = ['ping', 'testTake', 'data 10', 'testTaken', 'testGive'].map((method) =>
    method.startsWith('data') ? method : JSON.stringify({ method, params: { bytes: 10 } }),
  )
  save('link-test', 'asked', Buffer.from(calls.join('\n')))
  const pings = Array.from({ length: 5 }, () => '{"wallMs":1700000000000}')
  save(
    'link-test',
    'answered',
    Buffer.from([...pings, '{}', 'right', 'data 1000', 'data 24', 'right'].join('\n')),
  )
  save('estimate', 'asked', Buffer.from(ESTIMATE_LINES.join('\n')))
}

/** Maps of images as the scan writes them. */
function maps(): void {
  const directory = mkdtempSync(join(tmpdir(), 'swam-corpus-'))
  try {
    for (const [name, count] of [
      ['empty', 0],
      ['one', 1],
      ['some', 40],
    ] as const) {
      const writer = new ImageMapWriter(directory, MAPPED_PATH, MAPPED)
      for (let chunk = 0; chunk < count; chunk++)
        writer.add(createHash('sha256').update(`${chunk}`).digest(), 0, chunk * 300 * 1024, 65_536 + chunk)
      for (let block = 0; block < 2 * count; block++)
        writer.addBlock((block + (block >> 4)) * 4096, createHash('sha256').update(`${-block}`).digest())
      writer.finish(count === 1)
      save('image-map', name, readFileSync(mapPath(directory, MAPPED_PATH)))
    }
  } finally {
    rmSync(directory, { recursive: true })
  }
}

/** Records of proofs: of a small disk, whole and in part, and heads that say too much. */
function records(): void {
  const head = (size: number, leaves: Buffer, runs: Buffer, more: object = {}): Buffer => {
    const json = Buffer.from(
      JSON.stringify({
        ...{ guest: 'vm', uuid: '8950abfd-a7b7-4763-8760-dd35bcf5c3da', target: 'vda', image: '/i/vm.raw' },
        ...{ format: 'raw', peer: 'fra1', direction: 'in', at: 1.7e12, size },
        ...{ root: 'ab'.repeat(32), fileRoot: 'cd'.repeat(32), runs: runs.length / 8 },
        runsDigest: createHash('sha256').update(runs).digest('hex'),
        ...more,
      }),
    )
    const length = Buffer.alloc(2)
    length.writeUInt16BE(json.length)
    return Buffer.concat([length, json, leaves, runs])
  }
  const leaf = createHash('sha256').update('leaf').digest()
  const run = Buffer.from([0, 0, 0, 1, 0, 0, 0, 3])
  save('leaf-record', 'whole', head(3 * 65_536, Buffer.concat([leaf, leaf, leaf]), Buffer.alloc(0)))
  save('leaf-record', 'part', head(3 * 65_536, Buffer.concat([leaf, Buffer.alloc(64)]), run))
  save('leaf-record', 'disorder', head(65_536, leaf, Buffer.concat([run, run])))
  save('leaf-record', 'huge', head(2 ** 44, leaf, run, { image: null }))
  save('leaf-record', 'empty', head(0, Buffer.alloc(0), Buffer.alloc(0)))
}

await clients()
await servers()
generated()
await texts()
joining()
maps()
records()
