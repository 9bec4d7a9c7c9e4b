/** Disk messages over every ceiling: refused before anything is allocated, and just below it they are read. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ProtocolError } from '../../../lib/core/errors.ts'
import {
  CHUNK_BLOCKS_MAX,
  CHUNK_BYTES_MAX,
  DESCRIBE_CHUNKS_MAX,
  EXPORT_NAME_BYTES_MAX,
  HINTS_CHUNKS_MAX,
  LITERAL_BYTES_MAX,
  LITERAL_CHUNKS_MAX,
  MIGRATION_DISKS_MAX,
  PARTS_CHUNKS_MAX,
  RUN_BYTES_MAX,
  SEQ_RUNS_MAX,
  SKETCHES_CHUNKS_MAX,
  SURVEY_CHUNKS_MAX,
  SURVEY_SEGMENTS_MAX,
} from '../../../lib/core/limits.ts'
import { SKETCH_BYTES } from '../../../lib/core/units.ts'
import { varint } from '../../../lib/wire/bytes.ts'
import {
  DISK_APPLIED,
  DISK_ASK,
  DISK_CHANGED,
  DISK_DESCRIBE,
  DISK_DETAIL,
  DISK_DIGESTS,
  DISK_FAILED,
  DISK_FLUSH,
  DISK_LITERAL,
  DISK_OPEN,
  DISK_OPENED,
  DISK_READ,
  DISK_SURVEY,
  DISK_WANT,
  DISK_ZERO,
  decodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { DISK_BRIEF, DISK_HINTS, DISK_PARTS, DISK_SKETCHES } from '../../../lib/wire/disk-blocks.ts'

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
/** Chunks of `length` bytes from 0 on, with these bits for each. */
const changed = (count: number, length: number, bits: Buffer): Buffer[] => [
  ...describe(count, length),
  ...times(count, bits),
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
const hinted = (blocks: number, bytes = 8): Buffer =>
  Buffer.concat([u64(0), u8(blocks), Buffer.alloc(bytes * blocks)])
const parted = (blocks: number): Buffer =>
  Buffer.concat([u64(0), u8(blocks), Buffer.alloc(Math.ceil(blocks / 8))])
/** `missing` and `old` are the first bytes of their bits. */
const sketched = (blocks: number, missing: number, old: number): Buffer => {
  const bits = (first: number): Buffer => Buffer.concat([u8(first), Buffer.alloc(Math.ceil(blocks / 8) - 1)])
  const count = [...old.toString(2)].filter((bit) => bit === '1').length
  return Buffer.concat([u64(0), u8(blocks), bits(missing), bits(old), Buffer.alloc(SKETCH_BYTES * count)])
}
const times1 = (count: number): number[] => new Array<number>(count).fill(1)
/** `count` runs that are all alike. */
const survey = (count: number, run: readonly number[], chunks = 0, offset = 0): Buffer[] => [
  u64(0),
  u64(offset),
  u8(0),
  u16(count),
  ...times(count, Buffer.from(run)),
  Buffer.alloc(32 * chunks),
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
    name: 'chunks of a CHANGED',
    type: DISK_CHANGED,
    most: changed(DESCRIBE_CHUNKS_MAX, 4096, u8(1)),
    over: changed(DESCRIBE_CHUNKS_MAX + 1, 4096, u8(1)),
  },
  {
    name: 'blocks of a chunk in a CHANGED',
    type: DISK_CHANGED,
    most: changed(1, 3 * 4096, u8(7)),
    over: changed(1, 3 * 4096, u8(8)),
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
    name: 'runs of an ASK',
    type: DISK_ASK,
    most: runs(SEQ_RUNS_MAX, Buffer.alloc(0)),
    over: runs(SEQ_RUNS_MAX + 1, Buffer.alloc(0)),
  },
  {
    name: 'runs of a DETAIL',
    type: DISK_DETAIL,
    most: runs(SEQ_RUNS_MAX, Buffer.alloc(0)),
    over: runs(SEQ_RUNS_MAX + 1, Buffer.alloc(0)),
  },
  {
    name: 'chunks of a HINTS',
    type: DISK_HINTS,
    most: [u16(HINTS_CHUNKS_MAX), ...times(HINTS_CHUNKS_MAX, hinted(1))],
    over: [u16(HINTS_CHUNKS_MAX + 1), ...times(HINTS_CHUNKS_MAX + 1, hinted(1))],
  },
  {
    name: 'chunks of a BRIEF',
    type: DISK_BRIEF,
    most: [u16(HINTS_CHUNKS_MAX), ...times(HINTS_CHUNKS_MAX, hinted(1, 4))],
    over: [u16(HINTS_CHUNKS_MAX + 1), ...times(HINTS_CHUNKS_MAX + 1, hinted(1, 4))],
  },
  {
    name: 'blocks of a chunk in BRIEF',
    type: DISK_BRIEF,
    most: [u16(1), hinted(CHUNK_BLOCKS_MAX, 4)],
    over: [u16(1), hinted(CHUNK_BLOCKS_MAX + 1, 4)],
  },
  {
    name: 'blocks of a chunk in HINTS',
    type: DISK_HINTS,
    most: [u16(1), hinted(CHUNK_BLOCKS_MAX)],
    over: [u16(1), hinted(CHUNK_BLOCKS_MAX + 1)],
  },
  {
    name: 'chunks of a PARTS',
    type: DISK_PARTS,
    most: [u16(PARTS_CHUNKS_MAX), ...times(PARTS_CHUNKS_MAX, parted(1))],
    over: [u16(PARTS_CHUNKS_MAX + 1), ...times(PARTS_CHUNKS_MAX + 1, parted(1))],
  },
  {
    name: 'blocks of a chunk in PARTS',
    type: DISK_PARTS,
    most: [u16(1), parted(CHUNK_BLOCKS_MAX)],
    over: [u16(1), parted(CHUNK_BLOCKS_MAX + 1)],
  },
  {
    name: 'chunks of a SKETCHES',
    type: DISK_SKETCHES,
    most: [u16(SKETCHES_CHUNKS_MAX), ...times(SKETCHES_CHUNKS_MAX, sketched(1, 1, 1))],
    over: [u16(SKETCHES_CHUNKS_MAX + 1), ...times(SKETCHES_CHUNKS_MAX + 1, sketched(1, 1, 1))],
  },
  {
    name: 'blocks of a chunk in SKETCHES',
    type: DISK_SKETCHES,
    most: [u16(1), sketched(CHUNK_BLOCKS_MAX, 1, 1)],
    over: [u16(1), sketched(CHUNK_BLOCKS_MAX + 1, 1, 1)],
  },
  {
    name: 'older blocks in SKETCHES: one beyond the chunk',
    type: DISK_SKETCHES,
    most: [u16(1), sketched(7, 0x7f, 0x40)],
    over: [u16(1), sketched(7, 0xff, 0x80)],
  },
  {
    name: 'older blocks in SKETCHES: none',
    type: DISK_SKETCHES,
    most: [u16(1), sketched(8, 0xff, 0xff)],
    over: [u16(1), sketched(8, 0xff, 0)],
  },
  {
    name: 'older blocks in SKETCHES: one that is there',
    type: DISK_SKETCHES,
    most: [u16(1), sketched(8, 3, 2)],
    over: [u16(1), sketched(8, 1, 2)],
  },
  {
    name: 'runs of a SURVEY',
    type: DISK_SURVEY,
    most: survey(SURVEY_SEGMENTS_MAX, [3]),
    over: survey(SURVEY_SEGMENTS_MAX + 1, [3]),
  },
  {
    name: 'chunks of a SURVEY',
    type: DISK_SURVEY,
    most: survey(2, [...varint(SURVEY_CHUNKS_MAX), ...times1(SURVEY_CHUNKS_MAX / 2)], SURVEY_CHUNKS_MAX),
    over: survey(
      2,
      [...varint(SURVEY_CHUNKS_MAX + 2), ...times1(SURVEY_CHUNKS_MAX / 2 + 1)],
      SURVEY_CHUNKS_MAX + 2,
    ),
  },
  {
    name: 'a chunk of a SURVEY',
    type: DISK_SURVEY,
    most: survey(1, [2, ...varint(CHUNK_BYTES_MAX)], 1),
    over: survey(1, [2, ...varint(CHUNK_BYTES_MAX + 1)], 1),
  },
  {
    name: 'bytes of a SURVEY',
    type: DISK_SURVEY,
    most: survey(1, varint(2 * RUN_BYTES_MAX + 1)),
    over: survey(2, varint(RUN_BYTES_MAX + 3)),
  },
  {
    name: 'where a SURVEY ends',
    type: DISK_SURVEY,
    most: survey(1, [3], 0, 2 ** 53 - 2),
    over: survey(1, [3], 0, 2 ** 53 - 1),
  },
  {
    name: 'a number in a SURVEY',
    type: DISK_SURVEY,
    most: survey(1, [0x83, 0x80, 0x80, 0x80, 0]),
    over: survey(1, [0x83, 0x80, 0x80, 0x80, 0x80, 0]),
  },
  {
    name: 'chunks of a DIGESTS',
    type: DISK_DIGESTS,
    most: [u64(0), Buffer.alloc(32 * SURVEY_CHUNKS_MAX)],
    over: [u64(0), Buffer.alloc(32 * (SURVEY_CHUNKS_MAX + 1))],
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
