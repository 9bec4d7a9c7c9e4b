/**
 * The root of another Debian release, for hosts that run that release's libvirt and QEMU.
 * Made once with debootstrap (minbase, then apt-get inside: libvirt in one debootstrap step fails) and cached; a host's
 * overlay lies over it, so labs never change it. The packages' services are kept from starting by policy-rc.d.
 */
import { existsSync, mkdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { SwamError } from '../../lib/core/errors.ts'
import { run } from './run.ts'

export const CACHE_DIR = '/var/tmp/swam-lab-cache'

const PACKAGES = [
  'libvirt-daemon-system',
  'libvirt-daemon-driver-qemu',
  'libvirt-clients',
  'qemu-system-x86',
  'qemu-utils',
  'qemu-block-extra',
  'openssh-server',
  'openssh-client',
  'nftables',
  'iproute2',
  'procps',
  'nbdkit',
  'libnbd-bin',
]

/** Moves a finished directory to its place in the cache, unless another lab was first. */
export function settle(fresh: string, target: string): void {
  try {
    renameSync(fresh, target)
  } catch (error) {
    if (!existsSync(target)) throw error
  }
}

/** Where Debian comes from on this machine: the first Debian archive in apt's own sources. */
async function archive(): Promise<string> {
  const { stdout } = await run('apt-get', ['indextargets', '--format', '$(REPO_URI) $(ORIGIN) $(COMPONENT)'])
  const line = stdout.split('\n').find((text) => / Debian main$/.test(text) && !/security/.test(text))
  if (line === undefined)
    throw new SwamError('LAB_RELEASE', "no Debian archive in this machine's apt sources (apt-get update?)")
  return line.split(' ')[0]!
}

/** '/' for this machine's own release, else the directory of the release's root. */
export async function releaseRoot(release: string | undefined): Promise<string> {
  if (release === undefined || release === '') return '/'
  if (!/^[a-z]{3,20}$/.test(release))
    throw new SwamError('LAB_RELEASE', `release ${JSON.stringify(release)}: expected a code name`)
  const own = /^VERSION_CODENAME=(\w+)/m.exec(readFileSync('/etc/os-release', 'utf8'))?.[1]
  if (release === own) return '/'
  return await debianRoot({ name: release, release, packages: PACKAGES, servicesStart: false })
}

export interface DebianRootOptions {
  /** Of the directory in the cache. */
  readonly name: string
  readonly release: string
  readonly packages: readonly string[]
  /** Whether services of packages that are installed later start, as on a real host. */
  readonly servicesStart: boolean
}

/** The directory of a root that is made once and cached. */
export async function debianRoot(options: DebianRootOptions): Promise<string> {
  const { name, release } = options
  const root = `${CACHE_DIR}/${name}`
  if (existsSync(`${root}/.complete`)) return root
  mkdirSync(CACHE_DIR, { recursive: true })
  const fresh = `${CACHE_DIR}/${name}.${process.pid}`
  const script = [
    'mount -t proc proc "$1/proc"',
    'mount --bind /dev "$1/dev"',
    'cp -L /etc/resolv.conf "$1/etc/resolv.conf" || true',
    'shift',
    'exec chroot "$@"',
  ].join(' && ')
  const inside = async (...command: string[]): Promise<void> => {
    // A mount namespace of its own: the mounts end with the command, however it ends.
    const words = [
      '-m',
      'sh',
      '-c',
      script,
      'sh',
      fresh,
      fresh,
      'env',
      'DEBIAN_FRONTEND=noninteractive',
      'LC_ALL=C.UTF-8',
    ]
    await run('unshare', [...words, ...command], { timeoutMs: 1_800_000 })
  }
  try {
    await run(
      'debootstrap',
      ['--variant=minbase', '--include=ca-certificates', release, fresh, await archive()],
      {
        timeoutMs: 1_800_000,
      },
    )
    writeFileSync(`${fresh}/usr/sbin/policy-rc.d`, '#!/bin/sh\nexit 101\n', { mode: 0o755 })
    await inside('apt-get', 'update', '-q')
    await inside('apt-get', 'install', '-y', '-q', '--no-install-recommends', ...options.packages)
    await inside('apt-get', 'clean')
    if (options.servicesStart) {
      rmSync(`${fresh}/usr/sbin/policy-rc.d`)
      // The machine's own, which debootstrap took along: each that boots from it gets others.
      rmSync(`${fresh}/etc/hostname`, { force: true })
      writeFileSync(`${fresh}/etc/machine-id`, '')
    }
    writeFileSync(`${fresh}/.complete`, `${new Date().toISOString()}\n`)
    settle(fresh, root)
    return root
  } finally {
    rmSync(fresh, { recursive: true, force: true })
  }
}
