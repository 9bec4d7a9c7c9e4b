/** Which maps are kept: what goes first, what stays in any case, and that the choice comes to rest. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { chooseMaps, type Keepable, type MapRoom } from '../../../lib/catalog/map-choice.ts'

const DAY_MS = 86_400_000
const NOW_MS = 1000 * DAY_MS
const ROOM: MapRoom = { bytesMax: 1600, ageMsMax: 400 * DAY_MS, nowMs: NOW_MS }

/** Touched so many days ago. */
function map(name: string, days: number, more: Partial<Keepable> = {}): Keepable {
  const touchedAtMs = NOW_MS - days * DAY_MS
  return { name, bytes: 400, mapped: true, inUse: false, touchedAtMs, agesFromMs: touchedAtMs, ...more }
}

const unmapped = (name: string, days: number, more: Partial<Keepable> = {}): Keepable =>
  map(name, days, { mapped: false, ...more })

const all = ['a', 'b', 'c', 'd', 'e']

for (const { name, maps, room = {}, kept } of [
  { name: 'nothing', maps: [], kept: '' },
  { name: 'what finds room', maps: all.slice(0, 4).map((one, at) => map(one, at)), kept: 'abcd' },
  { name: 'what was touched last', maps: all.map((one, at) => map(one, at)), kept: 'abcd' },
  {
    name: 'the order of the list does not matter',
    maps: all.map((one, at) => map(one, 9 - at)),
    kept: 'bcde',
  },
  { name: 'nothing older than it may be', maps: [map('a', 400), map('b', 401)], kept: 'a' },
  {
    name: 'a map of an image that is not there, by when it was there last',
    maps: [map('a', 500, { agesFromMs: NOW_MS - 3 * DAY_MS }), map('b', 500)],
    kept: 'a',
  },
  {
    name: 'what is in use, whatever its age and however much it is',
    maps: [map('a', 900, { inUse: true, bytes: 5000 }), map('b', 0)],
    kept: 'a',
  },
  {
    name: 'what is in use counts: the others have the rest',
    maps: [map('a', 900, { inUse: true, bytes: 900 }), map('b', 0), map('c', 1)],
    kept: 'ab',
  },
  {
    name: 'what is in use and has no map is no reason to make one',
    maps: [...all.slice(1).map((one) => map(one, 0)), unmapped('a', 0, { inUse: true })],
    kept: 'bcde',
  },
  {
    name: 'smaller ones behind one that finds no room',
    maps: [map('a', 0), map('b', 1, { bytes: 2000 }), map('c', 2)],
    kept: 'ac',
  },
  {
    name: 'no new one where it would take the place of one touched less than a day before',
    maps: [unmapped('a', 0), ...all.slice(1).map((one) => map(one, 0.9))],
    kept: 'bcde',
  },
  {
    name: 'a new one in the place of one touched more than a day before',
    maps: [unmapped('a', 0, { bytes: 200 }), ...all.slice(1).map((one, at) => map(one, 1 + at))],
    kept: 'abcd',
  },
  {
    name: 'no new one into the last sixteenth',
    maps: [map('a', 0, { bytes: 1200 }), unmapped('b', 0, { bytes: 301 }), unmapped('c', 1, { bytes: 300 })],
    kept: 'ac',
  },
  { name: 'one that is there may fill it', maps: [map('a', 0, { bytes: 1200 }), map('b', 0)], kept: 'ab' },
  { name: 'none where none is meant', maps: [map('a', 0, { bytes: 0 })], room: { bytesMax: 0 }, kept: '' },
  {
    name: 'no more than so many',
    maps: all.map((one, at) => map(one, at)),
    room: { mapsMax: 2 },
    kept: 'ab',
  },
  {
    name: 'all, where nothing is bounded',
    maps: [map('a', 900), unmapped('b', 900, { bytes: 1e15 })],
    room: { bytesMax: Number.POSITIVE_INFINITY, ageMsMax: Number.POSITIVE_INFINITY },
    kept: 'ab',
  },
] as const satisfies readonly {
  name: string
  maps: readonly Keepable[]
  room?: Partial<MapRoom>
  kept: string
}[]) {
  test(`kept: ${name}`, () => {
    const chosen = chooseMaps<Keepable>(maps, { ...ROOM, ...room })
    assert.equal(
      [...chosen]
        .map((one) => one.name)
        .sort()
        .join(''),
      kept,
    )
  })
}

// ---- as it goes on ---------------------------------------------------------------------------------------------

/** An image and what its map takes: what is known of that is a guess until it was made once. */
interface SimulatedImage {
  readonly name: string
  readonly guess: number
  readonly truth: number
  changedAtMs: number
  usedAtMs: number
  known: number | undefined
  mapped: boolean
}

