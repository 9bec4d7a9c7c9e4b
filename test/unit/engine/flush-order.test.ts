/** I1 where a FLUSH and what takes the place of older writes meet: seeds.ts found these, and finds them again only now and then. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { closeRigs, loneReceiver, noise, rig } from './rig.ts'

after(closeRigs)

test('I1: a write that takes the place of one for which a FLUSH waits is waited for too', async () => {
  const { sender, device } = await rig({ contents: noise(8 * MIB, 1), minimum: 4096 })
  // More runs than are described at once: the last ones are staged when the FLUSH comes.
  const places = Array.from({ length: 60 }, (_, at) => at * 128 * KIB)
  const first = noise(4 * KIB, 2)
  const second = noise(4 * KIB, 3)
  for (const at of places) await sender.write(at, first)
  const flushed = sender.flush()
  for (const at of places) void sender.write(at, second).catch(() => undefined)
  await flushed
  for (const at of places) {
    const durable = device.durable.subarray(at, at + 4 * KIB)
    assert.ok(durable.equals(first) || durable.equals(second), `what lies at ${at} is older than the FLUSH`)
  }
  await sender.flush()
  for (const at of places) assert.ok(device.durable.subarray(at, at + 4 * KIB).equals(second))
})

test('I1: zeroes of which data takes the place are durable, or that data is, when a FLUSH is answered', async () => {
  const { say, heard, device, ended } = loneReceiver()
  const data = noise(64 * KIB, 5)
  const gate = Promise.withResolvers<void>()
  const write = device.write.bind(device)
  device.write = async (offset, bytes) => {
    await gate.promise
    await write(offset, bytes)
  }
  await say({ type: 'zero', seq: 0, offset: 0, length: data.length })
  await say({
    type: 'describe',
    firstSeq: 1,
    offset: 0,
    lengths: Uint32Array.of(data.length),
    digests: sha256(data),
  })
  await say({ type: 'literal', codec: 'raw', chunks: [{ seq: 1, length: data.length }], data })
  // It is being written.
  await say({ type: 'flush', id: 9, barrier: 1 })
  const answered = (): boolean => heard.some(({ type }) => type === 'flushed')
  assert.equal(answered(), false)
  gate.resolve()
  for (let turns = 0; turns < 100 && !answered(); turns++) await turn()
  assert.equal(answered(), true)
  assert.ok(device.durable.subarray(0, data.length).equals(data))
  assert.equal(ended(), undefined)
})
