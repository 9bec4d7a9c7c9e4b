/** The describer on real threads: what it describes, in which order, and what happens when a thread dies. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type DescribedRun, Describer } from '../../../lib/chunk/describer.ts'
import { DIGEST_BYTES, matchesDigest } from '../../../lib/chunk/digest.ts'
import { RabinCutter } from '../../../lib/chunk/rabin.ts'
import { zeroRuns } from '../../../lib/chunk/zero.ts'
import { LostError } from '../../../lib/core/errors.ts'
import { DESCRIBE_BYTES_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, KIB, MIB } from '../../../lib/core/units.ts'
import { patchyBytes, randomBytes } from './samples.ts'

function shared(bytes: Uint8Array): Uint8Array {
  const target = new Uint8Array(new SharedArrayBuffer(bytes.length))
  target.set(bytes)
  return target
}

function checkDescription(bytes: Uint8Array, described: readonly DescribedRun[]): void {
  assert.deepEqual(
    described.map(({ offset, length, zero }) => ({ offset, length, zero })),
    zeroRuns(bytes),
  )
  const cutter = new RabinCutter()
  for (const { offset, length, zero, lengths, digests } of described) {
    assert.deepEqual([...lengths], zero ? [] : cutter.lengths(bytes.subarray(offset, offset + length)))
    assert.equal(digests.length, lengths.length * DIGEST_BYTES)
    let at = offset
    lengths.forEach((chunkLength, index) => {
      assert.ok(matchesDigest(bytes.subarray(at, at + chunkLength), digests, index * DIGEST_BYTES))
      at += chunkLength
    })
  }
}

const alternating = new Uint8Array(MIB)
for (let at = 0; at < alternating.length; at += 2 * BLOCK_BYTES) alternating[at + 100] = 1

const cases: readonly { name: string; bytes: Uint8Array }[] = [
  { name: 'nothing', bytes: new Uint8Array(0) },
  { name: 'one byte', bytes: Uint8Array.of(1) },
  { name: 'one zero byte', bytes: Uint8Array.of(0) },
  { name: 'zeroes with a short last block', bytes: new Uint8Array(MIB + 100) },
  { name: 'every second block zero', bytes: alternating },
  { name: 'zero stretches', bytes: patchyBytes(4 * MIB, 1) },
  { name: 'random, short last block', bytes: randomBytes(3 * MIB + 5, 2) },
  { name: 'the longest', bytes: randomBytes(DESCRIBE_BYTES_MAX, 3) },
]

for (const { name, bytes } of cases) {
  test(`describes ${name}`, async () => {
    await using describer = new Describer({ workers: 1 })
    checkDescription(bytes, await describer.describe(shared(bytes)))
  })
}

test('promises resolve in the order of the calls, whatever the sizes', async () => {
  await using describer = new Describer({ workers: 3 })
  const sizes = Array.from({ length: 40 }, (_, index) => (index % 4 === 0 ? 4 * MIB : 4 * KIB))
  const order: number[] = []
  await Promise.all(
    sizes.map(async (size, index) => {
      const bytes = shared(randomBytes(size, index))
      const runs = await describer.describe(bytes)
      order.push(index)
      checkDescription(bytes, runs)
    }),
  )
  assert.deepEqual(
    order,
    sizes.map((_, index) => index),
  )
})

test('an aborted call rejects at once and holds up nobody', async () => {
  await using describer = new Describer({ workers: 1 })
  const bytes = shared(randomBytes(MIB, 1))
  const reason = new Error('enough')
  const aborts = Array.from({ length: 8 }, () => new AbortController())
  const calls = aborts.map(({ signal }) => describer.describe(bytes, signal))
  // Two of them lie at the thread already, the others wait.
  for (const index of [0, 1, 3, 7]) aborts[index]!.abort(reason)
  const results = await Promise.allSettled(calls)
  results.forEach((result, index) => {
    if ([0, 1, 3, 7].includes(index)) {
      assert.ok(result.status === 'rejected' && result.reason === reason, `call ${index}`)
    } else {
      assert.ok(result.status === 'fulfilled', `call ${index}`)
      checkDescription(bytes, result.value)
    }
  })
  await assert.rejects(describer.describe(bytes, AbortSignal.abort(reason)), (error) => error === reason)
})

test('memory of its own and what is too long are refused, and only they', async () => {
  await using describer = new Describer({ workers: 1 })
  await assert.rejects(describer.describe(new Uint8Array(10)), TypeError)
  await assert.rejects(describer.describe(shared(new Uint8Array(DESCRIBE_BYTES_MAX + 1))), RangeError)
  assert.equal((await describer.describe(shared(Uint8Array.of(1)))).length, 1)
})

for (const { fault, message } of [
  { fault: 1, message: /worker 0 failed: planted fault/ },
  { fault: 2, message: /worker 0 exited unexpectedly with code 3/ },
]) {
  test(`a thread that dies (${message.source}) rejects everything, before and after`, async () => {
    const entry = new URL('./describer-broken-worker.ts', import.meta.url)
    await using describer = new Describer({ workers: 1, entry })
    const calls = [0, fault, 0, 0].map((first) => describer.describe(shared(Uint8Array.of(first))))
    for (const result of await Promise.allSettled(calls)) {
      assert.ok(result.status === 'rejected' && result.reason instanceof LostError)
      assert.match(result.reason.message, message)
    }
    await assert.rejects(describer.describe(shared(Uint8Array.of(0))), message)
  })
}

test('close rejects what is under way, refuses what comes later, and may be called again', async () => {
  const describer = new Describer({ workers: 2 })
  const call = describer.describe(shared(randomBytes(MIB, 1)))
  const closed = assert.rejects(call, /describer: closed/)
  await describer.close()
  await closed
  await describer.close()
  await assert.rejects(describer.describe(shared(Uint8Array.of(1))), LostError)
})
