/** A bundle whose link breaks goes on over another one: nothing twice, nothing missed, or lost at both ends with a reason. */
import assert from 'node:assert/strict'
import { createHash, randomBytes } from 'node:crypto'
import { duplexPair } from 'node:stream'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import fc from 'fast-check'
import { LostError, ProtocolError } from '../../../lib/core/errors.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Bundle } from '../../../lib/peer/bundle.ts'
import { FrameChannel } from '../../../lib/peer/channel.ts'
import { bundlePair, type MemoryOptions } from '../../../lib/peer/memory.ts'
import type { BundleTuning } from '../../../lib/peer/options.ts'
import { StreamMux } from '../../../lib/peer/stream.ts'
import { encodeFrame, encodeU48, FRAME_ACK, FRAME_BULK, FRAME_CONTROL } from '../../../lib/wire/frame.ts'
import { FEATURE_RESUME } from '../../../lib/wire/hello.ts'

const resumable = (options: MemoryOptions = {}): ReturnType<typeof bundlePair> =>
  bundlePair({ features: [FEATURE_RESUME], ...options })

test('property: whatever is cut and when, every frame arrives once and in order, both ways', async () => {
  await fc.assert(
    fc.asyncProperty(
      fc.array(fc.tuple(fc.integer({ min: 0, max: 200 * KIB }), fc.boolean(), fc.nat({ max: 4 })), {
        minLength: 20,
        maxLength: 120,
      }),
      fc.array(fc.nat({ max: 12 }), { minLength: 1, maxLength: 8 }),
      async (sends, pauses) => {
        const { near, far, cut } = await resumable({ channels: 3, delayMs: 1 })
        const got: [string[], string[]] = [[], []]
        for (const [index, end] of [far, near].entries()) {
          end.onFrame = (type, payload) =>
            got[index]!.push(
              `${type} ${payload.length} ${payload.subarray(0, 4).toString('hex')} ${digest(payload)}`,
            )
        }
        const expected: [string[], string[]] = [[], []]
        let over = false
        const cutting = (async () => {
          for (const ms of pauses) {
            await sleep(ms)
            if (!over) cut()
          }
        })()
        // One class a direction: only frames of one class keep the order in which they were sent.
        for (const [turn, [bytes, back, type]] of sends.entries()) {
          const payload = Buffer.alloc(4 + bytes, turn)
          payload.writeUInt32BE(turn)
          expected[back ? 1 : 0].push(
            `${16 + type} ${payload.length} ${payload.subarray(0, 4).toString('hex')} ${digest(payload)}`,
          )
          await (back ? far : near).send(16 + type, [payload.subarray(0, 4), payload.subarray(4)], FRAME_BULK)
        }
        await cutting
        over = true
        while (got[0].length < expected[0].length || got[1].length < expected[1].length) {
          assert.ok(!near.ended && !far.ended, 'the bundle ended')
          await sleep(2)
        }
        assert.deepEqual(got, expected)
        // The last cut may have come after the last frame.
        while (near.resumes === 0 || near.broken || far.broken) await sleep(2)
        assert.ok(near.resumes > 0 && near.resumes === far.resumes, `${near.resumes} and ${far.resumes}`)
        await near.close()
        assert.equal(await near.closed, undefined)
        assert.equal(await far.closed, undefined)
      },
    ),
    { numRuns: 40 },
  )
})

function digest(bytes: Buffer): string {
  return createHash('sha1').update(bytes).digest('hex').slice(0, 12)
}

test('a stream through a bundle that is cut again and again: byte for byte', async () => {
  const { near, far, cut } = await resumable({ channels: 2, delayMs: 1, bytesPerSecond: 200 * MIB })
  new StreamMux(far, (_, stream) => stream.pipe(stream))
  const stream = new StreamMux(near).open({ port: 49_152 })
  const sent = randomBytes(24 * MIB)
  let over = false
  const cutting = (async () => {
    while (!over) {
      await sleep(40)
      if (!over) cut()
    }
  })()
  stream.end(sent)
  const parts: Buffer[] = []
  for await (const part of stream) parts.push(part as Buffer)
  over = true
  await cutting
  assert.ok(Buffer.concat(parts).equals(sent))
  assert.ok(near.resumes > 2, `${near.resumes} resumes`)
  await near.close()
})

