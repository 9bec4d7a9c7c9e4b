/**
 * The data inside options and option replies: export names, information requests, metadata queries. Pure; every parser
 * takes exactly the bytes of one option and throws ProtocolError unless all of them, and no more, make sense. The
 * server turns that into NBD_REP_ERR_INVALID, the client drops the connection.
 */
import { ProtocolError } from '../../core/errors.ts'
import {
  NBD_INFO_BLOCK_SIZE,
  NBD_INFO_DESCRIPTION,
  NBD_INFO_EXPORT,
  NBD_INFO_NAME,
  NBD_STRING_BYTES_MAX,
} from './constants.ts'
import { writeUint64 } from './encode.ts'
import { safeSize } from './handshake.ts'
import { infoName } from './names.ts'

export interface InfoRequest {
  readonly name: string
  readonly infos: readonly number[]
}

export interface MetaRequest {
  readonly name: string
  readonly queries: readonly string[]
}

export type Info =
  | { readonly type: 'export'; readonly size: number; readonly transmissionFlags: number }
  | { readonly type: 'name' | 'description'; readonly text: string }
  | {
      readonly type: 'blockSize'
      readonly minimum: number
      readonly preferred: number
      readonly maximum: number
    }
  | { readonly type: 'unknown'; readonly info: number }

const UTF8 = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true })

/** Reads fields one after the other and knows where they end. */
class Fields {
  readonly #data: Buffer
  readonly #what: string
  #at = 0

  constructor(data: Buffer, what: string) {
    this.#data = data
    this.#what = what
  }

  get left(): number {
    return this.#data.length - this.#at
  }

  take(bytes: number): Buffer {
    if (bytes > this.left) {
      throw new ProtocolError(`${this.#what}: needs ${bytes} bytes at ${this.#at}, has ${this.left}`)
    }
    const piece = this.#data.subarray(this.#at, this.#at + bytes)
    this.#at += bytes
    return piece
  }

  uint16(): number {
    return this.take(2).readUInt16BE(0)
  }

  uint32(): number {
    return this.take(4).readUInt32BE(0)
  }

  text(bytes: number): string {
    if (bytes > NBD_STRING_BYTES_MAX) {
      throw new ProtocolError(
        `${this.#what}: a string of ${bytes} bytes, at most ${NBD_STRING_BYTES_MAX} allowed`,
      )
    }
    const piece = this.take(bytes)
    try {
      return UTF8.decode(piece)
    } catch (cause) {
      throw new ProtocolError(`${this.#what}: a string is not UTF-8`, { cause })
    }
  }

  end(): void {
    if (this.left > 0) throw new ProtocolError(`${this.#what}: ${this.left} bytes too many`)
  }
}

export function parseExportName(data: Buffer): string {
  return new Fields(data, 'NBD_OPT_EXPORT_NAME').text(data.length)
}

export function parseInfoRequest(data: Buffer): InfoRequest {
  const fields = new Fields(data, 'NBD_OPT_INFO/GO')
  const name = fields.text(fields.uint32())
  const count = fields.uint16()
  const infos: number[] = []
  for (let index = 0; index < count; index++) infos.push(fields.uint16())
  fields.end()
  return { name, infos }
}

export function parseMetaRequest(data: Buffer): MetaRequest {
  const fields = new Fields(data, 'NBD_OPT_LIST/SET_META_CONTEXT')
  const name = fields.text(fields.uint32())
  const count = fields.uint32()
  const queries: string[] = []
  for (let index = 0; index < count; index++) queries.push(fields.text(fields.uint32()))
  fields.end()
  return { name, queries }
}

/** NBD_REP_SERVER: the name of an export; what stands behind it is for display only. */
export function parseServerReply(data: Buffer): string {
  const fields = new Fields(data, 'NBD_REP_SERVER')
  return fields.text(fields.uint32())
}

export function parseMetaReply(data: Buffer): { readonly contextId: number; readonly name: string } {
  const fields = new Fields(data, 'NBD_REP_META_CONTEXT')
  return { contextId: fields.uint32(), name: fields.text(fields.left) }
}

