/** A migration stream as QEMU writes it, as far as its memory goes (docs/devel/migration of QEMU; test/interop has a real one). */
import { KIB } from '../../../lib/core/units.ts'

export const PAGE: number = 4 * KIB

function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2)
  bytes.writeUInt16BE(value)
  return bytes
}

function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4)
  bytes.writeUInt32BE(value)
  return bytes
}

function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8)
  bytes.writeBigUInt64BE(BigInt(value))
  return bytes
}

function named(name: string): Buffer {
  return Buffer.concat([Buffer.from([name.length]), Buffer.from(name, 'latin1')])
}

const SECTION = 2

export const stream: Readonly<{
  header: () => Buffer
  command: (data: Buffer) => Buffer
  start: (name?: string) => Buffer
  list: (blocks: Readonly<Record<string, number>>) => Buffer
  part: () => Buffer
  end: () => Buffer
  eos: () => Buffer
  /** @param block where it is another one than that of the page before */
  page: (offset: number, block?: string, fill?: number) => Buffer
  zeroPage: (offset: number, block?: string) => Buffer
  word: (value: number) => Buffer
}> = {
  header: (): Buffer => {
    const machine = Buffer.from('pc-i440fx-7.2')
    return Buffer.concat([Buffer.from('QEVM'), u32(3), Buffer.from([7]), u32(machine.length), machine])
  },
  command: (data: Buffer): Buffer => Buffer.concat([Buffer.from([8]), u16(1), u16(data.length), data]),
  start: (name = 'ram'): Buffer =>
    Buffer.concat([Buffer.from([1]), u32(SECTION), named(name), u32(0), u32(4)]),
  list: (blocks: Readonly<Record<string, number>>): Buffer =>
    Buffer.concat([
      u64(Object.values(blocks).reduce((sum, length) => sum + length, 0) + 0x04),
      ...Object.entries(blocks).flatMap(([name, length]) => [named(name), u64(length)]),
    ]),
  part: (): Buffer => Buffer.concat([Buffer.from([2]), u32(SECTION)]),
  end: (): Buffer => Buffer.concat([Buffer.from([3]), u32(SECTION)]),
  eos: (): Buffer => Buffer.concat([u64(0x10), Buffer.from([0x7e]), u32(SECTION)]),
  page: (offset: number, block?: string, fill = 1): Buffer =>
    Buffer.concat([
      u64(offset + 0x08 + (block === undefined ? 0x20 : 0)),
      block === undefined ? Buffer.alloc(0) : named(block),
      Buffer.alloc(PAGE, fill),
    ]),
  zeroPage: (offset: number, block?: string): Buffer =>
    Buffer.concat([
      u64(offset + 0x02 + (block === undefined ? 0x20 : 0)),
      block === undefined ? Buffer.alloc(0) : named(block),
      Buffer.alloc(1),
    ]),
  word: (value: number): Buffer => u64(value),
}
