/** A disk's map on a real file: held against a plain one, over more pages than are kept in memory; and its root by a second opinion. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { ZERO_DIGEST } from '../../../lib/chunk/leaf-digests.ts'
import { PROOF_CHANGES_MAX, PROOF_PAGES_MAX, PROOF_RUNS_MAX } from '../../../lib/core/limits.ts'
import { LEAF_BYTES } from '../../../lib/core/units.ts'
import { LeafFile, PAGE_LEAVES } from '../../../lib/proof/leaf-file.ts'
import { LeafMap } from '../../../lib/proof/leaf-map.ts'
import { RootSum } from '../../../lib/proof/root.ts'
import { random } from '../../random.ts'
import { closeProofs, newMap } from '../engine/proof-rig.ts'

after(closeProofs)

const digestOf = (number: number): Buffer => sha256(Buffer.from(String(number)))

test('a root is a sum: whatever order, whatever came and went', () => {
  const [one, other, empty] = [new RootSum(), new RootSum(), new RootSum()]
  for (const leaf of [0, 7, 2 ** 28, 3]) one.add(leaf, digestOf(leaf))
  for (const leaf of [3, 5, 2 ** 28, 0, 7]) other.add(leaf, digestOf(leaf))
  assert.notDeepEqual(one.bytes(), other.bytes())
  other.subtract(5, digestOf(5))
  assert.deepEqual(one.bytes(), other.bytes())
  const copy = one.copy()
  copy.add(9, digestOf(9))
  assert.deepEqual(one.bytes(), other.bytes(), 'a copy is its own')
  for (const leaf of [0, 3, 7, 2 ** 28]) one.subtract(leaf, digestOf(leaf))
  assert.deepEqual(one.bytes(), empty.bytes())
  one.add(1, digestOf(2))
  other.add(2, digestOf(1))
  assert.notDeepEqual(one.bytes(), other.bytes(), 'a leaf has its place')
})

/** What it should be, kept plainly. */
class Plain {
  readonly known = new Map<number, Buffer>()

  root(leftOut: ReadonlySet<number> = new Set()): Buffer {
    const sum = new RootSum()
    for (const [leaf, digest] of this.known)
      if (!digest.equals(ZERO_DIGEST) && !leftOut.has(leaf)) sum.add(leaf, digest)
    return sum.bytes()
  }
}

async function assertSame(map: LeafMap, plain: Plain): Promise<void> {
  await map.turn(async (turn) => {
    assert.deepEqual(turn.root.bytes(), plain.root())
    assert.equal(turn.unknown.leaves, map.leaves - plain.known.size)
    for (let leaf = 0; leaf < map.leaves; leaf += leaf % 50 === 0 ? 1 : 49)
      assert.deepEqual(await turn.digest(leaf), plain.known.get(leaf))
  })
}

test('property: over more pages than memory holds it is what it was told', async () => {
  const leaves = (PROOF_PAGES_MAX + 40) * PAGE_LEAVES - 3
  const next = random(5)
  const map = await newMap(leaves * LEAF_BYTES)
  const plain = new Plain()
  for (let step = 0; step < 3000; step++) {
    const first = Math.floor(next() * leaves)
    const length = Math.min(leaves - first, 1 + Math.floor(next() * (next() < 0.05 ? 2000 : 20)))
    const kind = next()
    if (kind < 0.6) {
      const digests = Buffer.concat(
        Array.from({ length }, (_, at) => (next() < 0.1 ? ZERO_DIGEST : digestOf(step * 3000 + at))),
      )
      map.put(first, digests)
      for (let at = 0; at < length; at++) plain.known.set(first + at, digests.subarray(at * 32, at * 32 + 32))
    } else if (kind < 0.75) {
      map.zero(first, first + length)
      for (let at = 0; at < length; at++) plain.known.set(first + at, ZERO_DIGEST)
    } else if (kind < 0.9) {
      map.forget(first, first + length)
      for (let at = 0; at < length; at++) plain.known.delete(first + at)
    } else {
      map.zeroPart(first)
      if (plain.known.get(first)?.equals(ZERO_DIGEST) === false) plain.known.delete(first)
    }
    if (step % 500 === 0) await assertSame(map, plain)
  }
  await assertSame(map, plain)
  const leftOut = new Set([5, 6, 7, 8, 1000, 1001])
  const root = await map.turn(async (turn) =>
    (
      await turn.without([
        { first: 5, end: 9 },
        { first: 1000, end: 1002 },
      ])
    ).bytes(),
  )
  assert.deepEqual(root, plain.root(leftOut))
})

