/**
 * The bytes of a passed-through stream between two swamds: blocks, each as it came or compressed, so that a slow link
 * carries more of a guest's memory. What leaves at the far end is byte for byte what came in. Pure codec.
 *
 *   0       1             5               9
 *   | codec | raw length  | coded length  | bytes …     (big-endian; codec 0: as it is, 1: zstd)
 *
 * Each piece that was read becomes blocks at once: nothing is held back to make a block larger.
 */
import { constants, zstdCompressSync, zstdDecompressSync } from 'node:zlib'
import { errorText, ProtocolError } from '../core/errors.ts'
import { RAM_BLOCK_BYTES_MAX, RAM_ZSTD_WINDOW_LOG_MAX } from '../core/limits.ts'

export const BLOCK_HEADER_BYTES: number = 9
/** Below this a block costs more time than it saves. */
const COMPRESS_BYTES_MIN = 512
const CODEC_RAW = 0
const CODEC_ZSTD = 1
/** After a block that did not shrink, this many are not tried: the guest's memory there is random or encrypted. */
const SKIP_BLOCKS = 7

export class BlockEncoder {
  #skip = 0

  /** Pieces to be written one after another. @param compress whether it is worth the time now */
  encode(bytes: Buffer, compress: boolean): Buffer[] {
    const pieces: Buffer[] = []
    for (let at = 0; at < bytes.length; at += RAM_BLOCK_BYTES_MAX) {
      const raw = bytes.subarray(at, Math.min(bytes.length, at + RAM_BLOCK_BYTES_MAX))
      const packed = this.#compressed(raw, compress)
      const header = Buffer.allocUnsafe(BLOCK_HEADER_BYTES)
      header.writeUInt8(packed === undefined ? CODEC_RAW : CODEC_ZSTD, 0)
      header.writeUInt32BE(raw.length, 1)
      header.writeUInt32BE((packed ?? raw).length, 5)
      pieces.push(header, packed ?? raw)
    }
    return pieces
  }

  #compressed(raw: Buffer, compress: boolean): Buffer | undefined {
    if (!compress || raw.length < COMPRESS_BYTES_MIN) return undefined
    if (this.#skip > 0) {
      this.#skip--
      return undefined
    }
    const packed = zstdCompressSync(raw, { params: { [constants.ZSTD_c_compressionLevel]: 1 } })
    if (packed.length < raw.length * 0.95) return packed
    this.#skip = SKIP_BLOCKS
    return undefined
  }
}

export class BlockDecoder {
  #header: Buffer = Buffer.alloc(0)
  #body: Buffer | undefined
  #filled = 0
  #rawLength = 0
  #codec = CODEC_RAW
  #failure: unknown

  /** True between blocks: the stream may end here. */
  get whole(): boolean {
    return this.#body === undefined && this.#header.length === 0
  }

  /** Raw bytes in order; they are the receiver's. @throws ProtocolError, and from then on always */
  *push(bytes: Buffer): Generator<Buffer> {
    if (this.#failure !== undefined) throw this.#failure
    try {
      yield* this.#take(bytes)
    } catch (error) {
      this.#failure = error
      throw error
    }
  }

  *#take(bytes: Buffer): Generator<Buffer> {
    let at = 0
    while (at < bytes.length) {
      if (this.#body === undefined) {
        const part = bytes.subarray(at, at + BLOCK_HEADER_BYTES - this.#header.length)
        this.#header = this.#header.length === 0 ? part : Buffer.concat([this.#header, part])
        at += part.length
        if (this.#header.length < BLOCK_HEADER_BYTES) {
          // The pushed bytes are not ours to keep.
          this.#header = Buffer.from(this.#header)
          return
        }
        this.#begin(this.#header)
        this.#header = Buffer.alloc(0)
        continue
      }
      const part = Math.min(this.#body.length - this.#filled, bytes.length - at)
      bytes.copy(this.#body, this.#filled, at, at + part)
      this.#filled += part
      at += part
      if (this.#filled === this.#body.length) {
        const body = this.#body
        this.#body = undefined
        yield this.#codec === CODEC_RAW ? body : this.#decompressed(body)
      }
    }
  }

  #begin(header: Buffer): void {
    const codec = header.readUInt8(0)
    const rawLength = header.readUInt32BE(1)
    const codedLength = header.readUInt32BE(5)
    if (rawLength === 0 || rawLength > RAM_BLOCK_BYTES_MAX) {
      throw new ProtocolError(`stream block of ${rawLength} bytes, expected 1 to ${RAM_BLOCK_BYTES_MAX}`)
    }
    const valid =
      codec === CODEC_RAW ? codedLength === rawLength : codec === CODEC_ZSTD && codedLength < rawLength
    if (!valid || codedLength === 0) {
      throw new ProtocolError(`stream block: codec ${codec}, ${codedLength} bytes for ${rawLength}`)
    }
    this.#codec = codec
    this.#rawLength = rawLength
    this.#body = Buffer.allocUnsafe(codedLength)
    this.#filled = 0
  }

  #decompressed(body: Buffer): Buffer {
    let raw: Buffer
    try {
      raw = zstdDecompressSync(body, {
        maxOutputLength: this.#rawLength,
        params: { [constants.ZSTD_d_windowLogMax]: RAM_ZSTD_WINDOW_LOG_MAX },
      })
    } catch (error) {
      throw new ProtocolError(`stream block: not zstd of ${this.#rawLength} bytes: ${errorText(error)}`)
    }
    if (raw.length !== this.#rawLength) {
      throw new ProtocolError(`stream block: ${raw.length} bytes came out, ${this.#rawLength} were announced`)
    }
    return raw
  }
}
