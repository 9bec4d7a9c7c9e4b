/** Our key, the login that peers' keys open, and what each of these keys may do. */
import { lstat, stat } from 'node:fs/promises'
import type { Config } from '../../config/schema.ts'
import { errorText } from '../../lib/core/errors.ts'
import type { UserEntry } from '../../lib/host/users.ts'
import { keyLines, keyOptions } from '../join/authorized-keys.ts'
import { LOGIN, readAuthorizedKeys } from '../join/this-host.ts'
import { type Finding, lineReplaced, quoted } from './finding.ts'
import { type Place, tried } from './place.ts'

const WHY_LOGIN = 'peers cannot log in, so migrations to and from them go direct'

export async function checkKeys(place: Place): Promise<Finding[]> {
  const { config, login } = place
  if (login === undefined) {
    const group = `{ getent group ${LOGIN} >/dev/null || groupadd --system ${LOGIN}; }`
    const make = `${group} && useradd --system --gid ${LOGIN} --home-dir /var/lib/swam --shell /bin/sh ${LOGIN}`
    return [
      {
        id: 'login-missing',
        level: 'error',
        what: `there is no user ${LOGIN}`,
        why: 'swamd runs as that user, and peers log in as it',
        mend: `${make} && usermod --password '*' ${LOGIN} && chown -R ${LOGIN}: /var/lib/swam /etc/swam/id_ed25519`,
      },
    ]
  }
  return [
    ...(await loginFindings(login)),
    ...(config === undefined
      ? []
      : [...(await keyFindings(config, login)), ...(await entries(config, login))]),
  ]
}

async function loginFindings(login: UserEntry): Promise<Finding[]> {
  const findings: Finding[] = []
  const say = (id: string, what: string, mend: string): void => {
    findings.push({ id, level: 'error', what, why: WHY_LOGIN, mend })
  }
  if (/\/(nologin|false)$/.test(login.shell)) {
    say('login-shell', `the shell of ${LOGIN} is ${login.shell}`, `usermod --shell /bin/sh ${LOGIN}`)
  }
  const password = ((await tried('getent', 'shadow', LOGIN)) ?? '').split(':')[1] ?? '*'
  if (password.startsWith('!')) {
    const what = `the password of ${LOGIN} is locked (! in shadow): sshd refuses its keys too`
    say('login-locked', what, `usermod --password '*' ${LOGIN}`)
  }
  // sshd's StrictModes.
  for (const path of [login.home, `${login.home}/.ssh`, `${login.home}/.ssh/authorized_keys`]) {
    const found = await stat(path).catch(() => undefined)
    if (found === undefined) continue
    if ((found.mode & 0o022) === 0 && (found.uid === 0 || found.uid === login.uid)) continue
    const what = `${path}: owner ${found.uid}, mode ${(found.mode & 0o7777).toString(8)}: sshd does not trust it`
    say('login-modes', what, `chown ${LOGIN}: ${quoted(path)} && chmod go-w ${quoted(path)}`)
  }
  return findings
}

async function keyFindings(config: Config, login: UserEntry): Promise<Finding[]> {
  const findings: Finding[] = []
  for (const path of new Set(config.peers.map(({ ssh }) => ssh.key))) {
    const found = await lstat(path).catch(() => undefined)
    const users = config.peers.filter(({ ssh }) => ssh.key === path)
    if (found === undefined) {
      findings.push({
        id: 'key-missing',
        level: 'error',
        what: `${path}: there is no key`,
        why: 'this host cannot log in at its peers, so what comes from them goes direct',
        mend: users.map(addAgain).join('; '),
      })
    } else if (!found.isFile() || (found.mode & 0o077) !== 0 || found.uid !== login.uid) {
      findings.push({
        id: 'key-mode',
        level: 'error',
        what: `${path}: owner ${found.uid}, mode ${(found.mode & 0o7777).toString(8)}, expected a file of ${LOGIN}, 600`,
        why: 'whoever reads it can pass for this host at its peers; if swamd cannot, what comes goes direct',
        mend: `chown ${LOGIN}: ${quoted(path)} && chmod 600 ${quoted(path)}`,
      })
    }
  }
  return findings
}

/** Each peer has one line; nobody has another way in. */
async function entries(config: Config, login: UserEntry): Promise<Finding[]> {
  const file = `${login.home}/.ssh/authorized_keys`
  let text: string
  try {
    text = await readAuthorizedKeys(login)
  } catch (error) {
    const what = `${file} cannot be read as ${LOGIN}: ${errorText(error).slice(0, 200)}`
    const mend = `chown ${LOGIN}: ${quoted(login.home)}/.ssh ${quoted(file)}; chmod u+rwX,go-w ${quoted(login.home)}/.ssh ${quoted(file)}`
    return [{ id: 'authorized-unreadable', level: 'error', what, why: WHY_LOGIN, mend }]
  }
  const lines = keyLines(text)
  const findings: Finding[] = []
  const socket = `${config.runDir}/peer.sock`
  for (const { line, options, key, peer } of lines) {
    const where = `${file}, line ${line + 1}`
    const known = config.peers.some(({ name }) => name === peer)
    if (peer === undefined) {
      findings.push({
        id: 'authorized-open',
        level: 'error',
        what: `${where}: a key that may do more than start swam-peer`,
        why: `whoever has it is user ${LOGIN} here, who reads the key of this host`,
        mend: `sed -i '${line + 1}d' ${quoted(file)}`,
      })
    } else if (!known) {
      findings.push({
        id: 'authorized-stranger',
        level: 'warning',
        what: `${where}: the key of ${peer}, which is no peer of this host`,
        why: 'it can start swam-peer here; swamd refuses what it says',
        mend: `swam peer remove ${peer}`,
      })
    } else if (options !== keyOptions({ peer, socket })) {
      findings.push({
        id: 'authorized-options',
        level: 'error',
        what: `${where}: the key of ${peer} is not restricted to swam-peer at ${socket}`,
        why: 'without restrict and the forced command it is a login; with another socket no daemon answers',
        mend: lineReplaced(file, line + 1, `${keyOptions({ peer, socket })} ${key} ${peer}`),
      })
    }
  }
  for (const peer of config.peers) {
    if (lines.some((one) => one.peer === peer.name)) continue
    findings.push({
      id: 'authorized-missing',
      level: 'error',
      what: `${file}: there is no key of ${peer.name}`,
      why: `${peer.name} cannot log in here, so what goes there goes direct`,
      mend: addAgain(peer),
    })
  }
  return findings
}

/** Over the administrator's own SSH, at the address that swamd takes. */
export function addAgain(peer: { readonly name: string; readonly addresses: readonly string[] }): string {
  return `swam peer add ${peer.name} root@${peer.addresses[0]} --replace`
}
