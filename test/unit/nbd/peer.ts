/**
 * The other end of a connection, played by hand: sends what it is told, byte for byte, and reads exactly what it asks
 * for. For what no real peer would send.
 */
import { type Duplex, duplexPair } from 'node:stream'

export class RawPeer {
  readonly stream: Duplex
  readonly #chunks: Buffer[] = []
  #ended = false
  #wake: () => void = () => {}

  constructor(stream: Duplex) {
    this.stream = stream
    stream.on('data', (chunk: Buffer) => {
      this.#chunks.push(chunk)
      this.#wake()
    })
    const end = (): void => {
      this.#ended = true
      this.#wake()
    }
    stream.on('end', end).on('close', end).on('error', end)
  }

  send(...parts: readonly Buffer[]): void {
    this.stream.write(Buffer.concat(parts))
  }

  /** Exactly so many bytes, or an error when the stream ends before. */
  async read(length: number): Promise<Buffer> {
    for (;;) {
      const all = Buffer.concat(this.#chunks)
      if (all.length >= length) {
        this.#chunks.splice(0, this.#chunks.length, all.subarray(length))
        return all.subarray(0, length)
      }
      if (this.#ended) throw new Error(`the stream ended with ${all.length} of ${length} bytes`)
      await this.#more()
    }
  }

  /** What still comes until the end. */
  async readToEnd(): Promise<Buffer> {
    while (!this.#ended) await this.#more()
    return Buffer.concat(this.#chunks)
  }

  #more(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = resolve
    })
  }
}

export function rawPair(): { readonly peer: RawPeer; readonly stream: Duplex } {
  const [near, far] = duplexPair()
  return { peer: new RawPeer(near), stream: far }
}
