/**
 * Holds a disk image to what its guest was told: every record that was reported durable must be on it.
 * A record is a run of 4 KiB blocks, each with its own header, so a torn record shows:
 *   0  "SWAMREC1"   8  record number (u64)   16  block's index in the record (u32)   20  seed (u32)   24  xorshift32 stream
 * Record n lies in slot n mod SLOTS (or a fixed permutation of it), so the last SLOTS records are all there; a slot may
 * hold a newer record than the last one reported, never an older one. The writer is guest/init.c.
 */
import { open } from 'node:fs/promises'
import { SwamError } from '../../lib/core/errors.ts'

export interface WritePlan {
  /** Bytes of one record: a multiple of 4096 (default 64 KiB). */
  readonly bytes: number
  /** Between two batches; 0: as fast as the disk goes. */
  readonly intervalMs: number
  /** `pages`: a database's, of 8 KiB, of which each change is one row. */
  readonly pattern: 'sequential' | 'scattered' | 'pages' | 'idle'
  /** Records before each fsync. */
  readonly batch: number
  /** The part of the disk that holds records; areaBytes / bytes is a power of two. */
  readonly areaOffset: number
  readonly areaBytes: number
}

export const WRITE_DEFAULT: WritePlan = {
  bytes: 65536,
  intervalMs: 200,
  pattern: 'sequential',
  batch: 1,
  areaOffset: 0,
  areaBytes: 64 << 20,
}

export interface RecordCheck {
  readonly ok: boolean
  /** Blocks compared. */
  readonly blocks: number
  /** The newest record number found on the image. */
  readonly newest: number
  /** The first few faults, in words. */
  readonly faults: readonly string[]
}

const BLOCK = 4096
const MAGIC = Buffer.from('SWAMREC1', 'latin1')
const FAULTS_MAX = 10

function seedOf(n: number, index: number): number {
  let x = Math.imul(n >>> 0, 2654435761)
  x ^= Math.imul(Math.floor(n / 0x1_0000_0000), 2246822519)
  x ^= Math.imul(index + 1, 3266489917)
  x = Math.imul(x ^ (x >>> 15), 2246822519)
  x = (x ^ (x >>> 13)) >>> 0
  return x === 0 ? 1 : x
}

export function slotOf(plan: WritePlan, n: number): number {
  const slots = plan.areaBytes / plan.bytes
  const mixed = plan.pattern === 'scattered' || plan.pattern === 'pages' ? Math.imul(n, 2654435761) : n
  return (mixed & (slots - 1)) >>> 0
}

/** Undefined when the block is a whole block of a record, else what is wrong with it. */
function faultOf(block: Buffer, n: number, index: number): string | undefined {
  if (block.readUInt32LE(16) !== index) return `block index ${block.readUInt32LE(16)}, expected ${index}`
  let x = seedOf(n, index)
  if (block.readUInt32LE(20) !== x) return 'wrong seed'
  const words = new Int32Array(block.buffer, block.byteOffset, BLOCK / 4)
  for (let at = 6; at < BLOCK / 4; at += 1) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    if (words[at] !== (x | 0)) return `wrong content at byte ${at * 4}`
  }
  return undefined
}

