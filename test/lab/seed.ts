/**
 * The files that make an overlay root a host: libvirt's and sshd's settings, names, keys, and swamd's config.
 * They are laid out under BASE/seed as they shall stand below /; host.sh copies them and sets owners, because user ids
 * are known only inside. Keys are made anew for every lab.
 */
import { mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import { stringify } from 'smol-toml'
import { run } from './run.ts'
import { HOST_NAMES, type HostName } from './state.ts'

export type IpFamily = 4 | 6 | 'both'

export interface SeedOptions {
  readonly ipFamily: IpFamily
  readonly swam: boolean
  /** False: swam is there, but no key and no peer. */
  readonly joined?: boolean
  readonly swamConfig?: SwamConfig
}

/** Keys of swam.toml that replace the generated ones; sections are merged by key. */
export type SwamKeys = Readonly<Record<string, unknown>>
export type SwamConfig = SwamKeys | ((host: HostName) => SwamKeys)

export const ADDRESSES: Readonly<Record<HostName, { readonly v4: string; readonly v6: string }>> = {
  hosta: { v4: '10.8.0.1', v6: 'fd08::1' },
  hostb: { v4: '10.8.0.2', v6: 'fd08::2' },
}

const HOST_UUIDS: Readonly<Record<HostName, string>> = {
  hosta: '11111111-1111-4111-8111-111111111111',
  hostb: '22222222-2222-4222-8222-222222222222',
}

const SITES: Readonly<Record<HostName, string>> = { hosta: 'ams', hostb: 'fra' }

export function otherHost(name: HostName): HostName {
  return name === 'hosta' ? 'hostb' : 'hosta'
}

const LIBVIRTD = (uuid: string): string => `listen_tls = 0
listen_tcp = 1
auth_tcp = "none"
auth_unix_ro = "none"
auth_unix_rw = "none"
unix_sock_ro_perms = "0777"
host_uuid = "${uuid}"
log_outputs = "2:file:/var/log/swam-lab/libvirtd.log"
`

/* As on a real Debian host: QEMU is libvirt-qemu and libvirt gives it its files. What needs systemd is left out. */
const QEMU = `user = "libvirt-qemu"
group = "libvirt-qemu"
dynamic_ownership = 1
security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
remember_owner = 0
`

const SSHD = `Port 22
HostKey /etc/ssh/lab_host_key
PidFile /run/sshd.pid
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
AuthorizedKeysFile .ssh/authorized_keys
UseDNS no
`

const SSH = `Host *
  StrictHostKeyChecking yes
  UserKnownHostsFile /etc/ssh/ssh_known_hosts
  IdentityFile /root/.ssh/id_ed25519
`

function hostsFile(family: IpFamily): string {
  const lines = ['127.0.0.1 localhost', '::1 localhost ip6-localhost']
  for (const name of HOST_NAMES) {
    const { v4, v6 } = ADDRESSES[name]
    lines.push(
      `${v4} ${family === 6 ? '' : `${name} `}${name}4`,
      `${v6} ${family === 4 ? '' : `${name} `}${name}6`,
    )
  }
  return `${lines.join('\n')}\n`
}

function swamToml(name: HostName, hostKeys: Record<HostName, string> | undefined, over: SwamKeys): string {
  const other = otherHost(name)
  const config: Record<string, unknown> = {
    site: SITES[name],
    stateDir: '/var/lib/swam',
    runDir: '/run/swam',
    images: ['/var/lib/libvirt/images'],
  }
  if (hostKeys !== undefined) {
    config['peers'] = [
      {
        name: other,
        addresses: [ADDRESSES[other].v4, ADDRESSES[other].v6],
        site: SITES[other],
        ssh: { user: 'swam', port: 22, key: '/etc/swam/id_ed25519', hostKey: hostKeys[other] },
      },
    ]
  }
  return `${stringify(mergeConfig(config, over))}\n`
}

function keysOf(config: SwamConfig | undefined, name: HostName): SwamKeys {
  return typeof config === 'function' ? config(name) : { ...config }
}

export function mergeConfig(config: SwamKeys, over: SwamKeys): Record<string, unknown> {
  const section = (x: unknown): x is object => typeof x === 'object' && x !== null && !Array.isArray(x)
  const merged: Record<string, unknown> = { ...config }
  for (const [key, value] of Object.entries(over)) {
    const present = merged[key]
    merged[key] = section(present) && section(value) ? { ...present, ...value } : value
  }
  return merged
}

async function newKey(file: string, comment: string): Promise<string> {
  mkdirSync(dirname(file), { recursive: true, mode: 0o700 })
  await run('ssh-keygen', ['-q', '-t', 'ed25519', '-N', '', '-C', comment, '-f', file])
  return readFileSync(`${file}.pub`, 'utf8').trim()
}

/** Writes DIR/HOST/seed for both hosts. */
export async function writeSeeds(dir: string, options: SeedOptions): Promise<void> {
  const keys = `${dir}/keys`
  const root = await newKey(`${keys}/root`, 'lab-root')
  const hostKeys: Record<HostName, string> = { hosta: '', hostb: '' }
  const swamKeys: Record<HostName, string> = { hosta: '', hostb: '' }
  for (const name of HOST_NAMES) {
    const line = await newKey(`${keys}/host-${name}`, name)
    hostKeys[name] = line.split(' ').slice(0, 2).join(' ')
    if (options.swam && options.joined !== false)
      swamKeys[name] = await newKey(`${keys}/swam-${name}`, `swam-${name}`)
  }
  const known = HOST_NAMES.map(
    (name) => `${name},${name}4,${name}6,${ADDRESSES[name].v4},${ADDRESSES[name].v6} ${hostKeys[name]}\n`,
  ).join('')
  for (const name of HOST_NAMES) {
    const other = otherHost(name)
    const put = (path: string, text: string, mode = 0o644): void => {
      const file = `${dir}/${name}/seed${path}`
      mkdirSync(dirname(file), { recursive: true, mode: 0o755 })
      writeFileSync(file, text, { mode })
    }
    put('/etc/hostname', `${name}\n`)
    put('/etc/hosts', hostsFile(options.ipFamily))
    put('/etc/libvirt/libvirtd.conf', LIBVIRTD(HOST_UUIDS[name]))
    put('/etc/libvirt/qemu.conf', QEMU)
    put('/etc/ssh/sshd_config', SSHD)
    put('/etc/ssh/ssh_known_hosts', known)
    put('/etc/ssh/lab_host_key', readFileSync(`${keys}/host-${name}`, 'utf8'), 0o600)
    put('/root/.ssh/config', SSH, 0o600)
    put('/root/.ssh/id_ed25519', readFileSync(`${keys}/root`, 'utf8'), 0o600)
    put('/root/.ssh/authorized_keys', `${root}\n`, 0o600)
    if (!options.swam) continue
    if (options.joined === false) {
      put('/etc/swam/swam.toml', swamToml(name, undefined, keysOf(options.swamConfig, name)))
      continue
    }
    const entry = `/usr/lib/swam/bin/swam-peer --peer ${other} --socket /run/swam/peer.sock`
    put('/etc/swam/swam.toml', swamToml(name, hostKeys, keysOf(options.swamConfig, name)))
    put('/etc/swam/id_ed25519', readFileSync(`${keys}/swam-${name}`, 'utf8'), 0o600)
    put('/var/lib/swam/.ssh/authorized_keys', `restrict,command="${entry}" ${swamKeys[other]}\n`, 0o600)
  }
}
