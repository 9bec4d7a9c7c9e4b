/**
 * Peers that come and go in a running daemon, and the test of a link between two ends of a bundle in memory: what is
 * bounded stays so whatever the other end asks or sends.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PeerConfig } from '../../../config/schema.ts'
import { LINK_TEST_BYTES_MAX, LINK_TEST_STEPS_MAX } from '../../../lib/core/limits.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { Rpc } from '../../../lib/peer/rpc.ts'
import { FRAME_BULK } from '../../../lib/wire/frame.ts'
import { LINK_TEST_DATA, LinkTests } from '../../../server/link-test.ts'
import { PeerList } from '../../../server/peer-list.ts'
import { answerPeer, type Peer } from '../../../server/peers.ts'

const config = (name: string, port = 22): PeerConfig => ({
  name,
  addresses: ['192.0.2.1'],
  site: '',
  ssh: { user: 'swam', port, key: '/k', hostKey: 'h' },
})

function list(...names: string[]) {
  const said: string[] = []
  const busy = new Set<string>()
  const peers = new PeerList(
    names.map((name) => config(name)),
    {
      make: (one) =>
        ({
          config: one,
          start: () => void said.push(`start ${one.name} ${one.ssh.port}`),
          close: async () => void said.push(`close ${one.name} ${one.ssh.port}`),
        }) as unknown as Peer,
      busy: (name) => busy.has(name),
      dropped: (name) => void said.push(`drop ${name}`),
    },
  )
  return { peers, said, busy }
}

test('peers are added, changed and removed; others are not touched', () => {
  const { peers, said } = list('a', 'b', 'c')
  const held = peers.peers
  const changes = peers.change([config('a'), config('b', 2222), config('d')])
  assert.deepEqual(changes, { added: ['d'], changed: ['b'], removed: ['c'], busy: [] })
  assert.deepEqual(
    held.map((peer) => `${peer.config.name} ${peer.config.ssh.port}`),
    ['a 22', 'b 2222', 'd 22'],
    'who held the list sees it',
  )
  assert.deepEqual(said, ['start b 2222', 'drop b', 'close b 22', 'drop c', 'close c 22', 'start d 22'])
  assert.deepEqual(peers.change(peers.configs), { added: [], changed: [], removed: [], busy: [] })
  assert.equal(peers.settle(), undefined)
})

test('a peer with a migration under way stays until that is over', () => {
  const { peers, said, busy } = list('a', 'b')
  busy.add('a').add('b')
  assert.deepEqual(peers.change([config('a', 2222)]).busy, ['a', 'b'])
  assert.deepEqual(said, [])
  busy.delete('b')
  assert.deepEqual(peers.settle()?.removed, ['b'])
  assert.deepEqual(said, ['drop b', 'close b 22'])
  busy.delete('a')
  assert.deepEqual(peers.settle()?.changed, ['a'])
  assert.equal(peers.settle(), undefined)
})

async function linked() {
  const { near: a, far: b } = await bundlePair({ kind: 'control' })
  const tests = { a: new LinkTests(), b: new LinkTests() }
  answerPeer(b, {}, tests.b)
  const rpc = new Rpc(a, { other: (type, payload) => tests.a.frame(a, type, payload) })
  return { a, b, rpc, tests, close: () => Promise.all([a.close(), b.close()]) }
}

test('a link is tested both ways, and what arrived has the digest of what was sent', async () => {
  const { a, rpc, tests, close } = await linked()
  const report = await tests.a.run(a, rpc, '0.1.0')
  for (const way of [report.out, report.in]) {
    assert.equal(way.bytes, LINK_TEST_BYTES_MAX)
    assert.ok(way.verified && way.elapsedMs > 0)
  }
  assert.notEqual(report.out.sha256, report.in.sha256)
  assert.ok(Math.abs(report.clockMs) < 1000)
  await close()
})

test('one test at a time, and so many steps in a minute', async () => {
  const { a, rpc, tests, close } = await linked()
  await rpc.call('testTake', { bytes: 10 })
  await assert.rejects(rpc.call('testTake', { bytes: 10 }), /another test/)
  await assert.rejects(rpc.call('testGive', { bytes: 10 }), /another test/)
  await assert.rejects(tests.b.run(a, rpc, ''), /another test/)
  await rpc.call('testTaken', { bytes: 0 })
  for (let step = 1; step < LINK_TEST_STEPS_MAX; step++) {
    await rpc.call('testTake', { bytes: 0 })
    await rpc.call('testTaken', { bytes: 0 })
  }
  await assert.rejects(rpc.call('testTake', { bytes: 0 }), /wait a minute/)
  await assert.rejects(rpc.call('testGive', { bytes: 0 }), /wait a minute/)
  await close()
})

test('more than the ceiling is refused; more than was announced, or data without a test, end the bundle', {
  timeout: 30_000,
}, async () => {
  for (const bytes of [LINK_TEST_BYTES_MAX + 1, -1, 1.5, '7', null]) {
    const { rpc, close } = await linked()
    await assert.rejects(rpc.call('testTake', { bytes }), /bytes/)
    await assert.rejects(rpc.call('testGive', { bytes }), /bytes/)
    await close()
  }
  for (const announced of [undefined, 10]) {
    const { a, b, rpc } = await linked()
    if (announced !== undefined) await rpc.call('testTake', { bytes: announced })
    await a.send(LINK_TEST_DATA, [Buffer.alloc(11)], FRAME_BULK).catch(() => undefined)
    assert.match((await b.closed)?.message ?? '', announced === undefined ? /not expected/ : /announced/)
    await a.closed
  }
})
