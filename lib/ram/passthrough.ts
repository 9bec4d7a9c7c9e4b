/**
 * Joins a TCP connection and a stream to the far side, byte for byte, each direction with its own end and
 * backpressure. RAM and everything that is not NBD goes this way, unchanged; between the two swamds it travels in blocks
 * that may be compressed (blocks.ts). A loss at one side resets the other, so that QEMU sees a broken connection
 * and not a silent end of its stream.
 */
import type { Socket } from 'node:net'
import type { Duplex } from 'node:stream'
import { errorText, ProtocolError } from '../core/errors.ts'
import { type LoopTurn, loopTurn } from '../core/loop-turn.ts'
import { BlockDecoder, BlockEncoder } from './blocks.ts'
import type { RamPace } from './pace.ts'

export interface Counts {
  /** Bytes from the connection to the stream, and back, as QEMU sees them. */
  toStream: number
  fromStream: number
}

/**
 * Resolves when both directions are over; never rejects. The count goes on while it runs.
 * @param worthCompressing asked for each piece: whether the link, not the processor, is what limits
 * @param pace may hold up what comes from the connection
 * @param turn of this thread: what is compressed here waits for a later one when this one has had its time
 */
export function passThrough(
  socket: Socket,
  stream: Duplex,
  counts: Counts,
  worthCompressing: () => boolean,
  pace?: Pick<RamPace, 'took' | 'released'>,
  turn: Pick<LoopTurn, 'over' | 'later'> = loopTurn,
): Promise<void> {
  return new Promise((resolve) => {
    const encoder = new BlockEncoder()
    const decoder = new BlockDecoder()
    let open = 2
    const over = (): void => {
      open--
      if (open === 0) resolve()
    }
    let full = false
    let resting = false
    let heldUp: NodeJS.Timeout | undefined
    const goOn = (): void => {
      if (!full && !resting && heldUp === undefined) socket.resume()
    }
    const letGo = (): void => {
      clearTimeout(heldUp)
      heldUp = undefined
      goOn()
    }
    void pace?.released.then(letGo)
    const rested = (): void => {
      resting = false
      goOn()
    }
    socket.on('data', (bytes: Buffer) => {
      counts.toStream += bytes.length
      let room = true
      if (turn.over) {
        resting = true
        turn.later(rested)
      }
      const holdMs = pace?.took(bytes) ?? 0
      if (holdMs > 0) {
        clearTimeout(heldUp)
        heldUp = setTimeout(letGo, holdMs)
      }
      stream.cork()
      for (const piece of encoder.encode(bytes, worthCompressing())) room = stream.write(piece)
      stream.uncork()
      full = !room
      if (full || resting || heldUp !== undefined) socket.pause()
    })
    stream.on('drain', () => {
      full = false
      goOn()
    })
    socket.on('end', () => stream.end())
    stream.on('data', (bytes: Buffer) => {
      let room = true
      try {
        for (const raw of decoder.push(bytes)) {
          counts.fromStream += raw.length
          room = socket.write(raw)
        }
      } catch (error) {
        stream.destroy(error instanceof Error ? error : new ProtocolError(errorText(error)))
        return
      }
      if (!room) stream.pause()
    })
    socket.on('drain', () => stream.resume())
    stream.on('end', () => {
      if (decoder.whole) socket.end()
      else stream.destroy(new ProtocolError('the stream ended within a block'))
    })
    socket.on('error', (error) => stream.destroy(error))
    stream.on('error', () => socket.resetAndDestroy())
    socket.once('close', () => {
      clearTimeout(heldUp)
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

/** Above this rate zstd would limit, not the link. Bytes a second. */
const COMPRESS_RATE_MAX = 60_000_000
const FULL_SHARE = 0.7

/** What is asked of a bundle: its measured rate, and how full the path is by its own pacing. */
export interface PathState {
  readonly rateBytesPerSecond: number
  readonly inFlightBytes: number
  readonly limitBytes: number
}

/**
 * The rule for `worthCompressing`: a slow path that is full. One that is not full waits for a processor, not for it; unless
 * what comes is held up.
 */
export function slowLink(path: PathState, pace?: Pick<RamPace, 'isHolding'>): () => boolean {
  return () =>
    path.rateBytesPerSecond < COMPRESS_RATE_MAX &&
    (path.inFlightBytes >= path.limitBytes * FULL_SHARE || pace?.isHolding === true)
}
