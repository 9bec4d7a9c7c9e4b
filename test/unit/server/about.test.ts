/** What a peer is told of this host, and what it may have looked up: one name at a time, and nothing without end. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import type { PeerConfig } from '../../../config/schema.ts'
import { JOIN_ADDRESSES_MAX, PEER_ADDRESSES_MAX } from '../../../lib/core/limits.ts'
import { Abouts, aboutOf } from '../../../server/about.ts'
import type { Site } from '../../../server/site.ts'

const PEER: PeerConfig = {
  name: 'fra1',
  addresses: ['192.0.2.7'],
  site: 'fra',
  ssh: { user: 'swam', port: 22, key: '/k', hostKey: 'h' },
}

function abouts(run: (argv: readonly string[]) => Promise<string>): Abouts {
  return new Abouts({ libvirt: { hostName: async () => 'here' }, commands: { run } } as unknown as Site)
}

test('one name is looked up at a time, and the next one when that is done, whatever came of it', async () => {
  const waiting = Promise.withResolvers<string>()
  // Nobody may ask for it before it fails.
  waiting.promise.catch(() => undefined)
  const asked: (readonly string[])[] = []
  const one = abouts(async (argv) => {
    asked.push(argv)
    return await waiting.promise
  })
  const first = one.answer({ name: 'a.example.org' }, PEER)
  await assert.rejects(one.answer({ name: 'b.example.org' }, PEER), /looked up already/)
  waiting.reject(new Error('no resolver'))
  assert.deepEqual((await first).resolved, [])
  await one.answer({ name: 'b.example.org' }, PEER)
  assert.deepEqual(
    asked.map((argv) => argv.slice(0, 4)),
    [
      ['getent', 'ahosts', '--', 'a.example.org'],
      ['getent', 'ahosts', '--', 'b.example.org'],
    ],
  )
})

test('what is no name of a host is not looked up', async () => {
  const asked: (readonly string[])[] = []
  const one = abouts(async (argv) => {
    asked.push(argv)
    return ''
  })
  for (const name of ['-x', '$(id)', 'a b', '', '../x', 'a\nb']) {
    assert.deepEqual((await one.answer({ name }, PEER)).resolved, [], name)
  }
  for (const name of ['x'.repeat(256), 7, null]) await assert.rejects(one.answer({ name }, PEER), /name/)
  assert.deepEqual(asked, [])
  for (const params of [null, [], 'x']) await assert.rejects(one.answer(params, PEER), /expected an object/)
})

test('of the addresses of a name so many are told, and the peer hears of its own config only', async () => {
  const lines = Array.from({ length: 100 }, (_value, at) => `192.0.2.${at} STREAM`).join('\n')
  const answer = await abouts(async () => lines).answer({ name: 'a' }, PEER)
  assert.equal(answer.resolved.length, PEER_ADDRESSES_MAX)
  assert.deepEqual(answer.configured, PEER.addresses)
  assert.deepEqual(Object.keys(answer).sort(), [
    'addresses',
    'configured',
    'name',
    'release',
    'resolved',
    'wallMs',
  ])
  assert.deepEqual(aboutOf(JSON.parse(JSON.stringify(answer))), answer)
})

test('an answer is held to its form and to its bounds', () => {
  const about = { release: '1', wallMs: 1, name: 'a', addresses: [], resolved: [], configured: ['::1'] }
  assert.deepEqual(aboutOf(about), about)
  const many = (count: number): string[] => Array.from({ length: count }, () => '::1')
  for (const part of [
    { release: 'x'.repeat(65) },
    { name: 'x'.repeat(256) },
    { wallMs: -1 },
    { wallMs: 1e300 },
    { addresses: many(JOIN_ADDRESSES_MAX + 1) },
    { resolved: many(PEER_ADDRESSES_MAX + 1) },
    { configured: many(PEER_ADDRESSES_MAX + 1) },
    { resolved: ['$(id)'] },
    { addresses: ['fe80::1%\u001b[2J'] },
  ]) {
    assert.throws(() => aboutOf({ ...about, ...part }), /about: /, JSON.stringify(part).slice(0, 80))
  }
})
