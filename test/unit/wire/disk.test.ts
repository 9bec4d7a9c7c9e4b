/** Disk messages over every ceiling: refused before anything is allocated, and just below it they are read. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ProtocolError } from '../../../lib/core/errors.ts'
import {
  CHUNK_BYTES_MAX,
  DESCRIBE_CHUNKS_MAX,
  EXPORT_NAME_BYTES_MAX,
  LITERAL_BYTES_MAX,
  LITERAL_CHUNKS_MAX,
  MIGRATION_DISKS_MAX,
  SEQ_RUNS_MAX,
} from '../../../lib/core/limits.ts'
import {
  DISK_APPLIED,
  DISK_DESCRIBE,
  DISK_FAILED,
  DISK_FLUSH,
  DISK_LITERAL,
  DISK_OPEN,
  DISK_OPENED,
  DISK_READ,
  DISK_WANT,
  DISK_ZERO,
  decodeDiskMessage,
} from '../../../lib/wire/disk.ts'

const u8 = (value: number): Buffer => Buffer.from([value])
const u16 = (value: number): Buffer => {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}
const u32 = (value: number): Buffer => {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}
const u64 = (value: number | bigint): Buffer => {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}
const times = (count: number, bytes: Buffer): Buffer[] => new Array<Buffer>(count).fill(bytes)

const describe = (count: number, length: number): Buffer[] => [
  u64(0),
  u64(0),
  u16(count),
  ...times(count, u32(length)),
  Buffer.alloc(32 * count),
]
const literal = (count: number, length: number): Buffer[] => [
  u8(0),
  u16(count),
  ...times(count, Buffer.concat([u64(0), u32(length)])),
  Buffer.alloc(count * length),
]
const runs = (count: number, more: Buffer): Buffer[] => [
  u16(count),
  ...times(count, Buffer.concat([u64(0), u32(1), more])),
]
const named = (bytes: number): Buffer[] => [u16(bytes), Buffer.alloc(bytes, 'x')]

for (const { name, type, most, over, disk = 0 } of [
  {
    name: 'chunks of a DESCRIBE',
    type: DISK_DESCRIBE,
    most: describe(DESCRIBE_CHUNKS_MAX, 1),
    over: describe(DESCRIBE_CHUNKS_MAX + 1, 1),
  },
  {
    name: 'a described chunk',
    type: DISK_DESCRIBE,
    most: describe(1, CHUNK_BYTES_MAX),
    over: describe(1, CHUNK_BYTES_MAX + 1),
  },
  {
    name: 'where a DESCRIBE ends',
    type: DISK_DESCRIBE,
    most: describe(1, 1),
    over: [u64(0), u64(2 ** 53 - 1), u16(1), u32(1), Buffer.alloc(32)],
  },
  {
    name: 'chunks of a LITERAL',
    type: DISK_LITERAL,
    most: literal(LITERAL_CHUNKS_MAX, 1),
    over: literal(LITERAL_CHUNKS_MAX + 1, 1),
  },
  {
    name: 'bytes of a LITERAL',
    type: DISK_LITERAL,
    most: literal(4, LITERAL_BYTES_MAX / 4),
    over: literal(4, LITERAL_BYTES_MAX / 4 + 1),
  },
  {
    name: 'bytes that a LITERAL claims to hold',
    type: DISK_LITERAL,
    most: literal(1, 1),
    over: [u8(1), u16(1), u64(0), u32(2 ** 32 - 1), Buffer.alloc(100)],
  },
  {
    name: 'runs of a WANT',
    type: DISK_WANT,
    most: runs(SEQ_RUNS_MAX, Buffer.alloc(0)),
    over: runs(SEQ_RUNS_MAX + 1, Buffer.alloc(0)),
  },
  {
    name: 'runs of an APPLIED',
    type: DISK_APPLIED,
    most: runs(SEQ_RUNS_MAX, u8(1)),
    over: runs(SEQ_RUNS_MAX + 1, u8(1)),
  },
  {
    name: 'chunks of one run',
    type: DISK_WANT,
    most: [u16(1), u64(0), u32(2 ** 24)],
    over: [u16(1), u64(0), u32(2 ** 24 + 1)],
  },
  {
    name: 'bytes of a READ',
    type: DISK_READ,
    most: [u32(1), u64(0), u32(LITERAL_BYTES_MAX)],
    over: [u32(1), u64(0), u32(LITERAL_BYTES_MAX + 1)],
  },
  {
    name: 'where a ZERO ends',
    type: DISK_ZERO,
    most: [u64(0), u64(0), u64(2 ** 53 - 1)],
    over: [u64(0), u64(1), u64(2 ** 53 - 1)],
  },
  {
    name: 'a number of 64 bits',
    type: DISK_FLUSH,
    most: [u32(1), u64(2 ** 53 - 1)],
    over: [u32(1), u64(2n ** 53n)],
  },
  {
    name: 'the name of an export',
    type: DISK_OPEN,
    most: [u16(49_153), ...named(EXPORT_NAME_BYTES_MAX)],
    over: [u16(49_153), ...named(EXPORT_NAME_BYTES_MAX + 1)],
  },
  {
    name: 'the text of an OPENED',
    type: DISK_OPENED,
    most: [u32(5), ...named(EXPORT_NAME_BYTES_MAX)],
    over: [u32(5), ...named(EXPORT_NAME_BYTES_MAX + 1)],
  },
  {
    name: 'the text of a FAILED',
    type: DISK_FAILED,
    most: [u32(5), ...named(EXPORT_NAME_BYTES_MAX)],
    over: [u32(5), ...named(EXPORT_NAME_BYTES_MAX + 1)],
  },
] as readonly { name: string; type: number; most: Buffer[]; over: Buffer[]; disk?: number }[]) {
  test(`over its ceiling: ${name}`, () => {
    const payload = (body: readonly Buffer[]): Buffer => Buffer.concat([u16(disk), u32(1), ...body])
    assert.doesNotThrow(() => decodeDiskMessage(type, payload(most)))
    assert.throws(() => decodeDiskMessage(type, payload(over)), ProtocolError)
  })
}

test('over its ceiling: the number of a disk', () => {
  const payload = (disk: number): Buffer => Buffer.concat([u16(disk), u32(1), u32(1), u64(0)])
  assert.equal(decodeDiskMessage(DISK_FLUSH, payload(MIGRATION_DISKS_MAX - 1)).disk, MIGRATION_DISKS_MAX - 1)
  assert.throws(() => decodeDiskMessage(DISK_FLUSH, payload(MIGRATION_DISKS_MAX)), ProtocolError)
})
