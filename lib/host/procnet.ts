/**
 * Who owns a TCP socket, and which sockets listen: read from /proc/net/tcp and tcp6. The listeners of swamd use it to
 * make sure that what connects is libvirtd or QEMU; the hook, to learn the ports of a new QEMU.
 * The addresses there are hexadecimal words in the byte order of the host (little-endian on every machine that SWAM
 * runs on). It sees one network namespace: its own, or that of the process whose directory is given.
 */
import { readdir, readFile, readlink } from 'node:fs/promises'
import { isIPv4, isIPv6, SocketAddress } from 'node:net'
import { errorText, RefusedError } from '../core/errors.ts'
import { GUEST_PORTS_MAX, PROC_NET_BYTES_MAX, PROC_NET_ROWS_MAX } from '../core/limits.ts'

export interface TcpRow {
  /** 32 hexadecimal digits, IPv4 as ::ffff:a.b.c.d: one form for both families. */
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
  readonly state: number
  readonly uid: number
  readonly inode: number
}

export interface SocketName {
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
}

export interface ListeningPort {
  readonly address: string
  readonly port: number
}

const TCP_LISTEN = 0x0a

/**
 * The uid of the socket that sees itself under this name: for a redirected connection that is the client's own address
 * and port, and as the remote end the peer that it wanted, not our listener. Undefined: there is no such socket.
 */
export async function socketOwner(
  name: SocketName,
  procDirectory = '/proc/self',
): Promise<number | undefined> {
  return (await socketOwners([name], procDirectory))[0]
}

/** The same for many names, with one reading of the tables. */
export async function socketOwners(
  names: readonly SocketName[],
  procDirectory = '/proc/self',
): Promise<(number | undefined)[]> {
  const wanted = new Map<string, number[]>()
  for (const [index, name] of names.entries()) {
    const key = `${addressDigits(name.localAddress)} ${name.localPort} ${addressDigits(name.remoteAddress)} ${name.remotePort}`
    wanted.set(key, [...(wanted.get(key) ?? []), index])
  }
  const owners = new Array<number | undefined>(names.length).fill(undefined)
  let rows = 0
  // A v4 connection of a v6 socket stands in tcp6: both are always looked at.
  for (const file of ['tcp', 'tcp6']) {
    for (const row of parseTcpTable(await readTable(`${procDirectory}/net/${file}`))) {
      // A busy host has a hundred thousand: other work goes on in between.
      if (++rows % PROC_NET_ROWS_MAX === 0) await new Promise((resolve) => setImmediate(resolve))
      // Inode 0 is a socket that nobody holds any more (TIME_WAIT); the uid that stands there is root's, and says nothing.
      if (row.inode === 0) continue
      const key = `${row.localAddress} ${row.localPort} ${row.remoteAddress} ${row.remotePort}`
      for (const index of wanted.get(key) ?? []) owners[index] ??= row.uid
    }
  }
  return owners
}

/** The TCP ports on which this process listens. Needs the rights to look at its descriptors. */
export async function listeningPorts(pid: number): Promise<ListeningPort[]> {
  if (!Number.isInteger(pid) || pid < 1)
    throw new RefusedError(`listening ports: expected a pid, found ${pid}`)
  const inodes = new Set<number>()
  for (const fd of await readdir(`/proc/${pid}/fd`)) {
    const target = await readlink(`/proc/${pid}/fd/${fd}`).catch(() => '')
    const match = /^socket:\[(\d+)\]$/.exec(target)
    if (match !== null) inodes.add(Number(match[1]))
  }
  const ports: ListeningPort[] = []
  for (const file of ['tcp', 'tcp6']) {
    for (const row of parseTcpTable(await readTable(`/proc/${pid}/net/${file}`))) {
      if (row.state !== TCP_LISTEN || !inodes.has(row.inode)) continue
      if (ports.length >= GUEST_PORTS_MAX)
        throw new RefusedError(`pid ${pid}: expected at most ${GUEST_PORTS_MAX} ports`)
      ports.push({ address: addressText(row.localAddress), port: row.localPort })
    }
  }
  return ports
}

