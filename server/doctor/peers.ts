/** Each peer: up, of one protocol, with the same time, and reached by libvirt at an address that is caught. */
import { isIP } from 'node:net'
import type { PeerConfig } from '../../config/schema.ts'
import { DOCTOR_CLOCK_MS } from '../../lib/core/limits.ts'
import { addressesOf, plainAddress } from '../../lib/host/names.ts'
import { isHostName } from '../../lib/host/qemu-conf.ts'
import type { About } from '../about.ts'
import type { PeerReport } from '../report.ts'
import type { Finding } from './finding.ts'
import { addAgain } from './keys.ts'
import type { Place } from './place.ts'

export async function checkPeers(place: Place): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const peer of place.config?.peers ?? []) {
    const report = place.status?.peers.find(({ name }) => name === peer.name)
    const seen = place.about?.peers.find(({ name }) => name === peer.name)
    if (seen?.about === null || seen === undefined) {
      if (report !== undefined && !report.up) findings.push(downFinding(peer, report))
      continue
    }
    // It has answered just now, whatever the status said before: our daemon may have rested between two tries.
    findings.push(
      ...clockFindings(peer, seen.clockMs),
      ...nameHereFindings(
        peer,
        seen.about,
        isHostName(seen.about.name) ? await addressesOf(seen.about.name) : [],
      ),
      ...nameThereFindings(peer, seen.about, place.about?.name ?? ''),
    )
  }
  return findings
}

/** Pure, as the ones below. */
export function downFinding(peer: PeerConfig, report: PeerReport): Finding {
  const error = report.error ?? 'no reason is known yet'
  const far = `root@${peer.addresses[0]}`
  let mend = addAgain(peer)
  if (/ended with status 3/.test(error)) mend = `ssh ${far} systemctl start swamd`
  else if (/protocol version/.test(error)) {
    mend = `apt-get update && apt-get install -y swam; ssh ${far} "apt-get update && apt-get install -y swam"`
  } else if (/ECONNREFUSED/.test(error)) mend = `ssh ${far} systemctl start ssh swamd`
  else if (!/host key|does not take this key|ENOENT|EACCES/.test(error))
    mend = `ssh ${far} systemctl restart swamd`
  return {
    id: /protocol version/.test(error) ? 'peer-version' : 'peer-down',
    level: 'error',
    what: `peer ${peer.name} is down: ${error}`,
    why: 'migrations with it go direct',
    mend,
  }
}

export function clockFindings(peer: PeerConfig, clockMs: number | null): Finding[] {
  if (clockMs === null || Math.abs(clockMs) <= DOCTOR_CLOCK_MS) return []
  const seconds = Math.round(Math.abs(clockMs) / 1000)
  return [
    {
      id: 'peer-clock',
      level: 'warning',
      what: `the clock of ${peer.name} is ${seconds} s ${clockMs > 0 ? 'ahead' : 'behind'}`,
      why: 'the histories and logs of both hosts do not fit together; guests that take their time from the host jump',
      mend: `timedatectl set-ntp true; ssh root@${peer.addresses[0]} timedatectl set-ntp true`,
    },
  ]
}

/** QEMU here connects to what the far libvirt calls itself. */
export function nameHereFindings(peer: PeerConfig, about: About, resolved: readonly string[]): Finding[] {
  const { name } = about
  if (name === '' || (!isHostName(name) && isIP(name) === 0)) return []
  const configured = peer.addresses.map(plainAddress)
  const found = isIP(name) === 0 ? resolved.map(plainAddress) : [plainAddress(name)]
  const stray = found.filter((address) => !configured.includes(address))
  if (found.length > 0 && stray.length === 0) return []
  const own = about.addresses.map(plainAddress)
  const why = `libvirt at ${peer.name} is called ${name}, and QEMU here connects to that: what is not in addresses is not caught`
  if (found.length === 0) {
    const what = `${name}, libvirt's name at ${peer.name}, does not resolve here`
    const mend = `sed -i '1i ${peer.addresses[0]} ${name}' /etc/hosts`
    return [{ id: 'name-unknown', level: 'error', what, why, mend }]
  }
  const theirs = stray.every((address) => own.includes(address))
  const hosts = `sed -i -E ${hostsEdit(peer.addresses[0] ?? '', name)} /etc/hosts`
  return [
    {
      id: 'name-elsewhere',
      level: 'error',
      what: `${name}, libvirt's name at ${peer.name}, resolves here to ${stray.join(', ')}, which is not in its addresses`,
      why,
      // Its own address: the config lacks it. A stranger's: the name is wrong here, or what libvirt was told there.
      mend: theirs ? addAgain(peer) : isIP(name) === 0 ? hosts : withoutMigrationHost(peer),
    },
  ]
}

/** The same for us, as the peer sees it; its own doctor finds it too. */
export function nameThereFindings(peer: PeerConfig, about: About, ownName: string): Finding[] {
  if (ownName === '' || !isHostName(ownName)) return []
  const configured = about.configured.map(plainAddress)
  const stray = about.resolved.map(plainAddress).filter((address) => !configured.includes(address))
  if (about.resolved.length > 0 && stray.length === 0) return []
  const far = `root@${peer.addresses[0]}`
  const state = about.resolved.length === 0 ? 'nothing' : stray.join(', ')
  return [
    {
      id: 'name-there',
      level: 'error',
      what: `${ownName}, libvirt's name here, resolves at ${peer.name} to ${state}; configured there: ${configured.join(', ')}`,
      why: 'what migrates from there to this host is not caught there: it goes direct, or nowhere',
      mend:
        configured[0] === undefined
          ? addAgain(peer)
          : `ssh ${far} "sed -i -E ${hostsEdit(configured[0], ownName)} /etc/hosts"`,
    },
  ]
}

/** Then libvirt there tells its host name. */
function withoutMigrationHost(peer: PeerConfig): string {
  const edit = "sed -i -E 's/^[[:space:]]*migration_host[[:space:]]*=/#&/' /etc/libvirt/qemu.conf"
  return `ssh root@${peer.addresses[0]} "${edit} && systemctl restart libvirtd"`
}

/** The name at that address, and nowhere else: with "multi on" the resolver takes all lines that have it. */
function hostsEdit(address: string, name: string): string {
  return `-e '1i ${address} ${name}' -e 's/[[:space:]]+${name.replaceAll('.', '[.]')}([[:space:]]|$)/\\1/'`
}
