/** What a salvaged image is called, and which of them have to go. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import {
  isSalvageOf,
  parseSalvageName,
  type SalvageLink,
  salvageName,
  salvageToRemove,
} from '../../../lib/catalog/salvage.ts'
import { SALVAGE_IMAGES_MAX, SALVAGE_SETTLE_MS } from '../../../lib/core/limits.ts'
import { GIB, MIB } from '../../../lib/core/units.ts'

const UUID = '33333333-3333-4333-8333-333333333333'

for (const { target, format, name } of [
  { target: 'vda', format: 'raw', name: `${UUID}-vda.raw` },
  { target: 'nvme0n1', format: 'qcow2', name: `${UUID}-nvme0n1.qcow2` },
  { target: 'a'.repeat(64), format: 'raw', name: `${UUID}-${'a'.repeat(64)}.raw` },
  { target: 'a'.repeat(65), format: 'raw', name: undefined },
  { target: '', format: 'raw', name: undefined },
  { target: '..', format: 'raw', name: undefined },
  { target: 'a/b', format: 'raw', name: undefined },
  { target: '../../etc/x', format: 'raw', name: undefined },
  { target: 'vda.raw', format: 'raw', name: undefined },
  { target: '-vda', format: 'raw', name: undefined },
  { target: 'v\nda', format: 'raw', name: undefined },
] as const) {
  test(`the name of ${JSON.stringify(target.slice(0, 20))} (${target.length}), ${format}`, () => {
    assert.equal(salvageName({ uuid: UUID, target, format }), name)
    if (name !== undefined) assert.deepEqual(parseSalvageName(name), { uuid: UUID, target, format })
  })
}

test('what is no such name is none', () => {
  for (const name of [
    '',
    'a.raw',
    `${UUID}.raw`,
    `${UUID}-vda`,
    `${UUID}-vda.vmdk`,
    `${UUID}-vda.raw.raw`,
    `.new-${UUID}-vda.raw`,
    `${UUID.toUpperCase().replace('3', 'A')}-vda.raw`,
    `${'-'.repeat(36)}-vda.raw`,
    `../${UUID}-vda.raw`,
    `${UUID}-vda.raw\n`,
  ])
    assert.equal(parseSalvageName(name), undefined, JSON.stringify(name))
  assert.equal(salvageName({ uuid: '../..', target: 'vda', format: 'raw' }), undefined)
})

test('whose salvage an image is', () => {
  const path = `/images/.swam-salvage/${UUID}-vda.raw`
  assert.equal(isSalvageOf(path, UUID, 'vda'), true)
  assert.equal(isSalvageOf(path, UUID, 'vdb'), false)
  assert.equal(isSalvageOf(path, UUID.replaceAll('3', '4'), 'vda'), false)
  assert.equal(isSalvageOf(`/images/${UUID}-vda.raw`, UUID, 'vda'), false)
})

const DAY_MS = 86_400_000
const ROOM = { ageMsMax: 7 * DAY_MS, bytesMax: 10 * GIB, freeBytes: 500 * GIB, fileSystemBytes: 1000 * GIB }

function links(...all: readonly Partial<SalvageLink>[]): SalvageLink[] {
  return all.map((one, at) => ({ name: `link${at}`, bytes: GIB, inPlace: false, ageMs: at * 1000, ...one }))
}

function gone(all: readonly SalvageLink[], room = ROOM, before?: { bytes: number; count: number }): string[] {
  return salvageToRemove(all, room, before).map(({ name }) => name)
}

test('what is young and finds room stays', () => {
  assert.deepEqual(gone(links({}, {}, { ageMs: 7 * DAY_MS })), [])
})

test('what is older than the config says goes', () => {
  assert.deepEqual(gone(links({}, { ageMs: 7 * DAY_MS + 1 }, {})), ['link1'])
})

test('what lies in its place still goes, but not at once: libvirt may be about to take it away', () => {
  const all = links(
    { inPlace: true, ageMs: SALVAGE_SETTLE_MS },
    { inPlace: true, ageMs: SALVAGE_SETTLE_MS + 1 },
  )
  assert.deepEqual(gone(all), ['link1'])
})

test('the oldest give way until the rest has room; what lies in place takes none', () => {
  const all = links(
    { bytes: 4 * GIB },
    { bytes: 4 * GIB },
    { bytes: 4 * GIB },
    { bytes: 40 * GIB, inPlace: true },
  )
  assert.deepEqual(gone(all), ['link2'])
  assert.deepEqual(gone(all, { ...ROOM, bytesMax: 0 }), ['link0', 'link1', 'link2'])
  assert.deepEqual(gone(all, { ...ROOM, bytesMax: 12 * GIB }), [])
})

test('what lies in other directories counts', () => {
  assert.deepEqual(gone(links({}, {}), ROOM, { bytes: 9 * GIB, count: 9 }), ['link1'])
})

test('a file system that is nearly full: the oldest give way until a tenth is free', () => {
  const room = { ...ROOM, freeBytes: 98 * GIB }
  assert.deepEqual(gone(links({}, {}, {}), room), ['link1', 'link2'])
  assert.deepEqual(gone(links({}, {}, {}), { ...room, freeBytes: 100 * GIB }), [])
  // What goes because of its age counts as free.
  assert.deepEqual(gone(links({}, { bytes: 2 * GIB, ageMs: 8 * DAY_MS }, {}), room), ['link1'])
})

test('there are never more than so many', () => {
  const all = links(...Array.from({ length: SALVAGE_IMAGES_MAX + 3 }, () => ({ bytes: MIB })))
  assert.deepEqual(
    gone(all),
    [-3, -2, -1].map((at) => all.at(at)!.name),
  )
})
