/** Leaves put together from what passes: what is lost of one, whether it can still be zeroes, and whose digest comes too late. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { KIB } from '../../../lib/core/units.ts'
import { LeafAssembly, LeafSlots } from '../../../lib/engine/leaf-assembly.ts'
import { ReceiverProof } from '../../../lib/engine/receiver-proof.ts'
import { closeProofs, newMap, plainRoot } from './proof-rig.ts'
import { DurableDevice } from './rig.ts'

after(closeProofs)

const LEAF = 64 * KIB

function start(): {
  readonly assembly: LeafAssembly
  readonly said: string[]
  readonly digested: PromiseWithResolvers<Uint8Array>[]
} {
  const said: string[] = []
  const digested: PromiseWithResolvers<Uint8Array>[] = []
  const assembly = new LeafAssembly({
    size: 4 * LEAF,
    slots: new LeafSlots({ bytesMax: 8 * LEAF }),
    digest: () => {
      digested.push(Promise.withResolvers<Uint8Array>())
      return digested.at(-1)!.promise
    },
    whole: (leaf) => said.push(`${leaf} is whole`),
    lost: (leaf, zeroesOnly) => said.push(`${leaf} is lost${zeroesOnly ? ', zeroes came' : ''}`),
    fail: (error) => assert.fail(String(error)),
  })
  return { assembly, said, digested }
}

test('a leaf to which only zeroes came may be zeroes still, one that was written may not', () => {
  const { assembly, said } = start()
  assembly.put(0, LEAF / 2, undefined)
  assembly.put(LEAF, 4 * KIB, Buffer.alloc(4 * KIB, 1))
  assembly.put(LEAF + 8 * KIB, 4 * KIB, undefined)
  for (const leaf of assembly.incomplete) assembly.giveUp(leaf)
  assert.deepEqual(said, ['0 is lost, zeroes came', '1 is lost'])
})

test('one that was written whole is not zeroes, though a part was zeroed before it was digested', async () => {
  const { assembly, said, digested } = start()
  assembly.put(0, LEAF, Buffer.alloc(LEAF, 1))
  assembly.put(0, LEAF / 2, undefined)
  assembly.giveUp(0)
  assert.deepEqual(said, ['0 is lost'])
  digested[0]!.resolve(Buffer.alloc(32, 7))
  await turn()
  assert.deepEqual(said, ['0 is lost'], 'of what it was before nobody hears')
})

test('I1: a leaf that the sender has open is left out, though it was written whole and its digest is still on its way', async () => {
  const device = new DurableDevice(Buffer.alloc(4 * LEAF), 1)
  const digested = Promise.withResolvers<Uint8Array>()
  const proof = new ReceiverProof({
    device,
    map: await newMap(device.size),
    target: 'vda',
    slots: new LeafSlots({ bytesMax: 8 * LEAF }),
    digest: () => digested.promise,
    read: false,
  })
  proof.attach({
    busy: () => false,
    applyZeroes: () => undefined,
    ended: () => false,
    fail: (error) => assert.fail(String(error)),
  })
  proof.zeroed(0, device.size)
  proof.began(0, 0, LEAF)
  await proof.device.write(0, Buffer.alloc(LEAF, 1))
  const answered = proof.answer(proof.asked({ barrier: 1, read: false, open: [{ first: 0, end: 1 }] }, 1))
  await turn()
  digested.resolve(Buffer.alloc(32, 7))
  assert.equal((await answered)?.root.toString('hex'), plainRoot(Buffer.alloc(4 * LEAF)))
})
