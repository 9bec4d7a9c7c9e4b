/** Peers that cannot be reached: how often they are dialed, and how long a call waits for them. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { mkdtemp, rm, writeFile } from 'node:fs/promises'
import { type AddressInfo, createServer, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { PeerConfig } from '../../../config/schema.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { TimeoutError } from '../../../lib/core/errors.ts'
import { PEER_BACKOFF_MS_MAX, PEER_BACKOFF_MS_MIN } from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import { WindowPool } from '../../../lib/peer/windows.ts'
import { LinkTests } from '../../../server/link-test.ts'
import { Peer } from '../../../server/peers.ts'
import { keyPair } from '../peer/key-pair.ts'

async function start(context: TestContext, onConnection: (socket: Socket) => void) {
  const directory = await mkdtemp(join(tmpdir(), 'swam-peers-'))
  const keys = keyPair()
  await writeFile(join(directory, 'key'), keys.private)
  let dialed = 0
  const sockets = new Set<Socket>()
  const server = createServer((socket) => {
    dialed++
    sockets.add(socket)
    socket.on('error', () => undefined)
    onConnection(socket)
  }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const { port } = server.address() as AddressInfo
  const clock = new ManualClock()
  const config = {
    name: 'far',
    addresses: ['127.0.0.1'],
    ssh: { port, user: 'swam', key: join(directory, 'key'), hostKey: keys.public },
  } as unknown as PeerConfig
  const peer = new Peer(
    config,
    createLog({ level: 'info', stream: { write: () => undefined } }),
    {
      instance: '',
      resumeMs: 0,
      rateLimit: undefined,
      linkTests: new LinkTests(),
      windows: new WindowPool({ bytesMax: MIB }),
    },
    clock,
  )
  context.after(async () => {
    await peer.close()
    for (const socket of sockets) socket.destroy()
    server.close()
    await rm(directory, { recursive: true, force: true })
  })
  return { peer, clock, dialed: () => dialed }
}

async function until(what: string, check: () => boolean): Promise<void> {
  for (let attempt = 0; attempt < 1000; attempt++) {
    if (check()) return
    await sleep(5)
  }
  throw new Error(`waited in vain for ${what}`)
}

test('a peer that fails is dialed ever more rarely, and at least once a minute', async (context) => {
  const { peer, clock, dialed } = await start(context, (socket) => socket.destroy())
  peer.start()
  let pauseMs = PEER_BACKOFF_MS_MIN
  for (let turn = 1; turn < 9; turn++) {
    await until(`dial ${turn}`, () => dialed() === turn)
    // Until that one has failed, nothing is planned.
    await sleep(150)
    clock.advance(pauseMs - 1)
    await sleep(20)
    assert.equal(dialed(), turn, `dialed again within ${pauseMs} ms`)
    clock.advance(1)
    pauseMs = Math.min(PEER_BACKOFF_MS_MAX, 2 * pauseMs)
  }
  assert.equal(pauseMs, PEER_BACKOFF_MS_MAX)
})

test('a call to a peer that takes the connection and says nothing ends in time', async (context) => {
  const { peer } = await start(context, () => undefined)
  const started = performance.now()
  await assert.rejects(
    peer.call('locate', {}, 200),
    (error) => error instanceof TimeoutError && /locate at far: not connected in 200 ms/.test(error.message),
  )
  assert.ok(performance.now() - started < 5000)
})
