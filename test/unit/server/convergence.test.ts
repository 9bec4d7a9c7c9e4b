/** Convergence: rates once the disks are copied, and when it is said that a migration does not catch up with its guest. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Convergence } from '../../../server/migration/convergence.ts'

const SIZE = 1000
const LINK = 5_000_000

/** Looks every two seconds at one disk. */
function looks(
  one: Convergence,
  count: number,
  from: { atMs: number; askedBytes: number },
  perLook: number,
  waits: boolean,
): void {
  for (let at = 0; at < count; at++) {
    from.atMs += 2000
    from.askedBytes += perLook
    one.look([{ size: SIZE, askedBytes: from.askedBytes, waits }], LINK, from.atMs)
  }
}

test('nothing is said while a disk is copied, or after one look', () => {
  const one = new Convergence()
  const at = { atMs: 0, askedBytes: 0 }
  looks(one, 9, at, 100, true)
  assert.equal(one.report(), null)
  looks(one, 1, at, 100, true)
  assert.equal(one.report(), null)
  one.look([], LINK, 1e6)
  assert.equal(one.report(), null)
})

test('what is written after that is what the guest dirties, over the last looks', () => {
  const one = new Convergence()
  const at = { atMs: 0, askedBytes: SIZE }
  looks(one, 20, at, 50_000, false)
  assert.deepEqual(one.report(), { dirtyBytesPerSecond: 25_000, linkBytesPerSecond: LINK, converges: true })
  looks(one, 11, at, 100_000, false)
  assert.equal(one.report()?.dirtyBytesPerSecond, 50_000)
})

test('it does not converge while a write waits at every look for some time, and does again when one does not', () => {
  const one = new Convergence()
  const at = { atMs: 0, askedBytes: SIZE }
  looks(one, 5, at, 1000, true)
  assert.equal(one.report()?.converges, true)
  // Who asks for the status all the time makes it no longer.
  for (let ms = 1; ms < 100; ms++)
    one.look([{ size: SIZE, askedBytes: at.askedBytes, waits: true }], LINK, at.atMs + ms)
  assert.equal(one.report()?.converges, true)
  looks(one, 1, at, 1000, true)
  assert.equal(one.report()?.converges, false)
  looks(one, 1, at, 1000, false)
  assert.equal(one.report()?.converges, true)
  looks(one, 5, at, 1000, true)
  assert.equal(one.report()?.converges, true)
  // What was before that time says nothing any more.
  looks(one, 1, at, 1000, true)
  assert.equal(one.report()?.converges, false)
})

test('another disk that comes is copied first', () => {
  const one = new Convergence()
  const disk = { size: SIZE, askedBytes: 2 * SIZE, waits: true }
  for (let atMs = 0; atMs < 20_000; atMs += 2000) one.look([disk], LINK, atMs)
  assert.equal(one.report()?.converges, false)
  one.look([disk, { size: SIZE, askedBytes: 0, waits: true }], LINK, 22_000)
  assert.equal(one.report(), null)
})
