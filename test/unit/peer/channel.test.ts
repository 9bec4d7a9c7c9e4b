/** One channel whose far end does not read, or does not end: what waits for it is bounded, in bytes and in time. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { Duplex, duplexPair } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LostError } from '../../../lib/core/errors.ts'
import {
  CHANNEL_BACKLOG_BYTES_MAX,
  CHANNEL_BACKLOG_FRAMES_MAX,
  CHANNEL_END_MS,
} from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { Bundle } from '../../../lib/peer/bundle.ts'
import { FrameChannel } from '../../../lib/peer/channel.ts'
import { encodeFrame, encodeU48, FRAME_BULK, FRAME_PING } from '../../../lib/wire/frame.ts'

/** Takes what is written, and never says that it did. */
const stuck = (): Duplex => new Duplex({ read: () => undefined, write: () => undefined })

test('what waits for a far end that does not read is bounded, and then it is let go', async () => {
  const duplex = stuck()
  const channel = new FrameChannel(duplex)
  const gone = new Promise<Error>((resolve) =>
    channel.listen({ frame: () => undefined, gone: (error) => resolve(error) }),
  )
  const payload = [Buffer.alloc(MIB)]
  let written = 0
  while (!duplex.destroyed && written < 200) {
    channel.write(16, FRAME_BULK, written++, payload)
    assert.ok(duplex.writableLength <= CHANNEL_BACKLOG_BYTES_MAX + 2 * MIB)
  }
  assert.ok(written >= CHANNEL_BACKLOG_BYTES_MAX / MIB, `${written} MiB were taken`)
  const error = await gone
  assert.ok(error instanceof LostError)
  assert.match(error.message, /the far end does not read: \d+ frames with \d+ bytes wait for it/)
})

test('a far end that asks whether we are there, and takes no answer, is let go', async () => {
  // PONGs wait behind no window, and a short frame that waits takes more memory than it has bytes.
  const duplex = stuck()
  const bundle = new Bundle({
    id: '00'.repeat(16),
    kind: 'disk',
    peer: 'test',
    migrationId: '',
    features: new Set(),
    dialed: false,
    channels: [new FrameChannel(duplex)],
    connections: [],
    peerWindowBytes: 32 * MIB,
  })
  const ping = encodeFrame(FRAME_PING, 0, 0, encodeU48(1))
  const count = 10_000
  const pings = Buffer.concat(new Array<Buffer>(count).fill(ping))
  let asked = 0
  for (; asked < 4 * CHANNEL_BACKLOG_FRAMES_MAX && !bundle.ended; asked += count) {
    duplex.push(pings)
    await sleep(1)
  }
  assert.match((await bundle.closed)?.message ?? '', /the far end does not read/)
  assert.ok(
    asked >= CHANNEL_BACKLOG_FRAMES_MAX && asked <= CHANNEL_BACKLOG_FRAMES_MAX + 4 * count,
    `${asked}`,
  )
})

test('frames that were taken do not count as waiting', async () => {
  const [near, far] = duplexPair()
  const channel = new FrameChannel(near)
  let read = 0
  far.on('data', (bytes: Buffer) => {
    read += bytes.length
  })
  let sent = 0
  for (let count = 0; count < CHANNEL_BACKLOG_FRAMES_MAX + 20_000; count++) {
    sent += channel.write(FRAME_PING, 0, 0, [Buffer.alloc(6)])
    if (count % 5000 === 0) await sleep(0)
  }
  while (read < sent && !near.destroyed) await sleep(1)
  assert.equal(read, sent)
  channel.close()
  far.destroy()
})

test('a channel that closes is destroyed when its far end does not take the rest', async () => {
  const [near, far] = duplexPair()
  const channel = new FrameChannel(near)
  channel.write(16, FRAME_BULK, 0, [Buffer.alloc(1000)])
  const started = performance.now()
  const closed = once(near, 'close')
  channel.close()
  const held = setTimeout(() => undefined, 10_000)
  await Promise.race([closed, sleep(5 * CHANNEL_END_MS)])
  clearTimeout(held)
  const ms = performance.now() - started
  assert.ok(near.destroyed && ms >= CHANNEL_END_MS - 10 && ms < 4 * CHANNEL_END_MS, `${ms} ms`)
  far.destroy()
})
