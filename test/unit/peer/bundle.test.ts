/** Bundles over linked pairs: order over several channels, pacing, keepalive, endings, hostile frames. */
import assert from 'node:assert/strict'
import { duplexPair } from 'node:stream'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import fc from 'fast-check'
import { LostError, ProtocolError } from '../../../lib/core/errors.ts'
import {
  ABORT_REASON_BYTES_MAX,
  CHANNEL_END_MS,
  CONTROL_EXTRA_BYTES,
  CONTROL_EXTRA_FRAMES,
  IN_FLIGHT_BYTES_MAX,
  IN_FLIGHT_FRAMES_MAX,
  LOOP_TURN_MS,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Bundle } from '../../../lib/peer/bundle.ts'
import { FrameChannel } from '../../../lib/peer/channel.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import {
  encodeFrame,
  encodeU48,
  FRAME_ABORT,
  FRAME_ACK,
  FRAME_BULK,
  FRAME_CONTROL,
  FRAME_HEADER_BYTES,
  FRAME_PING,
  FRAME_RAM,
  FrameDecoder,
} from '../../../lib/wire/frame.ts'

/** A bundle whose far end is the test itself, byte by byte. */
function bareBundle(channels: number, tuning?: { pingIntervalMs?: number; silenceMs?: number }) {
  const pairs = Array.from({ length: channels }, () => duplexPair())
  const bundle = new Bundle({
    ...tuning,
    id: '00'.repeat(16),
    kind: 'disk',
    peer: 'test',
    migrationId: '',
    features: new Set(),
    dialed: true,
    channels: pairs.map(([near]) => new FrameChannel(near)),
    connections: [],
    peerWindowBytes: 32 * MIB,
  })
  return { bundle, ends: pairs.map(([, far]) => far.resume()) }
}

test('frames arrive in the order sent, over every channel, in both directions', async () => {
  const { near, far } = await bundlePair({ channels: 4 })
  const got: string[] = []
  const back: string[] = []
  far.onFrame = (type, payload, cls) => got.push(`${type} ${cls} ${payload}`)
  near.onFrame = (_, payload) => back.push(payload.toString())
  const expected: string[] = []
  for (let index = 0; index < 500; index += 1) {
    expected.push(`${16 + (index % 100)} 1 part ${index}`)
    await near.send(16 + (index % 100), [Buffer.from('part '), Buffer.from(String(index))], FRAME_RAM)
    await far.send(20, [Buffer.from(String(index))], FRAME_BULK)
  }
  while (back.length < 500) await turn()
  await near.close()
  assert.equal(await far.closed, undefined)
  assert.deepEqual(got, expected)
  assert.deepEqual(back, [...Array(500).keys()].map(String))
})

test('order holds when the channels have delays of their own', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 3 }), fc.integer({ min: 0, max: 300 })), {
        minLength: 1,
        maxLength: 60,
      }),
      fc.infiniteStream(fc.nat()),
      async (sends, picks) => {
        const { bundle, ends } = bareBundle(4)
        const got: number[] = []
        bundle.onFrame = (_, payload) => got.push(payload.readUInt32BE(0))
        const queues: Buffer[][] = [[], [], [], []]
        for (const [sequence, [channel, bytes]] of sends.entries()) {
          const payload = Buffer.alloc(4 + bytes)
          payload.writeUInt32BE(sequence)
          const frame = encodeFrame(16, 0, sequence, payload)
          const cut = (picks.next().value as number) % frame.length
          queues[channel]!.push(frame.subarray(0, cut), frame.subarray(cut))
        }
        for (;;) {
          const ready = queues.flatMap((queue, index) => (queue.length > 0 ? [index] : []))
          if (ready.length === 0) break
          const index = ready[(picks.next().value as number) % ready.length]!
          ends[index]!.write(queues[index]!.shift()!)
          if ((picks.next().value as number) % 3 === 0) await turn()
        }
        while (got.length < sends.length) await turn()
        assert.deepEqual(got, [...sends.keys()])
        await bundle.close(new Error('done'))
      },
    ),
    { numRuns: 50 },
  )
})

