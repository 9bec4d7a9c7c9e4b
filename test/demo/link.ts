/**
 * What a migration put on the link, told apart by TCP connection: the disk's bytes are those of QEMU's NBD connections
 * (plain) or of the SSH connections that the source's swamd names as disk and control (SWAM).
 * The bytes are wanlink's: IP bytes, both directions, retransmissions included. Nothing here asks SWAM how much it sent.
 */
import type { MigrationReport } from '../../server/report.ts'
import type { WanStats } from '../lab/wan.ts'

export interface LinkBytes {
  /** What QEMU asked to be written at the far side. */
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
  const plain = stats.connections.filter((each) =>
    [each.a, each.b].some((end) => portOf(end) >= RAM_PORT && portOf(end) <= PORT_MAX),
  )
  if (plain.length > 0) {
    throw new Error(`SWAM migration: ${plain.length} connections went around it: ${JSON.stringify(plain)}`)
  }
  let diskWireBytes = 0
  const disk = connections.filter((each) => each.kind !== 'ram')
  if (disk.length === 0) throw new Error('SWAM migration: its report names no disk connections')
  for (const { localAddress, localPort, remoteAddress, remotePort } of disk) {
    const ends = [endOf(localAddress, localPort), endOf(remoteAddress, remotePort)]
    const found = stats.connections.find((each) => ends.includes(each.a) && ends.includes(each.b))
    // A connection of the pool that carried nothing since the counters were reset is not listed.
    if (found) diskWireBytes += found.bytesAB + found.bytesBA
  }
  if (diskWireBytes === 0)
    throw new Error('SWAM migration: none of its disk connections was seen at the link')
  const diskBytes = disks.reduce((bytes, each) => bytes + each.askedBytes, 0)
  return { diskBytes, diskWireBytes, wireBytes: total(stats) }
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
