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

test('when there is no room a handprint is thinner, then empty, and room comes back', () => {
  const index = new HandprintIndex<number>()
  const samples = Array.from({ length: HANDPRINT_SAMPLES_MAX }, (_, number) =>
    String.fromCharCode(0, number >> 8, number & 255, 0, 0, 0, 0, 0),
  )
  const digest = (sample: string): Buffer => Buffer.from(sample, 'latin1')
  const whole = HANDPRINTS_SAMPLES_MAX / HANDPRINT_SAMPLES_MAX
  index.set(-1, samples.slice(0, 10))
  for (let owner = 0; owner <= whole; owner++) index.set(owner, samples)
  assert.equal(index.owners(digest(samples[0]!)).length, whole + 1)
  assert.equal(index.owners(digest(samples.at(-1)!)).length, whole - 1)
  assert.equal(index.owners(digest(samples.at(-11)!)).length, whole)
  index.delete(0)
  index.set(whole, samples)
  assert.equal(index.owners(digest(samples.at(-11)!)).length, whole)
})