test('control overtakes what waits, bulk waits for ram', async () => {
  const { near, far } = await bundlePair({ channels: 1 })
  const got: string[] = []
  far.pause()
  far.onFrame = (_, payload) => got.push(payload.toString('latin1', 0, 3))
  const sent: Promise<void>[] = []
  const put = (name: string, cls: 0 | 1 | 2 | 3, bytes: number): void => {
    sent.push(near.send(16, [Buffer.alloc(bytes, name)], cls))
  }
  for (let index = 0; index < 4; index += 1) put('b1 ', FRAME_BULK, 256 * KIB)
  assert.ok(near.queuedBytes > 256 * KIB, 'the window of 512 KiB is full')
  put('b2 ', FRAME_BULK, 10)
  put('fin', 2, 10)
  put('ram', FRAME_RAM, 10)
  put('ctl', FRAME_CONTROL, 10)
  far.resume()
  await Promise.all(sent)
  await near.close()
  assert.deepEqual(got, ['b1 ', 'b1 ', 'ctl', 'ram', 'fin', 'b1 ', 'b1 ', 'b2 '])
})

test('a receiver that pauses stops the sender, and loses nothing', async () => {
  const { near, far } = await bundlePair({ channels: 2 })
  let got = 0
  far.onFrame = (_, payload) => {
    got += payload.length
    if (got === 64 * KIB) far.pause()
  }
  let sent = 0
  const sending = (async () => {
    for (; sent < 1024; sent += 1) await near.send(16, [Buffer.alloc(64 * KIB)], FRAME_BULK)
  })()
  for (let index = 0; index < 50; index += 1) await turn()
  assert.equal(got, 64 * KIB)
  // On a link without delay the rate, and with it the limit, may be anything up to the ceiling.
  assert.ok(near.inFlightBytes <= 33 * MIB, `${near.inFlightBytes} in flight`)
  assert.ok(sent < 600, `${sent} frames went out`)
  far.resume()
  await sending
  await near.close()
  assert.equal(got, 1024 * 64 * KIB)
})

test('frames wait for onFrame', async () => {
  const { near, far } = await bundlePair()
  await near.send(16, [Buffer.from('early')], FRAME_CONTROL)
  for (let index = 0; index < 10; index += 1) await turn()
  const got: string[] = []
  far.onFrame = (_, payload) => got.push(payload.toString())
  await near.close()
  assert.deepEqual(got, ['early'])
})

test('a cut link is a loss at both ends, for what waits and for what comes later', async () => {
  const { near, far, cut } = await bundlePair()
  far.pause()
  far.onFrame = () => undefined
  const waiting = Array.from({ length: 20 }, () =>
    near.send(16, [Buffer.alloc(MIB)], FRAME_BULK).catch((error) => error),
  )
  cut()
  assert.ok((await near.closed) instanceof LostError)
  assert.ok((await far.closed) instanceof LostError)
  const results = await Promise.all(waiting)
  assert.ok(results.at(-1) instanceof LostError)
  await assert.rejects(near.send(16, [], FRAME_CONTROL), LostError)
  assert.equal(near.queuedBytes, 0)
})

test('close with a reason tells the far end', async () => {
  const { near, far } = await bundlePair()
  await near.close(new Error('the guest went away'))
  assert.match((await far.closed)?.message ?? '', /gave it up: the guest went away/)
  assert.match((await near.closed)?.message ?? '', /the guest went away/)
})

test('an error of the frame handler ends the bundle and reaches the far end', async () => {
  const { near, far } = await bundlePair()
  far.onFrame = () => {
    throw new ProtocolError('type 16 is not known here')
  }
  await near.send(16, [], FRAME_CONTROL)
  assert.ok((await far.closed) instanceof ProtocolError)
  const loss = await near.closed
  assert.ok(loss instanceof LostError)
  assert.match(loss.message, /type 16 is not known here/)
})

