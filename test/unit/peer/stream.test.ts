/** Byte streams over one bundle: order, half close, resets, credits, hostile frames. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import type { Duplex } from 'node:stream'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { LostError, ProtocolError } from '../../../lib/core/errors.ts'
import { STREAM_CHUNK_BYTES_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { STREAM_CREDIT, STREAM_DATA, STREAM_END, STREAM_OPEN, StreamMux } from '../../../lib/peer/stream.ts'
import { FRAME_CONTROL, FRAME_RAM } from '../../../lib/wire/frame.ts'
import { FEATURE_WIDE_STREAM } from '../../../lib/wire/hello.ts'

async function muxPair(
  onStream: (meta: { port: number }, stream: Duplex) => void,
  more: { features?: readonly string[] } = {},
) {
  const pair = await bundlePair({ kind: 'ram', channels: 2, ...more })
  return { ...pair, nearMux: new StreamMux(pair.near), farMux: new StreamMux(pair.far, onStream) }
}

async function readAll(stream: Duplex): Promise<Buffer> {
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  return Buffer.concat(parts)
}

test('an echo over many streams at once: byte for byte, and half closes', async () => {
  const { near, nearMux, farMux } = await muxPair((meta, stream) => {
    assert.ok(meta.port >= 1000)
    stream.on('data', (bytes) => stream.write(bytes) || undefined)
    stream.on('end', () => stream.end())
  })
  await Promise.all(
    Array.from({ length: 20 }, async (_, index) => {
      const stream = nearMux.open({ port: 1000 + index })
      const sent = randomBytes(index * 37_000 + 1)
      for (let at = 0; at < sent.length; ) {
        const size = 1 + ((at * 7919) % 90_000)
        stream.write(sent.subarray(at, at + size))
        at += size
      }
      stream.end()
      assert.ok((await readAll(stream)).equals(sent), `stream ${index}`)
    }),
  )
  await turn()
  assert.equal(nearMux.streams, 0)
  assert.equal(farMux.streams, 0)
  await near.close()
})

test('more than a window passes, with digests', async () => {
  const total = 40 * MIB
  const result = Promise.withResolvers<string>()
  const { near, nearMux } = await muxPair((_, stream) => {
    const hash = createHash('sha256')
    stream.on('data', (bytes) => hash.update(bytes))
    stream.on('end', () => {
      result.resolve(hash.digest('hex'))
      stream.end()
    })
  })
  const stream = nearMux.open({ port: 49_152 })
  const hash = createHash('sha256')
  for (let at = 0; at < total; at += MIB) {
    const part = randomBytes(MIB)
    hash.update(part)
    if (!stream.write(part)) await once(stream, 'drain')
  }
  stream.end()
  assert.equal(await result.promise, hash.digest('hex'))
  await near.close()
})

test('one frame has so many bytes of a stream at most, however much is written at once', async () => {
  const { near, far } = await bundlePair({ kind: 'ram', channels: 1 })
  const sizes: number[] = []
  far.onFrame = (type, payload) => {
    if (type === STREAM_DATA) sizes.push(payload.length - 4)
  }
  const stream = new StreamMux(near).open({ port: 49_152 })
  const written = 2 * STREAM_CHUNK_BYTES_MAX + 5
  await new Promise((resolve) => stream.write(Buffer.alloc(written), resolve))
  await turn()
  assert.deepEqual(sizes, [STREAM_CHUNK_BYTES_MAX, STREAM_CHUNK_BYTES_MAX, 5])
  await near.close(new Error('over'))
})

for (const [name, features, windowBytes] of [
  ['', [], 4 * MIB],
  [', which for the first one is wide where both know that', [FEATURE_WIDE_STREAM], 16 * MIB],
] as const) {
  test(`a stream that nobody reads stops at its window${name}, and holds up no other`, async () => {
    const taken: Duplex[] = []
    const { near, nearMux } = await muxPair(
      (_, stream) => {
        taken.push(stream)
        if (taken.length === 2) stream.pipe(stream)
      },
      { features },
    )
    const stuck = nearMux.open({ port: 1 })
    let accepted = 0
    const pushing = (async () => {
      for (let index = 0; index < (2 * windowBytes) / (128 * KIB); index += 1) {
        await new Promise<void>((resolve) => stuck.write(Buffer.alloc(128 * KIB, index), () => resolve()))
        accepted += 128 * KIB
      }
    })()
    for (let index = 0; index < 800; index += 1) await turn()
    assert.equal(accepted, windowBytes, 'the window')
    const other = nearMux.open({ port: 2 })
    other.end('hello')
    assert.equal((await readAll(other)).toString(), 'hello')
    // A slow reader that takes little at a time gets all of it.
    let got = 0
    taken[0]!.on('readable', () => {
      for (let part = taken[0]!.read(1000); part !== null; part = taken[0]!.read(1000))
        got += (part as Buffer).length
    })
    await pushing
    stuck.end()
    await once(taken[0]!, 'end')
    assert.ok(got >= 2 * windowBytes - 1000)
    await near.close()
  })
}

test('a refused stream and a destroyed one are errors at the other end, and only there', async () => {
  const { near, far } = await bundlePair({ kind: 'ram' })
  const nearMux = new StreamMux(near)
  new StreamMux(far)
  const stream = nearMux.open({ port: 5 })
  stream.write('data that is not wanted')
  const [error] = (await once(stream, 'error')) as [Error]
  assert.match(error.message, /no streams are taken here/)
  assert.equal(near.ended, false)
  await near.close()

  const seen = Promise.withResolvers<Error>()
  const second = await muxPair((_, taken) => {
    taken.resume()
    taken.on('error', seen.resolve)
  })
  const opened = second.nearMux.open({ port: 6 })
  opened.on('error', () => undefined)
  opened.write('x')
  opened.destroy(new Error('QEMU went away'))
  assert.match((await seen.promise).message, /reset it: QEMU went away/)
  assert.equal(second.farMux.streams, 0)
  await second.near.close()
})

test('the loss of the bundle ends every stream', async () => {
  const { near, nearMux, cut } = await muxPair(() => undefined)
  const stream = nearMux.open({ port: 5 })
  const failed = once(stream, 'error') as Promise<[Error]>
  cut()
  assert.ok((await failed)[0] instanceof LostError)
  assert.ok((await near.closed) instanceof LostError)
})

const words = (...values: number[]): Buffer => {
  const bytes = Buffer.alloc(4 * values.length)
  for (const [index, value] of values.entries()) bytes.writeUInt32BE(value, 4 * index)
  return bytes
}
const open = Buffer.concat([words(1), Buffer.from('{"port":1}')])
for (const { name, frames, features = [] } of [
  { name: 'no id', frames: [[STREAM_DATA, Buffer.alloc(3)]] },
  {
    name: 'an id that the far end gives',
    frames: [[STREAM_OPEN, Buffer.concat([words(2), Buffer.from('{"port":1}')])]],
  },
  {
    name: 'an id twice',
    frames: [
      [STREAM_OPEN, open],
      [STREAM_OPEN, open],
    ],
  },
  { name: 'data of a stream that never was', frames: [[STREAM_DATA, words(9)]] },
  { name: 'meta that is not JSON', frames: [[STREAM_OPEN, Buffer.concat([words(1), Buffer.from('{')])]] },
  {
    name: 'a port that is none',
    frames: [[STREAM_OPEN, Buffer.concat([words(1), Buffer.from('{"port":70000}')])]],
  },
  {
    name: 'credit beyond the window',
    frames: [
      [STREAM_OPEN, open],
      [STREAM_CREDIT, words(1, 5)],
    ],
  },
  {
    name: 'data after the end',
    frames: [
      [STREAM_OPEN, open],
      [STREAM_END, words(1)],
      [STREAM_DATA, words(1, 1)],
    ],
  },
  { name: 'another type', frames: [[99, words(1)]] },
  {
    name: 'data beyond a wide window',
    features: [FEATURE_WIDE_STREAM],
    frames: [
      [STREAM_OPEN, open],
      ...Array.from({ length: 17 }, () => [STREAM_DATA, Buffer.concat([words(1), Buffer.alloc(MIB)])]),
    ],
  },
  {
    name: 'data beyond the window of a second stream',
    features: [FEATURE_WIDE_STREAM],
    frames: [
      [STREAM_OPEN, open],
      [STREAM_OPEN, Buffer.concat([words(3), Buffer.from('{"port":1}')])],
      ...Array.from({ length: 5 }, () => [STREAM_DATA, Buffer.concat([words(3), Buffer.alloc(MIB)])]),
    ],
  },
  {
    name: 'data beyond the window',
    frames: [
      [STREAM_OPEN, open],
      ...Array.from({ length: 5 }, () => [STREAM_DATA, Buffer.concat([words(1), Buffer.alloc(MIB)])]),
    ],
  },
] as { name: string; frames: [number, Buffer][]; features?: string[] }[]) {
  test(`hostile: ${name}`, async () => {
    const { near, far } = await bundlePair({ kind: 'ram', channels: 1, features })
    new StreamMux(far, (_, stream) => {
      stream.on('error', () => undefined)
    })
    for (const [type, payload] of frames) {
      void near.send(type, [payload], type === STREAM_OPEN ? FRAME_CONTROL : FRAME_RAM).catch(() => undefined)
    }
    assert.ok((await far.closed) instanceof ProtocolError)
  })
}
