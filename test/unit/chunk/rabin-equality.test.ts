/**
 * Our cuts are those of the npm package rabin-wasm, cut for cut, on 16 runs of 64 MiB; and they are content-defined:
 * they survive a shift by one byte, which cuts at fixed places (that two programs may well agree on) would not.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Worker } from 'node:worker_threads'
import { type EqualityResult, RUNS } from './rabin-equality-worker.ts'

/** Patterns have few cuts of their own, or none: the minimum or the maximum decides. */
const PERIODIC: ReadonlySet<string> = new Set([
  'all zero',
  'repeated, period 3',
  'repeated, period 4096',
  'repeated, period 100003',
])

function runThread(names: readonly string[]): Promise<EqualityResult[]> {
  return new Promise((resolve, reject) => {
    const results: EqualityResult[] = []
    const worker = new Worker(new URL('./rabin-equality-worker.ts', import.meta.url), { workerData: names })
    worker.on('message', (result: EqualityResult) => results.push(result))
    worker.on('error', reject)
    worker.on('exit', () => resolve(results))
  })
}

test('16 runs of 64 MiB are cut as rabin-wasm cuts them, and cuts survive a shift', async (t) => {
  const names = Object.keys(RUNS)
  assert.equal(names.length, 16)
  const halves = [names.filter((_, index) => index % 2 === 0), names.filter((_, index) => index % 2 === 1)]
  const results = (await Promise.all(halves.map(runThread))).flat()
  assert.deepEqual(results.map(({ name }) => name).sort(), names.toSorted())

  for (const { name, own, reference, survived } of results) {
    t.diagnostic(`${name}: ${own.length} chunks, ${(survived * 100).toFixed(2)}% of the cuts survive a shift`)
    assert.deepEqual(own, reference, name)
    if (PERIODIC.has(name)) continue
    assert.ok(survived > 0.95, `${name}: ${survived} of the cuts survive a shift by one byte`)
    assert.ok(new Set(own).size > 100, `${name}: chunks of many lengths expected`)
  }
})
