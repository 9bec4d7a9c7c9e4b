/**
 * Turns the push side of a stream into `await next()` for the handshake, where one message follows the other. The
 * stream flows only while somebody waits, so what arrives after the last message of the handshake is kept and handed
 * over with `detach`. Not for the transmission phase: there a promise for each message would cost too much.
 */
import type { Duplex } from 'node:stream'
import { errorText, LostError } from '../core/errors.ts'

export interface MessageDecoder<Message> {
  readonly partial: boolean
  push(bytes: Buffer): Generator<Message, void, undefined>
  rest(): Buffer
}

export class MessagePump<Message> {
  readonly #stream: Duplex
  readonly #decoder: MessageDecoder<Message>
  readonly #what: string
  readonly #chunks: Buffer[] = []
  #messages: Generator<Message, void, undefined> | undefined
  #ended = false
  #error: Error | undefined
  #wake: () => void = () => {}

  readonly #onData = (chunk: Buffer): void => {
    this.#chunks.push(chunk)
    this.#stream.pause()
    this.#wake()
  }
  readonly #onEnd = (): void => {
    this.#ended = true
    this.#wake()
  }
  readonly #onError = (error: Error): void => {
    this.#error = error
    this.#wake()
  }

  constructor(stream: Duplex, decoder: MessageDecoder<Message>, what: string) {
    this.#stream = stream
    this.#decoder = decoder
    this.#what = what
    this.#ended = stream.readableEnded || stream.destroyed
    stream.on('data', this.#onData).on('end', this.#onEnd).on('close', this.#onEnd).on('error', this.#onError)
    stream.pause()
  }

  /** The next message; undefined when the stream ended between two. */
  async next(): Promise<Message | undefined> {
    for (;;) {
      if (this.#messages !== undefined) {
        const step = this.#messages.next()
        if (step.done !== true) return step.value
        this.#messages = undefined
      }
      const chunk = this.#chunks.shift()
      if (chunk !== undefined) {
        this.#messages = this.#decoder.push(chunk)
        continue
      }
      if (this.#error !== undefined) {
        throw new LostError(`${this.#what}: connection lost: ${errorText(this.#error)}`, {
          cause: this.#error,
        })
      }
      if (this.#ended) {
        if (this.#decoder.partial) throw new LostError(`${this.#what}: connection ended inside a message`)
        return undefined
      }
      const woken = new Promise<void>((resolve) => {
        this.#wake = resolve
      })
      this.#stream.resume()
      await woken
    }
  }

  /** Lets go of the stream, which stays paused; gives what arrived behind the last message. */
  detach(): Buffer {
    const stream = this.#stream
    stream.pause()
    stream
      .off('data', this.#onData)
      .off('end', this.#onEnd)
      .off('close', this.#onEnd)
      .off('error', this.#onError)
    const rest = this.#messages === undefined ? [] : [this.#decoder.rest()]
    this.#messages = undefined
    return Buffer.concat([...rest, ...this.#chunks.splice(0)])
  }
}
