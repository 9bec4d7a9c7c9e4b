/**
 * sshd of this host, as user swam meets it: peers log in there. Settings are mended in a Match block for that user, or by a
 * line at the top (the first one counts), so that nobody else's login changes.
 */
import { connect } from 'node:net'
import { CHANNELS_MAX, DOCTOR_SSHD_MS } from '../../lib/core/limits.ts'
import { type SshdSettings, sshdPort, sshdSettings } from '../../lib/host/sshd.ts'
import { LOGIN } from '../join/this-host.ts'
import type { Finding } from './finding.ts'
import { type Place, tried } from './place.ts'

const FILE = '/etc/ssh/sshd_config'
const RELOAD = 'systemctl reload ssh'
const WHY = 'peers cannot log in, so migrations to and from them go direct'

export async function checkSshd(place: Place): Promise<Finding[]> {
  const settings = await sshdSettings(LOGIN)
  const groups = ((await tried('id', '-Gn', LOGIN)) ?? '').trim().split(/\s+/)
  const peers = place.config?.peers.flatMap(({ addresses }) => addresses) ?? []
  return [...(await reachable(sshdPort(settings))), ...sshdFindings(settings, groups, peers)]
}

/** Pure: what `sshd -T` says, against what SWAM needs. */
export function sshdFindings(
  settings: SshdSettings,
  groups: readonly string[],
  peers: readonly string[],
): Finding[] {
  const findings: Finding[] = []
  const say = (
    id: string,
    what: string,
    mend: string,
    why = WHY,
    level: Finding['level'] = 'error',
  ): void => {
    findings.push({ id, level, what, why, mend: `${mend} && ${RELOAD}` })
  }
  const first = (key: string): string => settings.get(key)?.[0] ?? ''
  const words = (key: string): string[] => (settings.get(key) ?? []).flatMap((value) => value.split(/\s+/))

  const sessions = Number(first('maxsessions') || 10)
  if (sessions < CHANNELS_MAX) {
    const why = 'each SSH connection of a peer has up to that many channels: disks would not be carried'
    say(
      'sshd-max-sessions',
      `sshd: MaxSessions ${sessions}, less than ${CHANNELS_MAX}`,
      inMatch('MaxSessions 10'),
      why,
    )
  }
  if (first('pubkeyauthentication') === 'no') {
    say('sshd-pubkey', 'sshd: PubkeyAuthentication no', inMatch('PubkeyAuthentication yes'))
  }
  const methods = words('authenticationmethods')
  if (methods.length > 0 && !methods.some((one) => one === 'any' || one === 'publickey')) {
    const what = `sshd: AuthenticationMethods ${methods.join(' ')}: a key alone is not enough`
    say('sshd-methods', what, inMatch('AuthenticationMethods publickey'))
  }
  const force = first('forcecommand')
  if (force !== '' && force !== 'none') {
    say(
      'sshd-force-command',
      `sshd: ForceCommand for ${LOGIN}, in place of swam-peer`,
      inMatch('ForceCommand none'),
    )
  }
  const files = words('authorizedkeysfile')
  if (files.length > 0 && !files.some((file) => /^(%h\/)?\.ssh\/authorized_keys$/.test(file))) {
    const what = `sshd: AuthorizedKeysFile ${files.join(' ')}: not .ssh/authorized_keys`
    say('sshd-keys-file', what, inMatch('AuthorizedKeysFile .ssh/authorized_keys'))
  }
  const users = words('allowusers').filter((one) => one !== '')
  if (users.length > 0 && !users.some((one) => matches(one.split('@')[0]!, LOGIN))) {
    say('sshd-allow-users', `sshd: AllowUsers without ${LOGIN}`, `sed -i '1i AllowUsers ${LOGIN}' ${FILE}`)
  }
  const allowed = words('allowgroups').filter((one) => one !== '')
  if (allowed.length > 0 && !allowed.some((one) => groups.some((group) => matches(one, group)))) {
    say('sshd-allow-groups', `sshd: AllowGroups without ${LOGIN}`, `sed -i '1i AllowGroups ${LOGIN}' ${FILE}`)
  }
  for (const [key, names] of [
    ['DenyUsers', [LOGIN]],
    ['DenyGroups', groups],
  ] as const) {
    const denied = words(key.toLowerCase()).filter((one) => one !== '')
    const found = denied.find((one) => names.some((name) => matches(one.split('@')[0]!, name)))
    if (found === undefined) continue
    const word = found.replaceAll(/[.*?/[\]^$\\]/g, '\\$&')
    const without = `s/^([[:space:]]*${key}[[:space:]].*)\\b${word}(\\s|$)/\\1/I`
    const edit = `sed -i -E '${without}; /^[[:space:]]*${key}[[:space:]]*$/Id' ${FILE}`
    const mend = /^[A-Za-z0-9_.,:/!*?@-]+$/.test(found) ? edit : `editor ${FILE}`
    say(`sshd-${key === 'DenyUsers' ? 'deny-users' : 'deny-groups'}`, `sshd: ${key} ${found}`, mend)
  }
  return [...findings, ...penalties(settings, peers)]
}

/** OpenSSH from 9.8 on shuts out addresses whose logins fail or crash: a daemon that is down at the far side is one. */
function penalties(settings: SshdSettings, peers: readonly string[]): Finding[] {
  const value = settings.get('persourcepenalties')?.join(' ')
  if (value === undefined || value === 'no' || peers.length === 0) return []
  const exempt = (settings.get('persourcepenaltyexemptlist') ?? []).flatMap((list) => list.split(/[,\s]+/))
  const missing = peers.filter((peer) => !exempt.includes(peer))
  if (missing.length === 0) return []
  const kept = exempt.filter((one) => /^!?[0-9a-f.:/*?]+$/i.test(one))
  const list = [...new Set([...kept, ...missing])].join(',')
  return [
    {
      id: 'sshd-penalties',
      level: 'warning',
      what: `sshd: PerSourcePenalties without an exemption for ${missing.join(', ')}`,
      why: 'a peer whose daemon restarts a few times is shut out for minutes, and its migrations go direct',
      mend: `sed -i '1i PerSourcePenaltyExemptList ${list}' ${FILE} && ${RELOAD}`,
    },
  ]
}

async function reachable(port: number): Promise<Finding[]> {
  const banner = await new Promise<string>((resolve) => {
    const socket = connect({ host: 'localhost', port })
    const end = (text: string): void => {
      socket.destroy()
      resolve(text)
    }
    socket.setTimeout(DOCTOR_SSHD_MS, () => end(''))
    socket.on('error', () => end(''))
    socket.on('data', (bytes) => end(bytes.toString('latin1', 0, 8)))
    socket.on('close', () => resolve(''))
  })
  if (banner.startsWith('SSH-')) return []
  const what = `no sshd answers at port ${port} of this host`
  return [{ id: 'sshd-down', level: 'error', what, why: WHY, mend: 'systemctl start ssh' }]
}

function inMatch(line: string): string {
  return `printf '\\nMatch User ${LOGIN}\\n  ${line}\\n' >>${FILE}`
}

/** sshd's patterns: * and ?. */
function matches(pattern: string, name: string): boolean {
  const form = pattern
    .replaceAll(/[.+^${}()|[\]\\]/g, '\\$&')
    .replaceAll(/\*+/g, '.*')
    .replaceAll('?', '.')
  return new RegExp(`^${form}$`).test(name)
}
