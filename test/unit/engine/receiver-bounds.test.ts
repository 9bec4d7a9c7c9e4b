/** What a sender that lies can make the receiver hold: READs and FLUSHes that wait are bounded. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import { RECEIVER_FLUSHES_MAX, RECEIVER_READS_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import { type DiskMessageBody, encodeDiskMessage } from '../../../lib/wire/disk.ts'
import { DurableDevice, wire } from './rig.ts'

/** A receiver over a device that can be held up, and the means to lie to it. */
function receiver(size = 16 * MIB) {
  const gate = { open: Promise.withResolvers<void>(), reads: 0 }
  const device = new DurableDevice(Buffer.alloc(size, 1), 512, () => {
    gate.reads++
    return gate.open.promise
  })
  const joined = wire()
  let failure: Error | undefined
  new DiskReceiver({
    link: new DiskLink(joined.b),
    disk: 0,
    epoch: 1,
    device,
    account: new DiskAccount('vda', size),
    sources: [],
    memory: new ByteBudget({ bytesMax: 64 * MIB }),
    sessionEntriesMax: 1000,
    onEnd: (error) => {
      failure = error
    },
  })
  const say = (message: DiskMessageBody): void => {
    const { type, payload } = encodeDiskMessage({ disk: 0, epoch: 1, ...message })
    joined.b.onFrame?.(type, Buffer.concat(payload), 0)
  }
  return { say, gate, failure: () => failure }
}

const settled = async (): Promise<void> => {
  for (let turns = 0; turns < 20; turns++) await new Promise((resolve) => setImmediate(resolve))
}

test('READs: one is under way, some wait, more are a breach', async () => {
  const { say, gate, failure } = receiver()
  const read = (id: number): void => say({ type: 'read', id, offset: 0, length: MIB })
  for (let id = 1; id <= RECEIVER_READS_MAX; id++) read(id)
  await settled()
  assert.equal(gate.reads, 1)
  assert.equal(failure(), undefined)
  read(0)
  assert.match(String(failure()), /READ: 1025 wait already/)
  gate.open.resolve()
})

test('FLUSHes that are not answered: more are a breach', () => {
  const { say, gate, failure } = receiver()
  for (let id = 1; id <= RECEIVER_FLUSHES_MAX; id++) say({ type: 'flush', id, barrier: 2 ** 40 })
  assert.equal(failure(), undefined)
  say({ type: 'flush', id: 0, barrier: 2 ** 40 })
  return settled().then(() => {
    assert.match(String(failure()), /1025 FLUSHes wait already/)
    gate.open.resolve()
  })
})
