/**
 * A receiver whose far side lies: it asks without reading, describes without end, and its chunks look alike. What is
 * held stays bounded, and the end of it is a break of the protocol, which the far side hears of.
 */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { ByteBudget } from '../../../lib/core/byte-budget.ts'
import {
  MIGRATION_EAGER_BYTES_MAX,
  MIGRATION_TASKS_MAX,
  RECEIVER_FLUSHES_MAX,
  RECEIVER_READS_MAX,
  RECEIVER_TASKS_MAX,
} from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { DiskAccount } from '../../../lib/engine/account.ts'
import { DiskLink } from '../../../lib/engine/link.ts'
import { DiskReceiver } from '../../../lib/engine/receiver.ts'
import type { ChunkQuery } from '../../../lib/engine/sources.ts'
import type { ReceiverBudget } from '../../../lib/engine/task.ts'
import {
  DISK_FAILED,
  DISK_READ_REPLY,
  type DiskMessageBody,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { closeRigs, DurableDevice, rig, wire } from './rig.ts'

after(closeRigs)

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** A receiver alone, on a device whose answers wait until they are let go, and a hand that speaks to it. */
function lonely(options: { budget?: ReceiverBudget; size?: number } = {}) {
  const joined = wire()
  let letGo: () => void = () => undefined
  const gate = new Promise<void>((resolve) => {
    letGo = resolve
  })
  const device = new DurableDevice(Buffer.alloc(options.size ?? 64 * MIB), 1, () => gate)
  const sent: { type: number; bytes: number }[] = []
  let hold: Promise<void> = Promise.resolve()
  joined.b.send = async (type, payload) => {
    sent.push({ type, bytes: payload.reduce((sum, part) => sum + part.length, 0) })
    await hold
  }
  let error: Error | undefined
  const receiver = new DiskReceiver({
    link: new DiskLink(joined.b),
    disk: 0,
    epoch: 1,
    device,
    account: new DiskAccount('vda', device.size),
    sources: [],
    memory: new ByteBudget({ bytesMax: 64 * MIB }),
    sessionEntriesMax: 100,
    ...(options.budget === undefined ? {} : { budget: options.budget }),
    onEnd: (reason) => {
      error = reason
    },
  })
  const say = (message: DiskMessageBody): void => {
    const { type, payload } = encodeDiskMessage({ ...message, disk: 0, epoch: 1 })
    joined.b.onFrame?.(type, Buffer.concat(payload as Uint8Array[]), 0)
  }
  const ended = (): Error | undefined => error
  return {
    receiver,
    device,
    sent,
    say,
    ended,
    letGo: () => letGo(),
    holdAnswers: () => {
      hold = new Promise(() => undefined)
    },
  }
}

function describe(firstSeq: number, offset: number, count: number, length: number): DiskMessageBody {
  const digests = new Uint8Array(32 * count)
  for (let at = 0; at < count; at++) digests.set(sha256(Buffer.from(`${firstSeq + at}`)), 32 * at)
  return { type: 'describe', firstSeq, offset, lengths: new Uint32Array(count).fill(length), digests }
}

test('READs without end: one answer at a time is held, and too many waiting are a breach', async () => {
  const { say, sent, letGo, holdAnswers, ended } = lonely()
  holdAnswers()
  letGo()
  for (let id = 1; id <= RECEIVER_READS_MAX; id++) say({ type: 'read', id, offset: 0, length: MIB })
  await turns(50)
  const replies = sent.filter(({ type }) => type === DISK_READ_REPLY)
  assert.ok(replies.length <= 1, `${replies.length} answers of a MiB wait for a far end that does not read`)
  assert.equal(ended(), undefined)
  say({ type: 'read', id: 9999, offset: 0, length: MIB })
  await turns(5)
  assert.match(ended()?.message ?? '', /READ: 1025 wait already/)
})

test('FLUSHes without end are a breach', async () => {
  const { say, ended } = lonely()
  say(describe(0, 0, 1, 4096))
  for (let id = 1; id <= RECEIVER_FLUSHES_MAX; id++) say({ type: 'flush', id, barrier: 1 })
  assert.equal(ended(), undefined)
  say({ type: 'flush', id: 9999, barrier: 1 })
  await turns(5)
  assert.match(ended()?.message ?? '', /1025 FLUSHes wait already/)
})

test('chunks without end are a breach: of one disk, and of all disks of a migration', async () => {
  const fill = (one: ReturnType<typeof lonely>): void => {
    for (let seq = 0; seq < RECEIVER_TASKS_MAX && one.ended() === undefined; seq += 1024) say(one, seq)
  }
  const say = (one: ReturnType<typeof lonely>, seq: number): void => one.say(describe(seq, seq, 1024, 1))
  const budget: ReceiverBudget = { tasks: 0, eagerBytes: 0 }
  const disks = [lonely({ budget }), lonely({ budget }), lonely({ budget })]
  fill(disks[0]!)
  assert.equal(disks[0]!.ended(), undefined)
  assert.equal(budget.tasks, RECEIVER_TASKS_MAX)
  say(disks[0]!, RECEIVER_TASKS_MAX)
  await turns(5)
  assert.match(disks[0]!.ended()?.message ?? '', /chunks are under way already/)
  assert.equal(budget.tasks, 0, 'a disk that ended holds nothing')
  budget.tasks = MIGRATION_TASKS_MAX - 1024
  say(disks[1]!, 0)
  assert.equal(disks[1]!.ended(), undefined)
  say(disks[2]!, 0)
  await turns(5)
  assert.match(disks[2]!.ended()?.message ?? '', /chunks of all disks are under way already/)
})

test('what comes unasked is bounded over all disks, and a small piece does not keep a large literal', async () => {
  const budget: ReceiverBudget = { tasks: 0, eagerBytes: 0 }
  const { say, ended } = lonely({ budget })
  say(describe(0, 0, 200, 4096))
  const literal = (seq: number): DiskMessageBody => ({
    type: 'literal',
    codec: 'raw',
    chunks: [{ seq, length: 4096 }],
    data: Buffer.alloc(4096),
  })
  say(literal(100))
  await turns(5)
  assert.equal(budget.eagerBytes, 4096)
  budget.eagerBytes = MIGRATION_EAGER_BYTES_MAX
  say(literal(101))
  await turns(5)
  assert.match(ended()?.message ?? '', /bytes came that nobody asked for yet/)
})

test('a breach is told to the far side, and nothing is written after it', async () => {
  const { say, sent, device, letGo } = lonely()
  say(describe(0, 0, 4, 4096))
  say({ type: 'literal', codec: 'raw', chunks: [{ seq: 0, length: 4096 }], data: Buffer.alloc(4096, 1) })
  letGo()
  await turns(50)
  assert.ok(sent.some(({ type }) => type === DISK_FAILED))
  assert.equal(device.writes, 0)
})

test('a disk full of chunks whose digests collide in the index: every candidate is verified, the rest is asked for', async () => {
  let asked = 0
  const liar = {
    name: 'chunk' as const,
    find: async (query: ChunkQuery): Promise<Buffer | undefined> => {
      // Four candidates a chunk, all of the right length and with other content.
      for (let at = 0; at < 4; at++) {
        asked++
        const bytes = Buffer.alloc(query.length, 0x40 + at)
        if (query.verify(bytes)) return bytes
      }
      return undefined
    },
  }
  const { sender, device } = await rig({ contents: Buffer.alloc(8 * MIB), sources: [liar] })
  const bytes = Buffer.alloc(8 * MIB)
  for (let at = 0; at < bytes.length; at += 4096) bytes.write(`block ${at}`, at, 'latin1')
  await sender.write(0, bytes)
  await sender.flush()
  assert.ok(asked > 0)
  assert.ok(device.durable.equals(bytes))
})
