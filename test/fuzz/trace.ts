/**
 * Which input runs now, in a file: when a process hangs or dies of memory, its parent still learns which input it was.
 *
 *   0         8              12
 *   | number  | name length  | name, input …
 */
import { closeSync, openSync, readFileSync, writeSync } from 'node:fs'

const HEAD_BYTES = 16

export class Trace {
  readonly #file: number | undefined
  #count = 0

  /** @param path none: nothing is written */
  constructor(path: string | undefined) {
    this.#file = path === undefined ? undefined : openSync(path, 'w')
  }

  begin(target: string, input: Buffer): void {
    if (this.#file === undefined) return
    this.#count++
    const head = Buffer.alloc(HEAD_BYTES + target.length)
    head.writeDoubleBE(this.#count, 0)
    head.writeUInt32BE(target.length, 8)
    head.writeUInt32BE(input.length, 12)
    head.write(target, HEAD_BYTES, 'latin1')
    writeSync(this.#file, Buffer.concat([head, input]), 0, HEAD_BYTES + target.length + input.length, 0)
  }

  close(): void {
    if (this.#file !== undefined) closeSync(this.#file)
  }
}

export interface Traced {
  readonly count: number
  readonly target: string
  readonly input: Buffer
}

export function readTrace(path: string): Traced | undefined {
  let bytes: Buffer
  try {
    bytes = readFileSync(path)
  } catch {
    return undefined
  }
  if (bytes.length < HEAD_BYTES) return undefined
  const nameBytes = bytes.readUInt32BE(8)
  const start = HEAD_BYTES + nameBytes
  return {
    count: bytes.readDoubleBE(0),
    target: bytes.toString('latin1', HEAD_BYTES, start),
    // Longer inputs ran before: their ends still lie behind.
    input: bytes.subarray(start, start + bytes.readUInt32BE(12)),
  }
}
