/**
 * What the server waits for a client that does not choose, what it takes from one at once, and what the client has in flight at a
 * server that is slow.
 */
import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import { test } from 'node:test'
import { MemoryDevice } from '../../../lib/block/memory.ts'
import { LostError, TimeoutError } from '../../../lib/core/errors.ts'
import {
  NBD_CLIENT_IN_FLIGHT_BYTES_MAX,
  NBD_CLIENT_REQUESTS_MAX,
  NBD_IN_FLIGHT_BYTES_MAX,
  NBD_REQUESTS_MAX,
} from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { ClientDevice } from '../../../lib/nbd/client-device.ts'
import * as nbd from '../../../lib/nbd/protocol/constants.ts'
import { RequestDecoder } from '../../../lib/nbd/protocol/decode.ts'
import { encodeRequestHeader, encodeSimpleReply } from '../../../lib/nbd/protocol/encode.ts'
import { encodeClientFlags, encodeOption } from '../../../lib/nbd/protocol/handshake.ts'
import { encodeInfoRequest } from '../../../lib/nbd/protocol/options.ts'
import { serveNbd } from '../../../lib/nbd/server.ts'

const HANDSHAKE_MS = 200

function served(
  openMs = 0,
  exported = 'disk',
): { client: ReturnType<typeof duplexPair>[0]; end: Promise<void> } {
  const [client, server] = duplexPair()
  client.on('error', () => undefined)
  const end = serveNbd(server, {
    handshakeMs: HANDSHAKE_MS,
    exports: {
      list: async () => new Array<string>(64).fill(exported),
      open: async () => {
        await new Promise((resolve) => setTimeout(resolve, openMs))
        return new MemoryDevice({ size: MIB })
      },
    },
  })
  return { client, end }
}

test('a client that says nothing is let go', async () => {
  const { client, end } = served()
  client.resume()
  await assert.rejects(end, TimeoutError)
  assert.ok(client.destroyed || client.readableEnded)
})

test('a client that drips bytes is let go all the same', async () => {
  const { client, end } = served()
  client.resume()
  const bytes = Buffer.concat([
    encodeClientFlags(3),
    ...new Array<Buffer>(50).fill(encodeOption(nbd.NBD_OPT_LIST)),
  ])
  let at = 0
  const drip = setInterval(() => client.write(bytes.subarray(at, ++at)), 10)
  await assert.rejects(end, TimeoutError)
  clearInterval(drip)
  // Not a new deadline with each message.
  assert.ok(at < bytes.length / 2, `${at} of ${bytes.length} bytes were taken`)
})

test('a client that asks and never reads the answers is let go, and they do not pile up', async () => {
  const { client, end } = served(0, 'x'.repeat(4000))
  const before = process.memoryUsage().arrayBuffers
  client.write(encodeClientFlags(3))
  for (let count = 0; count < 1000; count++) client.write(encodeOption(nbd.NBD_OPT_LIST))
  await assert.rejects(end, TimeoutError)
  // 1000 answers of 64 names would be 256 MB.
  assert.ok(process.memoryUsage().arrayBuffers - before < 16 * MIB)
})

test('the time that our side takes to open an export is not the client’s', async () => {
  const { client, end } = served(3 * HANDSHAKE_MS)
  client.resume()
  const go = encodeOption(nbd.NBD_OPT_GO, encodeInfoRequest({ name: 'disk', infos: [] }))
  client.write(Buffer.concat([encodeClientFlags(3), go]))
  await new Promise((resolve) => setTimeout(resolve, 4 * HANDSHAKE_MS))
  client.end()
  await end
})

/** A device whose server takes requests, and answers only when it is told to. */
function slowDevice(): {
  device: ClientDevice
  requests: bigint[]
  bytes: () => number
  answer: () => void
  cut: () => void
} {
  const [client, server] = duplexPair()
  const decoder = new RequestDecoder({ payloadBytesMax: 32 * MIB })
  const requests: bigint[] = []
  let bytes = 0
  server.on('error', () => undefined)
  server.on('data', (piece: Buffer) => {
    for (const request of decoder.push(piece)) {
      requests.push(request.cookie)
      bytes += request.length
    }
  })
  const info = {
    name: 'disk',
    description: undefined,
    size: 1024 * MIB,
    blockSizes: { minimum: 1, preferred: 4096, maximum: 32 * MIB },
    features: new MemoryDevice({ size: MIB }).features,
  }
  const device = new ClientDevice(client, {
    info,
    structured: false,
    contextId: undefined,
    rest: Buffer.alloc(0),
  })
  return {
    device,
    requests,
    bytes: () => bytes,
    answer: () =>
      server.write(Buffer.concat(requests.splice(0).map((cookie) => encodeSimpleReply(cookie, 0)))),
    cut: () => server.destroy(),
  }
}

