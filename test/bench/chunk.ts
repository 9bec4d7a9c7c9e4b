/**
 * Bench of the chunking: the Rabin loop, rabin-wasm and SHA-256 on the same data in the same run, in turns so that a
 * noisy neighbour hits all of them, then the describer with one and two threads. Every sample is kept. What was cut
 * and digested is checked, so that a program that does nothing cannot win.
 */
import assert from 'node:assert/strict'
import { performance } from 'node:perf_hooks'
import { Describer } from '../../lib/chunk/describer.ts'
import { DIGEST_BYTES, matchesDigest, sha256 } from '../../lib/chunk/digest.ts'
import { RabinCutter } from '../../lib/chunk/rabin.ts'
import { KIB, MIB } from '../../lib/core/units.ts'
import { referenceChunkLengths } from '../unit/chunk/rabin-reference.ts'
import { patchyBytes, randomBytes, textBytes } from '../unit/chunk/samples.ts'

const ROUNDS = 5
const RUN_BYTES = 16 * MIB
const DESCRIBE_PASSES = 6

async function mibPerSecond(bytes: number, work: () => unknown): Promise<number> {
  const start = performance.now()
  await work()
  return Math.round((bytes / MIB / (performance.now() - start)) * 10_000) / 10
}

function median(samples: readonly number[]): number {
  return samples.toSorted((a, b) => a - b)[samples.length >> 1]!
}

export async function run(): Promise<object> {
  const buffers = [
    randomBytes(RUN_BYTES, 1),
    textBytes(RUN_BYTES, 2),
    patchyBytes(RUN_BYTES, 3),
    randomBytes(RUN_BYTES, 4),
  ]
  const total = buffers.length * RUN_BYTES
  const samples: Record<string, number[]> = {}
  const note = (name: string, value: number): void => {
    samples[name] ??= []
    samples[name].push(value)
  }

  const cutter = new RabinCutter()
  const expected = buffers.map((bytes) => cutter.lengths(bytes))
  for (let round = 0; round < ROUNDS; round++) {
    const own: number[][] = []
    const rabin = await mibPerSecond(total, () => {
      for (const bytes of buffers) own.push(cutter.lengths(bytes))
    })
    assert.deepEqual(own, expected)
    note('rabin', rabin)

    const reference: number[][] = []
    const rabinWasm = await mibPerSecond(total, async () => {
      for (const bytes of buffers) reference.push(await referenceChunkLengths(bytes))
    })
    assert.deepEqual(reference, expected)
    note('rabinWasm', rabinWasm)

    const digests: Buffer[] = []
    const sha = await mibPerSecond(total, () => {
      for (const bytes of buffers) {
        for (let at = 0; at < bytes.length; at += 64 * KIB)
          digests.push(sha256(bytes.subarray(at, at + 64 * KIB)))
      }
    })
    assert.ok(matchesDigest(buffers[0]!.subarray(0, 64 * KIB), digests[0]!))
    note('sha256', sha)

    for (const workers of [1, 2]) {
      const { rate, eventLoopBusy } = await benchDescriber(workers, buffers)
      note(`describer${workers}`, rate)
      note(`describer${workers}EventLoopBusy`, eventLoopBusy)
    }
  }
  const medians = Object.fromEntries(Object.entries(samples).map(([name, values]) => [name, median(values)]))
  return { version: 1, name: 'chunk', unit: 'MiB/s', bytes: total, medians, samples }
}

async function benchDescriber(
  workers: number,
  buffers: readonly Uint8Array[],
): Promise<{ rate: number; eventLoopBusy: number }> {
  await using describer = new Describer({ workers })
  const shared = buffers.map((bytes) => {
    const target = new Uint8Array(new SharedArrayBuffer(bytes.length))
    target.set(bytes)
    return target
  })
  // The threads start, and their code gets warm.
  await Promise.all([...shared, ...shared].map((bytes) => describer.describe(bytes)))

  const calls = Array.from({ length: DESCRIBE_PASSES }, () => shared).flat()
  const before = performance.eventLoopUtilization()
  const rate = await mibPerSecond(calls.length * RUN_BYTES, async () => {
    const results = calls.map(async (bytes) => ({ bytes, runs: await describer.describe(bytes) }))
    await Promise.all(results)
  })
  const eventLoopBusy = Math.round(performance.eventLoopUtilization(before).utilization * 1000) / 1000

  for (const bytes of shared) {
    for (const { offset, lengths, digests } of await describer.describe(bytes)) {
      let at = offset
      for (const [number, length] of lengths.entries()) {
        assert.ok(matchesDigest(bytes.subarray(at, at + length), digests, number * DIGEST_BYTES))
        at += length
      }
    }
  }
  return { rate, eventLoopBusy }
}
