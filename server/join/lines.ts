/**
 * Lines of JSON over a pipe, one question and one answer at a time, with a ceiling on each line. What comes before the
 * first line of ours (a greeting of the far login) is passed over, within bounds.
 */
import type { Readable } from 'node:stream'
import { ProtocolError, TimeoutError } from '../../lib/core/errors.ts'
import { JOIN_LINE_BYTES_MAX, JOIN_NOISE_BYTES_MAX } from '../../lib/core/limits.ts'

export const JOIN_VERSION: number = 1
const OPENING = Buffer.from('{"version":')

export interface LineCeilings {
  readonly lineBytesMax: number
  readonly noiseBytesMax: number
}

const CEILINGS: LineCeilings = { lineBytesMax: JOIN_LINE_BYTES_MAX, noiseBytesMax: JOIN_NOISE_BYTES_MAX }

export class JsonLines {
  readonly #stream: Readable
  readonly #what: string
  readonly #lineBytesMax: number
  readonly #noiseBytesMax: number
  #rest: Buffer = Buffer.alloc(0)
  #noise = 0
  #begun = false
  #ended = false
  #failure: Error | undefined
  #wake: () => void = () => undefined

  constructor(stream: Readable, what: string, ceilings: LineCeilings = CEILINGS) {
    this.#stream = stream
    this.#what = what
    this.#lineBytesMax = ceilings.lineBytesMax
    this.#noiseBytesMax = ceilings.noiseBytesMax
    stream.on('data', (bytes: Buffer) => {
      this.#rest = Buffer.concat([this.#rest, bytes])
      if (this.#rest.length > this.#lineBytesMax + this.#noiseBytesMax) stream.pause()
      this.#wake()
    })
    const end = (): void => {
      this.#ended = true
      this.#wake()
    }
    stream.on('end', end)
    stream.on('close', end)
    stream.on('error', end)
  }

  /** Undefined: the other side ended. */
  async next(timeoutMs: number): Promise<Record<string, unknown> | undefined> {
    const late = Date.now() + timeoutMs
    for (;;) {
      const line = this.#take()
      if (line !== undefined) return line
      if (this.#failure !== undefined) throw this.#failure
      if (this.#ended) return undefined
      const left = late - Date.now()
      if (left <= 0) throw new TimeoutError(`${this.#what}: no answer within ${timeoutMs} ms`)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
  }

  #take(): Record<string, unknown> | undefined {
    for (;;) {
      const end = this.#rest.indexOf(0x0a)
      if (end < 0 && this.#rest.length > this.#lineBytesMax) this.#tooLong()
      if (end < 0 || this.#failure !== undefined) return undefined
      const line = this.#rest.subarray(0, end)
      this.#rest = this.#rest.subarray(end + 1)
      this.#stream.resume()
      if (this.#begun || line.subarray(0, OPENING.length).equals(OPENING)) {
        if (line.length > this.#lineBytesMax) this.#tooLong()
        else return this.#parse(line)
      }
      this.#noise += line.length + 1
      if (this.#noise > this.#noiseBytesMax) this.#tooLong()
    }
  }

  #tooLong(): void {
    this.#failure ??= new ProtocolError(
      `${this.#what}: expected lines of at most ${this.#lineBytesMax} bytes of JSON`,
    )
  }

  #parse(line: Buffer): Record<string, unknown> | undefined {
    this.#begun = true
    try {
      const value: unknown = JSON.parse(line.toString('utf8'))
      if (typeof value === 'object' && value !== null && !Array.isArray(value)) {
        const fields = value as Record<string, unknown>
        if (fields['version'] === JOIN_VERSION) return fields
        this.#failure = new ProtocolError(
          `${this.#what}: speaks version ${String(fields['version']).slice(0, 20)}, expected ${JOIN_VERSION}: install one release on both`,
        )
        return undefined
      }
    } catch {
      // Said below.
    }
    this.#failure = new ProtocolError(`${this.#what}: expected a line with a JSON object`)
    return undefined
  }
}

export function lineText(value: object): string {
  return `${JSON.stringify({ version: JOIN_VERSION, ...value })}\n`
}