async function settled(): Promise<void> {
  for (let turns = 0; turns < 50; turns++) await new Promise((resolve) => setImmediate(resolve))
}

for (const { name, bytes, most } of [
  { name: 'requests', bytes: 100, most: NBD_REQUESTS_MAX },
  { name: 'bytes', bytes: MIB, most: NBD_IN_FLIGHT_BYTES_MAX / MIB },
]) {
  test(`no more ${name} are taken from a client than a server holds that was told nothing`, async () => {
    const gates: (() => void)[] = []
    class Slow extends MemoryDevice {
      override write(): Promise<void> {
        return new Promise((resolve) => gates.push(resolve))
      }
    }
    const quiet = async (): Promise<void> => {
      for (let seen = -1; seen !== gates.length; ) {
        seen = gates.length
        for (let turns = 0; turns < 50; turns++) await new Promise((resolve) => setImmediate(resolve))
      }
    }
    const [client, server] = duplexPair()
    client.resume()
    const exports = { list: async () => ['disk'], open: async () => new Slow({ size: MIB }) }
    const end = serveNbd(server, { exports })
    const go = encodeOption(nbd.NBD_OPT_GO, encodeInfoRequest({ name: 'disk', infos: [] }))
    client.write(Buffer.concat([encodeClientFlags(3), go]))
    await quiet()
    const ask = (command: number, cookie: number, length: number): Buffer =>
      encodeRequestHeader({ command, flags: 0, cookie: BigInt(cookie), offset: 0, length })
    for (let at = 0; at < most + 10; at++) {
      client.write(ask(nbd.NBD_CMD_WRITE, at, bytes))
      client.write(Buffer.alloc(bytes))
    }
    await quiet()
    assert.equal(gates.length, most)
    for (const gate of gates.splice(0)) gate()
    await quiet()
    assert.equal(gates.length, 10)
    for (const gate of gates) gate()
    client.write(ask(nbd.NBD_CMD_DISC, 0, 0))
    await end
  })
}

test('at most so many requests are in flight; the rest leaves in its order as answers come', async () => {
  const { device, requests, answer } = slowDevice()
  const writes = Array.from({ length: 3 * NBD_CLIENT_REQUESTS_MAX }, () => device.write(0, Buffer.alloc(16)))
  await settled()
  assert.equal(requests.length, NBD_CLIENT_REQUESTS_MAX)
  for (let round = 1; round <= 3; round++) {
    const first = BigInt((round - 1) * NBD_CLIENT_REQUESTS_MAX + 1)
    assert.deepEqual(requests[0], first)
    assert.equal(requests.length, NBD_CLIENT_REQUESTS_MAX)
    answer()
    await settled()
  }
  await Promise.all(writes)
  const closed = device.close()
  await closed
})

test('at most so many bytes are in flight, and one request that is larger goes alone', async () => {
  const { device, bytes, answer, requests } = slowDevice()
  const piece = Buffer.alloc(8 * MIB)
  const writes = Array.from({ length: 20 }, () => device.write(0, piece))
  while (bytes() < NBD_CLIENT_IN_FLIGHT_BYTES_MAX) await settled()
  await settled()
  assert.equal(bytes(), NBD_CLIENT_IN_FLIGHT_BYTES_MAX)
  const all = Promise.all(writes)
  let done = false
  void all.then(() => (done = true))
  while (!done) {
    answer()
    await settled()
  }
  assert.equal(requests.length, 0)
  await device.close()
})

test('what waits hears of a loss like what is in flight', async () => {
  const { device, cut } = slowDevice()
  const writes = Array.from({ length: 2 * NBD_CLIENT_REQUESTS_MAX }, () => device.write(0, Buffer.alloc(16)))
  await settled()
  cut()
  for (const result of await Promise.allSettled(writes)) {
    assert.ok(result.status === 'rejected' && result.reason instanceof LostError)
  }
})
