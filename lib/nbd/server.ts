/**
 * The NBD server for one connection: haggles, then serves requests of the chosen export until the client leaves. The
 * promise resolves when the client disconnected cleanly (NBD_CMD_DISC, NBD_OPT_ABORT, end of the stream between two
 * messages) and rejects when it broke the protocol, vanished or was aborted. A device that the provider opened is
 * closed here in every case. TLS is not spoken: the caller decides who may connect.
 */
import type { Duplex } from 'node:stream'
import type { BlockDevice } from '../block/device.ts'
import { NBD_IN_FLIGHT_BYTES_MAX, NBD_REQUESTS_MAX } from '../core/limits.ts'
import { ServerHandshake } from './server-handshake.ts'
import { Transmission } from './transmission.ts'

export interface ExportProvider {
  list(): Promise<readonly string[]>
  /** undefined: there is no such export. Each device that is given is closed once by the server. */
  open(name: string): Promise<BlockDevice | undefined>
  /** For display to people, in NBD_INFO_DESCRIPTION. */
  description?(name: string): string | undefined
}

export interface NbdServerOptions {
  readonly exports: ExportProvider
  /** Requests that are handed to the device and not answered yet; default 256. */
  readonly requestsMax?: number
  /** Bytes of WRITE payloads and READ replies that are held at a time, plus one payload; default 64 MiB. */
  readonly inFlightBytesMax?: number
  /** Waiting for the client, all in all, until it has chosen an export; default 15 s. */
  readonly handshakeMs?: number
  readonly signal?: AbortSignal
  readonly log?: (message: string) => void
}

export async function serveNbd(stream: Duplex, options: NbdServerOptions): Promise<void> {
  const { signal } = options
  const log = options.log ?? (() => {})
  const abort = (): void => {
    stream.destroy()
  }
  // Small replies must not wait for the acknowledgement of earlier ones (stalls of 40 ms were seen).
  if ('setNoDelay' in stream && typeof stream.setNoDelay === 'function') stream.setNoDelay(true)
  // Errors are seen by whoever reads; this one only keeps a late error from being nobody's.
  stream.on('error', () => {})
  signal?.addEventListener('abort', abort)
  const handshake = new ServerHandshake(stream, options.exports, log, options.handshakeMs)
  try {
    signal?.throwIfAborted()
    const chosen = await handshake.run()
    signal?.throwIfAborted()
    if (chosen !== undefined) {
      const transmission = new Transmission(stream, chosen, {
        requestsMax: options.requestsMax ?? NBD_REQUESTS_MAX,
        inFlightBytesMax: options.inFlightBytesMax ?? NBD_IN_FLIGHT_BYTES_MAX,
        log,
      })
      await transmission.run(signal)
    }
    await endStream(stream)
  } catch (error) {
    stream.destroy()
    throw error
  } finally {
    signal?.removeEventListener('abort', abort)
    await handshake.closeDevice()
  }
}

/** Lets the last replies leave, then closes both directions. */
async function endStream(stream: Duplex): Promise<void> {
  if (!stream.writableEnded && !stream.destroyed) {
    await new Promise<void>((resolve) => {
      stream.once('close', resolve)
      stream.end(resolve)
    })
  }
  stream.destroy()
}
