/** The last of a guest's memory is taken slowly, all else at once; and what was slow ends, whatever happens. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ManualClock } from '../../../lib/core/clock.ts'
import { RAM_HELD_MS } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { RamPace, type ReleasedBy } from '../../../lib/ram/pace.ts'
import { PAGE, stream } from './qemu-stream.ts'

const RAM = 256 * MIB
const LINK = 12 * MIB
const SETUP = Buffer.concat([
  stream.header(),
  stream.start(),
  stream.list({ 'pc.ram': RAM }),
  stream.eos(),
  stream.part(),
])
const PIECE = 16

interface Run {
  readonly pace: RamPace
  /** For how long it held up, and what ended it. */
  readonly ends: [number, ReleasedBy][]
  readonly clock: ManualClock
  /** Sends these pages, at `rate` when nothing is held up; gives the bytes a second at which they went. */
  readonly pages: (from: number, to: number, rate?: number, step?: number) => number
}

function run(linkRate: number | (() => number) = LINK): Run {
  const clock = new ManualClock()
  const ends: [number, ReleasedBy][] = []
  const pace = new RamPace({
    clock,
    linkRate: typeof linkRate === 'number' ? () => linkRate : linkRate,
    onReleased: (heldMs, by) => ends.push([heldMs, by]),
  })
  pace.took(SETUP)
  let first = true
  const pages = (from: number, to: number, rate = 30 * MIB, step = 1): number => {
    const since = clock.nowMs()
    let sent = 0
    for (let at = from / PAGE; at < to / PAGE; at += PIECE * step) {
      const piece: Buffer[] = []
      for (let each = at; each < Math.min(to / PAGE, at + PIECE * step); each += step) {
        piece.push(stream.page(each * PAGE, first ? 'pc.ram' : undefined))
        first = false
      }
      const bytes = Buffer.concat(piece)
      sent += bytes.length
      const ms = pace.took(bytes)
      clock.advance(Math.max(ms, (bytes.length * 1000) / rate))
    }
    return (sent * 1000) / (clock.nowMs() - since)
  }
  return { pace, clock, pages, ends }
}

test('the first pass goes as fast as it can until little of it is left, and then at half of the rate of the link', () => {
  const { pace, pages } = run()
  assert.ok(pages(0, RAM - 30 * MIB) > 29 * MIB)
  assert.equal(pace.isHolding, false)
  const rate = pages(RAM - 20 * MIB, RAM)
  assert.ok(Math.abs(rate - LINK / 2) < 0.05 * LINK, `${rate} bytes a second`)
  assert.equal(pace.isHolding, true)
  // A pass that is short: what was written meanwhile.
  assert.ok(Math.abs(pages(0, RAM, 30 * MIB, 64) - LINK / 2) < 0.05 * LINK)
})

test('a pass that is long goes as fast as the first one', () => {
  const { pace, pages } = run()
  pages(0, RAM)
  pages(0, RAM / 4)
  assert.equal(pace.isHolding, false)
  assert.ok(pages(RAM / 4, RAM / 2) > 29 * MIB)
})

test('it lasts so long in all, slower in the first half of that, and never again', () => {
  const { pace, pages, ends } = run()
  pages(0, RAM)
  const held = pace.heldMs
  assert.ok(held > 2000 && held < RAM_HELD_MS / 2)
  const rates: number[] = []
  for (let pass = 0; pass < 24; pass++) rates.push(pages(0, RAM, 30 * MIB, 64))
  assert.ok(
    rates.some((rate) => Math.abs(rate - (3 * LINK) / 4) < 0.1 * LINK),
    `${rates}`,
  )
  assert.ok(rates.at(-1)! > 29 * MIB)
  assert.ok(pace.heldMs >= RAM_HELD_MS && pace.heldMs < RAM_HELD_MS + 1000, `${pace.heldMs} ms`)
  assert.deepEqual(ends, [[Math.round(pace.heldMs), 'time']])
})

test('what sockets hold is gone in the time it may wait on a fast link, and not on a slow one', () => {
  const { pace: fast } = run(100 * MIB)
  assert.deepEqual(
    [79, 81].map((ms) => fast.drainsIn(ms)),
    [false, true],
  )
  assert.equal(run(12 * MIB).pace.drainsIn(150), false)
  assert.equal(run(0).pace.drainsIn(100_000), false)
})

test('when it is released nothing is held up any more, and who waits is told', async () => {
  const { pace, pages, ends } = run()
  pages(0, RAM)
  assert.equal(pace.isHolding, true)
  let told = false
  void pace.released.then(() => {
    told = true
  })
  pace.release('flush')
  await Promise.resolve()
  pace.release('time')
  assert.deepEqual([told, pace.isHolding, ends], [true, false, [[Math.round(pace.heldMs), 'flush']]])
  assert.ok(pages(0, RAM, 30 * MIB, 64) > 29 * MIB)
})

test('what comes after the pause is never held up', () => {
  const { pace, pages, ends } = run()
  pages(0, RAM)
  assert.equal(pace.isHolding, true)
  assert.equal(pace.took(Buffer.concat([stream.eos(), stream.end()])), 0)
  assert.equal(pace.isHolding, false)
  assert.deepEqual(ends, [[Math.round(pace.heldMs), 'stream']])
  assert.ok(pages(0, RAM, 30 * MIB, 64) > 29 * MIB)
})

test('a stream that is none of QEMU, and a link of which nothing is known, are not held up', () => {
  const { pace, clock } = run()
  const other = new RamPace({ clock, linkRate: () => LINK })
  for (let at = 0; at < 100; at++) assert.equal(other.took(Buffer.alloc(64 * KIB, at)), 0)
  assert.equal(pace.isHolding, false)
  const unknown = run(0)
  assert.ok(unknown.pages(0, RAM) > 29 * MIB)
})

test('a link that is next to nothing is not taken at its word', () => {
  const { pages } = run(1000)
  pages(0, RAM - 16 * MIB)
  assert.ok(pages(RAM - 8 * MIB, RAM) > 1.8 * MIB)
})
