/** What is chosen of a disk that is too large to be looked at as a whole, and what chunks cost, by hand. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RUN_BYTES_MAX } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { CHUNK_ELSEWHERE, CHUNK_IN_PLACE, CHUNK_LACKING } from '../../../server/estimate/batch.ts'
import { GROUP_CHUNKS, Spread, someGroups, Thinning } from '../../../server/estimate/spread.ts'
import { fateOf, figuresOf, type TalliedChunk, Tally } from '../../../server/estimate/tally.ts'

const ALL = { knownShare: 0, ratio: 1, hinted: false }

test('a spread keeps all there is room for, and then groups evenly over everything', () => {
  const few = new Spread<number>(128)
  for (let item = 0; item < 128; item++) few.add(item)
  assert.deepEqual(
    few.groups.flat(),
    Array.from({ length: 128 }, (_, item) => item),
  )
  const many = new Spread<number>(128)
  for (let item = 0; item < 10_000; item++) many.add(item)
  const { groups } = many
  const firsts = groups.map((group) => group[0]!)
  const step = firsts[1]! - firsts[0]!
  assert.deepEqual(
    firsts,
    firsts.map((_, index) => index * step),
    'evenly',
  )
  assert.ok(10_000 - firsts.at(-1)! <= step, 'to the end')
  const kept = groups.flat().length
  assert.ok(kept > 32 && kept <= 128, `${kept}`)
  for (const group of groups.slice(0, -1)) {
    assert.equal(group.length, GROUP_CHUNKS)
    assert.equal(group.at(-1)! - group[0]!, GROUP_CHUNKS - 1, 'of neighbours')
  }
})

test('some of groups, by bytes', () => {
  const groups = Array.from({ length: 10 }, (_, index) => [index, index])
  assert.deepEqual(
    someGroups(groups, () => 1, 20),
    groups,
  )
  assert.deepEqual(
    someGroups(groups, () => 1, 10).map(([first]) => first),
    [0, 2, 4, 6, 8],
  )
  assert.deepEqual(
    someGroups(groups, () => 1, 19).map(([first]) => first),
    [0, 2, 4, 6, 8],
  )
  assert.deepEqual(
    someGroups([], () => 1, 1),
    [],
  )
})

test('thinning: everything at first, ever less, never more than there may be; what is asked about stands for the rest', () => {
  const max = 32_000
  const thinning = new Thinning(max)
  let asked = 0
  let stoodFor = 0
  const groups = 16_000
  for (let group = 0; group < groups; group++) {
    const weight = thinning.take(32)
    if (group * 32 < max / 2) assert.equal(weight, 1)
    if (weight > 0) asked += 32
    stoodFor += weight
  }
  assert.ok(asked <= max, `${asked}`)
  assert.ok(asked > max / 2)
  assert.ok(Math.abs(stoodFor - groups) / groups < 0.1, `${stoodFor}`)
})

test('whose bytes a chunk is', () => {
  const chunk = (repeated: boolean, state: number): TalliedChunk => ({
    offset: 0,
    length: 1,
    repeated,
    state,
  })
  assert.deepEqual(
    [
      fateOf(chunk(true, CHUNK_IN_PLACE)),
      fateOf(chunk(false, CHUNK_IN_PLACE)),
      fateOf(chunk(true, CHUNK_ELSEWHERE)),
      fateOf(chunk(true, CHUNK_LACKING)),
      fateOf(chunk(false, CHUNK_ELSEWHERE)),
      fateOf(chunk(false, CHUNK_LACKING)),
    ],
    ['inPlace', 'inPlace', 'session', 'session', 'chunk', 'lacking'],
  )
})

function group(first: number, state: number): TalliedChunk[] {
  return Array.from({ length: GROUP_CHUNKS }, (_, index) => ({
    offset: (first + index) * 64 * KIB,
    length: 64 * KIB,
    repeated: false,
    state,
  }))
}

test('what lies in place costs one digest for 32 chunks, unless the far side has nothing there; what does not fit costs all', () => {
  const cost = (heldBytes: number, state: number): number => {
    const tally = new Tally(heldBytes)
    for (let at = 0; at < 16; at++) tally.add(group(at * GROUP_CHUNKS, state), 1)
    return tally.digestBytes
  }
  const runs = 16 * GROUP_CHUNKS * 3 + 4 + 2 * 37
  assert.equal(cost(GIB, CHUNK_IN_PLACE), 16 * 32 + runs)
  // 32 MiB: the first half is held for what lies in place.
  assert.equal(cost(0, CHUNK_LACKING), 16 * GROUP_CHUNKS * 32 + runs)
  assert.equal(cost(GIB, CHUNK_LACKING), 16 * GROUP_CHUNKS * 32 + 8 * (32 + 26) + runs)
  // As the engine does, which learns from the answers that all lies in place.
  assert.ok(cost(0, CHUNK_IN_PLACE) < cost(0, CHUNK_LACKING))
  assert.equal((16 * GROUP_CHUNKS * 64 * KIB) / RUN_BYTES_MAX, 2)
})

const GIB = 1024 * MIB

test('figures: each byte has one source, and a part of a disk stands for all of it', () => {
  const tally = new Tally(0)
  tally.add(group(0, CHUNK_LACKING), 1)
  tally.add(group(32, CHUNK_ELSEWHERE), 3)
  const bytes = 8 * MIB
  const half = figuresOf(tally, { knownShare: 0.25, ratio: 0.5, hinted: true }, bytes)
  assert.deepEqual([half.chunk, half.block, half.literal], [6 * MIB, MIB / 2, 1.5 * MIB])
  const payload = 0.75 * MIB
  const hints = 32 * (9 + 16 * 8)
  const sum = half.digest + payload
  assert.ok(half.wireBytes > sum && half.wireBytes < sum + 4 * KIB, `${half.wireBytes - sum}`)
  assert.equal(half.digest - figuresOf(tally, { ...ALL }, bytes).digest, hints)
  const double = figuresOf(tally, { knownShare: 0.25, ratio: 0.5, hinted: true }, 2 * bytes)
  for (const key of ['chunk', 'block', 'literal'] as const) assert.equal(double[key], 2 * half[key])
  assert.ok(Math.abs(double.wireBytes - 2 * half.wireBytes) <= 1)
})

test('a disk without data costs next to nothing', () => {
  const none = figuresOf(new Tally(0), { knownShare: 0, ratio: 1, hinted: true }, 0)
  assert.ok(Object.values(none).every((value) => value === 0))
})
