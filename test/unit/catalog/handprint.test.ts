/** Handprints: the same chunks are samples of every image, and what lies inside another image is found in it. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { test } from 'node:test'
import { Handprint, HandprintIndex, sampleAt } from '../../../lib/catalog/handprint.ts'
import { HANDPRINT_SAMPLES_MAX, HANDPRINTS_SAMPLES_MAX } from '../../../lib/core/limits.ts'

function digestOf(number: number): Buffer {
  return createHash('sha256').update(String(number)).digest()
}

function handprintOf(from: number, to: number): string[] {
  const handprint = new Handprint()
  for (let number = from; number < to; number++) {
    // Not at the start of its buffer.
    handprint.add(Buffer.concat([Buffer.alloc(5), digestOf(number)]), 5)
  }
  return handprint.samples()
}

test('a sample is one of 256, ascending, each once, whatever the order and the repetitions', () => {
  const samples = handprintOf(0, 100_000)
  assert.ok(samples.length > 300 && samples.length < 480, `${samples.length} of 100,000`)
  assert.deepEqual(samples, [...new Set(samples)].sort())
  assert.ok(samples.every((sample) => sample.length === 8 && sample.charCodeAt(0) === 0))
  const backward = new Handprint()
  for (let number = 99_999; number >= 0; number--)
    for (let twice = 0; twice < 2; twice++) backward.add(digestOf(number), 0)
  assert.deepEqual(backward.samples(), samples)
})

test('a small image has its 64 smallest, or all', () => {
  for (const count of [0, 1, 63, 64, 65, 5000, 20_000]) {
    const all = Array.from({ length: count }, (_, number) => sampleAt(digestOf(number), 0)).sort()
    const samples = handprintOf(0, count)
    const natural = all.filter((sample) => sample.charCodeAt(0) === 0).length
    assert.deepEqual(samples, all.slice(0, Math.max(natural, Math.min(64, count))), `${count} chunks`)
  }
})

test('somebody who searches for small digests gets no more than the ceiling, and the smallest of them', () => {
  const handprint = new Handprint()
  const digest = Buffer.alloc(32)
  const count = 3 * HANDPRINT_SAMPLES_MAX
  for (let number = 0; number < count; number++) {
    // In an order that is none.
    digest.writeUInt32BE((number * 48_271) % 2_147_483_647, 1)
    handprint.add(digest, 0)
  }
  const samples = handprint.samples()
  assert.equal(samples.length, HANDPRINT_SAMPLES_MAX)
  assert.ok(samples.at(-1)! < '\0\x30')
})

test('a base inside a disk twenty times as large is found by what is sent of it', () => {
  const index = new HandprintIndex<string>()
  index.set('large', handprintOf(0, 200_000))
  index.set('base', handprintOf(150_000, 160_000))
  index.set('other', handprintOf(300_000, 400_000))
  const score = (from: number, to: number): Record<string, number> => {
    const scores: Record<string, number> = {}
    for (let number = from; number < to; number++)
      for (const owner of index.owners(digestOf(number))) scores[owner] = (scores[owner] ?? 0) + 1
    return scores
  }
  const sent = score(150_000, 160_000)
  assert.ok(sent['large']! > 20 && sent['base']! >= sent['large']!, JSON.stringify(sent))
  assert.equal(sent['other'], undefined)
  index.delete('large')
  assert.equal(score(150_000, 160_000)['large'], undefined)
  index.set('base', handprintOf(0, 1000))
  assert.equal(score(155_000, 160_000)['base'], undefined, 'what it was is forgotten')
  assert.equal(index.owners(Buffer.alloc(40, 1), 8).length, 0)
})

test('when there are too many samples all handprints are thinner alike, and keep their smallest', () => {
  const index = new HandprintIndex<string>()
  const sample = (...bytes: number[]): string =>
    Buffer.from([...bytes, 0, 0, 0, 0, 0, 0, 0])
      .subarray(0, 8)
      .toString('latin1')
  const owners = (one: string): readonly string[] => index.owners(Buffer.from(one, 'latin1'))
  const spread = Array.from({ length: HANDPRINT_SAMPLES_MAX }, (_, number) =>
    sample(0, number >> 8, number & 255),
  )
  const small = Array.from({ length: 64 }, (_, number) => sample(7, number))
  index.set('small', small)
  const whole = HANDPRINTS_SAMPLES_MAX / HANDPRINT_SAMPLES_MAX
  const names = Array.from({ length: whole + 1 }, (_, number) => `spread ${number}`)
  for (const name of names) index.set(name, spread)
  assert.deepEqual(owners(spread[0]!), names)
  assert.deepEqual(owners(spread[32_767]!), names)
  assert.deepEqual(owners(spread[32_768]!), [])
  assert.deepEqual([owners(small[0]!), owners(small[63]!)], [['small'], ['small']])

  // Somebody's that cannot be thinner: the ceiling holds all the same, and room comes back.
  const dense = Array.from({ length: HANDPRINT_SAMPLES_MAX }, (_, number) =>
    sample(0, 0, 0, number >> 8, number & 255),
  )
  for (let number = 0; number <= whole; number++) index.set(`dense ${number}`, dense)
  const held = new Set([...small, ...spread, ...dense])
  const count = (): number => [...held].reduce((sum, one) => sum + owners(one).length, 0)
  assert.equal(count(), HANDPRINTS_SAMPLES_MAX)
  assert.deepEqual([owners(small[63]!), owners(spread[1]!)], [['small'], names])
  for (let number = 0; number <= whole; number++) index.delete(`dense ${number}`)
  index.set('late', spread)
  assert.deepEqual(owners(spread[1]!), [...names, 'late'])
  for (const name of [...names, 'small', 'late']) index.delete(name)
  assert.equal(count(), 0)
})