test('both ends may close at once', async () => {
  const { near, far } = await bundlePair({ channels: 3 })
  await Promise.all([near.close(), far.close()])
  assert.equal(await near.closed, undefined)
  assert.equal(await far.closed, undefined)
})

test('a close ends well when one channel is gone before its acknowledgement was read, and stands on another one', async () => {
  for (const isHeard of [true, false]) {
    const { bundle, ends } = bareBundle(2)
    const since = performance.now()
    const closing = bundle.close()
    await turn()
    ends[0]!.destroy()
    for (let turns = 0; turns < 10; turns++) await turn()
    assert.equal(bundle.ended, false)
    if (isHeard) ends[1]!.write(encodeFrame(FRAME_ACK, FRAME_CONTROL, 0, encodeU48(FRAME_HEADER_BYTES)))
    await closing
    const error = await bundle.closed
    if (isHeard) assert.equal(error, undefined)
    else assert.ok(error instanceof LostError && performance.now() - since > CHANNEL_END_MS * 0.9)
  }
})

test('features are the intersection', async () => {
  const { near, far } = await bundlePair({ features: ['a', 'b'], acceptorFeatures: ['b', 'c'] })
  assert.deepEqual([...near.features], ['b'])
  assert.deepEqual([...far.features], ['b'])
  await near.close()
})

test('what cannot be sent is refused at once', async () => {
  const { near } = await bundlePair()
  assert.throws(() => near.send(15, [], FRAME_CONTROL), RangeError)
  assert.throws(() => near.send(16, [Buffer.alloc(2 * MIB)], FRAME_CONTROL), RangeError)
  await near.close()
})

for (const { name, bytes, message } of [
  {
    name: 'an oversize frame',
    bytes: Buffer.from('ffffffff1000000000000000', 'hex'),
    message: /4294967295 bytes/,
  },
  {
    name: 'a frame twice',
    bytes: Buffer.concat([encodeFrame(16, 0, 1, Buffer.alloc(0)), encodeFrame(16, 0, 1, Buffer.alloc(0))]),
    message: /came twice/,
  },
  {
    name: 'a sequence far ahead',
    bytes: encodeFrame(16, 0, 2 ** 40, Buffer.alloc(0)),
    message: /may be in flight/,
  },
  {
    name: 'an ack of what was not sent',
    bytes: encodeFrame(FRAME_ACK, 0, 0, encodeU48(1)),
    message: /not the end of a frame/,
  },
  { name: 'a short ack', bytes: encodeFrame(FRAME_ACK, 0, 0, Buffer.alloc(3)), message: /6 bytes, got 3/ },
  {
    name: 'a long ping',
    bytes: encodeFrame(FRAME_PING, 0, 0, Buffer.alloc(3000)),
    message: /6 bytes, got 3000/,
  },
  { name: 'a second hello', bytes: encodeFrame(1, 0, 0, Buffer.alloc(0)), message: /type 1 is not expected/ },
]) {
  test(`hostile: ${name} ends the bundle`, async () => {
    const { bundle, ends } = bareBundle(2)
    ends[1]!.write(bytes)
    const error = await bundle.closed
    assert.ok(error instanceof ProtocolError)
    assert.match(error.message, message)
  })
}

test('hostile: more than the window is not held', async () => {
  const { bundle, ends } = bareBundle(1)
  const payload = Buffer.alloc(MIB)
  for (let sequence = 1; sequence <= 40 && !bundle.ended; sequence += 1) {
    ends[0]!.write(encodeFrame(16, 0, sequence, payload))
    await turn()
  }
  assert.match((await bundle.closed)?.message ?? '', /bytes are in flight, at most/)
})

test('hostile: a far end that asks and does not take the answers is let go', async () => {
  const { bundle } = bareBundle(1)
  const answer = Buffer.alloc(MIB)
  let count = 0
  while (!bundle.ended && count < 100) {
    void bundle.send(16, [answer], FRAME_CONTROL).catch(() => undefined)
    count++
  }
  assert.match((await bundle.closed)?.message ?? '', /of answers wait for a far end that does not read them/)
  assert.ok(count < 60, `${count} MiB were taken`)
})

