/**
 * What a migration put on the link, told apart by TCP connection: the disk's bytes are those of QEMU's NBD connections
 * (plain) or of all SSH but the connections that the source's swamd names as memory's (SWAM): what it does not name counts
 * against it.
 * The bytes are wanlink's: IP bytes, both directions, retransmissions included. Nothing here asks SWAM how much it sent.
 */
import type { ConnectionReport, MigrationReport } from '../../server/report.ts'
import type { WanConnection, WanStats } from '../lab/wan.ts'

export interface LinkBytes {
  /** What QEMU asked to be written at the far side, without zeroes of holes. */
  readonly diskBytes: number
  readonly diskWireBytes: number
  readonly wireBytes: number
}

/**
 * The link's packets are full ones of 1500 bytes while a disk is copied: 52 of them are IP and TCP (with timestamps).
 * What remains still holds NBD's 28 bytes a request, of up to a megabyte each: left in, it does not show.
 */
const PACKET_BYTES = 1500
const PACKET_HEADER_BYTES = 52

/** libvirt takes the first free port of its range for memory and the next ones for NBD. */
const RAM_PORT = 49152
const PORT_MAX = 49215
/** The lab's libvirts talk to each other over port 16509, so all SSH between the hosts is SWAM's. */
const SSH_PORT = 22

export function plainBytes(stats: WanStats): LinkBytes {
  let diskWireBytes = 0
  let forwardBytes = 0
  for (const each of stats.connections) {
    const ports = [portOf(each.a), portOf(each.b)].filter((port) => port > RAM_PORT && port <= PORT_MAX)
    if (each.proto !== 'tcp' || ports.length === 0) continue
    diskWireBytes += each.bytesAB + each.bytesBA
    forwardBytes += Math.max(each.bytesAB, each.bytesBA)
  }
  if (diskWireBytes === 0)
    throw new Error('plain migration: expected an NBD connection at the link, found none')
  const diskBytes = Math.round(forwardBytes * (1 - PACKET_HEADER_BYTES / PACKET_BYTES))
  return { diskBytes, diskWireBytes, wireBytes: total(stats) }
}

export function swamBytes(stats: WanStats, { disks, connections }: MigrationReport): LinkBytes {
  const around = stats.connections.filter((each) =>
    [each.a, each.b].some((end) => portOf(end) >= RAM_PORT && portOf(end) <= PORT_MAX && !isSsh(each)),
  )
  if (around.length > 0) {
    throw new Error(`SWAM migration: ${around.length} connections went around it: ${JSON.stringify(around)}`)
  }
  const ssh = stats.connections.filter(isSsh)
  const named = (each: WanConnection, kind: ConnectionReport['kind']): boolean =>
    connections.some((known) => known.kind === kind && isSame(known, each))
  for (const kind of ['disk', 'ram'] as const) {
    if (!ssh.some((each) => named(each, kind))) {
      throw new Error(
        `SWAM migration: none of its ${kind} connections was seen at the link: ${JSON.stringify(connections)}`,
      )
    }
  }
  let diskWireBytes = 0
  for (const each of ssh) if (!named(each, 'ram')) diskWireBytes += each.bytesAB + each.bytesBA
  // A plain mirror asks holes to be zeroed in a few bytes a request: to compare like with like, zeroes are left out.
  const diskBytes = disks.reduce((bytes, each) => bytes + each.askedBytes - each.bySource.zero, 0)
  return { diskBytes, diskWireBytes, wireBytes: total(stats) }
}

function isSsh({ proto, a, b }: WanConnection): boolean {
  return proto === 'tcp' && (portOf(a) === SSH_PORT || portOf(b) === SSH_PORT)
}

function isSame(known: ConnectionReport, { a, b }: WanConnection): boolean {
  const ends = [endOf(known.localAddress, known.localPort), endOf(known.remoteAddress, known.remotePort)]
  return ends.includes(a) && ends.includes(b)
}

function total(stats: WanStats): number {
  return stats.total.bytesAB + stats.total.bytesBA
}

function portOf(end: string): number {
  return Number(end.slice(end.lastIndexOf(':') + 1))
}

function endOf(address: string, port: number): string {
  const bare = address.replace(/^::ffff:(?=\d+\.)/, '')
  return bare.includes(':') ? `[${bare}]:${port}` : `${bare}:${port}`
}