export function parseInfo(data: Buffer): Info {
  const info = new Fields(data, 'NBD_REP_INFO').uint16()
  const fields = new Fields(data, infoName(info))
  fields.take(2)
  switch (info) {
    case NBD_INFO_EXPORT: {
      const size = safeSize(fields.take(8), 0)
      const transmissionFlags = fields.uint16()
      fields.end()
      return { type: 'export', size, transmissionFlags }
    }
    case NBD_INFO_NAME:
      return { type: 'name', text: fields.text(fields.left) }
    case NBD_INFO_DESCRIPTION:
      return { type: 'description', text: fields.text(fields.left) }
    case NBD_INFO_BLOCK_SIZE: {
      const sizes = { minimum: fields.uint32(), preferred: fields.uint32(), maximum: fields.uint32() }
      fields.end()
      checkBlockSizes(sizes)
      return { type: 'blockSize', ...sizes }
    }
    default:
      return { type: 'unknown', info }
  }
}

/** "Block size constraints": powers of two, ordered; the maximum a multiple of the minimum, or all ones. */
function checkBlockSizes(sizes: { minimum: number; preferred: number; maximum: number }): void {
  const { minimum, preferred, maximum } = sizes
  const valid =
    isPowerOfTwo(minimum) &&
    minimum <= 65536 &&
    isPowerOfTwo(preferred) &&
    preferred >= Math.max(minimum, 512) &&
    maximum >= minimum &&
    (maximum === 0xffffffff || maximum % minimum === 0)
  if (!valid) {
    throw new ProtocolError(`NBD_INFO_BLOCK_SIZE: impossible sizes ${minimum}, ${preferred}, ${maximum}`)
  }
}

function isPowerOfTwo(value: number): boolean {
  return value > 0 && Number.isInteger(Math.log2(value))
}

export function encodeInfoRequest(request: InfoRequest): Buffer {
  const name = Buffer.from(request.name, 'utf8')
  const target = Buffer.allocUnsafe(4 + name.length + 2 + 2 * request.infos.length)
  let at = target.writeUInt32BE(name.length, 0)
  at += name.copy(target, at)
  at = target.writeUInt16BE(request.infos.length, at)
  for (const info of request.infos) at = target.writeUInt16BE(info, at)
  return target
}

export function encodeMetaRequest(request: MetaRequest): Buffer {
  const parts = [encodeText(request.name), Buffer.alloc(4)]
  parts[1]?.writeUInt32BE(request.queries.length, 0)
  for (const query of request.queries) parts.push(encodeText(query))
  return Buffer.concat(parts)
}

/** A string with its length before it; also the data of NBD_REP_SERVER. */
export function encodeText(text: string): Buffer {
  const bytes = Buffer.from(text, 'utf8')
  const target = Buffer.allocUnsafe(4 + bytes.length)
  target.writeUInt32BE(bytes.length, 0)
  bytes.copy(target, 4)
  return target
}

export function encodeMetaReply(contextId: number, name: string): Buffer {
  const text = Buffer.from(name, 'utf8')
  const target = Buffer.allocUnsafe(4 + text.length)
  target.writeUInt32BE(contextId, 0)
  text.copy(target, 4)
  return target
}

export function encodeExportInfo(size: number, transmissionFlags: number): Buffer {
  const target = Buffer.allocUnsafe(12)
  target.writeUInt16BE(NBD_INFO_EXPORT, 0)
  writeUint64(target, size, 2)
  target.writeUInt16BE(transmissionFlags, 10)
  return target
}

export function encodeTextInfo(
  info: typeof NBD_INFO_NAME | typeof NBD_INFO_DESCRIPTION,
  text: string,
): Buffer {
  const bytes = Buffer.from(text, 'utf8').subarray(0, NBD_STRING_BYTES_MAX)
  const target = Buffer.allocUnsafe(2 + bytes.length)
  target.writeUInt16BE(info, 0)
  bytes.copy(target, 2)
  return target
}

export function encodeBlockSizeInfo(sizes: {
  readonly minimum: number
  readonly preferred: number
  readonly maximum: number
}): Buffer {
  const target = Buffer.allocUnsafe(14)
  target.writeUInt16BE(NBD_INFO_BLOCK_SIZE, 0)
  target.writeUInt32BE(sizes.minimum, 2)
  target.writeUInt32BE(sizes.preferred, 6)
  target.writeUInt32BE(sizes.maximum, 10)
  return target
}
