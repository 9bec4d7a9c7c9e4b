/** A guest that writes a little everywhere: what both ends keep of the places is in a bounded number of runs, small gaps count in. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { ManualClock } from '../../../lib/core/clock.ts'
import { PROOF_RUNS_MAX } from '../../../lib/core/limits.ts'
import { LEAF_BYTES, MIB } from '../../../lib/core/units.ts'
import { LeafAssembly, LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { ReadBack } from '../../../lib/engine/read-back.ts'
import { ReceiverProof } from '../../../lib/engine/receiver-proof.ts'
import { SenderProof } from '../../../lib/engine/sender-proof.ts'
import type { LeafRun } from '../../../lib/proof/leaf-set.ts'
import { RootSum } from '../../../lib/proof/root.ts'
import { closeProofs, newMap } from './proof-rig.ts'
import { DurableDevice } from './rig.ts'

after(closeProofs)

const PLACES = PROOF_RUNS_MAX + 100
const LEAVES = 2 * PLACES
const SIZE = LEAVES * LEAF_BYTES

/** Of so many bytes, of which nobody asks. */
function device(): DurableDevice {
  return Object.assign(new DurableDevice(Buffer.alloc(LEAF_BYTES), 1), { size: SIZE })
}

/** Few enough, and all of those that were touched are among them. */
function assertKept(runs: readonly LeafRun[]): void {
  assert.ok(runs.length <= PROOF_RUNS_MAX, `${runs.length} runs`)
  let place = 0
  for (const { first, end } of runs) {
    assert.ok(first <= 2 * place, `leaf ${2 * place} is none of them`)
    while (place < PLACES && 2 * place < end) place++
  }
  assert.equal(place, PLACES)
}

test('the sender, of what was written since the last proof', async () => {
  const proof = new SenderProof({
    map: await newMap(SIZE),
    size: SIZE,
    target: 'vda',
    read: false,
    describe: () => Promise.reject(new Error('nothing is described')),
  })
  const asked = proof.ask(1)
  assert.deepEqual(await asked, [{ first: 0, end: LEAVES }])
  await proof.answer(1, { root: new RootSum().bytes(), unread: 0, excluded: [] })
  for (let place = 0; place < PLACES; place++) await proof.zeroed(2 * place * LEAF_BYTES, LEAF_BYTES)
  assertKept(proof.since)
})

test('the receiver, of what was written behind the barrier of the last proof', async () => {
  const proof = new ReceiverProof({
    device: device(),
    map: await newMap(SIZE),
    target: 'vda',
    slots: new LeafSlots({ bytesMax: MIB }),
    digest: async () => Buffer.alloc(32),
    read: false,
  })
  const applyZeroes = (): void => undefined
  proof.attach({ busy: () => false, applyZeroes, ended: () => false, fail: assert.ifError })
  const prove = { barrier: 0, read: false, open: [{ first: 0, end: LEAVES }] }
  const asked = proof.asked(prove, 0)
  const touch = (place: number): void =>
    proof.began(place, 2 * place * LEAF_BYTES, (2 * place + 1) * LEAF_BYTES)
  for (let place = 0; place < 10; place++) touch(place)
  assert.equal((await proof.answer(asked))?.excluded.length, 10)
  for (let place = 10; place < PLACES; place++) touch(place)
  assertKept(proof.since)
})

test('the receiver, of what is to be read back', async () => {
  const back = new ReadBack({
    device: device(),
    target: 'vda',
    map: await newMap(SIZE),
    assembly: new LeafAssembly({
      size: SIZE,
      slots: new LeafSlots({ bytesMax: MIB }),
      digest: async () => Buffer.alloc(32),
      whole: () => undefined,
      lost: () => undefined,
      fail: assert.ifError,
    }),
    busy: () => true,
    applyZeroes: () => undefined,
    ended: () => false,
    fail: assert.ifError,
    clock: new ManualClock(),
  })
  back.start()
  for (let place = 0; place < PLACES; place++)
    await back.writing({ first: 2 * place, end: 2 * place + 1 }, Promise.resolve())
  assertKept(back.unread(false))
})
