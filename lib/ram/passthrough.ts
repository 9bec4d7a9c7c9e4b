/**
 * Joins a TCP connection and a stream to the far side, byte for byte, each direction with its own end and
 * backpressure. RAM and everything that is not NBD goes this way, unchanged. A loss at one side resets the other, so
 * that QEMU sees a broken connection and not a silent end of its stream.
 */
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'

export interface Counts {
  /** Bytes from the connection to the stream, and back. */
  toStream: number
  fromStream: number
}

/** Resolves when both directions are over; never rejects. The count goes on while it runs. */
export function passThrough(socket: Socket, stream: Duplex, counts: Counts): Promise<void> {
  return new Promise((resolve) => {
    let open = 2
    const over = (): void => {
      open--
      if (open === 0) resolve()
    }
    socket.on('data', (bytes: Buffer) => {
      counts.toStream += bytes.length
      if (!stream.write(bytes)) socket.pause()
    })
    stream.on('drain', () => socket.resume())
    socket.on('end', () => stream.end())
    stream.on('data', (bytes: Buffer) => {
      counts.fromStream += bytes.length
      if (!socket.write(bytes)) stream.pause()
    })
    socket.on('drain', () => stream.resume())
    stream.on('end', () => socket.end())
    socket.on('error', (error) => stream.destroy(error))
    stream.on('error', () => socket.resetAndDestroy())
    socket.once('close', () => {
      if (!stream.writableEnded || !stream.readableEnded) stream.destroy()
      over()
    })
    stream.once('close', () => {
      // After an orderly end of both directions the socket closes by itself.
      if (!stream.readableEnded) socket.resetAndDestroy()
      over()
    })
  })
}
