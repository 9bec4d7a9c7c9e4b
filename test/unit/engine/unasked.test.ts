/** What goes along with a description unasked: by the link, by what the far side may have, and by what it was good for lately. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { RangeBits } from '../../../lib/block/range-bits.ts'
import {
  EAGER_OUTSTANDING_BYTES_MAX,
  EAGER_RUN_BYTES_MAX,
  EARLY_BYTES_MAX,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { Unasked } from '../../../lib/engine/unasked.ts'
import { FEATURE_DELTA } from '../../../lib/wire/disk.ts'

/** A round trip carries 1 MB. */
const LINK = { features: new Set([FEATURE_DELTA]), rateBytesPerSecond: 10_000_000, roundTripMs: 100 }
const OLD = { ...LINK, features: new Set<string>() }
const NOTHING = { flushing: false, earlyBytes: 0, bytes: 0, rewritten: false, held: false }
const RUN = 64 * KIB

for (const [name, link, length, state, what] of [
  ['new data on an idle link', LINK, RUN, {}, 'bytes'],
  ['new data on a busy one', LINK, RUN, { bytes: EAGER_OUTSTANDING_BYTES_MAX }, 'nothing'],
  ['a long run', LINK, EAGER_RUN_BYTES_MAX + 1, {}, 'nothing'],
  ['rewritten data', LINK, RUN, { rewritten: true }, 'hints'],
  ['rewritten data on a busy link', LINK, RUN, { rewritten: true, bytes: 8 * MIB }, 'hints'],
  ['data over an old disk, in the bulk', LINK, RUN, { held: true, bytes: 8 * MIB }, 'nothing'],
  ['a FLUSH waits, and it is there in no time', LINK, RUN, { flushing: true, rewritten: true }, 'bytes'],
  [
    'a FLUSH waits, more than a round trip before it',
    LINK,
    RUN,
    { flushing: true, rewritten: true, earlyBytes: MIB },
    'hints',
  ],
  ['the same over an old disk', LINK, RUN, { flushing: true, held: true, earlyBytes: MIB }, 'hints'],
  ['the same of new data', LINK, RUN, { flushing: true, earlyBytes: MIB }, 'bytes'],
  [
    'more unasked than the far side takes',
    LINK,
    RUN,
    { flushing: true, earlyBytes: EARLY_BYTES_MAX },
    'nothing',
  ],
  ['a far side that knows no deltas', OLD, RUN, { rewritten: true }, 'bytes'],
  ['the same while a FLUSH waits', OLD, RUN, { flushing: true, rewritten: true, earlyBytes: MIB }, 'bytes'],
] as const) {
  test(`unasked: ${name}: ${what}`, () => {
    assert.equal(new Unasked(link).of(length, { ...NOTHING, ...state }), what)
  })
}

test('hints that spared nothing lately are left out, but for one in some, and come back when they do', () => {
  const unasked = new Unasked(LINK)
  const hinted = (count: number): number => {
    let sum = 0
    for (let at = 0; at < count; at++) if (unasked.of(RUN, { ...NOTHING, rewritten: true }) === 'hints') sum++
    return sum
  }
  assert.equal(hinted(100), 100)
  for (let at = 0; at < 64; at++) unasked.applied(RUN, RUN)
  const few = hinted(160)
  assert.ok(few > 0 && few <= 16, `${few} of 160`)
  for (let at = 0; at < 64; at++) unasked.applied(RUN, 1000)
  assert.equal(hinted(100), 100)
})

test('what is rewritten and spares nothing goes as it is also on a busy link, as far as the far side takes it', () => {
  const unasked = new Unasked(LINK)
  for (let at = 0; at < 64; at++) unasked.applied(RUN, RUN)
  const busy = { ...NOTHING, rewritten: true, bytes: EARLY_BYTES_MAX, hinted: false }
  assert.equal(unasked.of(RUN, { ...busy, earlyBytes: EARLY_BYTES_MAX - RUN }), 'bytes')
  assert.equal(unasked.of(RUN, { ...busy, earlyBytes: EARLY_BYTES_MAX - RUN + 1 }), 'nothing')
  assert.equal(unasked.of(RUN, { ...busy, rewritten: false }), 'nothing')
})

test('pieces of a run whose hints were decided on count for no decision of their own', () => {
  const unasked = new Unasked(LINK)
  for (let at = 0; at < 64; at++) unasked.applied(RUN, RUN)
  const rewritten = { ...NOTHING, rewritten: true }
  let hinted = 0
  for (let run = 0; run < 160; run++) {
    const decided = unasked.of(MIB, rewritten) === 'hints'
    if (decided) hinted++
    for (let piece = 0; piece < 4; piece++)
      assert.equal(unasked.of(RUN, { ...rewritten, hinted: decided }) === 'hints', decided)
  }
  assert.equal(hinted, 10)
})

test('bits of a device: a part counts as the whole, and nothing lies beyond its end', () => {
  const bits = new RangeBits(1_000_000, 4096)
  assert.equal(bits.overlaps(0, 1_000_000), false)
  bits.set(4095, 2)
  assert.equal(bits.overlaps(0, 1), true)
  assert.equal(bits.overlaps(8191, 1), true)
  assert.equal(bits.overlaps(8192, 100_000), false)
  bits.set(999_999, 1)
  assert.equal(bits.overlaps(8192, 1_000_000 - 8192), true)
  assert.equal(bits.overlaps(8192, 0), false)
  for (const [offset, length] of [
    [999_999, 2],
    [-1, 1],
    [0, 1_000_001],
  ] as const) {
    assert.throws(() => bits.set(offset, length), RangeError)
    assert.throws(() => bits.overlaps(offset, length), RangeError)
  }
})