test('a turn sees what was asked before it, and what is asked in it waits', async () => {
  const map = await newMap(100 * LEAF_BYTES)
  map.put(1, digestOf(1))
  const gate = Promise.withResolvers<void>()
  const seen: boolean[] = []
  const turn = map.turn(async ({ digest }) => {
    await gate.promise
    seen.push((await digest(1)) !== undefined, (await digest(2)) !== undefined)
  })
  map.put(2, digestOf(2))
  gate.resolve()
  await turn
  assert.deepEqual(seen, [true, false])
  assert.ok((await map.turn(async ({ digest }) => await digest(2)))?.equals(digestOf(2)))
})

test('a set of unknown leaves that has too many runs takes gaps in, of which then nothing is known', async () => {
  const leaves = PROOF_RUNS_MAX * 2 + 1000
  const map = await newMap(leaves * LEAF_BYTES)
  map.put(0, Buffer.concat(Array.from({ length: leaves }, (_, at) => digestOf(at))))
  const plain = new Plain()
  for (let leaf = 0; leaf < leaves; leaf++) plain.known.set(leaf, digestOf(leaf))
  for (let leaf = 0; leaf < leaves; leaf += 2) map.forget(leaf, leaf + 1)
  await map.room()
  await map.turn(async ({ unknown, root }) => {
    assert.ok(unknown.count <= PROOF_RUNS_MAX)
    for (const { first, end } of unknown.entries())
      for (let leaf = first; leaf < end; leaf++) plain.known.delete(leaf)
    assert.deepEqual(root.bytes(), plain.root())
    assert.ok(plain.known.size > 0)
  })
})

test('a map whose file fails is broken for good, and whoever waits hears of it', async () => {
  const folder = await mkdtemp(join(tmpdir(), 'swam-map-'))
  try {
    const size = PROOF_PAGES_MAX * 2 * PAGE_LEAVES * LEAF_BYTES
    const file = await LeafFile.create(join(folder, 'map'), size)
    const map = new LeafMap(file)
    map.put(0, digestOf(1))
    await map.turn(async () => undefined)
    // As a disk that goes away.
    await file.close()
    for (let page = 0; page <= PROOF_PAGES_MAX; page++) map.put(page * PAGE_LEAVES, digestOf(page))
    await assert.rejects(
      map.turn(async () => undefined),
      /the proof's file .*map: /,
    )
    assert.match(map.broken?.message ?? '', /the proof's file/)
    map.put(0, digestOf(1))
    await map.room()
    await assert.rejects(
      map.turn(async () => undefined),
      /the proof's file/,
    )
  } finally {
    await rm(folder, { recursive: true })
  }
})

test('one that is closed while a turn is under way waits for it, and the turns behind it hear', async () => {
  const map = await newMap(100 * LEAF_BYTES)
  const gate = Promise.withResolvers<void>()
  const held = map.turn(() => gate.promise)
  const behind = map.turn(async () => undefined)
  void held.catch(() => undefined)
  await new Promise((resolve) => setImmediate(resolve))
  const closing = map.close()
  await assert.rejects(behind, /closed/)
  gate.resolve()
  await closing
  await map.close()
})

test('while too many changes wait for the file there is no room for more, and then there is', async () => {
  const map = await newMap(4 * PROOF_CHANGES_MAX * LEAF_BYTES)
  const gate = Promise.withResolvers<void>()
  const held = map.turn(() => gate.promise)
  for (let leaf = 0; leaf <= PROOF_CHANGES_MAX; leaf++) map.put(2 * leaf, digestOf(0))
  let free = false
  const room = map.room().then(() => {
    free = true
  })
  for (let turns = 0; turns < 5; turns++) await new Promise((resolve) => setImmediate(resolve))
  assert.equal(free, false)
  gate.resolve()
  await Promise.all([held, room])
  assert.equal(free, true)
})
