/**
 * What a TCP connection cost at the link, by the kernel's own count (`ss -ti`, any user may ask for its network):
 * payload both ways with retransmissions, plus 40 (IPv4) or 60 (IPv6) bytes of headers and 12 of timestamps for each
 * segment. Works for connections of other processes too: at the side that was dialed, sshd has them.
 */
import { SS_DEADLINE_MS, SS_OUTPUT_BYTES_MAX, TCP_NAMES_ASKED_MAX } from '../core/limits.ts'
import { type RunCommand, runCommand } from './command.ts'

export interface TcpName {
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
}

export interface TcpCounts {
  /** IP bytes, both directions. */
  readonly ipBytes: number
}

/** By `${localAddress}:${localPort}-${remotePort}`; a connection that is gone is left out. Never rejects. */
export async function tcpCounts(
  names: readonly TcpName[],
  run: RunCommand = runCommand,
): Promise<Map<string, TcpCounts>> {
  const counts = new Map<string, TcpCounts>()
  if (names.length === 0) return counts
  // ss parses each word of its filter by itself. One call for all: a process costs more than its answer.
  const filter = names.flatMap(({ localPort, remotePort }, index) => {
    const one = ['(', 'sport', '=', `:${localPort}`, 'and', 'dport', '=', `:${remotePort}`, ')']
    return index === 0 ? one : ['or', ...one]
  })
  const text = await run(['ss', '-HtinO', ...filter], {
    deadlineMs: SS_DEADLINE_MS,
    outputBytesMax: SS_OUTPUT_BYTES_MAX,
  }).catch(() => '')
  for (const line of text.split('\n')) {
    const ports = /:(\d+)\s+\S+:(\d+)\s/.exec(line)
    const name = names.find(
      ({ localPort, remotePort }) => ports?.[1] === String(localPort) && ports[2] === String(remotePort),
    )
    if (name === undefined) continue
    const ipBytes = parseSs(line, name.localAddress.includes(':') && !name.localAddress.startsWith('::ffff:'))
    if (ipBytes !== undefined)
      counts.set(`${name.localAddress}:${name.localPort}-${name.remotePort}`, { ipBytes })
  }
  return counts
}

/**
 * Makes one call of what many ask at about the same time: with eight migrations each way sixteen processes, every few
 * seconds, would cost more than what they measure.
 */
export class TcpMeter {
  readonly #run: RunCommand
  /** What is asked for next, and its answer; it starts in the next turn of the event loop, or when the call before it is over. */
  #next: { readonly names: TcpName[]; readonly counts: Promise<Map<string, TcpCounts>> } | undefined
  #last: Promise<unknown> = Promise.resolve()

  constructor(run: RunCommand) {
    this.#run = run
  }

  /** As tcpCounts; the answer may have what others asked for too. */
  async count(names: readonly TcpName[]): Promise<Map<string, TcpCounts>> {
    if (names.length === 0) return new Map()
    return await this.#count(names)
  }

  #count(names: readonly TcpName[]): Promise<Map<string, TcpCounts>> {
    if (this.#next !== undefined && this.#next.names.length + names.length <= TCP_NAMES_ASKED_MAX) {
      this.#next.names.push(...names)
      return this.#next.counts
    }
    const all = [...names]
    const counts = this.#last
      .then(() => new Promise((resolve) => setImmediate(resolve)))
      .then(() => {
        if (this.#next?.names === all) this.#next = undefined
        return tcpCounts(all, this.#run)
      })
    this.#next = { names: all, counts }
    this.#last = counts
    return counts
  }
}

/** IP bytes of one connection as `ss -HtinO` shows it. */
export function parseSs(text: string, ipv6: boolean): number | undefined {
  const value = (key: string): number => Number(new RegExp(`\\b${key}:(\\d+)`).exec(text)?.[1] ?? 0)
  if (!/\bsegs_out:/.test(text)) return undefined
  const headers = (ipv6 ? 60 : 40) + (/\bts\b/.test(text) ? 12 : 0)
  // bytes_sent counts retransmissions; older kernels only say what was acknowledged.
  const sent = value('bytes_sent') || value('bytes_acked')
  return sent + value('bytes_received') + headers * (value('segs_out') + value('segs_in'))
}
