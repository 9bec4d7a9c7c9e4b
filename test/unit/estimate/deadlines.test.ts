/** Times of an estimate: how long a question may take, so that nobody waits for ever, and the minute in which its starts are counted. */
import assert from 'node:assert/strict'
import { join } from 'node:path'
import { test } from 'node:test'
import { ESTIMATE_CALL_MS, ESTIMATE_STARTS_MAX, ESTIMATE_STARTS_MS } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { image } from '../analyze/rig.ts'
import { randomBytes } from '../chunk/samples.ts'
import { diskXml, hosts } from './rig.ts'

test('each question has its deadline', async (context) => {
  const rig = await hosts(context, { disks: ({ near }) => diskXml('vda', join(near, 'web.raw')) })
  const bytes = randomBytes(4 * MIB, 1)
  await image(join(rig.near, 'web.raw'), 8 * MIB, [[MIB, bytes]])
  // In another layout, so that blocks are asked for.
  const other = Buffer.concat([bytes.subarray(64 * KIB), bytes.subarray(0, 64 * KIB)])
  await image(join(rig.far, 'other.raw'), 8 * MIB, [[512 * KIB, other]])
  const asked = new Map<string, number>()
  const { peer } = rig
  const ask = peer.ask.bind(peer)
  Object.assign(peer, {
    ask: async (...call: Parameters<typeof peer.ask>) => {
      asked.set(call[0], call[2])
      return await ask(...call)
    },
  })
  await rig.estimate()
  assert.deepEqual(
    Object.fromEntries(asked),
    Object.fromEntries(
      ['estimate', 'estimateChunks', 'estimateBlocks', 'estimateEnd'].map((method) => [
        method,
        ESTIMATE_CALL_MS,
      ]),
    ),
  )
})

test('estimates are counted for a minute', async (context) => {
  const rig = await hosts(context, { disks: ({ near }) => diskXml('vda', join(near, 'web.raw')) })
  const peer = await rig.dial('a')
  const begin = async (): Promise<void> => {
    await peer.call('estimate', { targets: [] })
    await peer.call('estimateEnd', {})
  }
  for (let start = 0; start < ESTIMATE_STARTS_MAX; start++) await begin()
  const now = performance.now()
  const clock = context.mock.method(performance, 'now', () => now)
  await assert.rejects(begin(), /wait a minute/)
  clock.mock.mockImplementation(() => now + ESTIMATE_STARTS_MS)
  await begin()
})
