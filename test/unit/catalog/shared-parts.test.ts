/** What `qemu-img map` says of a chain, line by line; the real one is asked in test/interop/stock-qcow2. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { parseShared } from '../../../lib/catalog/shared-parts.ts'

/** As qemu-img 7.2 writes it. */
const OUTPUT = `[{ "start": 0, "length": 65536, "depth": 1, "present": true, "zero": false, "data": true, "offset": 0},
{ "start": 65536, "length": 65536, "depth": 0, "present": true, "zero": true, "data": false},
{ "start": 131072, "length": 131072, "depth": 2, "present": true, "zero": false, "data": true},
{ "start": 262144, "length": 4096, "depth": 1, "present": false, "zero": true, "data": false},
{ "start": 266240, "length": 4096, "depth": 0, "present": true, "zero": false, "data": true}]
`

test('the parts that no file above a level has, neighbours joined', () => {
  assert.deepEqual(parseShared(OUTPUT, 1), [
    { offset: 0, end: 65_536 },
    { offset: 131_072, end: 266_240 },
  ])
  assert.deepEqual(parseShared(OUTPUT, 2), [{ offset: 131_072, end: 262_144 }])
  assert.deepEqual(parseShared(OUTPUT, 3), [])
  assert.deepEqual(parseShared('[]\n', 1), [])
})

const one = (entry: object): string => JSON.stringify([{ start: 0, length: 4096, depth: 1, ...entry }])
const wrong = [
  { name: 'a gap', output: one({ start: 4096 }) },
  { name: 'going back', output: `${one({})}\n${one({})}` },
  { name: 'an endless entry', output: one({ length: 0 }) },
  { name: 'a length that is none', output: one({ length: '4096' }) },
  { name: 'half a byte', output: one({ length: 0.5 }) },
  {
    name: 'more than can be counted',
    output: `${one({ length: 2 ** 53 - 1 })}\n${one({ start: 2 ** 53 - 1 })}`,
  },
  { name: 'no depth', output: one({ depth: null }) },
  { name: 'no JSON', output: '[{ "start": 0, "length" }]' },
]

for (const { name, output } of wrong) {
  test(`no parts are known from what is no map: ${name}`, () =>
    assert.equal(parseShared(output, 1), undefined))
}