/** A round as swamd does it: what is not chosen goes, what is and has none is made, and after each all are looked at again. */
function round(images: readonly SimulatedImage[], room: MapRoom): { made: number; dropped: number } {
  let made = 0
  let dropped = 0
  const look = (): ReadonlySet<string> => {
    const chosen = chooseMaps(
      images.map((image) => {
        const { name, guess, truth, known, mapped, changedAtMs, usedAtMs } = image
        const touchedAtMs = Math.max(changedAtMs, usedAtMs)
        const agesFromMs = known === undefined ? room.nowMs : touchedAtMs
        return {
          name,
          bytes: mapped ? truth : (known ?? guess),
          mapped,
          inUse: false,
          touchedAtMs,
          agesFromMs,
        }
      }),
      room,
    )
    const names = new Set([...chosen].map(({ name }) => name))
    for (const image of images) {
      if (!image.mapped || names.has(image.name)) continue
      image.mapped = false
      dropped++
    }
    const bytes = images.reduce((sum, { mapped, truth }) => sum + (mapped ? truth : 0), 0)
    assert.ok(bytes <= room.bytesMax, `${bytes} bytes of maps after a look`)
    return names
  }
  let chosen = look()
  for (const image of images) {
    if (image.mapped || !chosen.has(image.name)) continue
    made++
    // A map larger than all may take is given up.
    image.known = image.truth
    if (image.truth <= room.bytesMax) {
      image.mapped = true
      image.usedAtMs = room.nowMs
    }
    chosen = look()
  }
  return { made, dropped }
}

const images = fc.array(
  fc.record({
    guess: fc.integer({ min: 1, max: 500 }),
    error: fc.double({ min: 0.2, max: 4, noNaN: true }),
    days: fc.integer({ min: 0, max: 900 }),
  }),
  { minLength: 1, maxLength: 30 },
)

function simulated(all: readonly { guess: number; error: number; days: number }[]): SimulatedImage[] {
  return all.map(({ guess, error, days }, at) => ({
    name: String(at).padStart(3, '0'),
    guess,
    truth: Math.ceil(guess * error),
    changedAtMs: NOW_MS - days * DAY_MS,
    usedAtMs: 0,
    known: undefined,
    mapped: false,
  }))
}

test('property: without news no map is made again and again, and what was made stays', () => {
  fc.assert(
    fc.property(images, fc.integer({ min: 1, max: 3000 }), (all, bytesMax) => {
      const stock = simulated(all)
      let made = 0
      // Ten minutes each; nobody changes or uses anything.
      for (let at = 0; at < 40; at++)
        made += round(stock, { ...ROOM, bytesMax, nowMs: NOW_MS + at * 600_000 }).made
      // A map that takes more than was guessed may drive out another one, which is made again where there is room after all.
      const larger = stock.filter(({ guess, truth }) => truth > guess).length
      assert.ok(made <= stock.length + larger, `${made} scans for ${stock.length} images, ${larger} larger`)
      for (let at = 40; at < 44; at++)
        assert.deepEqual(round(stock, { ...ROOM, bytesMax, nowMs: NOW_MS + at * 600_000 }), {
          made: 0,
          dropped: 0,
        })
    }),
    { numRuns: 300 },
  )
})

test('property: guests that run and write all the time do not take turns', () => {
  fc.assert(
    fc.property(
      images,
      fc.integer({ min: 1, max: 3000 }),
      fc.infiniteStream(fc.nat()),
      (all, bytesMax, luck) => {
        const stock = simulated(all.map((one) => ({ ...one, days: 0 })))
        let late = 0
        for (let at = 0; at < 144; at++) {
          const nowMs = NOW_MS + at * 600_000
          for (const image of stock) image.changedAtMs = nowMs - (luck.next().value! % 3_600_000)
          const { made } = round(stock, { ...ROOM, bytesMax, nowMs })
          if (at > 0) late += made
        }
        assert.ok(late <= stock.length, `${late} scans in a day for ${stock.length} images`)
      },
    ),
    { numRuns: 60 },
  )
})

test('property: what is too old goes, and comes back only when it is touched', () => {
  fc.assert(
    fc.property(images, (all) => {
      const stock = simulated(all)
      const room = { ...ROOM, bytesMax: Number.POSITIVE_INFINITY }
      round(stock, room)
      assert.ok(
        stock.every(({ mapped }) => mapped),
        'what never had a map gets one, however old it is',
      )
      const later = { ...room, nowMs: NOW_MS + 401 * DAY_MS }
      assert.deepEqual(round(stock, later), { made: 0, dropped: stock.length })
      assert.deepEqual(round(stock, later), { made: 0, dropped: 0 })
      stock[0]!.usedAtMs = later.nowMs
      assert.deepEqual(round(stock, later), { made: 1, dropped: 0 })
    }),
    { numRuns: 50 },
  )
})
