/** The messages of a proof: golden bytes, round trip, truncation, and what is over its ceiling or in disorder. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { IMAGE_BYTES_MAX, PROOF_RUNS_MAX } from '../../../lib/core/limits.ts'
import { LEAF_BYTES } from '../../../lib/core/units.ts'
import { type DiskMessage, decodeDiskMessage, encodeDiskMessage } from '../../../lib/wire/disk.ts'
import { DISK_DISPROVED, DISK_PROVE, DISK_PROVED, type LeafRange } from '../../../lib/wire/disk-proof.ts'

const HEAD = { disk: 2, epoch: 9 }
const ROOT = Buffer.alloc(32, 0xab)
const LEAVES_MAX = IMAGE_BYTES_MAX / LEAF_BYTES

function bytesOf(message: DiskMessage): Buffer {
  return Buffer.concat(encodeDiskMessage(message).payload)
}

const cases: readonly { readonly message: DiskMessage; readonly type: number; readonly hex: string }[] = [
  {
    message: {
      ...{ ...HEAD, type: 'prove', id: 5, barrier: 300, read: true },
      open: [
        { first: 3, end: 4 },
        { first: 200, end: 500 },
      ],
    },
    type: DISK_PROVE,
    hex: `0002 00000009 00000005 000000000000012c 01 0002 03 01 c401 ac02`,
  },
  {
    message: { ...HEAD, type: 'prove', id: 6, barrier: 0, read: false, open: [] },
    type: DISK_PROVE,
    hex: '0002 00000009 00000006 0000000000000000 00 0000',
  },
  {
    message: { ...HEAD, type: 'proved', id: 5, root: ROOT, unread: 7, excluded: [{ first: 0, end: 1 }] },
    type: DISK_PROVED,
    hex: `0002 00000009 00000005 ${'ab'.repeat(32)} 0000000000000007 0001 00 01`,
  },
  {
    message: { ...HEAD, type: 'disproved', id: 5, root: ROOT },
    type: DISK_DISPROVED,
    hex: `0002 00000009 00000005 ${'ab'.repeat(32)}`,
  },
]

for (const { message, type, hex } of cases) {
  test(`${message.type}: its bytes, there and back, and none too few or too many`, () => {
    const bytes = Buffer.from(hex.replaceAll(' ', ''), 'hex')
    assert.equal(encodeDiskMessage(message).type, type)
    assert.deepEqual(bytesOf(message).toString('hex'), bytes.toString('hex'))
    assert.deepEqual(decodeDiskMessage(type, bytes), message)
    for (let length = 0; length < bytes.length; length++)
      assert.throws(() => decodeDiskMessage(type, bytes.subarray(0, length)), ProtocolError)
    assert.throws(() => decodeDiskMessage(type, Buffer.concat([bytes, Buffer.alloc(1)])), ProtocolError)
  })
}

test('property: any runs come back', () => {
  const gaps = fc.array(
    fc.tuple(fc.integer({ min: 1, max: 2 ** 20 }), fc.integer({ min: 1, max: 2 ** 16 })),
    {
      maxLength: 200,
    },
  )
  fc.assert(
    fc.property(gaps, fc.boolean(), (pairs, fromZero) => {
      let at = fromZero ? -1 : 0
      const open: LeafRange[] = []
      for (const [gap, length] of pairs) {
        const first = at + gap
        if (first + length > LEAVES_MAX) break
        open.push({ first, end: first + length })
        at = first + length
      }
      const message: DiskMessage = { ...HEAD, type: 'prove', id: 1, barrier: 2, read: false, open }
      if (open[0]?.first === -1) return
      assert.deepEqual(decodeDiskMessage(DISK_PROVE, bytesOf(message)), message)
    }),
  )
})

const prove = (open: readonly LeafRange[]): Buffer =>
  bytesOf({ ...HEAD, type: 'prove', id: 1, barrier: 2, read: false, open })

test('as many runs as may be, and not one more', () => {
  const runs = Array.from({ length: PROOF_RUNS_MAX }, (_, at) => ({ first: 2 * at + 1, end: 2 * at + 2 }))
  assert.equal(
    (decodeDiskMessage(DISK_PROVE, prove(runs)) as Extract<DiskMessage, { type: 'prove' }>).open.length,
    PROOF_RUNS_MAX,
  )
  const more = [...runs, { first: 2 * PROOF_RUNS_MAX + 1, end: 2 * PROOF_RUNS_MAX + 2 }]
  assert.throws(
    () => decodeDiskMessage(DISK_PROVE, prove(more)),
    /16385 runs of leaves, expected at most 16384/,
  )
})

for (const { name, open } of [
  { name: 'an empty run', open: [{ first: 4, end: 4 }] },
  {
    name: 'runs that touch',
    open: [
      { first: 1, end: 4 },
      { first: 4, end: 6 },
    ],
  },
  { name: 'leaves behind the largest disk', open: [{ first: LEAVES_MAX - 1, end: LEAVES_MAX + 1 }] },
]) {
  test(`PROVE: ${name} is a breach`, () => {
    assert.throws(() => decodeDiskMessage(DISK_PROVE, prove(open)), ProtocolError)
  })
}

test('flags and counts that cannot be are breaches', () => {
  const bytes = prove([])
  bytes[18] = 2
  assert.throws(() => decodeDiskMessage(DISK_PROVE, bytes), /read is 2/)
  const proved = bytesOf({ ...HEAD, type: 'proved', id: 1, root: ROOT, unread: LEAVES_MAX + 1, excluded: [] })
  assert.throws(() => decodeDiskMessage(DISK_PROVED, proved), /leaves are unread/)
})
