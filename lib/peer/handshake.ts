/**
 * The exchange of hellos on one channel, from either end. A deadline belongs to the caller: it destroys the channel,
 * and the wait here rejects.
 */
import { errorText, ProtocolError, RefusedError, SwamError } from '../core/errors.ts'
import { FRAME_CONTROL, FRAME_HELLO, FRAME_REFUSE, type Frame } from '../wire/frame.ts'
import { decodeHello, decodeRefusal, encodeHello, encodeRefusal, type Hello } from '../wire/hello.ts'
import type { FrameChannel } from './channel.ts'

export function sendHello(channel: FrameChannel, hello: Hello): void {
  channel.write(FRAME_HELLO, FRAME_CONTROL, 0, [encodeHello(hello)])
}

/** The far end's hello. Frames after it wait in the channel. */
export function receiveHello(channel: FrameChannel): Promise<Hello> {
  return new Promise((resolve, reject) => {
    channel.listen({
      frame: (frame) => {
        channel.unlisten()
        try {
          resolve(readHello(frame))
        } catch (error) {
          reject(error)
        }
      },
      gone: reject,
    })
  })
}

/** The dialing end of one channel: says hello and takes the answer, which must speak of the same channel. */
export async function greet(channel: FrameChannel, own: Hello): Promise<Hello> {
  sendHello(channel, own)
  const answer = await receiveHello(channel)
  for (const field of ['bundle', 'kind', 'channel', 'channels', 'migration'] as const) {
    if (answer[field] !== own[field]) {
      throw new ProtocolError(`hello: the answer's ${field} is ${answer[field]}, expected ${own[field]}`)
    }
  }
  if (answer.resume?.attempt !== own.resume?.attempt) {
    throw new ProtocolError(
      `hello: the answer resumes attempt ${answer.resume?.attempt}, expected ${own.resume?.attempt}`,
    )
  }
  return answer
}

/** Tells the far end why not, and closes the channel. */
export function refuse(channel: FrameChannel, error: unknown): void {
  const code = error instanceof SwamError ? error.code : 'SWAM_FAILED'
  const message = errorText(error).replace(/\p{C}/gu, ' ')
  channel.write(FRAME_REFUSE, FRAME_CONTROL, 0, [encodeRefusal({ code, message })])
  channel.close()
}

function readHello(frame: Frame): Hello {
  if (frame.type === FRAME_REFUSE) {
    throw new RefusedError(`the peer refused: ${decodeRefusal(frame.payload).message}`)
  }
  if (frame.type !== FRAME_HELLO) {
    throw new ProtocolError(`the first frame of a channel has type ${frame.type}, expected a hello`)
  }
  return decodeHello(frame.payload)
}
