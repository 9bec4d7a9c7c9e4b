/** When writes leave the stage: after a while, when there are too many bytes or pieces of them, or when somebody waits. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import type { DescribedRun } from '../../../lib/chunk/describer.ts'
import { SlabPool } from '../../../lib/chunk/slab.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  DESCRIBING_RUNS_MAX,
  EMITTED_RUNS_MAX,
  HURRIED_RUN_BYTES_MAX,
  STAGE_BYTES_MAX,
  STAGE_IDLE_MS,
  STAGE_PIECES_MAX,
} from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { describeRun } from '../../../lib/engine/describe-run.ts'
import { StageDrain } from '../../../lib/engine/stage-drain.ts'

interface Draining {
  readonly drain: StageDrain
  readonly clock: ManualClock
  /** Offsets of what was delivered. */
  readonly delivered: number[]
  readonly errors: unknown[]
}

function start(describe: (bytes: Uint8Array) => Promise<DescribedRun[]> = async () => []): Draining {
  const clock = new ManualClock()
  const delivered: number[] = []
  const errors: unknown[] = []
  const drain = new StageDrain({
    runBytesMax: 64 * MIB,
    describe: (run) => describeRun(run, { slabs: new SlabPool({ bytesMax: 64 * MIB }), describe }, undefined),
    bulkOnly: false,
    clock,
    heldBytesMax: () => 0,
    deliver: async (offset) => {
      delivered.push(offset)
    },
    deliverZeroes: async (offset) => {
      delivered.push(offset)
    },
    onError: (error) => errors.push(error),
  })
  return { drain, clock, delivered, errors }
}

async function turns(count = 50): Promise<void> {
  for (let at = 0; at < count; at++) await turn()
}

test('what waits for neighbours waits for a while, and no longer', async () => {
  const { drain, clock, delivered } = start()
  drain.put(4096, Buffer.alloc(4096))
  clock.advance(STAGE_IDLE_MS - 1)
  await turns()
  assert.deepEqual(delivered, [])
  clock.advance(1)
  await turns()
  assert.deepEqual(delivered, [4096])
})

test('more bytes or pieces than the stage has room for leave at once, the oldest first', async () => {
  const bytes = start()
  for (let at = 0; at <= STAGE_BYTES_MAX / MIB; at++) bytes.drain.put(at * 2 * MIB, Buffer.alloc(MIB))
  await turns()
  assert.deepEqual(bytes.delivered, [0])
  const pieces = start()
  for (let at = 0; at <= STAGE_PIECES_MAX; at++) pieces.drain.put(at * 1024, Buffer.alloc(512))
  await turns()
  assert.deepEqual(pieces.delivered, [0])
})

test('what somebody waits for leaves in short runs, so that the first is on its way while the last is described', async () => {
  const lengths: number[] = []
  const { drain, clock, delivered } = start(async (bytes) => {
    lengths.push(bytes.length)
    return []
  })
  const length = HURRIED_RUN_BYTES_MAX + MIB
  drain.put(0, Buffer.alloc(length))
  clock.advance(STAGE_IDLE_MS)
  await turns()
  drain.put(8 * MIB, Buffer.alloc(length))
  await drain.drain(() => undefined)
  assert.deepEqual(lengths, [length, length])
  drain.put(16 * MIB, Buffer.alloc(length))
  await drain.drain(() => undefined, true)
  assert.deepEqual(lengths.slice(2), [HURRIED_RUN_BYTES_MAX, MIB])
  assert.deepEqual(delivered, [0, 8 * MIB, 16 * MIB, 16 * MIB + HURRIED_RUN_BYTES_MAX])
})

test('runs are delivered in the order in which they left, though a later one is described sooner', async () => {
  const gates = [Promise.withResolvers<DescribedRun[]>(), Promise.withResolvers<DescribedRun[]>()]
  let calls = 0
  const { drain, delivered } = start(() => gates[calls++]?.promise ?? Promise.resolve([]))
  for (const offset of [8192, 0, 32_768]) drain.put(offset, Buffer.alloc(4096))
  const drained = drain.drain(() => undefined)
  await turns()
  assert.equal(calls, DESCRIBING_RUNS_MAX)
  gates[1]!.resolve([])
  await turns()
  assert.deepEqual(delivered, [])
  gates[0]!.resolve([])
  await drained
  assert.deepEqual(delivered, [8192, 0, 32_768])
})

test('what fails is told, and gives its memory back; what ended lets nothing leave', async () => {
  const { drain, clock, delivered, errors } = start(async () => {
    throw new Error('no worker')
  })
  drain.put(0, Buffer.alloc(4096))
  await drain.drain(() => undefined)
  assert.match(String(errors[0]), /no worker/)
  drain.put(0, Buffer.alloc(4096))
  drain.end()
  clock.advance(10 * STAGE_IDLE_MS)
  await turns()
  assert.deepEqual(delivered, [])
  assert.equal(drain.bytes, 0)
})

test('zeroes, which no worker sees, leave so many runs in one turn of the event loop', async () => {
  const { drain, delivered } = start()
  for (let at = 0; at < 3 * EMITTED_RUNS_MAX; at++) drain.putZeroes(at * 8192, 4096)
  const next = new Promise<number>((resolve) => setImmediate(() => resolve(delivered.length)))
  const drained = drain.drain(() => undefined)
  assert.equal(await next, EMITTED_RUNS_MAX)
  await drained
  assert.equal(delivered.length, 3 * EMITTED_RUNS_MAX)
})
