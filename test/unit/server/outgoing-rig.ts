/** An outgoing migration over real sockets and bundles in memory. */
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import { VersionMemory } from '../../../lib/engine/sent-versions.ts'
import { bundlePair, type MemoryOptions, type MemoryPair } from '../../../lib/peer/memory.ts'
import { StreamMux } from '../../../lib/peer/stream.ts'
import { OutgoingMigration } from '../../../server/migration/outgoing.ts'
import type { OutgoingOptions } from '../../../server/migration/outgoing-options.ts'

/** A connection straight to the listener stands in the kernel's table as one to this address: so it is the peer's. */
export const LISTENER = '127.77.0.1'
export const ME: number = process.getuid!()

async function freePort(): Promise<number> {
  const server = createServer().listen(0, LISTENER)
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  server.close()
  await once(server, 'close')
  return port
}

interface Client {
  readonly socket: Socket
  readonly got: () => string
}

export interface OutgoingRig {
  readonly migration: OutgoingMigration
  readonly port: number
  readonly picked: readonly number[]
  readonly lines: readonly string[]
  readonly streams: readonly number[]
  readonly client: (send?: string) => Promise<Client>
  readonly disk: MemoryPair
  readonly ram: MemoryPair
  readonly ended: () => boolean
}

export async function start(
  context: TestContext,
  uids: readonly number[],
  more: Partial<OutgoingOptions> = {},
  link: MemoryOptions = {},
): Promise<OutgoingRig> {
  const port = await freePort()
  const lines: string[] = []
  const picked: number[] = []
  const disk = await bundlePair({ kind: 'disk', ...link })
  const ram = await bundlePair({ kind: 'ram', ...link })
  let ended = false
  const migration = new OutgoingMigration({
    id: '3f0c0c9e-6d52-4f0c-9a70-0a3c9f1f9d11',
    uuid: '33333333-3333-4333-8333-333333333333',
    guest: 'vm',
    peer: 'far',
    peerAddresses: [LISTENER],
    log: createLog({ level: 'info', stream: { write: (line) => void lines.push(line) } }),
    uids,
    slabs: new SlabPool({ bytesMax: MIB }),
    describe: async () => [],
    limits: { windowBytes: MIB, drainMs: 1000, flushDeadlineMs: 2000 },
    versions: new VersionMemory(),
    pickListenPort: () => {
      // The first one is the port that is armed, so that the table of the kernel says what the redirect would make it say.
      const next = picked.length === 0 ? port : port + 1000 + picked.length
      picked.push(next)
      return next
    },
    compress: false,
    outcome: async () => 'here',
    directOutcome: async () => 'here',
    migrating: async () => true,
    paused: async () => false,
    disarm: async () => undefined,
    targetOf: (name) => name,
    farLives: async () => 'unknown',
    onEnd: () => {
      ended = true
    },
    ...more,
  })
  context.after(async () => {
    await migration.abort('the test is over')
    disk.cut()
    ram.cut()
  })
  migration.attach(disk.far)
  migration.attach(ram.far)
  const streams: number[] = []
  new StreamMux(ram.near, (meta, stream) => {
    streams.push(meta.port)
    stream.on('error', () => undefined)
    stream.pipe(stream)
  })
  const client = async (send = 'hello'): Promise<Client> => {
    const socket = connect({ host: LISTENER, port, localAddress: '127.0.0.1' })
    let got = ''
    socket.on('data', (bytes) => {
      got += bytes.toString('latin1')
    })
    socket.on('error', () => undefined)
    socket.write(send)
    context.after(() => socket.destroy())
    return { socket, got: () => got }
  }
  return { migration, port, picked, lines, streams, client, disk, ram, ended: () => ended }
}

export async function until(what: string, check: () => boolean): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt++) {
    if (check()) return
    await sleep(10)
  }
  throw new Error(`waited in vain for ${what}`)
}