test('what is sent while the link is down waits, and is counted as silence', async () => {
  const { near, far, cut, setDown } = await resumable()
  const got: string[] = []
  far.onFrame = (_, payload) => got.push(payload.toString())
  await near.send(16, [Buffer.from('one')], FRAME_CONTROL)
  setDown(true)
  cut()
  await sleep(20)
  assert.equal(near.broken, true)
  let sent = false
  const sending = near.send(16, [Buffer.from('two')], FRAME_CONTROL).then(() => {
    sent = true
  })
  await sleep(100)
  assert.equal(sent, false)
  assert.ok(near.silentMs >= 100, `${near.silentMs}`)
  setDown(false)
  await sending
  await near.close()
  assert.deepEqual(got, ['one', 'two'])
  assert.equal(near.resumes, 1)
})

test('a link that stays down is a loss at both ends when the time is up, and what waits is told', async () => {
  const { near, far, cut, setDown } = await resumable({ resumeMs: 200 })
  setDown(true)
  cut()
  await sleep(20)
  const waiting = near.send(16, [Buffer.from('x')], FRAME_BULK).catch((error: unknown) => error)
  const held = setTimeout(() => undefined, 10_000)
  const errors = await Promise.all([near.closed, far.closed])
  clearTimeout(held)
  for (const error of errors) {
    assert.ok(error instanceof LostError)
    assert.match(error.message, /not resumed within 200 ms/)
  }
  assert.ok((await waiting) instanceof LostError)
})

test('a far end that lost the bundle is a loss at once', async () => {
  const { near, far, cut } = await resumable()
  far.lost(new LostError('the daemon began anew'))
  cut()
  const error = await near.closed
  assert.ok(error instanceof LostError)
  assert.match(error.message, /cannot be resumed: the bundle is not known here any more/)
})

test('onBroken is told once for each break, also when it is set later', async () => {
  const { near, far, cut } = await resumable()
  const reasons: string[] = []
  cut()
  await sleep(5)
  far.onBroken = (reason) => reasons.push(reason.message)
  while (near.resumes < 1) await sleep(2)
  cut()
  while (near.resumes < 2) await sleep(2)
  assert.ok(reasons.length >= 1 && reasons.length <= 2, reasons.join('; '))
  await near.close()
})

/** A bundle that dialed, whose new link is the test itself, byte by byte. */
function resumedBy(peerDeliveredBytes: number, tuning: BundleTuning = {}) {
  let [left, right] = duplexPair()
  const bundle = new Bundle({
    ...tuning,
    id: '00'.repeat(16),
    kind: 'disk',
    peer: 'test',
    migrationId: '',
    features: new Set([FEATURE_RESUME]),
    dialed: true,
    channels: [new FrameChannel(left)],
    connections: [],
    peerWindowBytes: 32 * MIB,
    reconnect: async () => {
      ;[left, right] = duplexPair()
      return { channels: [new FrameChannel(left)], connections: [], peerDeliveredBytes }
    },
  })
  return { bundle, end: right.resume() }
}

test('a link that gives no answer is given up, and another one is made', async () => {
  const { bundle } = resumedBy(0, { pingIntervalMs: 20, silenceMs: 80 })
  const reasons: string[] = []
  bundle.onBroken = (reason) => reasons.push(reason.message)
  for (let turn = 0; turn < 1000 && bundle.resumes < 2; turn++) await sleep(5)
  assert.equal(bundle.resumes, 2)
  assert.equal(bundle.ended, false)
  for (const reason of reasons)
    assert.match(reason, /nothing was heard for \d+ ms, at most 80 ms are allowed/)
  await bundle.close(new Error('done'))
})

for (const { name, acked, delivered, message } of [
  {
    name: 'less than it said before',
    acked: 24,
    delivered: 12,
    message: /delivered 12 bytes, it said 24 before/,
  },
  { name: 'more than was sent', acked: 24, delivered: 100, message: /100 bytes is not the end of a frame/ },
  {
    name: 'the middle of a frame',
    acked: 12,
    delivered: 17,
    message: /17 bytes is not the end of a frame/,
  },
]) {
  test(`hostile: a far end that claims to have delivered ${name} ends the bundle`, async () => {
    const { bundle, end } = resumedBy(delivered)
    for (let index = 0; index < 3; index += 1) await bundle.send(16, [], FRAME_CONTROL)
    end.write(encodeFrame(FRAME_ACK, 0, 0, encodeU48(acked)))
    await sleep(5)
    end.destroy()
    const error = await bundle.closed
    assert.ok(error instanceof ProtocolError, `${error}`)
    assert.match(error.message, message)
  })
}
