/**
 * The transmission phase, outgoing: request headers of the client, simple replies and structured reply chunks of the
 * server. Pure. Payloads (WRITE data, READ data) are never copied into a message: the functions give the bytes that
 * stand before them, and the caller sends both with one writev.
 */
import {
  NBD_REPLY_FLAG_DONE,
  NBD_REPLY_TYPE_BLOCK_STATUS,
  NBD_REPLY_TYPE_ERROR,
  NBD_REPLY_TYPE_NONE,
  NBD_REPLY_TYPE_OFFSET_DATA,
  NBD_REPLY_TYPE_OFFSET_HOLE,
  NBD_REQUEST_BYTES,
  NBD_REQUEST_MAGIC,
  NBD_SIMPLE_REPLY_BYTES,
  NBD_SIMPLE_REPLY_MAGIC,
  NBD_STRING_BYTES_MAX,
  NBD_STRUCTURED_REPLY_BYTES,
  NBD_STRUCTURED_REPLY_MAGIC,
} from './constants.ts'

/** 64 bits that the client chose and the server sends back unread. */
export type Cookie = bigint

export interface RequestHeader {
  readonly command: number
  readonly flags: number
  readonly cookie: Cookie
  readonly offset: number
  readonly length: number
}

export interface WireExtent {
  readonly length: number
  readonly flags: number
}

const TWO_POW_32 = 0x100000000

/** Writes a safe integer as 64 bits without the cost of a bigint. */
export function writeUint64(target: Buffer, value: number, at: number): void {
  target.writeUInt32BE(Math.floor(value / TWO_POW_32), at)
  target.writeUInt32BE(value % TWO_POW_32, at + 4)
}

/** The header of a request; for a WRITE the payload follows it. */
export function encodeRequestHeader(request: RequestHeader): Buffer {
  const target = Buffer.allocUnsafe(NBD_REQUEST_BYTES)
  target.writeUInt32BE(NBD_REQUEST_MAGIC, 0)
  target.writeUInt16BE(request.flags, 4)
  target.writeUInt16BE(request.command, 6)
  target.writeBigUInt64BE(request.cookie, 8)
  writeUint64(target, request.offset, 16)
  target.writeUInt32BE(request.length, 24)
  return target
}

/** A simple reply; for a READ without structured replies and without an error the data follows it. */
export function encodeSimpleReply(cookie: Cookie, errno: number): Buffer {
  const target = Buffer.allocUnsafe(NBD_SIMPLE_REPLY_BYTES)
  target.writeUInt32BE(NBD_SIMPLE_REPLY_MAGIC, 0)
  target.writeUInt32BE(errno, 4)
  target.writeBigUInt64BE(cookie, 8)
  return target
}

function chunk(type: number, done: boolean, cookie: Cookie, payloadBytes: number, hereBytes: number): Buffer {
  const target = Buffer.allocUnsafe(NBD_STRUCTURED_REPLY_BYTES + hereBytes)
  target.writeUInt32BE(NBD_STRUCTURED_REPLY_MAGIC, 0)
  target.writeUInt16BE(done ? NBD_REPLY_FLAG_DONE : 0, 4)
  target.writeUInt16BE(type, 6)
  target.writeBigUInt64BE(cookie, 8)
  target.writeUInt32BE(payloadBytes, 16)
  return target
}

export function encodeNoneChunk(cookie: Cookie): Buffer {
  return chunk(NBD_REPLY_TYPE_NONE, true, cookie, 0, 0)
}

/** What stands before the data of a data chunk; `length` bytes of data follow. */
export function encodeDataChunkHeader(cookie: Cookie, offset: number, length: number, done: boolean): Buffer {
  const target = chunk(NBD_REPLY_TYPE_OFFSET_DATA, done, cookie, 8 + length, 8)
  writeUint64(target, offset, NBD_STRUCTURED_REPLY_BYTES)
  return target
}

export function encodeHoleChunk(cookie: Cookie, offset: number, length: number, done: boolean): Buffer {
  const target = chunk(NBD_REPLY_TYPE_OFFSET_HOLE, done, cookie, 12, 12)
  writeUint64(target, offset, NBD_STRUCTURED_REPLY_BYTES)
  target.writeUInt32BE(length, NBD_STRUCTURED_REPLY_BYTES + 8)
  return target
}

export function encodeStatusChunk(
  cookie: Cookie,
  contextId: number,
  extents: readonly WireExtent[],
  done: boolean,
): Buffer {
  const payloadBytes = 4 + 8 * extents.length
  const target = chunk(NBD_REPLY_TYPE_BLOCK_STATUS, done, cookie, payloadBytes, payloadBytes)
  let at = target.writeUInt32BE(contextId, NBD_STRUCTURED_REPLY_BYTES)
  for (const extent of extents) {
    at = target.writeUInt32BE(extent.length, at)
    at = target.writeUInt32BE(extent.flags, at)
  }
  return target
}

/** An error chunk; a message longer than the protocol allows is cut. */
export function encodeErrorChunk(cookie: Cookie, errno: number, message: string, done: boolean): Buffer {
  const text = Buffer.from(message, 'utf8').subarray(0, NBD_STRING_BYTES_MAX)
  const target = chunk(NBD_REPLY_TYPE_ERROR, done, cookie, 6 + text.length, 6 + text.length)
  target.writeUInt32BE(errno, NBD_STRUCTURED_REPLY_BYTES)
  target.writeUInt16BE(text.length, NBD_STRUCTURED_REPLY_BYTES + 4)
  text.copy(target, NBD_STRUCTURED_REPLY_BYTES + 6)
  return target
}