/** Checks that records 1 to `durable` (of which the last that fit are still there) are on the raw image. */
export async function checkRecords(image: string, plan: WritePlan, durable: number): Promise<RecordCheck> {
  const slots = plan.areaBytes / plan.bytes
  if (!Number.isInteger(slots) || (slots & (slots - 1)) !== 0) {
    throw new SwamError(
      'LAB_RECORDS',
      `record area of ${plan.areaBytes} bytes: expected 2^k records of ${plan.bytes}`,
    )
  }
  if (plan.pattern === 'pages') return await checkPages(image, plan, durable)
  const perRecord = plan.bytes / BLOCK
  const faults: string[] = []
  let blocks = 0
  let newest = 0
  const file = await open(image, 'r')
  const record = Buffer.from(new ArrayBuffer(plan.bytes))
  try {
    for (let expected = Math.max(1, durable - slots + 1); expected <= durable; expected += 1) {
      const slot = slotOf(plan, expected)
      const offset = plan.areaOffset + slot * plan.bytes
      const { bytesRead } = await file.read(record, 0, plan.bytes, offset)
      for (let index = 0; index < perRecord; index += 1) {
        blocks += 1
        const block = record.subarray(index * BLOCK, (index + 1) * BLOCK)
        const place = `record ${expected}, block ${index}, byte ${offset + index * BLOCK}`
        if (bytesRead < (index + 1) * BLOCK) faults.push(`${place}: the image ends before it`)
        else if (!block.subarray(0, 8).equals(MAGIC)) faults.push(`${place}: no record there`)
        else {
          const found = Number(block.readBigUInt64LE(8))
          if (found < expected) faults.push(`${place}: an older record, ${found}, although told durable`)
          else if (slotOf(plan, found) !== slot)
            faults.push(`${place}: record ${found} does not belong there`)
          else {
            newest = Math.max(newest, found)
            const fault = faultOf(block, found, index)
            if (fault !== undefined) faults.push(`${place}: record ${found}: ${fault}`)
          }
        }
      }
    }
  } finally {
    await file.close()
  }
  return { ok: faults.length === 0, blocks, newest, faults: faults.slice(0, FAULTS_MAX) }
}

const PAGE_MAGIC = Buffer.from('SWAMPAGE', 'latin1')
const PAGE_BYTES = 8192
const ROWS = 64
const ROWS_AT = 1024
const ROW_BYTES = 104

function stream(into: Buffer, seed: number): void {
  let x = seed
  for (let at = 0; at < into.length; at += 4) {
    x ^= x << 13
    x ^= x >>> 17
    x ^= x << 5
    into.writeInt32LE(x | 0, at)
  }
}

/**
 * Holds the pages of a guest's database to what it was told. A page is "SWAMPAGE", the number of its last change (u64), and the
 * stream of its slot, in which rows lie that changed: each with the number of its last change, and that one's stream.
 */
async function checkPages(image: string, plan: WritePlan, durable: number): Promise<RecordCheck> {
  const slots = plan.areaBytes / PAGE_BYTES
  const faults: string[] = []
  let newest = 0
  /** The newest durable change of each row that must be there. */
  const told = new Map<number, number>()
  for (let n = 1; n <= durable; n++) told.set(slotOf(plan, n) * ROWS + (seedOf(n, 1) % ROWS), n)
  const file = await open(image, 'r')
  const page = Buffer.alloc(PAGE_BYTES)
  const row = Buffer.alloc(ROW_BYTES)
  try {
    for (let slot = 0; slot < slots; slot++) {
      await file.read(page, 0, PAGE_BYTES, plan.areaOffset + slot * PAGE_BYTES)
      const last = Number(page.readBigUInt64LE(8))
      const wanted = Buffer.alloc(PAGE_BYTES)
      stream(wanted, seedOf(slot, 0))
      PAGE_MAGIC.copy(wanted)
      wanted.writeBigUInt64LE(BigInt(last), 8)
      let newestRow = 0
      for (let index = 0; index < ROWS; index++) {
        const at = ROWS_AT + index * ROW_BYTES
        const n = Number(page.readBigUInt64LE(at))
        const isRow = n > 0 && n <= last && slotOf(plan, n) === slot && seedOf(n, 1) % ROWS === index
        const must = told.get(slot * ROWS + index) ?? 0
        if (must > (isRow ? n : 0))
          faults.push(
            `page ${slot}, row ${index}: change ${isRow ? n : 'none'}, although ${must} was told durable`,
          )
        if (!isRow) continue
        newestRow = Math.max(newestRow, n)
        row.writeBigUInt64LE(BigInt(n))
        stream(row.subarray(8), seedOf(n, 2))
        row.copy(wanted, at)
      }
      newest = Math.max(newest, last)
      if (newestRow !== last)
        faults.push(`page ${slot}: its header says change ${last}, its rows ${newestRow}`)
      if (!page.equals(wanted)) faults.push(`page ${slot}: wrong content`)
    }
  } finally {
    await file.close()
  }
  return {
    ok: faults.length === 0,
    blocks: (slots * PAGE_BYTES) / BLOCK,
    newest,
    faults: faults.slice(0, FAULTS_MAX),
  }
}
