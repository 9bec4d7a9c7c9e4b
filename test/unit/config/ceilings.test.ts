/** Ceilings that no other test meets: at the ceiling it passes, beyond it is refused. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdir, mkdtemp, rm, writeFile } from 'node:fs/promises'
import { connect, createServer, type Server, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { checkConfigText } from '../../../config/load.ts'
import {
  CONTROL_CONNECTIONS_MAX,
  FLUSH_DEADLINE_MS_MAX,
  GUEST_DISKS_MAX,
  GUEST_PORTS_MAX,
  HOOK_DEADLINE_MS_MAX,
  IMAGE_BYTES_MAX,
  IMAGE_DIRECTORIES_MAX,
  MIGRATION_PORTS_MAX,
  PATH_BYTES_MAX,
  PEER_ADDRESSES_MAX,
  PEERS_MAX,
  REDIRECT_ELEMENTS_MAX,
  RESUME_CONFIG_MS_MAX,
  SALVAGE_DAYS_MAX,
  SOCKET_PATH_BYTES_MAX,
  STREAM_META_BYTES_MAX,
  STREAMS_MAX,
} from '../../../lib/core/limits.ts'
import { parseDomain } from '../../../lib/host/domain-xml.ts'
import { listeningPorts, socketOwners } from '../../../lib/host/procnet.ts'
import { Redirect } from '../../../lib/host/redirect.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { STREAM_OPEN, StreamMux } from '../../../lib/peer/stream.ts'
import { FRAME_CONTROL } from '../../../lib/wire/frame.ts'
import { imageToCreate } from '../../../server/cli/create-image.ts'
import { serveControl } from '../../../server/control.ts'

const HOST_KEY = 'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE'
const address = (number: number): string => `"10.${number >> 16}.${(number >> 8) & 255}.${number & 255}"`
const peers = (count: number, each: number): string =>
  Array.from({ length: count }, (_, at) => {
    const own = Array.from({ length: each }, (_, n) => address(at * each + n)).join(', ')
    return `[[peers]]\nname = "p${at}"\naddresses = [${own}]\nssh = { hostKey = "${HOST_KEY}" }\n`
  }).join('')
const images = (count: number): string =>
  `images = [${Array.from({ length: count }, (_, at) => `"/i/${at}"`).join(', ')}]\n`

for (const { name, most, over } of [
  { name: 'peers', most: peers(PEERS_MAX, 1), over: peers(PEERS_MAX + 1, 1) },
  { name: 'addresses of a peer', most: peers(1, PEER_ADDRESSES_MAX), over: peers(1, PEER_ADDRESSES_MAX + 1) },
  {
    name: 'directories of images',
    most: images(IMAGE_DIRECTORIES_MAX),
    over: images(IMAGE_DIRECTORIES_MAX + 1),
  },
  {
    name: 'migration ports',
    most: `migrationPorts = [50000, ${50_000 + MIGRATION_PORTS_MAX - 1}]\n`,
    over: `migrationPorts = [50000, ${50_000 + MIGRATION_PORTS_MAX}]\n`,
  },
  ...(
    [
      ['hookDeadlineMs', HOOK_DEADLINE_MS_MAX],
      ['flushDeadlineMs', FLUSH_DEADLINE_MS_MAX],
      ['linkDeadlineMs', RESUME_CONFIG_MS_MAX],
    ] as const
  ).map(([key, max]) => ({
    name: `milliseconds of ${key}`,
    most: `${key} = ${max}\n`,
    over: `${key} = ${max + 1}\n`,
  })),
  {
    name: 'days of salvage',
    most: `[limits]\nsalvageDays = ${SALVAGE_DAYS_MAX}\n`,
    over: `[limits]\nsalvageDays = ${SALVAGE_DAYS_MAX + 1}\n`,
  },
]) {
  test(`a config with too many: ${name}`, () => {
    assert.deepEqual(checkConfigText(`site = "a"\n${most}`, 'x'), [])
    assert.ok(checkConfigText(`site = "a"\n${over}`, 'x').length > 0)
  })
}

test('a guest with too many disks, or too long a path', () => {
  const xml = (disks: number, path: string): string => {
    const one = (at: number): string =>
      `<disk type='file'><source file='${path}'/><target dev='vd${at}'/></disk>`
    const all = Array.from({ length: disks }, (_, at) => one(at)).join('')
    return `<domain><name>vm</name><uuid>33333333-3333-4333-8333-333333333333</uuid><devices>${all}</devices></domain>`
  }
  assert.equal(parseDomain(xml(GUEST_DISKS_MAX, '/a')).disks.length, GUEST_DISKS_MAX)
  assert.throws(() => parseDomain(xml(GUEST_DISKS_MAX + 1, '/a')), /at most 256 disks/)
  parseDomain(xml(1, '/'.padEnd(PATH_BYTES_MAX, 'a')))
  assert.throws(() => parseDomain(xml(1, '/'.padEnd(PATH_BYTES_MAX + 1, 'a'))), /an absolute path/)
})

test('an image larger than any disk is not made', () => {
  const image = { path: '/i/a', format: 'raw', size: IMAGE_BYTES_MAX }
  imageToCreate(image)
  assert.throws(() => imageToCreate({ ...image, size: IMAGE_BYTES_MAX + 4096 }), /expected a size/)
  assert.throws(() => imageToCreate({ ...image, path: '/'.padEnd(PATH_BYTES_MAX + 1, 'a') }), /absolute path/)
})

test('a process that listens on more ports than a guest has is not looked at further', async () => {
  const servers: Server[] = []
  const listen = async (count: number): Promise<void> => {
    while (servers.length < count) {
      const server = createServer().listen(0, '127.0.0.1')
      servers.push(server)
      await once(server, 'listening')
    }
  }
  try {
    await listen(GUEST_PORTS_MAX)
    assert.equal((await listeningPorts(process.pid)).length, GUEST_PORTS_MAX)
    await listen(GUEST_PORTS_MAX + 1)
    await assert.rejects(listeningPorts(process.pid), /expected at most 256 ports/)
  } finally {
    for (const server of servers) server.close()
  }
})

test('a redirect of too many elements is refused before nft runs', async () => {
  const redirect = new Redirect({ uids: [0], ownUid: 5, run: async () => '' })
  await redirect.start()
  const entries = Array.from({ length: REDIRECT_ELEMENTS_MAX + 1 }, (_, at) => ({
    address: `10.0.${at >> 8 > 255 ? 1 : 0}.1`,
    port: 1 + (at % 65_535),
    listenPort: 20_000,
  }))
  await assert.rejects(redirect.arm(entries), /at most 65536 elements/)
})

test('a socket that nobody holds any more has no owner', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-proc-'))
  try {
    await mkdir(join(directory, 'net'))
    const row = (inode: number): string =>
      `  sl  local\n   0: 0100000A:9C40 0200000A:C001 06 00000000:00000000 03:00000000 00000000     0        0 ${inode} 3 0\n`
    const name = {
      localAddress: '10.0.0.1',
      localPort: 40_000,
      remoteAddress: '10.0.0.2',
      remotePort: 49_153,
    }
    await writeFile(join(directory, 'net/tcp6'), '')
    await writeFile(join(directory, 'net/tcp'), row(77))
    assert.deepEqual(await socketOwners([name, name], directory), [0, 0])
    await writeFile(join(directory, 'net/tcp'), row(0))
    assert.deepEqual(await socketOwners([name], directory), [undefined])
  } finally {
    await rm(directory, { recursive: true })
  }
})

test('streams beyond the ceiling are refused at both ends, and a long meta is a breach', async () => {
  const { near, far, cut } = await bundlePair({ kind: 'ram' })
  let opened = 0
  new StreamMux(far, (_meta, stream) => {
    opened++
    stream.on('error', () => undefined)
  })
  const id = (number: number): Buffer => {
    const bytes = Buffer.alloc(4)
    bytes.writeUInt32BE(number)
    return bytes
  }
  // A far end that does not keep to it.
  near.onFrame = () => undefined
  for (let at = 0; at < STREAMS_MAX + 5; at++)
    await near.send(STREAM_OPEN, [id(1 + 2 * at), Buffer.from('{"port":1}')], FRAME_CONTROL)
  await new Promise((resolve) => setTimeout(resolve, 100))
  assert.equal(opened, STREAMS_MAX)
  assert.equal(far.ended, false)
  const meta = `{"port":1,"x":"${'x'.repeat(STREAM_META_BYTES_MAX)}"}`
  await near.send(STREAM_OPEN, [id(9003), Buffer.from(meta)], FRAME_CONTROL)
  assert.match((await far.closed)?.message ?? '', /bytes of meta/)
  cut()
  const other = await bundlePair({ kind: 'ram' })
  const mux = new StreamMux(other.near)
  for (let at = 0; at < STREAMS_MAX; at++) mux.open({ port: 1 }).on('error', () => undefined)
  assert.throws(() => mux.open({ port: 1 }), /256 streams are open already/)
  other.cut()
})

test('a control socket: too long a path, and more connections than it takes', async () => {
  const directory = await mkdtemp(join(tmpdir(), 'swam-ceiling-'))
  const options = { mode: 0o600, handlers: { ok: async () => 1 }, requestBytesMax: 4096 }
  await assert.rejects(
    serveControl({ ...options, path: `${directory}/`.padEnd(SOCKET_PATH_BYTES_MAX + 1, 'x') }),
    /a socket path of at most 107 bytes/,
  )
  const path = join(directory, 's')
  const server = await serveControl({ ...options, path })
  const sockets: Socket[] = []
  try {
    for (let at = 0; at < CONTROL_CONNECTIONS_MAX + 5; at++) {
      const socket = connect({ path })
      sockets.push(socket)
      socket.on('error', () => undefined)
      socket.resume()
    }
    const gone = (): number => sockets.filter((socket) => socket.destroyed || socket.readableEnded).length
    for (let turn = 0; turn < 200 && gone() < 5; turn++)
      await new Promise((resolve) => setTimeout(resolve, 20))
    await new Promise((resolve) => setTimeout(resolve, 100))
    assert.equal(gone(), 5)
  } finally {
    for (const socket of sockets) socket.destroy()
    await server.close()
    await rm(directory, { recursive: true })
  }
})
