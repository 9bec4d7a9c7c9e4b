/**
 * What a sender can make the receiver hold and do at once: READs and FLUSHes that wait, chunks that are looked for, zeroes that are
 * pending are bounded.
 */
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { test } from 'node:test'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import {
  HURRIED_CHUNKS_MAX,
  PENDING_ZEROES_MAX,
  RECEIVER_FLUSHES_MAX,
  RECEIVER_READS_MAX,
  RESOLVING_CHUNKS_MAX,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import {
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { DurableDevice, wire } from './rig.ts'

/** A receiver over a device that can be held up, and the means to lie to it. */
function receiver(size = 16 * MIB, minimum = 512) {
  const gate = { open: Promise.withResolvers<void>(), reads: 0 }
  const device = new DurableDevice(Buffer.alloc(size, 1), minimum, () => {
    gate.reads++
    return gate.open.promise
  })
  const joined = wire()
  const heard: DiskMessage[] = []
  joined.b.send = async (type, payload) => {
    heard.push(decodeDiskMessage(type, Buffer.concat(payload as Uint8Array[])))
  }
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
  return { say, gate, device, heard, failure: () => failure }
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

/** A run of chunks that lie nowhere, each of two blocks. */
function describe(count: number): DiskMessageBody {
  const lengths = new Uint32Array(count).fill(8 * KIB)
  return { type: 'describe', firstSeq: 0, offset: 0, lengths, digests: randomBytes(32 * count) }
}

test('described chunks are looked for some at once', async () => {
  const { say, gate, failure } = receiver()
  say(describe(4 * RESOLVING_CHUNKS_MAX))
  await settled()
  assert.equal(gate.reads, RESOLVING_CHUNKS_MAX)
  assert.equal(failure(), undefined)
  gate.open.resolve()
})

for (const [count, type] of [
  [HURRIED_CHUNKS_MAX, 'want'],
  [HURRIED_CHUNKS_MAX + 1, 'ask'],
] as const) {
  test(`${count} chunks before a FLUSH that waits: of each ${type} is said`, async () => {
    const { say, gate, heard, failure } = receiver()
    gate.open.resolve()
    say({ type: 'flush', id: 1, barrier: count })
    say(describe(count))
    const told = (): number =>
      heard.reduce((sum, message) => {
        if (message.type !== 'want' && message.type !== 'ask') return sum
        assert.equal(message.type, type)
        return sum + message.runs.reduce((all, run) => all + run.count, 0)
      }, 0)
    for (let waits = 0; waits < 50 && told() < count; waits++) await settled()
    assert.equal(told(), count)
    assert.equal(failure(), undefined)
  })
}

test('very many zeroes are settled though no FLUSH asks for it', async () => {
  const { say, gate, device, failure } = receiver(16 * MIB, 1)
  gate.open.resolve()
  const zero = (seq: number): void => say({ type: 'zero', seq, offset: seq * 128, length: 64 })
  for (let seq = 0; seq < PENDING_ZEROES_MAX; seq++) {
    zero(seq)
    if (seq % 4096 === 0) await settled()
  }
  await settled()
  assert.equal(device.zeroedBytes, 0)
  zero(PENDING_ZEROES_MAX)
  for (let waits = 0; waits < 500 && device.zeroedBytes === 0; waits++) await settled()
  assert.ok(device.zeroedBytes > 0)
  assert.equal(failure(), undefined)
  say({ type: 'close' })
})
