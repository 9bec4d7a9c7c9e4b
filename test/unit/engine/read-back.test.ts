/** What reading back asks of a disk on which a guest is waiting, or which has other work: how much at once, and how it rests. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  PROOF_BUSY_MS,
  PROOF_READ_BYTES_MAX,
  PROOF_READS_MAX,
  PROOF_REST_MS,
} from '../../../lib/core/limits.ts'
import { LEAF_BYTES, MIB } from '../../../lib/core/units.ts'
import { LeafAssembly, LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { ReadBack } from '../../../lib/engine/read-back.ts'
import { closeProofs, newMap } from './proof-rig.ts'
import { DurableDevice } from './rig.ts'

after(closeProofs)

const READ_LEAVES = PROOF_READ_BYTES_MAX / LEAF_BYTES
const PIECES = 3 * PROOF_READS_MAX
const ALL = { first: 0, end: PIECES * READ_LEAVES }

async function reading() {
  const device = new DurableDevice(Buffer.alloc(ALL.end * LEAF_BYTES, 1), 1)
  const state = { reads: 0, looks: 0, busy: false, longest: 0, gate: Promise.resolve() }
  const { read } = device
  device.read = async (offset, length) => {
    state.reads++
    state.longest = Math.max(state.longest, length)
    await state.gate
    return await read.call(device, offset, length)
  }
  const clock = new ManualClock()
  const assembly = new LeafAssembly({
    size: device.size,
    slots: new LeafSlots({ bytesMax: MIB }),
    digest: async () => Buffer.alloc(32),
    whole: () => undefined,
    lost: () => undefined,
    fail: assert.ifError,
  })
  const back = new ReadBack({
    device,
    target: 'vda',
    map: await newMap(device.size),
    assembly,
    busy: () => {
      state.looks++
      return state.busy
    },
    applyZeroes: () => undefined,
    ended: () => false,
    fail: assert.ifError,
    clock,
  })
  return { back, clock, state }
}

/** A map's turn and a read of memory are over by then. */
async function turns(count = 200): Promise<void> {
  for (let at = 0; at < count; at++) await new Promise((resolve) => setImmediate(resolve))
}

test('while a FLUSH waits so many reads are in flight, each of so many bytes', async () => {
  const { back, state } = await reading()
  const gate = Promise.withResolvers<void>()
  state.gate = gate.promise
  const done = back.read([ALL], true)
  await turns()
  assert.deepEqual([state.reads, state.longest], [PROOF_READS_MAX, PROOF_READ_BYTES_MAX])
  gate.resolve()
  assert.deepEqual(await done, [])
  assert.equal(state.reads, PIECES)
})

test('in the background it is one, and it rests as long as that took, or a moment at least', async () => {
  const { back, clock, state } = await reading()
  back.start()
  await back.writing(ALL, Promise.resolve())
  await turns()
  assert.equal(state.reads, 0)
  const gate = Promise.withResolvers<void>()
  state.gate = gate.promise
  clock.advance(PROOF_REST_MS)
  await turns()
  assert.equal(state.reads, 1)
  clock.advance(100)
  gate.resolve()
  state.gate = Promise.resolve()
  await turns()
  clock.advance(99)
  await turns()
  assert.equal(state.reads, 1)
  // This one takes no time.
  clock.advance(1)
  await turns()
  clock.advance(PROOF_REST_MS - 1)
  await turns()
  assert.equal(state.reads, 2)
  clock.advance(1)
  await turns()
  assert.equal(state.reads, 3)
  assert.equal(state.longest, PROOF_READ_BYTES_MAX)
})

test('where all is being written it looks again after a while, and not all the time', async () => {
  const { back, clock, state } = await reading()
  state.busy = true
  back.start()
  await back.writing(ALL, Promise.resolve())
  clock.advance(PROOF_REST_MS)
  await turns()
  const { looks } = state
  assert.ok(looks > 0)
  clock.advance(PROOF_BUSY_MS - 1)
  await turns()
  assert.equal(state.looks, looks)
  clock.advance(1)
  await turns()
  assert.ok(state.looks > looks)
  assert.equal(state.reads, 0)
})

test('so does a FLUSH that waits', async () => {
  const { back, clock, state } = await reading()
  state.busy = true
  let done = false
  const read = back.read([{ first: 0, end: 1 }], true).finally(() => {
    done = true
  })
  await turns()
  clock.advance(PROOF_BUSY_MS - 1)
  await turns()
  assert.equal(done, false)
  clock.advance(1)
  await read
})
