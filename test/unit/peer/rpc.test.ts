/** Requests and answers over a control bundle: errors carried, ceilings, timeouts, loss. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { LostError, ProtocolError, RefusedError, SwamError, TimeoutError } from '../../../lib/core/errors.ts'
import { RPC_CALLS_MAX, RPC_SERVED_MAX } from '../../../lib/core/limits.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { RPC_REQUEST, RPC_RESPONSE, Rpc } from '../../../lib/peer/rpc.ts'
import { FRAME_CONTROL } from '../../../lib/wire/frame.ts'

async function pair() {
  const { near, far, cut } = await bundlePair({ kind: 'control', channels: 1 })
  return { near, far, cut, client: new Rpc(near), server: new Rpc(far) }
}

test('calls in both directions, answered out of order', async () => {
  const { near, client, server } = await pair()
  let release: (value: string) => void = () => undefined
  server.handle('slow', () => new Promise((resolve) => (release = resolve)))
  server.handle('echo', async (params) => params)
  client.handle('name', async () => 'near')
  const slow = client.call('slow', null)
  assert.deepEqual(await client.call('echo', { list: [1, 'two'] }), { list: [1, 'two'] })
  assert.equal(await server.call('name', {}), 'near')
  release('at last')
  assert.equal(await slow, 'at last')
  await near.close()
})

test('errors keep their class and code', async () => {
  const { near, client, server } = await pair()
  server.handle('refuse', async () => Promise.reject(new RefusedError('no such guest')))
  server.handle('own', async () => Promise.reject(new SwamError('SWAM_FULL', 'no room')))
  server.handle('bug', async () => Promise.reject(new TypeError('x is undefined')))
  await assert.rejects(
    client.call('refuse', 0),
    (error) => error instanceof RefusedError && /far: rpc refuse: no such guest/.test(error.message),
  )
  await assert.rejects(
    client.call('own', 0),
    (error) => error instanceof SwamError && error.code === 'SWAM_FULL',
  )
  await assert.rejects(
    client.call('bug', 0),
    (error) => error instanceof SwamError && error.code === 'SWAM_FAILED',
  )
  await assert.rejects(client.call('none', 0), /method "none" is not known/)
  await near.close()
})

test('a call has a deadline, and its late answer does no harm', async () => {
  const { near, client, server } = await pair()
  let release: (value: unknown) => void = () => undefined
  server.handle('never', () => new Promise((resolve) => (release = resolve)))
  server.handle('ok', async () => 1)
  await assert.rejects(client.call('never', 0, { timeoutMs: 5 }), TimeoutError)
  release(0)
  assert.equal(await client.call('ok', 0), 1)
  await near.close()
})

test('a loss rejects what waits', async () => {
  const { client, server, cut } = await pair()
  server.handle('never', () => new Promise(() => undefined))
  const waiting = client.call('never', 0)
  cut()
  await assert.rejects(waiting, LostError)
  await assert.rejects(client.call('never', 0), LostError)
})

test('a peer that answers nothing is called so many times, and then no more', async () => {
  const { near, far, cut } = await bundlePair({ kind: 'control', channels: 1 })
  far.onFrame = () => undefined
  const client = new Rpc(near)
  const calls = Array.from({ length: RPC_CALLS_MAX }, () => client.call('anything', 0))
  const outcomes = Promise.allSettled(calls)
  await assert.rejects(client.call('anything', 0), (error) => {
    assert.ok(error instanceof RefusedError)
    assert.match(error.message, /1024 calls to far wait already/)
    return true
  })
  cut()
  for (const outcome of await outcomes) {
    assert.ok(outcome.status === 'rejected' && outcome.reason instanceof LostError)
  }
})

test('a peer that calls without end: so many are served at once, the rest is refused', async () => {
  const { near, client, server } = await pair()
  let serving = 0
  let most = 0
  let refused = 0
  const gate = Promise.withResolvers<void>()
  server.handle('slow', async () => {
    most = Math.max(most, ++serving)
    await gate.promise
    serving--
  })
  const call = (): Promise<unknown> =>
    client.call('slow', 0).catch((error: unknown) => {
      // Those that are served wait until all others have their answer.
      if (++refused === 500 - RPC_SERVED_MAX) gate.resolve()
      throw error
    })
  const all = await Promise.allSettled(Array.from({ length: 500 }, call))
  assert.equal(most, RPC_SERVED_MAX)
  assert.equal(all.filter(({ status }) => status === 'fulfilled').length, RPC_SERVED_MAX)
  assert.equal(await client.call('slow', 0), undefined)
  await near.close()
})

test('what is too large is refused on the side where it arises', async () => {
  const { near, client, server } = await pair()
  server.handle('big', async () => 'x'.repeat(300 * 1024))
  await assert.rejects(client.call('echo', 'x'.repeat(300 * 1024)), /at most 262144 fit/)
  await assert.rejects(client.call('big', 0), /the answer: .* at most 262144 fit/)
  await near.close()
})

for (const { name, type, payload } of [
  { name: 'no JSON', type: RPC_REQUEST, payload: '{' },
  { name: 'null', type: RPC_REQUEST, payload: 'null' },
  { name: 'no id', type: RPC_REQUEST, payload: '{"method":"x"}' },
  { name: 'no method', type: RPC_REQUEST, payload: '{"id":1}' },
  { name: 'a response without id', type: RPC_RESPONSE, payload: '{}' },
  { name: 'an unknown frame', type: 200, payload: '{}' },
  {
    name: 'too large',
    type: RPC_REQUEST,
    payload: `{"id":1,"method":"x","params":"${'x'.repeat(262_144)}"}`,
  },
]) {
  test(`hostile: ${name}`, async () => {
    const { near, far } = await bundlePair({ kind: 'control' })
    new Rpc(far)
    await near.send(type, [Buffer.from(payload)], FRAME_CONTROL)
    assert.ok((await far.closed) instanceof ProtocolError)
  })
}
