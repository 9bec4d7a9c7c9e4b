/** passThrough between real sockets: byte for byte, and not all that has come in one turn of the event loop. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { type AddressInfo, connect, createServer, type Socket } from 'node:net'
import { test } from 'node:test'
import { LoopTurn, loopTurn } from '../../../lib/core/loop-turn.ts'
import { BlockDecoder } from '../../../lib/ram/blocks.ts'
import { type Counts, passThrough } from '../../../lib/ram/passthrough.ts'

const BYTES = 16 << 20
/** What Node reads of a socket in one turn when each piece pauses it: that piece, and one that it keeps. Else it was 195 KB here. */
const PAUSED_BYTES_MAX = 2 * 65_536

async function pair(options: object = {}): Promise<readonly [Socket, Socket]> {
  const server = createServer({ allowHalfOpen: true }).listen(0, '127.0.0.1')
  await once(server, 'listening')
  const socket = connect({
    ...options,
    port: (server.address() as AddressInfo).port,
    host: '127.0.0.1',
    allowHalfOpen: true,
  })
  const [[accepted]] = await Promise.all([
    once(server, 'connection') as Promise<[Socket]>,
    once(socket, 'connect'),
  ])
  server.close()
  return [socket, accepted]
}

for (const [name, turn] of [
  ['', loopTurn],
  [': a turn that is over from its start on', new LoopTurn(neverEnough(), neverEnough())],
] as const) {
  test(`a stream of ${BYTES >> 20} MiB and its answer arrive byte for byte${name}`, async () => {
    const [qemu, caught] = await pair()
    // It always has room, as the stream of a fast link has.
    const [between, far] = await pair({ writableHighWaterMark: 2 * BYTES })
    const [arrives, newQemu] = await pair()
    const here: Counts = { toStream: 0, fromStream: 0 }
    const there: Counts = { toStream: 0, fromStream: 0 }
    // Half of it does not shrink.
    const sent = Buffer.concat([randomBytes(BYTES / 2), Buffer.alloc(BYTES / 2, 'memory of a guest ')])
    const ends = [
      passThrough(caught, between, here, () => true, undefined, turn),
      passThrough(newQemu, far, there, () => false, undefined, turn),
    ]
    const most = perTurn(here)
    const hash = createHash('sha256')
    arrives.on('data', (bytes: Buffer) => hash.update(bytes))
    qemu.resume()
    const over = [once(arrives, 'end'), once(qemu, 'end')]
    qemu.end(sent)
    await over[0]
    arrives.end('done')
    await Promise.all([over[1], ...ends])
    assert.equal(hash.digest('hex'), createHash('sha256').update(sent).digest('hex'))
    assert.deepEqual([here.toStream, there.fromStream, here.fromStream], [BYTES, BYTES, 4])
    if (turn !== loopTurn) assert.ok(most() <= PAUSED_BYTES_MAX, `${most()} bytes in one turn`)
  })
}

test('what is held up waits, comes byte for byte when it is let go, and goes on at once when that ends', async () => {
  const [qemu, caught] = await pair()
  const [between, far] = await pair()
  const counts: Counts = { toStream: 0, fromStream: 0 }
  const { promise: released, resolve: release } = Promise.withResolvers<void>()
  let holds = true
  // Longer than the test waits for anything.
  const pace = { took: () => (holds ? 3_600_000 : 0), released }
  const ended = passThrough(caught, between, counts, () => false, pace)
  const sent = randomBytes(BYTES)
  qemu.resume()
  qemu.end(sent)
  const heard: Buffer[] = []
  far.on('data', (bytes: Buffer) => heard.push(bytes))
  await once(far, 'data')
  for (let still = 0, before = -1; still < 5; still = counts.toStream === before ? still + 1 : 0) {
    before = counts.toStream
    await new Promise((resolve) => setTimeout(resolve, 20))
  }
  assert.ok(counts.toStream < BYTES / 4, `${counts.toStream} bytes were taken`)
  holds = false
  release()
  await once(far, 'end')
  far.end()
  await ended
  assert.equal(counts.toStream, BYTES)
  const decoder = new BlockDecoder()
  const raw = Buffer.concat([...decoder.push(Buffer.concat(heard))])
  assert.ok(raw.equals(sent))
})

/** Milliseconds that run away: whoever asks twice has used up his turn. */
function neverEnough(): () => number {
  let now = 0
  return () => {
    now += 1000
    return now
  }
}

/** The most bytes that were taken in one turn, from now on. */
function perTurn(counts: Counts): () => number {
  let most = 0
  let before = counts.toStream
  const look = (): void => {
    most = Math.max(most, counts.toStream - before)
    before = counts.toStream
    if (before < BYTES) setImmediate(look)
  }
  setImmediate(look)
  return () => most
}
