/** How much of a disk may be acknowledged and not settled: by what the far side has not judged yet, and by what came of it lately. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { UNDETERMINED_BYTES_MAX, UNDETERMINED_BYTES_MIN } from '../../../lib/core/limits.ts'
import { GIB, KIB, MIB } from '../../../lib/core/units.ts'
import { Room } from '../../../lib/engine/room.ts'

const SLOW = 1000

/** All that was applied lately lay in place, so that next to nothing has to be sent. */
function inPlace(windowBytes = GIB): Room {
  const room = new Room({ windowBytes, drainMs: 1000 })
  for (let bytes = 0; bytes < 256 * MIB; bytes += MIB) room.applied(MIB, 0, true)
  return room
}

test('of what is not judged yet some is let in on any link, and not more than so much', () => {
  const room = inPlace()
  assert.equal(room.allows(UNDETERMINED_BYTES_MIN, 0, SLOW), true)
  assert.equal(room.allows(UNDETERMINED_BYTES_MIN + 1, 0, SLOW), false)
  assert.equal(room.allows(UNDETERMINED_BYTES_MAX, 0, GIB), true)
  assert.equal(room.allows(UNDETERMINED_BYTES_MAX + 1, 0, GIB), false)
  // What is wanted is judged.
  assert.equal(room.allows(UNDETERMINED_BYTES_MAX + MIB, MIB, GIB), true)
})

test('the window counts whatever the link', () => {
  const room = inPlace(32 * MIB)
  assert.equal(room.allows(32 * MIB, 0, GIB), true)
  assert.equal(room.allows(32 * MIB + 1, 0, GIB), false)
})

test('one chunk that had to be sent is no sign that the next ones have to be; many are', () => {
  const room = inPlace()
  room.applied(64 * KIB, 64 * KIB, false)
  assert.equal(room.allows(UNDETERMINED_BYTES_MIN, 0, SLOW), true)
  for (let bytes = 0; bytes < 16 * MIB; bytes += 64 * KIB) room.applied(64 * KIB, 64 * KIB, false)
  assert.equal(room.allows(UNDETERMINED_BYTES_MIN, 0, SLOW), false)
})
