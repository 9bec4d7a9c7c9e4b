/** What peers and the hook send is checked key by key, and the message names the key. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Params } from '../../../server/params.ts'

const UUID = '8950abfd-a7b7-4763-8760-dd35bcf5c3da'

test('what is right comes out', () => {
  const params = new Params('arm', {
    uuid: UUID,
    ports: [49152, 49153],
    exports: [{ name: 'd', size: 4096, blockSizes: { minimum: 1, preferred: 4096, maximum: 33554432 } }],
    found: false,
    capacity: null,
  })
  assert.equal(params.uuid('uuid'), UUID)
  assert.deepEqual(params.ports('ports', 2), [49152, 49153])
  assert.equal(params.exports('exports')[0]?.blockSizes.maximum, 33554432)
  assert.equal(params.flag('found'), false)
  assert.equal(params.optionalInteger('capacity', 0, 10), undefined)
})

const wrong: readonly { name: string; use: (params: Params) => unknown; value: unknown; message: RegExp }[] =
  [
    { name: 'no uuid', use: (p) => p.uuid('k'), value: `${UUID}x`, message: /arm: k: expected a uuid/ },
    {
      name: 'upper case uuid',
      use: (p) => p.uuid('k'),
      value: UUID.toUpperCase(),
      message: /expected a uuid/,
    },
    { name: 'long text', use: (p) => p.text('k', 3), value: 'abcd', message: /a text of at most 3/ },
    { name: 'port 0', use: (p) => p.port('k'), value: 0, message: /expected a port, found 0/ },
    { name: 'port as text', use: (p) => p.port('k'), value: '22', message: /expected a port/ },
    { name: 'fraction', use: (p) => p.ports('k', 2), value: [1.5], message: /a list of ports/ },
    { name: 'too many', use: (p) => p.list('k', 1), value: [1, 2], message: /a list of at most 1/ },
    { name: 'no list', use: (p) => p.list('k', 1), value: { length: 0 }, message: /a list/ },
    {
      name: 'negative size',
      use: (p) => p.exports('k'),
      value: [{ name: 'd', size: -1, blockSizes: { minimum: 1, preferred: 1, maximum: 65536 } }],
      message: /size: expected an integer from 0/,
    },
    {
      name: 'huge block',
      use: (p) => p.exports('k'),
      value: [{ name: 'd', size: 1, blockSizes: { minimum: 131072, preferred: 1, maximum: 65536 } }],
      message: /minimum: expected an integer from 1 to 65536/,
    },
  ]
for (const { name, use, value, message } of wrong) {
  test(`refused: ${name}`, () => {
    assert.throws(() => use(new Params('arm', { k: value })), message)
  })
}

test('refused: no object at all', () => {
  for (const value of [null, undefined, 'x', 5, []])
    assert.throws(() => new Params('arm', value), /expected an object/)
})
