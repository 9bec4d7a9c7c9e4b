/** Where a guest's memory is, by a stream that passes in pieces of any size; and that what is not known ends the looking only. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { RAM_BLOCKS_MAX } from '../../../lib/core/limits.ts'
import { MIB } from '../../../lib/core/units.ts'
import { RamProgress } from '../../../lib/ram/progress.ts'
import { PAGE, stream } from './qemu-stream.ts'

const BLOCKS = { 'pc.ram': 16 * MIB, 'vga.vram': MIB, 'pc.bios': 64 * PAGE }
const SETUP = Buffer.concat([
  stream.header(),
  stream.command(Buffer.alloc(3)),
  stream.start(),
  stream.list(BLOCKS),
  stream.eos(),
])

function look(...pieces: readonly Buffer[]): RamProgress {
  const progress = new RamProgress()
  for (const piece of pieces) progress.push(piece)
  return progress
}

test('property: the same whatever pieces it comes in', () => {
  const pages = fc.array(fc.tuple(fc.nat(BLOCKS['pc.ram'] / PAGE - 1), fc.boolean(), fc.boolean()), {
    maxLength: 30,
  })
  fc.assert(
    fc.property(pages, fc.integer({ min: 1, max: 9000 }), (list, size) => {
      const parts: Buffer[] = [SETUP]
      let passes = 1
      let last = 0
      let passed = 0
      let first = true
      for (const [number, zero, cut] of list) {
        if (first || cut) parts.push(...(first ? [] : [stream.eos()]), stream.part())
        const block = first || cut ? 'pc.ram' : undefined
        const page = zero ? stream.zeroPage(number * PAGE, block) : stream.page(number * PAGE, block)
        if (number * PAGE < last) {
          passes++
          passed = 0
        }
        last = number * PAGE
        passed += page.length
        first = false
        parts.push(page)
      }
      const all = Buffer.concat(parts)
      const progress = new RamProgress()
      for (let at = 0; at < all.length; at += size) progress.push(all.subarray(at, at + size))
      assert.deepEqual(
        [progress.known, progress.pass, progress.at, progress.passedBytes, progress.totalBytes],
        [true, passes, last, passed, 17 * MIB + 64 * PAGE],
      )
    }),
    { numRuns: 200 },
  )
})

test('blocks lie one behind the other, and a part of the stream is of the last one named', () => {
  const progress = look(SETUP, stream.part(), stream.page(PAGE, 'vga.vram'), stream.zeroPage(3 * PAGE))
  assert.equal(progress.at, 16 * MIB + 3 * PAGE)
  progress.push(Buffer.concat([stream.eos(), stream.part(), stream.zeroPage(0, 'pc.bios')]))
  assert.deepEqual([progress.at, progress.pass], [17 * MIB, 1])
  progress.push(stream.page(0, 'pc.ram'))
  assert.deepEqual(
    [progress.at, progress.pass, progress.passedBytes],
    [0, 2, stream.page(0, 'pc.ram').length],
  )
})

test('it is not known before the list, nor when the guest is paused', () => {
  assert.equal(look(stream.header(), stream.start()).known, false)
  const progress = look(SETUP, stream.part(), stream.page(0, 'pc.ram'), stream.eos())
  assert.equal(progress.known, true)
  progress.push(stream.end())
  assert.equal(progress.known, false)
})

for (const [name, ...pieces] of [
  ['another protocol', Buffer.from('GET / HTTP/1.1\r\n\r\n')],
  ['another version', Buffer.concat([Buffer.from('QEVM'), Buffer.from([0, 0, 0, 4])])],
  ['another device that is sent while the guest runs', stream.header(), stream.start('dirty-bitmap')],
  ['a part of a section that nobody began', stream.header(), Buffer.from([2, 0, 0, 0, 9])],
  ['a page of a block that is not listed', SETUP, stream.part(), stream.page(0, 'pc.rom')],
  ['a page beyond its block', SETUP, stream.part(), stream.page(0, 'pc.bios'), stream.page(64 * PAGE)],
  ['a page before any block', SETUP, stream.part(), stream.page(0)],
  ['pages in another coding', SETUP, stream.part(), stream.word(0x40 + 0x20)],
  [
    'a list of more than it says',
    stream.header(),
    stream.start(),
    stream.word(PAGE + 4),
    stream.list(BLOCKS).subarray(8),
  ],
  ['a block of nothing', stream.header(), stream.start(), stream.list({ 'pc.ram': PAGE, none: 0 })],
  [
    'blocks without end',
    stream.header(),
    stream.start(),
    stream.list(Object.fromEntries(Array.from({ length: RAM_BLOCKS_MAX + 2 }, (_, n) => [`b${n}`, PAGE]))),
  ],
] as const) {
  test(`what is not known ends it: ${name}`, () => {
    const progress = look(...pieces)
    assert.equal(progress.known, false)
    progress.push(Buffer.concat([SETUP, stream.part(), stream.page(0, 'pc.ram')]))
    assert.equal(progress.known, false)
  })
}
