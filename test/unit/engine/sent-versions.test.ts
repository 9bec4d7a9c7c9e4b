/** What a sender remembers of what it described: exact, within its memory, and forgotten where something else may lie. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { BLOCK_BYTES as BLOCK, KIB, MIB, PIECE_BYTES } from '../../../lib/core/units.ts'
import { hasBlock } from '../../../lib/engine/chunk-blocks.ts'
import { SentVersions, VersionMemory } from '../../../lib/engine/sent-versions.ts'
import { noise } from './rig.ts'

const UNIT = 64 * KIB
const SECTOR = 512

test('property: what it says changed did, and nothing else, whatever was put and forgotten before', () => {
  const disk = 4 * UNIT
  const range = fc.tuple(fc.nat(disk / SECTOR - 1), fc.integer({ min: 1, max: 3 * 128 }))
  const step = fc.oneof(
    fc.record({ put: range, seed: fc.nat(5), edits: fc.array(fc.nat(disk - 1), { maxLength: 4 }) }),
    fc.record({ forget: range }),
  )
  fc.assert(
    fc.property(fc.array(step, { maxLength: 12 }), range, (steps, asked) => {
      const versions = new SentVersions(new VersionMemory())
      const model = Buffer.alloc(disk)
      const known = new Array<boolean>(disk / BLOCK).fill(false)
      const bytesOf = ([first, count]: [number, number]): { start: number; end: number } => ({
        start: first * SECTOR,
        end: Math.min(disk, (first + count) * SECTOR),
      })
      for (const one of steps) {
        const { start, end } = bytesOf('put' in one ? one.put : one.forget)
        if ('put' in one) {
          noise(disk, one.seed).copy(model, start, start, end)
          for (const at of one.edits) if (at >= start && at < end) model[at]! ^= 1
          versions.put(start, model.subarray(start, end))
        } else versions.forget(start, end - start)
        for (const block of known.keys()) {
          const [from, to] = [block * BLOCK, (block + 1) * BLOCK]
          if (end <= from || to <= start) continue
          known[block] = 'put' in one && start <= from && to <= end
        }
      }
      for (const [block, isKnown] of known.entries())
        assert.equal(versions.knows(block * BLOCK, BLOCK), isKnown, `block ${block}`)
      const { start, end } = bytesOf(asked)
      const now = Buffer.from(noise(disk, 2).subarray(start, end))
      const change = versions.changeOf(start, now)
      const whole = start % BLOCK === 0 && end % BLOCK === 0
      const expected = whole && known.slice(start / BLOCK, end / BLOCK).every(Boolean)
      assert.equal(change !== undefined, expected)
      assert.equal(versions.knows(start, end - start), expected)
      if (change === undefined) return
      let maps = 0
      for (let at = start; at < end; at += BLOCK) {
        const differing = Array.from({ length: BLOCK / PIECE_BYTES }, (_, piece) => {
          const from = at + piece * PIECE_BYTES
          const piecesAre = now.subarray(from - start, from - start + PIECE_BYTES)
          return !piecesAre.equals(model.subarray(from, from + PIECE_BYTES))
        })
        const map = differing.reduce((sum, differs, piece) => sum + (differs ? 2 ** piece : 0), 0)
        assert.equal(hasBlock(change.missing, (at - start) / BLOCK), map !== 0)
        if (map !== 0) assert.equal(change.differences.maps[maps++], map)
      }
      assert.equal(change.differences.maps.length, maps)
      versions.close()
    }),
    { numRuns: 300 },
  )
})

test('memory is bounded for all disks, taken in parts, and given back with the last', () => {
  const memory = new VersionMemory({ bytesMax: 8 * MIB })
  const one = new SentVersions(memory)
  const other = new SentVersions(memory)
  assert.equal(memory.allocatedBytes, 0)
  const bytes = noise(UNIT, 1)
  for (let index = 0; index < 100; index++) one.put(index * UNIT, bytes)
  assert.equal(memory.allocatedBytes, 8 * MIB)
  // The first one is used again, so the second is the oldest.
  one.put(0, bytes)
  for (let index = 0; index < 29; index++) other.put(index * UNIT, bytes)
  assert.equal(memory.allocatedBytes, 8 * MIB)
  assert.ok(one.knows(0, UNIT) && !one.knows(UNIT, UNIT) && one.knows(2 * UNIT, UNIT))
  one.close()
  assert.ok(!one.knows(0, UNIT) && other.knows(0, 29 * UNIT))
  one.put(0, bytes)
  assert.ok(!one.knows(0, UNIT), 'it is closed')
  other.close()
  assert.equal(memory.allocatedBytes, 0)
})

test('zeroes as long as a disk of 8 TiB are forgotten by what is known, not by what they cover', () => {
  const versions = new SentVersions(new VersionMemory())
  versions.put(5 * UNIT, noise(3 * UNIT, 1))
  const began = process.cpuUsage().user
  versions.forget(6 * UNIT + 100, 2 ** 43)
  assert.ok(process.cpuUsage().user - began < 1_000_000)
  assert.ok(
    versions.knows(5 * UNIT, UNIT) && !versions.knows(6 * UNIT, BLOCK) && !versions.knows(7 * UNIT, BLOCK),
  )
})

test('no memory at all is none to remember anything in', () => {
  const versions = new SentVersions(new VersionMemory({ bytesMax: MIB }))
  versions.put(0, noise(UNIT, 1))
  assert.ok(!versions.knows(0, BLOCK))
})
