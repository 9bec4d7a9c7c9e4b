/** What a receiver has read in a chunk's place is not read again to look for its blocks, and what waits for that is bounded. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { FINDING_CHUNKS_MAX, OLD_KEPT_BYTES_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES as BLOCK, BRIEF_HINT_BYTES, KIB, MIB } from '../../../lib/core/units.ts'
import { BlockLevel } from '../../../lib/engine/block-level.ts'
import type { Reports } from '../../../lib/engine/reports.ts'
import { newTask } from '../../../lib/engine/task.ts'
import { closeRigs, DurableDevice, noise, rig } from './rig.ts'

after(closeRigs)

test('old content is read once, and looked through as it was read', async () => {
  const disk = noise(8 * MIB, 17)
  const delay = async (): Promise<void> => {
    for (let turns = 0; turns < 10; turns++) await new Promise((resolve) => setImmediate(resolve))
  }
  const { sender, device } = await rig({ contents: Buffer.alloc(8 * MIB), minimum: 4096, delay })
  await sender.write(0, Buffer.from(disk))
  await sender.flush()
  const read = device.read.bind(device)
  let readBytes = 0
  device.read = async (offset, length) => {
    readBytes += length
    return await read(offset, length)
  }
  for (let at = 0; at < 4 * MIB; at += 64 * KIB) noise(BLOCK, 5000 + at).copy(disk, at)
  await sender.write(0, Buffer.from(disk.subarray(0, 4 * MIB)))
  await sender.settle()
  await sender.flush()
  assert.ok(device.durable.equals(disk))
  assert.ok(readBytes < 1.2 * 4 * MIB, `${readBytes} bytes read of 4 MiB`)
})

test('of old content that waits to be looked through so much is kept, and the rest is read again', async () => {
  const unit = 64 * KIB
  const count = OLD_KEPT_BYTES_MAX / unit + FINDING_CHUNKS_MAX + 20
  const contents = noise(MIB, 18)
  let reads = 0
  const device = new DurableDevice(Buffer.alloc(count * unit), BLOCK)
  device.read = async (_offset, length) => {
    reads++
    return Buffer.from(contents.subarray(0, length))
  }
  const told = Promise.withResolvers<void>()
  let tellings = 0
  const tell = (): void => {
    if (++tellings === count) told.resolve()
  }
  const level = new BlockLevel({
    device,
    places: [],
    sessionBytesMax: MIB,
    reports: { ask: tell, unask: () => undefined, parts: tell, sketches: tell } as unknown as Reports,
    deltas: true,
    mayHold: () => true,
    ended: () => false,
    apply: tell,
    take: tell,
    want: tell,
    early: () => undefined,
    fail: told.reject,
  })
  // The first ones have their turn at once.
  for (let seq = 0; seq < count; seq++) {
    const task = newTask(seq, seq * unit, (seq + 1) * unit, sha256(contents), undefined)
    task.hints = Buffer.alloc((unit / BLOCK) * BRIEF_HINT_BYTES, 1)
    assert.ok(level.ask(task, Buffer.from(contents.subarray(0, unit))))
  }
  await told.promise
  assert.equal(reads, 20)
  // It is given back.
  const task = newTask(count, 0, unit, sha256(contents), undefined)
  task.hints = Buffer.alloc((unit / BLOCK) * BRIEF_HINT_BYTES, 1)
  level.ask(task, Buffer.from(contents.subarray(0, unit)))
  await new Promise((resolve) => setTimeout(resolve, 20))
  assert.deepEqual([reads, tellings], [20, count + 1])
})
