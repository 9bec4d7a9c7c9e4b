/**
 * Bounds-checked reading of one received payload, and growing-free writing of one. Every read names the message and
 * the field, so that a truncated frame says where it ended. 64-bit values become safe integers here, or an error.
 */
import { ProtocolError } from '../core/errors.ts'

export class PayloadReader {
  readonly #bytes: Buffer
  readonly #message: string
  #at = 0

  constructor(message: string, bytes: Buffer) {
    this.#message = message
    this.#bytes = bytes
  }

  get rest(): number {
    return this.#bytes.length - this.#at
  }

  #take(field: string, length: number): number {
    if (this.rest < length) {
      throw new ProtocolError(
        `${this.#message}: field ${field} needs ${length} bytes at ${this.#at}, the payload ends after ${this.rest}`,
      )
    }
    const at = this.#at
    this.#at += length
    return at
  }

  u8(field: string): number {
    return this.#bytes.readUInt8(this.#take(field, 1))
  }

  u16(field: string): number {
    return this.#bytes.readUInt16BE(this.#take(field, 2))
  }

  u32(field: string): number {
    return this.#bytes.readUInt32BE(this.#take(field, 4))
  }

  /** An unsigned 64-bit value that must be a safe integer. */
  u64(field: string): number {
    const at = this.#take(field, 8)
    const high = this.#bytes.readUInt32BE(at)
    if (high > 0x1f_ffff) throw new ProtocolError(`${this.#message}: field ${field} is beyond 2^53`)
    return high * 0x1_0000_0000 + this.#bytes.readUInt32BE(at + 4)
  }

  /** LEB128 of up to 5 bytes. */
  varint(field: string, max: number): number {
    let value = 0
    for (let shift = 0; shift < 35; shift += 7) {
      const byte = this.u8(field)
      value += (byte & 0x7f) * 2 ** shift
      if (byte >= 0x80) continue
      if (value > max) throw new ProtocolError(`${this.#message}: field ${field} is ${value}, at most ${max}`)
      return value
    }
    throw new ProtocolError(`${this.#message}: field ${field} has more than 5 bytes`)
  }

  /** A view on the payload. */
  bytes(field: string, length: number): Buffer {
    const at = this.#take(field, length)
    return this.#bytes.subarray(at, at + length)
  }

  text(field: string, bytesMax: number): string {
    const length = this.u16(field)
    if (length > bytesMax) {
      throw new ProtocolError(
        `${this.#message}: field ${field} has ${length} bytes, at most ${bytesMax} are allowed`,
      )
    }
    return this.bytes(field, length).toString('utf8')
  }

  end(): void {
    if (this.rest !== 0) throw new ProtocolError(`${this.#message}: ${this.rest} bytes follow the last field`)
  }
}

/** LEB128. @param value 0 to 2^32 - 1 */
export function varint(value: number): number[] {
  const bytes: number[] = []
  let rest = value
  for (; rest >= 0x80; rest = Math.floor(rest / 0x80)) bytes.push((rest % 0x80) | 0x80)
  bytes.push(rest)
  return bytes
}

/** Bits that are set. */
/** A u16 that counts what follows. @throws ProtocolError */
export function readCount(reader: PayloadReader, name: string, max: number): number {
  const value = reader.u16('count')
  if (value === 0 || value > max) throw new ProtocolError(`${name}: count is ${value}, expected 1 to ${max}`)
  return value
}

export function bitCount(bytes: Uint8Array): number {
  let sum = 0
  for (let rest of bytes) for (; rest !== 0; rest &= rest - 1) sum++
  return sum
}

export class PayloadWriter {
  readonly bytes: Buffer
  #at = 0

  constructor(length: number) {
    this.bytes = Buffer.allocUnsafe(length)
  }

  u8(value: number): this {
    this.#at = this.bytes.writeUInt8(value, this.#at)
    return this
  }

  u16(value: number): this {
    this.#at = this.bytes.writeUInt16BE(value, this.#at)
    return this
  }

  u32(value: number): this {
    this.#at = this.bytes.writeUInt32BE(value, this.#at)
    return this
  }

  u64(value: number): this {
    this.#at = this.bytes.writeUInt32BE(Math.floor(value / 0x1_0000_0000), this.#at)
    this.#at = this.bytes.writeUInt32BE(value % 0x1_0000_0000, this.#at)
    return this
  }

  raw(bytes: Uint8Array): this {
    this.bytes.set(bytes, this.#at)
    this.#at += bytes.length
    return this
  }

  /** The payload; throws when it was not filled exactly. */
  done(): Buffer {
    if (this.#at !== this.bytes.length) {
      throw new RangeError(`PayloadWriter: ${this.#at} of ${this.bytes.length} bytes were written`)
    }
    return this.bytes
  }
}
