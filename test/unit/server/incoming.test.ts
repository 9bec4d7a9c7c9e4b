/**
 * An incoming migration against a new QEMU that never comes, does not take connections, or hangs; and against a source
 * that asks for ports which are not this guest's. Bundles in memory, TCP and NBD on loopback.
 */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, createServer } from 'node:net'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  NBD_HANDSHAKE_MS,
  QEMU_CONNECT_MS,
  START_ABSENT_ASKS_MAX,
  START_ASK_MS,
  START_MS,
  TARGET_SCAN_WAIT_MS,
} from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import { Arrivals } from '../../../lib/engine/arrivals.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { serveNbd } from '../../../lib/nbd/server.ts'
import { bundlePair, type MemoryPair } from '../../../lib/peer/memory.ts'
import { StreamMux } from '../../../lib/peer/stream.ts'
import { IncomingMigration } from '../../../server/migration/incoming.ts'
import { deafListener } from './deaf.ts'

async function start(
  context: TestContext,
  state: () => Promise<string | undefined>,
  outcome: 'here' | 'gone' | 'unknown' = 'gone',
) {
  const clock = new ManualClock()
  const lines: string[] = []
  const calls: string[] = []
  const pairs = new Map<string, MemoryPair>()
  for (const kind of ['disk', 'ram'] as const) pairs.set(kind, await bundlePair({ kind }))
  const stock = new ImageStock({ indexBytesMax: MIB, blockIndexBytesMax: MIB, imagesMax: 1 })
  let ended = false
  const migration = new IncomingMigration({
    id: '3f0c0c9e-6d52-4f0c-9a70-0a3c9f1f9d11',
    uuid: '33333333-3333-4333-8333-333333333333',
    guest: 'vm',
    peer: 'far',
    log: createLog({ level: 'info', stream: { write: (line) => void lines.push(line) } }),
    stock,
    memory: new ByteBudget({ bytesMax: MIB }),
    arrivals: new Arrivals(clock),
    targets: [],
    dial: async (kind) => pairs.get(kind)!.near,
    armMs: 20_000,
    call: async (method) => {
      calls.push(method)
      return {}
    },
    state,
    outcome: async () => outcome,
    directOutcome: async () => 'gone',
    targetOf: (name) => name,
    emptyDisks: async () => [],
    downtimeMs: async () => null,
    onEnd: () => {
      ended = true
    },
    clock,
  })
  context.after(async () => {
    await migration.abort('the test is over')
    for (const pair of pairs.values()) pair.cut()
    await stock.close()
  })
  const ram = new StreamMux(pairs.get('ram')!.far)
  /** A stream as the source opens it for a connection of QEMU or libvirtd. */
  const stream = (port: number): ReturnType<StreamMux['open']> => {
    const opened = ram.open({ port })
    opened.on('error', () => undefined)
    opened.resume()
    return opened
  }
  return { migration, clock, lines, calls, stream, disk: pairs.get('disk')!.far, ended: () => ended }
}

async function until(what: string, check: () => boolean): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt++) {
    if (check()) return
    await sleep(10)
  }
  throw new Error(`waited in vain for ${what}`)
}

/** Libvirt is asked once in each of these steps. */
async function ask(clock: ManualClock): Promise<void> {
  clock.advance(START_ASK_MS)
  for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve))
}

test('a guest that libvirt never starts is given up', async (context) => {
  const { migration, clock, ended, calls } = await start(context, async () => undefined)
  while (clock.nowMs() < START_MS) await ask(clock)
  assert.equal(migration.record.error, null)
  await ask(clock)
  await until('the end', ended)
  assert.match(migration.record.error ?? '', /libvirt did not start the guest here/)
  await until('the source to be told', () => calls.includes('stop'))
})

test('the time that the hook takes is not counted', async (context) => {
  const { migration, clock, ended } = await start(context, async () => undefined)
  for (let turn = 0; turn < 3; turn++) {
    while ((clock.nowMs() + START_ASK_MS) % START_MS !== 0) await ask(clock)
    migration.preparing()
    await ask(clock)
  }
  assert.equal(migration.record.error, null)
  for (let turn = 0; turn < START_MS / START_ASK_MS + 1; turn++) await ask(clock)
  await until('the end', ended)
})

test('a guest that was there and is gone is given up after so many answers', async (context) => {
  let state: string | undefined = 'paused'
  const { migration, clock, ended } = await start(context, async () => state)
  for (let turn = 0; turn < 5 * START_ABSENT_ASKS_MAX; turn++) {
    state = turn % START_ABSENT_ASKS_MAX === 0 ? 'paused' : undefined
    await ask(clock)
  }
  assert.equal(migration.record.error, null, 'it was seen again each time')
  state = undefined
  for (let turn = 0; turn < START_ABSENT_ASKS_MAX; turn++) await ask(clock)
  await until('the end', ended)
})

for (const [outcome, phase, call] of [
  ['here', 'done', 'arrived'],
  ['gone', 'failed', 'stop'],
  // The source is told what is written here: both say the same.
  ['unknown', 'failed', 'stop'],
] as const) {
  test(`the source ends it, and libvirt's answer is ${outcome}: the source is told`, async (context) => {
    const { migration, disk, calls, ended } = await start(context, async () => 'running', outcome)
    const { port, close } = await deafListener()
    context.after(close)
    await migration.started([{ address: '127.0.0.1', port }], '')
    void disk.close()
    await until('the end', ended)
    assert.equal(migration.record.phase, phase)
    await until('the source to be told', () => calls.includes(call))
  })
}