/** The rows of one table. A line that is not understood is left out: the table may change while it is read. */
export function* parseTcpTable(text: string): Generator<TcpRow> {
  for (let at = lineEnd(text, 0) + 1; at < text.length; ) {
    const end = lineEnd(text, at)
    const line = text.slice(at, end)
    at = end + 1
    const [, local, remote, state, , , , uid, , inode] = line.trim().split(/\s+/)
    if (local === undefined || remote === undefined || inode === undefined) continue
    const here = parseEnd(local)
    const there = parseEnd(remote)
    if (here === undefined || there === undefined) continue
    if (!/^[0-9A-F]{2}$/.test(state ?? '') || !/^\d{1,10}$/.test(uid ?? '') || !/^\d{1,19}$/.test(inode))
      continue
    yield {
      localAddress: here.address,
      localPort: here.port,
      remoteAddress: there.address,
      remotePort: there.port,
      state: Number.parseInt(state!, 16),
      uid: Number(uid),
      inode: Number(inode),
    }
  }
}

function lineEnd(text: string, from: number): number {
  const end = text.indexOf('\n', from)
  return end < 0 ? text.length : end
}

function parseEnd(text: string): { address: string; port: number } | undefined {
  const match = /^([0-9A-F]{8}|[0-9A-F]{32}):([0-9A-F]{4})$/.exec(text)
  if (match === null) return undefined
  const digits = match[1]!.toLowerCase()
  let address = ''
  for (let word = 0; word < digits.length; word += 8) {
    for (let byte = 6; byte >= 0; byte -= 2) address += digits.slice(word + byte, word + byte + 2)
  }
  if (address.length === 8) address = `${'0'.repeat(20)}ffff${address}`
  return { address, port: Number.parseInt(match[2]!, 16) }
}

/** An address as 32 hexadecimal digits in network order. */
export function addressDigits(address: string): string {
  if (isIPv4(address)) {
    const bytes = address.split('.').map((part) => Number(part).toString(16).padStart(2, '0'))
    return `${'0'.repeat(20)}ffff${bytes.join('')}`
  }
  const zone = address.indexOf('%')
  const plain = zone < 0 ? address : address.slice(0, zone)
  if (!isIPv6(plain))
    throw new RefusedError(`expected an IP address, found ${JSON.stringify(address.slice(0, 64))}`)
  const canonical = new SocketAddress({ address: plain, family: 'ipv6' }).address
  const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(canonical)
  const text = dotted === null ? canonical : `${dotted[1]}${hexWords(dotted[2]!)}`
  const [head = '', tail = ''] = text.split('::')
  const left = head === '' ? [] : head.split(':')
  const right = tail === '' ? [] : tail.split(':')
  const middle = text.includes('::') ? new Array<string>(8 - left.length - right.length).fill('0') : []
  return [...left, ...middle, ...right].map((word) => word.padStart(4, '0')).join('')
}

function hexWords(dotted: string): string {
  const [a = 0, b = 0, c = 0, d = 0] = dotted.split('.').map(Number)
  return `${((a << 8) | b).toString(16)}:${((c << 8) | d).toString(16)}`
}

/** The text of an address in that form. */
export function addressText(digits: string): string {
  const mapped = digits.startsWith(`${'0'.repeat(20)}ffff`)
  if (mapped) {
    const bytes = digits.slice(24).match(/../g) ?? []
    return bytes.map((byte) => Number.parseInt(byte, 16)).join('.')
  }
  const words = digits.match(/.{4}/g) ?? []
  return new SocketAddress({ address: words.join(':'), family: 'ipv6' }).address
}

async function readTable(path: string): Promise<string> {
  let text: string
  try {
    text = await readFile(path, 'latin1')
  } catch (error) {
    // A host without IPv6 has no tcp6.
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && path.endsWith('tcp6')) return ''
    throw new RefusedError(`${path}: cannot read the sockets: ${errorText(error)}`, { cause: error })
  }
  if (text.length > PROC_NET_BYTES_MAX)
    throw new RefusedError(`${path}: more than ${PROC_NET_BYTES_MAX} bytes`)
  return text
}
