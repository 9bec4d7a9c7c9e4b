/** The ports that libvirt gives to migrations, which SWAM must watch, and the user that QEMU runs as. */
import { readFile } from 'node:fs/promises'
import { userIds } from '../../lib/host/users.ts'
import { type Finding, quoted } from './finding.ts'
import type { Place } from './place.ts'

const RESTART = 'systemctl restart swamd'

export async function checkPorts(place: Place): Promise<Finding[]> {
  const { config, configPath, qemuConf } = place
  if (config === undefined) return []
  const findings: Finding[] = []
  const set = async (key: string, value: string): Promise<string> => {
    const text = await readFile(configPath, 'utf8')
    const there = new RegExp(`^[ \\t]*${key}[ \\t]*=`, 'm').test(text)
    const edit = there ? `s/^[ \\t]*${key}[ \\t]*=.*/${key} = ${value}/` : `1i ${key} = ${value}`
    return `sed -i '${edit}' ${quoted(configPath)} && ${RESTART}`
  }
  const [low, high] = config.migrationPorts
  const { migrationPortMin, migrationPortMax, user } = qemuConf
  if (migrationPortMin < low || migrationPortMax > high) {
    findings.push({
      id: 'ports-differ',
      level: 'error',
      what: `libvirt's migrations have the ports ${migrationPortMin} to ${migrationPortMax}, migrationPorts is ${low} to ${high}`,
      why: 'a migration with a port outside of migrationPorts is not caught: it goes direct',
      mend: await set('migrationPorts', `[${migrationPortMin}, ${migrationPortMax}]`),
    })
  }
  // libvirt takes +ID too; then there is no name to compare.
  const qemuUser = user !== undefined && /^[a-z_][a-z0-9_-]{0,31}$/.test(user) ? user : config.qemuUser
  if (qemuUser !== config.qemuUser || (await userIds(config.qemuUser)) === undefined) {
    findings.push({
      id: 'qemu-user',
      level: 'error',
      what: `qemuUser is ${config.qemuUser}${qemuUser === config.qemuUser ? ', and there is no such user' : `, QEMU runs as ${qemuUser}`}`,
      why: "QEMU's connections are told from others' by their user: those of another one are not caught",
      mend: await set('qemuUser', `"${qemuUser === config.qemuUser ? 'libvirt-qemu' : qemuUser}"`),
    })
  }
  return findings
}