test('a new QEMU that takes no connections: the stream is given up, the migration goes on', async (context) => {
  const { migration, clock, lines, stream, ended } = await start(context, async () => 'running')
  const { port, close } = await deafListener()
  context.after(close)
  await migration.started([{ address: '127.0.0.1', port }], '')
  const opened = stream(port)
  await sleep(200)
  clock.advance(QEMU_CONNECT_MS - 1)
  await sleep(50)
  assert.equal(opened.destroyed, false)
  await until('the stream to end', () => {
    clock.advance(100)
    return opened.destroyed
  })
  assert.match(lines.join(''), /not connected in 5000 ms/)
  assert.equal(ended(), false)
})

test('streams go to the ports of this guest only', async (context) => {
  const { migration, lines, stream, ended } = await start(context, async () => 'running')
  let connections = 0
  const servers = await Promise.all(
    [0, 1].map(async () => {
      const server = createServer((socket) => {
        connections++
        socket.end('hello')
      }).listen(0, '127.0.0.1')
      await once(server, 'listening')
      context.after(() => server.close())
      return (server.address() as AddressInfo).port
    }),
  )
  await migration.started([{ address: '127.0.0.1', port: servers[0]! }], '')
  const foreign = stream(servers[1]!)
  await until('the stream to end', () => foreign.destroyed)
  assert.match(lines.join(''), /is not one of this migration's ports/)
  assert.equal(connections, 0)
  const own = stream(servers[0]!)
  let said = ''
  own.on('data', (bytes: Buffer) => {
    said += bytes.toString('latin1')
  })
  await until('the word of its QEMU', () => said.endsWith('hello'))
  assert.equal(connections, 1)
  assert.equal(ended(), false)
})

test('a disk whose holes are not told in time is opened all the same; foreign ports and exports are not', async (context) => {
  const { migration, clock, disk } = await start(context, async () => 'running')
  const device = new MemoryDevice({ size: MIB })
  let scanned = false
  Object.assign(device, {
    blockStatus: () => {
      scanned = true
      return new Promise(() => undefined)
    },
  })
  const server = createServer((socket) => {
    socket.on('error', () => undefined)
    const exports = {
      list: async () => ['drive'],
      open: async (name: string) => (name === 'drive' ? device : undefined),
    }
    void serveNbd(socket, { exports }).catch(() => undefined)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  context.after(() => server.close())
  const { port } = server.address() as AddressInfo
  await migration.started([{ address: '127.0.0.1', port }], '')
  const link = new DiskLink(disk)
  const opened: { errno: number; text: string }[] = []
  const open = async (number: number, at: number, exportName: string): Promise<void> => {
    link.register(number, {
      onMessage: (message) => {
        if (message.type === 'opened') opened.push(message)
      },
      onLost: () => undefined,
    })
    await link.send({ type: 'open', disk: number, epoch: 7, port: at, exportName }, 0)
  }
  await open(0, port, 'drive')
  await until('the scan to begin', () => scanned)
  await sleep(50)
  assert.ok(opened.length === 0, 'it waits for the scan')
  clock.advance(TARGET_SCAN_WAIT_MS)
  await until('the answer', () => opened.length === 1)
  assert.equal(opened[0]!.errno, 0)
  await open(1, port + 1, 'drive')
  await until('the answer', () => opened.length === 2)
  assert.match(opened[1]!.text, /is not one of this migration's ports/)
  await open(2, port, 'other')
  await until('the answer', () => opened.length === 3)
  assert.notEqual(opened[2]!.errno, 0)
})

test('a new QEMU that greets and then says nothing holds no stream and no disk beyond its time', async (context) => {
  const { migration, clock, lines, calls, stream, disk, ended } = await start(context, async () => 'running')
  let connections = 0
  const server = createServer((socket) => {
    connections++
    socket.on('error', () => undefined)
    // NBDMAGIC, IHAVEOPT, fixed newstyle; then it hangs.
    socket.write(Buffer.from('NBDMAGICIHAVEOPT\0\u0003', 'latin1'))
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  context.after(() => server.close())
  const { port } = server.address() as AddressInfo
  await migration.started([{ address: '127.0.0.1', port }], '')
  stream(port)
  const answers: string[] = []
  const link = new DiskLink(disk)
  link.register(0, {
    onMessage: (message) => {
      if (message.type === 'opened') answers.push(message.text)
    },
    onLost: () => undefined,
  })
  await link.send({ type: 'open', disk: 0, epoch: 7, port, exportName: 'drive' }, 0)
  await until('both to be connected', () => connections === 2)
  await sleep(100)
  clock.advance(NBD_HANDSHAKE_MS - 1)
  await sleep(50)
  assert.deepEqual([answers, calls.includes('opaque')], [[], false])
  await until('the disk to be refused, and the stream to be passed through', () => {
    clock.advance(1)
    return answers.length === 1 && calls.includes('opaque')
  })
  assert.match(answers[0]!, /NBD handshake with the new QEMU: not done in 15000 ms/)
  assert.match(lines.join(''), /an NBD server that does not speak with us: passed through/)
  assert.equal(ended(), false)
})
