/** AppArmor: the profile of libvirtd must let it run the hook, and the hook the programs that it calls. */
import { readFile } from 'node:fs/promises'
import type { Finding } from './finding.ts'

const LOADED = '/sys/kernel/security/apparmor/profiles'
const SERVICES = ['libvirtd', 'virtqemud']

export async function checkApparmor(): Promise<Finding[]> {
  const loaded = await readFile(LOADED, 'utf8').catch(() => '')
  const findings: Finding[] = []
  for (const name of SERVICES) {
    const file = `/etc/apparmor.d/usr.sbin.${name}`
    const [profile, local] = await Promise.all([
      readFile(file, 'utf8').catch(() => ''),
      readFile(`/etc/apparmor.d/local/usr.sbin.${name}`, 'utf8').catch(() => ''),
    ])
    findings.push(...apparmorFindings(name, loaded, `${profile}\n${local}`))
  }
  return findings
}

/** Pure. `loaded`: the kernel's list of profiles and their modes. */
export function apparmorFindings(name: string, loaded: string, profile: string): Finding[] {
  if (!new RegExp(`^(/usr/sbin/)?${name} \\(enforce\\)$`, 'm').test(loaded)) return []
  const rules = profile.replaceAll(/^\s*#.*$/gm, '')
  const wanted = [
    { path: '/etc/libvirt/hooks/', rule: '/etc/libvirt/hooks/** rmix,' },
    { path: '/usr/bin/', rule: '/usr/bin/* PUx,' },
  ]
  const missing = wanted.filter(
    ({ path }) => !new RegExp(`(^|\\s)(/usr)?${path.replace('/usr', '')}\\*`, 'm').test(rules),
  )
  if (missing.length === 0) return []
  const text = missing.map(({ rule }) => rule).join('\\n')
  return [
    {
      id: 'apparmor-hook',
      level: 'error',
      what: `AppArmor's profile of ${name} has no rule for ${missing.map(({ path }) => path).join(' and ')}`,
      why: 'libvirt may not run the hook, or the hook not swam: what comes to this host goes direct',
      mend: `printf '${text}\\n' >>/etc/apparmor.d/local/usr.sbin.${name} && apparmor_parser -r /etc/apparmor.d/usr.sbin.${name}`,
    },
  ]
}