test('hostile: one that takes no small answers is let go for their number', async () => {
  const { bundle } = bareBundle(1)
  let count = 0
  while (!bundle.ended && count < 1_000_000) {
    void bundle.send(16, [], FRAME_CONTROL).catch(() => undefined)
    count++
  }
  assert.match((await bundle.closed)?.message ?? '', /in 65537 frames of answers wait for a far end/)
})

test('what is not acknowledged has a bound in frames; control frames pass it, but not without end', async () => {
  const { bundle, ends } = bareBundle(1)
  const out = { bulk: 0, control: 0 }
  const decoder = new FrameDecoder()
  ends[0]!.on('data', (bytes: Buffer) => {
    for (const { type, cls } of decoder.push(bytes))
      if (type === 16) out[cls === FRAME_CONTROL ? 'control' : 'bulk']++
  })
  const send = async (count: number, cls: typeof FRAME_BULK | typeof FRAME_CONTROL): Promise<void> => {
    for (let at = 0; at < count; at++) void bundle.send(16, [], cls).catch(() => undefined)
    for (let turns = 0; turns < 50; turns++) await turn()
  }
  await send(IN_FLIGHT_FRAMES_MAX + 100, FRAME_BULK)
  assert.deepEqual(out, { bulk: IN_FLIGHT_FRAMES_MAX, control: 0 })
  await send(CONTROL_EXTRA_FRAMES + 100, FRAME_CONTROL)
  assert.deepEqual(out, { bulk: IN_FLIGHT_FRAMES_MAX, control: CONTROL_EXTRA_FRAMES })
  await bundle.close(new Error('over'))
})

test('control frames pass the window, but not by more bytes than a receiver expects', async () => {
  const { bundle, ends } = bareBundle(1)
  let bytes = 0
  ends[0]!.on('data', (piece: Buffer) => (bytes += piece.length))
  const payload = Buffer.alloc(MIB)
  const most = (IN_FLIGHT_BYTES_MAX + CONTROL_EXTRA_BYTES) / MIB
  for (let at = 0; at < most + 4; at++) void bundle.send(16, [payload], FRAME_CONTROL).catch(() => undefined)
  for (let turns = 0; turns < 200; turns++) await turn()
  assert.equal(Math.floor(bytes / MIB), most)
  assert.equal(bundle.ended, false)
  await bundle.close(new Error('over'))
})

test('the reason with which a bundle is given up is short, whoever gives it', async () => {
  const long = 'x'.repeat(10 * ABORT_REASON_BYTES_MAX)
  const taken = bareBundle(1)
  taken.ends[0]!.write(encodeFrame(FRAME_ABORT, 0, 0, Buffer.from(long)))
  const reason = (await taken.bundle.closed)?.message ?? ''
  assert.equal(/gave it up: (x+)$/.exec(reason)?.[1]?.length, ABORT_REASON_BYTES_MAX)
  const given = bareBundle(1)
  const said: number[] = []
  const decoder = new FrameDecoder()
  given.ends[0]!.on('data', (bytes: Buffer) => {
    for (const { type, payload } of decoder.push(bytes)) if (type === FRAME_ABORT) said.push(payload.length)
  })
  await given.bundle.close(new Error(long))
  for (let turns = 0; turns < 10; turns++) await turn()
  assert.deepEqual(said, [ABORT_REASON_BYTES_MAX])
})

test('silence is a loss', async () => {
  const { bundle } = bareBundle(1, { pingIntervalMs: 20, silenceMs: 80 })
  const held = setTimeout(() => undefined, 10_000)
  const error = await bundle.closed
  clearTimeout(held)
  assert.ok(error instanceof LostError)
  assert.match(error.message, /nothing was heard for \d+ ms/)
})

