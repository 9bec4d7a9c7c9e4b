/**
 * Literals of one disk and frame class as a zstd stream: each LITERAL is flushed, so that it can be unpacked when it is there,
 * and knows what came before it in that stream, which a frame of its own would have to say again (5% on the data of real
 * images). Both ends must take them in the same order: that of the frames of one class.
 *
 * What is unpacked came from outside: the caller says how long it must be, and what goes beyond ends the stream. After any
 * failure a stream is of no use. Neither end waits for the other; memory is one window each.
 */
import { constants, createZstdCompress, createZstdDecompress } from 'node:zlib'
import { decompress, ZSTD_LEVEL } from '../chunk/zstd.ts'
import { errorText, LostError, ProtocolError } from '../core/errors.ts'
import {
  LITERAL_BYTES_MAX,
  LITERAL_STREAM_WINDOW_LOG_MAX,
  LITERAL_WIDE_WINDOW_LOG_MAX,
} from '../core/limits.ts'
import { MIB } from '../core/units.ts'
import { FEATURE_STREAM, FEATURE_WIDE, type LiteralCodec } from '../wire/disk.ts'

/** One step of zlib puts out at most so much: mostly the whole of a literal, which else has to be copied together. */
const PIECE_BYTES = MIB
/**
 * One table of places ("fast") instead of level 3's two: a fifth less processor time for 1.4% more bytes of a whole image that
 * nothing is known of (bench wan-bytes, "nothing"). 512 KiB of it: what stays in a processor's second cache.
 */
const TABLES: Readonly<Record<number, number>> = {
  [constants.ZSTD_c_strategy]: constants.ZSTD_fast,
  [constants.ZSTD_c_hashLog]: 17,
  [constants.ZSTD_c_minMatch]: 5,
  [constants.ZSTD_c_targetLength]: 0,
}

interface Coder {
  write(bytes: Uint8Array, done: (error?: Error | null) => void): boolean
  on(event: 'data', listener: (piece: Buffer) => void): unknown
  on(event: 'error', listener: (error: Error) => void): unknown
  destroy(): unknown
}

/** One call at a time, in the order of the calls. */
class Stream {
  readonly #coder: Coder
  #turn: Promise<unknown> = Promise.resolve()
  #error: Error | undefined
  #onError: ((error: Error) => void) | undefined
  #pieces: Buffer[] = []
  #bytes = 0
  #bytesMax = 0

  constructor(coder: Coder) {
    this.#coder = coder
    coder.on('data', (piece) => {
      this.#bytes += piece.length
      if (this.#bytes > this.#bytesMax)
        this.fail(new ProtocolError(`zstd: more than ${this.#bytesMax} bytes`))
      else this.#pieces.push(piece)
    })
    coder.on('error', (error) => this.fail(error))
  }

  run(bytes: Uint8Array, bytesMax: number): Promise<Buffer> {
    const result = this.#turn.then(() => this.#step(bytes, bytesMax))
    this.#turn = result.catch(() => undefined)
    return result
  }

  async #step(bytes: Uint8Array, bytesMax: number): Promise<Buffer> {
    this.#bytes = 0
    this.#bytesMax = bytesMax
    await new Promise<void>((resolve, reject) => {
      if (this.#error !== undefined) throw this.#error
      this.#onError = reject
      this.#coder.write(bytes, (error) => {
        if (error !== undefined && error !== null) this.fail(error)
        else resolve()
      })
    })
    const pieces = this.#pieces
    this.#pieces = []
    return pieces.length === 1 ? pieces[0]! : Buffer.concat(pieces, this.#bytes)
  }

  fail(error: Error): void {
    if (this.#error !== undefined) return
    this.#error = error
    this.#pieces = []
    this.#coder.destroy()
    this.#onError?.(error)
  }
}

export class LiteralPacker {
  readonly #stream: Stream

  /** @param features that both ends have */
  constructor(features: ReadonlySet<string>) {
    const params = {
      [constants.ZSTD_c_compressionLevel]: ZSTD_LEVEL,
      [constants.ZSTD_c_windowLog]: windowLogMax(features),
      ...TABLES,
    }
    // Flushed with each write.
    const flush = constants.ZSTD_e_flush
    this.#stream = new Stream(createZstdCompress({ params, flush, chunkSize: PIECE_BYTES }))
  }

  /** Packs 1 to LITERAL_BYTES_MAX bytes, which must not change until the promise settles. */
  pack(bytes: Uint8Array): Promise<Buffer> {
    return this.#stream.run(bytes, 2 * LITERAL_BYTES_MAX)
  }

  close(): void {
    this.#stream.fail(new LostError('the literal stream was closed'))
  }
}

export class LiteralUnpacker {
  readonly #stream: Stream

  /** @param features that both ends have */
  constructor(features: ReadonlySet<string>) {
    const params = { [constants.ZSTD_d_windowLogMax]: windowLogMax(features) }
    this.#stream = new Stream(createZstdDecompress({ params, chunkSize: PIECE_BYTES }))
  }

  /** Rejects with a ProtocolError unless the next piece of the stream is exactly `length` bytes. */
  async unpack(bytes: Uint8Array, length: number): Promise<Buffer> {
    let output: Buffer
    try {
      output = await this.#stream.run(bytes, length)
    } catch (error) {
      if (error instanceof LostError) throw error
      const what = `zstd: ${bytes.length} bytes of the stream do not unpack to ${length} bytes`
      throw new ProtocolError(`${what}: ${errorText(error)}`, { cause: error })
    }
    if (output.length === length) return output
    const error = new ProtocolError(`zstd: ${length} bytes of the stream announced, ${output.length} found`)
    this.#stream.fail(error)
    throw error
  }

  close(): void {
    this.#stream.fail(new LostError('the literal stream was closed'))
  }
}

function windowLogMax(features: ReadonlySet<string>): number {
  return features.has(FEATURE_WIDE) ? LITERAL_WIDE_WINDOW_LOG_MAX : LITERAL_STREAM_WINDOW_LOG_MAX
}

/** Unpacks the literals of one disk, whichever way they are packed. */
export class LiteralReader {
  readonly #features: ReadonlySet<string>
  readonly #streams = new Map<LiteralCodec, LiteralUnpacker>()
  #closed = false

  constructor(features: ReadonlySet<string>) {
    this.#features = features
  }

  /** To be called in the order in which they came. Rejects with a ProtocolError unless they are `length` bytes. */
  async read(codec: LiteralCodec, data: Buffer, length: number): Promise<Buffer> {
    if (codec === 'raw') return data
    if (codec === 'zstd') return await decompress(data, length)
    if (!this.#features.has(FEATURE_STREAM))
      throw new ProtocolError(`LITERAL: codec ${codec} was not agreed on`)
    if (this.#closed) throw new LostError('the literal stream was closed')
    let stream = this.#streams.get(codec)
    if (stream === undefined) {
      stream = new LiteralUnpacker(this.#features)
      this.#streams.set(codec, stream)
    }
    return await stream.unpack(data, length)
  }

  close(): void {
    this.#closed = true
    for (const stream of this.#streams.values()) stream.close()
  }
}
