/** Dialing hosts that give no answer, and dialing again: how long one try may take, and how often it is tried. */
import assert from 'node:assert/strict'
import { once } from 'node:events'
import { type AddressInfo, createServer, type Server } from 'node:net'
import { type TestContext, test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ManualClock } from '../../../lib/core/clock.ts'
import { LostError, TimeoutError } from '../../../lib/core/errors.ts'
import {
  CHANNELS_MAX,
  RESUME_BACKOFF_MS,
  RESUME_BACKOFF_MS_MAX,
  RESUME_TRY_MS_MAX,
} from '../../../lib/core/limits.ts'
import type { ResumeRequest } from '../../../lib/peer/options.ts'
import { reconnect } from '../../../lib/peer/resume.ts'
import { type DialOptions, dialBundle } from '../../../lib/peer/ssh.ts'
import { deafListener } from '../server/deaf.ts'
import { keyPair } from './key-pair.ts'

const keys = keyPair()
const options = (more: Partial<DialOptions>): DialOptions => ({
  addresses: ['127.0.0.1'],
  port: 1,
  user: 'swam',
  privateKey: keys.private,
  hostKey: keys.public,
  kind: 'control',
  migrationId: '',
  channels: 1,
  localName: 'here',
  ...more,
})

/** Takes connections and says nothing. */
async function mute(
  context: TestContext,
  host: string,
  port = 0,
): Promise<{ port: number; taken: () => number }> {
  let taken = 0
  const server: Server = createServer((socket) => {
    taken++
    socket.on('error', () => undefined)
    context.after(() => socket.destroy())
  }).listen(port, host)
  await once(server, 'listening')
  context.after(() => server.close())
  return { port: (server.address() as AddressInfo).port, taken: () => taken }
}

test('a host that takes the connection and says nothing is given up', async (context) => {
  const { port, taken } = await mute(context, '127.0.0.1')
  const started = performance.now()
  await assert.rejects(dialBundle(options({ port, timeoutMs: 200 })), TimeoutError)
  assert.ok(performance.now() - started < 5000)
  assert.equal(taken(), 1)
})

test('no bundle has no channel, or more than one may have', async (context) => {
  const { port, taken } = await mute(context, '127.0.0.1')
  for (const channels of [0, 1.5, CHANNELS_MAX + 1])
    await assert.rejects(dialBundle(options({ port, channels, timeoutMs: 200 })), RangeError)
  assert.equal(taken(), 0)
})

test('an address that swallows packets leaves time for the next one', async (context) => {
  const { port, close } = await deafListener()
  context.after(close)
  const { taken } = await mute(context, '127.0.0.2', port)
  const addresses = ['127.0.0.1', '127.0.0.2']
  await assert.rejects(dialBundle(options({ addresses, port, timeoutMs: 1500 })), TimeoutError)
  assert.equal(taken(), 1)
})

/** A way back that is tried under a clock of the test. */
function way(give: (request: ResumeRequest) => Promise<never>) {
  const clock = new ManualClock()
  const controller = new AbortController()
  const attempts: number[] = []
  const done = reconnect({
    reconnect: (request) => {
      attempts.push(clock.nowMs())
      return give(request)
    },
    nextAttempt: () => attempts.length,
    deliveredBytes: 0,
    signal: controller.signal,
    clock,
  })
  done.catch(() => undefined)
  const pass = async (ms: number): Promise<void> => {
    for (const end = clock.nowMs() + ms; clock.nowMs() < end; ) {
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve))
      clock.advance(100)
    }
  }
  return { attempts, pass, done, controller }
}

test('a link that stays down is tried at once, then ever more rarely, and at least once a second', async () => {
  const { attempts, pass, done, controller } = way(async () => {
    throw new LostError('the link is down')
  })
  await pass(6000)
  controller.abort(new LostError('enough'))
  await assert.rejects(done, /enough/)
  assert.equal(attempts[0], 0)
  const pauses = attempts.slice(1).map((at, index) => at - attempts[index]!)
  assert.deepEqual(
    pauses.slice(0, 3),
    [1, 2, 4].map((times) => times * RESUME_BACKOFF_MS),
  )
  assert.ok(pauses.slice(3).length > 2)
  for (const pause of pauses.slice(3)) assert.equal(pause, RESUME_BACKOFF_MS_MAX)
})

test('a try to resume that hangs is followed by another one', async () => {
  const { attempts, pass, controller, done } = way(
    ({ signal }) =>
      new Promise((_resolve, reject) =>
        signal.addEventListener('abort', () => reject(signal.reason as Error)),
      ),
  )
  await pass(RESUME_TRY_MS_MAX)
  assert.equal(attempts.length, 1)
  await pass(RESUME_BACKOFF_MS + 200)
  assert.equal(attempts.length, 2)
  controller.abort(new LostError('enough'))
  await assert.rejects(done, /enough/)
})

test('a try that hangs ends at once when the bundle has ended', async () => {
  const { controller, done } = way(
    ({ signal }) =>
      new Promise((_resolve, reject) =>
        signal.addEventListener('abort', () => reject(signal.reason as Error)),
      ),
  )
  await sleep(10)
  controller.abort(new LostError('the guest is gone'))
  await assert.rejects(done, /the guest is gone/)
})
