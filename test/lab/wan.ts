/**
 * Client of wanlink's control socket: what went over the link, and how the link behaves.
 * One request a connection, one JSON object back. `a` is always hosta's end, `b` hostb's.
 */
import { createConnection } from 'node:net'
import { LostError, ProtocolError, RefusedError } from '../../lib/core/errors.ts'

export interface WanConnection {
  /** "tcp", "udp", or the protocol's number. */
  readonly proto: string
  /** address:port at hosta; IPv6 in brackets. */
  readonly a: string
  readonly b: string
  /** IP bytes, retransmissions and headers included. */
  readonly bytesAB: number
  readonly bytesBA: number
  readonly packets: number
  /** First and last packet, in milliseconds since the last reset. */
  readonly firstMs: number
  readonly lastMs: number
  /** When the last TCP segment with data comes, or came, to its other end; null: none did. */
  readonly dataABMs: number | null
  readonly dataBAMs: number | null
}

export interface WanStats {
  readonly version: 1
  readonly elapsedMs: number
  /** What the emulation itself cost since its start. */
  readonly cpuMs: number
  readonly link: {
    readonly rttMs: number
    readonly mbitAB: number
    readonly mbitBA: number
    readonly loss: number
    readonly queueMs: number
    readonly cut: boolean
  }
  readonly total: {
    readonly bytesAB: number
    readonly bytesBA: number
    readonly packetsAB: number
    readonly packetsBA: number
    /** Refused by a full queue or a cut link: not counted as bytes. */
    readonly droppedAB: number
    readonly droppedBA: number
    /** Sent and counted, but lost on the way. */
    readonly lostAB: number
    readonly lostBA: number
  }
  readonly connections: readonly WanConnection[]
}

export interface WanSettings {
  readonly rttMs?: number
  readonly mbit?: number
  readonly mbitAB?: number
  readonly mbitBA?: number
  readonly loss?: number
  readonly queueMs?: number
  readonly cut?: boolean
}

const NAMES: Readonly<Record<keyof WanSettings, string>> = {
  rttMs: 'rtt-ms',
  mbit: 'mbit',
  mbitAB: 'mbit-ab',
  mbitBA: 'mbit-ba',
  loss: 'loss',
  queueMs: 'queue-ms',
  cut: 'cut',
}

export function wanArguments(settings: WanSettings): [name: string, value: string][] {
  const known = Object.entries(NAMES) as [keyof WanSettings, string][]
  return known.flatMap(([key, name]): [string, string][] => {
    const value = settings[key]
    return value === undefined ? [] : [[name, String(Number(value))]]
  })
}

export class Wan {
  readonly #socket: string

  constructor(socket: string) {
    this.#socket = socket
  }

  async stats(): Promise<WanStats> {
    return (await this.#ask('stats')) as WanStats
  }

  /** Counters to zero; the connections go on and are counted anew. */
  async reset(): Promise<void> {
    await this.#ask('reset')
  }

  async set(settings: WanSettings): Promise<void> {
    const words = wanArguments(settings).map(([name, value]) => `${name}=${value}`)
    if (words.length > 0) await this.#ask(`set ${words.join(' ')}`)
  }

  async #ask(line: string): Promise<unknown> {
    const text = await new Promise<string>((resolve, reject) => {
      const parts: Buffer[] = []
      const connection = createConnection(this.#socket)
      connection.setTimeout(5000, () => connection.destroy(new Error('no answer in 5000 ms')))
      connection.on('error', (cause) => {
        reject(new LostError(`wanlink at ${this.#socket}, ${line}: ${cause.message}`, { cause }))
      })
      connection.on('data', (data: Buffer) => parts.push(data))
      connection.on('end', () => resolve(Buffer.concat(parts).toString('utf8')))
      connection.write(`${line}\n`)
    })
    let answer: { version?: number; error?: string }
    try {
      answer = JSON.parse(text) as typeof answer
    } catch (cause) {
      throw new ProtocolError(`wanlink, ${line}: expected JSON, got ${JSON.stringify(text.slice(0, 80))}`, {
        cause,
      })
    }
    if (answer.error !== undefined) throw new RefusedError(`wanlink, ${line}: ${answer.error}`)
    return answer
  }
}