test('a close waits for the last frames, and not for ever', async () => {
  const { near, far, cut } = await bundlePair({ closeMs: 150 })
  far.pause()
  await near.send(16, [Buffer.alloc(10)], FRAME_BULK)
  const held = setTimeout(() => undefined, 10_000)
  const started = performance.now()
  await near.close()
  clearTimeout(held)
  const error = await near.closed
  assert.ok(error instanceof LostError)
  assert.match(error.message, /the last frames were not acknowledged in 150 ms/)
  assert.ok(performance.now() - started >= 140)
  cut()
})

test('a far end that only answers pings is alive, and gives a round trip', async () => {
  const { near, far } = await bundlePair({ delayMs: 5, pingIntervalMs: 20, silenceMs: 200 })
  await new Promise((resolve) => setTimeout(resolve, 500))
  assert.equal(near.ended, false)
  assert.ok(near.rttMs.min! >= 9, `${near.rttMs.min}`)
  await near.close()
  assert.equal(await far.closed, undefined)
})

/** Computes for as long as a turn of the event loop may. */
function useUpTurn(): void {
  const used = (): number => {
    const { user, system } = process.threadCpuUsage()
    return (user + system) / 1000
  }
  const until = used() + LOOP_TURN_MS + 1
  while (used() < until);
}

test('frames that came in one read and take long leave the event loop free between them, and keep their order', async () => {
  const { bundle, ends } = bareBundle(1)
  const got: string[] = []
  let turns = 0
  const counted: number[] = []
  bundle.onFrame = (_, payload) => {
    got.push(payload.toString())
    counted.push(turns)
    useUpTurn()
  }
  const names = [...Array(12).keys()].map(String)
  ends[0]!.write(
    Buffer.concat(names.map((name, index) => encodeFrame(16, FRAME_BULK, index, Buffer.from(name)))),
  )
  while (got.length < names.length) {
    await turn()
    turns++
  }
  assert.deepEqual(got, names)
  assert.ok(new Set(counted).size >= names.length - 1, `delivered in turns ${counted}`)
  void bundle.close(new Error('done'))
})

test('calls between daemons do not wait for a later turn', async () => {
  const { near, far } = await bundlePair({ channels: 1, kind: 'control' })
  let turns = 0
  const counted: number[] = []
  far.onFrame = () => {
    counted.push(turns)
    useUpTurn()
  }
  const { near: disk, far: farDisk } = await bundlePair({ channels: 1 })
  farDisk.onFrame = () => useUpTurn()
  for (let index = 0; index < 20; index++) void disk.send(16, [Buffer.alloc(100)], FRAME_BULK)
  for (let index = 0; index < 4; index++) void near.send(16, [Buffer.alloc(100)], FRAME_CONTROL)
  while (counted.length < 4) {
    await turn()
    turns++
  }
  assert.ok(counted.at(-1)! - counted[0]! <= 1, `delivered in turns ${counted}`)
  void near.close(new Error('done'))
  void disk.close(new Error('done'))
})

test('frames that wait for a later turn are delivered when their link is lost, and before an abort', async () => {
  for (const end of ['lost', 'abort']) {
    const { bundle, ends } = bareBundle(1)
    const got: string[] = []
    bundle.onFrame = (_, payload) => {
      got.push(payload.toString())
      useUpTurn()
    }
    const names = [...Array(6).keys()].map(String)
    ends[0]!.write(
      Buffer.concat(names.map((name, index) => encodeFrame(16, FRAME_BULK, index, Buffer.from(name)))),
    )
    // The first one is being delivered, the others wait.
    while (got.length === 0) await turn()
    assert.ok(got.length < names.length)
    if (end === 'lost') ends[0]!.destroy()
    else ends[0]!.write(encodeFrame(FRAME_ABORT, FRAME_CONTROL, 0, Buffer.from('no more')))
    assert.ok((await bundle.closed) instanceof LostError)
    assert.deepEqual(got, names)
  }
})
