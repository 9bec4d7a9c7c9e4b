/**
 * zstd for literals, on libuv's thread pool. What is decompressed came from outside: the caller says how long the
 * result must be, and neither output beyond that nor a frame that asks for a large window gets memory.
 * `bytes` must not change until the promise settles.
 */
import { promisify } from 'node:util'
import { constants, zstdCompress, zstdDecompress } from 'node:zlib'
import { errorText, ProtocolError } from '../core/errors.ts'
import { ZSTD_OUTPUT_BYTES_MAX, ZSTD_WINDOW_LOG_MAX } from '../core/limits.ts'
import { KIB, MIB } from '../core/units.ts'

export const ZSTD_LEVEL: number = 3

const compressAsync = promisify(zstdCompress)
const decompressAsync = promisify(zstdDecompress)

export function compress(bytes: Uint8Array, level: number = ZSTD_LEVEL): Promise<Buffer> {
  return compressAsync(bytes, {
    params: { [constants.ZSTD_c_compressionLevel]: level },
    // One output buffer that fits the common case: literals seldom grow by more than a few bytes.
    chunkSize: Math.min(bytes.length + KIB, MIB),
  })
}

/** Rejects with a ProtocolError unless `bytes` decompress to exactly `length` bytes. */
export async function decompress(bytes: Uint8Array, length: number): Promise<Buffer> {
  if (!Number.isSafeInteger(length) || length < 1 || length > ZSTD_OUTPUT_BYTES_MAX) {
    throw new ProtocolError(
      `zstd: a length of 1 to ${ZSTD_OUTPUT_BYTES_MAX} bytes expected, ${length} announced`,
    )
  }
  let output: Buffer
  try {
    output = await decompressAsync(bytes, {
      params: { [constants.ZSTD_d_windowLogMax]: ZSTD_WINDOW_LOG_MAX },
      maxOutputLength: length,
      chunkSize: Math.max(KIB, length),
    })
  } catch (error) {
    throw new ProtocolError(
      `zstd: ${bytes.length} bytes do not decompress to ${length} bytes: ${errorText(error)}`,
      { cause: error },
    )
  }
  if (output.length !== length) {
    throw new ProtocolError(`zstd: ${length} bytes announced, ${output.length} found after decompression`)
  }
  return output
}
