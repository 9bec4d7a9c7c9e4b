/**
 * The line of JSON that swam-peer writes to the peer socket before it relays: {"peer":NAME,"version":1,
 * "connection":"CLIENT PORT SERVER PORT"}. It is written on this host, yet read as carefully as the rest.
 */
import type { Socket } from 'node:net'
import { LostError, ProtocolError } from '../core/errors.ts'
import type { BundleConnection } from './options.ts'

export interface Preamble {
  readonly peer: string
  readonly connection: BundleConnection | undefined
}

const NEWLINE = 10
const VERSION = 1

/** The first line, and what came after it. The socket is paused and has no listeners of ours then. */
export function readPreamble(socket: Socket, bytesMax: number): Promise<{ line: Buffer; rest: Buffer }> {
  return new Promise((resolve, reject) => {
    let bytes: Buffer = Buffer.alloc(0)
    const done = (): void => {
      socket.pause()
      socket.off('data', onData)
      socket.off('close', onClose)
    }
    const onData = (more: Buffer): void => {
      bytes = bytes.length === 0 ? more : Buffer.concat([bytes, more])
      const end = bytes.indexOf(NEWLINE)
      if (end < 0 ? bytes.length > bytesMax : end > bytesMax) {
        done()
        reject(new ProtocolError(`preamble: no line within ${bytesMax} bytes`))
      } else if (end >= 0) {
        done()
        resolve({ line: bytes.subarray(0, end), rest: bytes.subarray(end + 1) })
      }
    }
    const onClose = (): void => {
      done()
      reject(new LostError('preamble: the channel ended before it was complete'))
    }
    socket.on('data', onData)
    socket.on('close', onClose)
  })
}

export function parsePreamble(line: Buffer): Preamble {
  let value: unknown
  try {
    value = JSON.parse(line.toString('utf8'))
  } catch (error) {
    throw new ProtocolError('preamble: not JSON', { cause: error })
  }
  const { peer, version, connection } = (typeof value === 'object' && value !== null ? value : {}) as Record<
    string,
    unknown
  >
  if (version !== VERSION) {
    throw new ProtocolError(`preamble: version ${JSON.stringify(version)}, expected ${VERSION}`)
  }
  if (typeof peer !== 'string' || !/^[^\p{C}\s]{1,255}$/u.test(peer)) {
    throw new ProtocolError('preamble: no usable peer name')
  }
  return { peer, connection: typeof connection === 'string' ? parseConnection(connection) : undefined }
}

/** sshd's SSH_CONNECTION: client address and port, server address and port. Absent when there is no sshd. */
function parseConnection(text: string): BundleConnection | undefined {
  const [remoteAddress, remotePort, localAddress, localPort, more] = text.split(' ')
  const isPort = (port: string | undefined): boolean => port !== undefined && /^\d{1,5}$/.test(port)
  if (remoteAddress === undefined || localAddress === undefined || more !== undefined) return undefined
  if (!isPort(remotePort) || !isPort(localPort)) return undefined
  return { localAddress, localPort: Number(localPort), remoteAddress, remotePort: Number(remotePort) }
}
