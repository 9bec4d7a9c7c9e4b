/**
 * What this host is called, which addresses it has, and what a name resolves to here: through the system's own resolver,
 * because that is what libvirt and QEMU ask. Addresses that reach no other host (loopback, link-local) are left out.
 */
import { isIP, isIPv6, SocketAddress } from 'node:net'
import { hostname, networkInterfaces } from 'node:os'
import { JOIN_COMMAND_MS, JOIN_NAMES_MAX, NAME_LOOKUP_MS } from '../core/limits.ts'
import { type RunCommand, runCommand } from './command.ts'
import { isHostName, type QemuConf } from './qemu-conf.ts'

/** The host's name, its full name, and the one that libvirt tells others. */
export async function ownNames(conf: QemuConf, run: RunCommand = runCommand): Promise<string[]> {
  const full = await run(['hostname', '--fqdn'], { deadlineMs: JOIN_COMMAND_MS, outputBytesMax: 4096 }).catch(
    () => '',
  )
  const names = [conf.migrationHost ?? '', hostname(), full.trim()]
  const usable = names.filter((name) => isHostName(name) || isIP(name) !== 0)
  return [...new Set(usable)].slice(0, JOIN_NAMES_MAX)
}

/** Up to its first dot. */
export function shortHostName(): string {
  return hostname().split('.')[0] ?? ''
}

export function ownAddresses(): string[] {
  const found = Object.values(networkInterfaces()).flatMap((list) => list ?? [])
  return [...new Set(found.map(({ address }) => plainAddress(address)).filter(reachesOthers))]
}

/** Every address of a name, IPv4 first, asked as QEMU asks; empty when there is none, or nobody answers in time. */
export async function addressesOf(name: string, run: RunCommand = runCommand): Promise<string[]> {
  if (isIP(name) !== 0) return [plainAddress(name)].filter(reachesOthers)
  if (!isHostName(name)) return []
  // A program of its own: a resolver that hangs would hold one of the few threads that read files.
  const text = await run(['getent', 'ahosts', '--', name], {
    deadlineMs: NAME_LOOKUP_MS,
    outputBytesMax: 65_536,
  }).catch(() => '')
  const found = text.split('\n').map((line) => plainAddress(line.split(/\s/)[0] ?? ''))
  return inOrder(found.filter(reachesOthers))
}

/** Each once, IPv4 first: the first address is the one that SSH takes. */
export function inOrder(addresses: readonly string[]): string[] {
  const each = [...new Set(addresses)]
  return [...each.filter((address) => !isIPv6(address)), ...each.filter((address) => isIPv6(address))]
}

/** One form for each address: IPv6 shortened and in lower case, without a zone; IPv4 in IPv6 as IPv4. */
export function plainAddress(address: string): string {
  const bare = address.replace(/%.*$/, '')
  if (!isIPv6(bare)) return bare
  const text = new SocketAddress({ address: bare, family: 'ipv6' }).address
  return /^::ffff:(\d+\.\d+\.\d+\.\d+)$/.exec(text)?.[1] ?? text
}

function reachesOthers(address: string): boolean {
  if (isIP(address) === 0) return false
  if (!isIPv6(address)) return !/^(127\.|0\.|169\.254\.|22[4-9]\.|2[3-5]\d\.)/.test(address)
  return address !== '::' && address !== '::1' && !/^(fe[89ab]|ff)/.test(address)
}
