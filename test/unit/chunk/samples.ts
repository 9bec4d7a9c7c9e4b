/**
 * Data for the chunking tests: reproducible from a name, of the kinds that disks hold. Not random-looking enough for
 * anything else.
 */

import { createCipheriv } from 'node:crypto'
import { readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { buffer } from 'node:stream/consumers'
import { constants, createZstdCompress } from 'node:zlib'

const ROOT: string = join(import.meta.dirname, '../../..')

/** Bytes without structure: AES-CTR under a key made of the seed. */
export function randomBytes(length: number, seed: number): Buffer {
  const key = Buffer.alloc(16)
  key.writeUInt32LE(seed)
  return createCipheriv('aes-128-ctr', key, Buffer.alloc(16)).update(Buffer.alloc(length))
}

/** Lines of words from a small vocabulary, with numbers in between: a log, or a source tree. */
export function textBytes(length: number, seed: number): Buffer {
  const random = randomBytes(Math.ceil(length / 2), seed)
  const target = Buffer.alloc(length)
  const words = 'the guest wrote block of disk image and then flush was sent to far host error none'.split(
    ' ',
  )
  let at = 0
  for (let i = 0; at < length; i++) {
    const byte = random[i % random.length]!
    const word = byte < 40 ? String(byte * 7919 + i) : words[byte % words.length]!
    at += target.write(byte % 11 === 0 ? `${word}\n` : `${word} `, at, 'latin1')
  }
  return target
}

/** One pattern over and over. */
export function repeatedBytes(length: number, period: number, seed: number): Buffer {
  return Buffer.alloc(length, randomBytes(period, seed))
}

/** Random data in which stretches of 1 byte to 1 MiB are zero. */
export function patchyBytes(length: number, seed: number): Buffer {
  const target = randomBytes(length, seed)
  const choices = randomBytes(64 * 1024, seed + 1)
  let at = 0
  for (let i = 0; at < length; i += 8) {
    const data = choices.readUInt32LE(i % choices.length) % (1 << (choices[(i + 3) % choices.length]! % 21))
    const zeroes =
      choices.readUInt32LE((i + 4) % choices.length) % (1 << (choices[(i + 7) % choices.length]! % 21))
    at += data + 1
    target.fill(0, Math.min(at, length), Math.min(at + zeroes + 1, length))
    at += zeroes + 1
  }
  return target
}

/** A program: part of the Node binary that runs this test. */
export function programBytes(length: number, offset: number): Buffer {
  const program = readFileSync(process.execPath)
  const part = program.subarray(offset, offset + length)
  if (part.length < length) throw new Error(`${process.execPath}: ${length} bytes at ${offset} expected`)
  return Buffer.from(part)
}

/** Files of node_modules, one after the other: sources, maps, JSON, programs. */
export function treeBytes(length: number): Buffer {
  const target = Buffer.alloc(length)
  let at = 0
  const names = readdirSync(join(ROOT, 'node_modules'), { recursive: true, withFileTypes: true })
  for (const entry of names) {
    if (!entry.isFile()) continue
    const bytes = readFileSync(join(entry.parentPath, entry.name)).subarray(0, 4 << 20)
    at += bytes.copy(target, at)
    if (at === length) return target
  }
  throw new Error(`node_modules: ${length} bytes of files expected, ${at} found`)
}

/** A zstd frame whose header asks for this window, however short the content: written in two pieces, so that its length is not known. */
export async function windowed(bytes: Buffer, windowLog: number): Promise<Buffer> {
  const stream = createZstdCompress({ params: { [constants.ZSTD_c_windowLog]: windowLog } })
  const half = bytes.length >> 1
  stream.write(bytes.subarray(0, half))
  stream.end(bytes.subarray(half))
  return await buffer(stream)
}
