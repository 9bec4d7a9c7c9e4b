/** Every input of the corpus, and every one that once broke something, passes its target; every target has a corpus. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { corpusOf, corpusTargets } from '../../fuzz/corpus.ts'
import { TargetFuzzer } from '../../fuzz/fuzzer.ts'
import { GROUPS } from '../../fuzz/groups.ts'
import { Trace } from '../../fuzz/trace.ts'

const targets = Object.values(GROUPS).flat()

after(async () => {
  for (const target of targets) await target.close?.()
})

test('each target has its folder, and each folder its target', () => {
  assert.deepEqual(corpusTargets(), targets.map(({ name }) => name).sort())
})

for (const target of targets) {
  test(`corpus of ${target.name}`, async () => {
    const seeds = corpusOf(target.name)
    assert.ok(seeds.length > 0)
    const parts = { random: Math.random, coverage: undefined, trace: new Trace(undefined) }
    for (const { name, bytes } of seeds) {
      await assert.doesNotReject(new TargetFuzzer(target, [bytes], parts).replay(), name)
    }
  })
}
