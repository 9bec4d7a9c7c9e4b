/**
 * A whole Debian machine with systemd as process 1, for unit and package tests: systemd-nspawn on a cached root, under a
 * volatile overlay, with a network of its own that leads nowhere. What a test changes in it is memory and gone with it.
 * It ends when it is closed, and when the test's process dies, however that happens. It is no lab host: no WAN, no peer.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { SwamError } from '../../lib/core/errors.ts'
import { debianRoot } from './release.ts'
import { type RunOptions, type RunResult, run, until } from './run.ts'

export const MACHINE_RELEASES = ['bookworm', 'trixie'] as const
export type MachineRelease = (typeof MACHINE_RELEASES)[number]

/** A libvirt host as an administrator has it before SWAM, and what swam.deb depends on: no network is needed later. */
const PACKAGES: readonly string[] = [
  'systemd',
  'systemd-sysv',
  'dbus',
  'polkitd',
  'libvirt-daemon-system',
  'libvirt-daemon-driver-qemu',
  'libvirt-clients',
  'qemu-system-x86',
  'qemu-utils',
  'openssh-server',
  'openssh-client',
  'nftables',
  'iproute2',
  'procps',
  'adduser',
  'ucf',
  'apparmor',
]

const ENVIRONMENT = ['PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/root', 'LC_ALL=C.UTF-8', 'USER=root']
const BOOT_MS = 120_000

export class Machine implements AsyncDisposable {
  /** On this machine; inside it is /mnt. */
  readonly shared: string
  readonly #child: ChildProcess
  #leader = 0
  #console = ''

  private constructor(root: string, name: string) {
    this.shared = mkdtempSync('/var/tmp/swam-machine-')
    const boot = ['-b', '--register=no', '--keep-unit', '--private-network', '--volatile=overlay']
    const where = [
      `--directory=${root}`,
      `--bind=${this.shared}:/mnt`,
      `--machine=${name}`,
      `--uuid=${randomUUID()}`,
    ]
    // A killed nspawn leaves its machine running; process 1 of a pid namespace takes everything in it along.
    const cage = ['--pdeathsig', 'KILL', 'unshare', '--pid', '--fork', '--kill-child=KILL', '--mount-proc']
    this.#child = spawn(
      'setpriv',
      [...cage, 'systemd-nspawn', '--quiet', '--console=pipe', ...boot, ...where],
      {
        stdio: ['ignore', 'pipe', 'pipe'],
        detached: true,
      },
    )
    const keep = (piece: Buffer): void => {
      this.#console = (this.#console + piece.toString('utf8')).slice(-4000)
    }
    this.#child.stdout?.on('data', keep)
    this.#child.stderr?.on('data', keep)
    this.#child.on('error', (error) => keep(Buffer.from(error.message)))
  }

  /** Makes the root when there is none yet (minutes), boots it and waits until systemd is done. `name`: its host name. */
  static async boot(release: MachineRelease, name: string = release): Promise<Machine> {
    const cached = { name: `machine-${release}`, release, packages: PACKAGES, servicesStart: true }
    const machine = new Machine(await debianRoot(cached), name)
    try {
      await machine.#waitBooted()
      // As in the lab: control groups are not the machine's to make, and each libvirt needs an identity of its own.
      // Nor are they systemd's to clear: a user's manager that ends with the last session takes two minutes for it, and
      // the next login waits.
      await machine.shell(`systemctl --quiet mask --runtime user@.service
echo 'cgroup_controllers = []' >>/etc/libvirt/qemu.conf
echo 'host_uuid = "${randomUUID()}"' >>/etc/libvirt/libvirtd.conf
systemctl restart libvirtd; virsh -q list`)
      return machine
    } catch (error) {
      await machine.close()
      throw error
    }
  }

  async #waitBooted(): Promise<void> {
    const failed = (): SwamError => new SwamError('LAB_MACHINE', `did not boot: ${this.#console}`)
    const top = this.#child.pid
    if (top === undefined) throw failed()
    await until(
      'systemd inside',
      BOOT_MS,
      async () => {
        if (this.#child.exitCode !== null || this.#child.signalCode !== null) throw failed()
        // unshare, nspawn, process 1 of the machine.
        const own = children(children(top)[0])[0]
        if (own === undefined) return undefined
        this.#leader = own
        const { stdout } = await this.exec(['systemctl', 'is-system-running'], { check: false })
        return /^(running|degraded)/.test(stdout) ? true : undefined
      },
      200,
    ).catch((cause: unknown) => {
      throw new SwamError('LAB_MACHINE', `did not boot: ${this.#console}`, { cause })
    })
  }

  /** Process 1 of the machine, as seen from here. */
  get leader(): number {
    return this.#leader
  }

  async exec(words: readonly string[], options: RunOptions = {}): Promise<RunResult> {
    const enter = ['-t', String(this.#leader), '-a', '--', 'env', '-i', ...ENVIRONMENT]
    return await run('nsenter', [...enter, ...words], options)
  }

  /** Its standard output; a failing command throws. */
  async shell(script: string, options: RunOptions = {}): Promise<string> {
    return (await this.exec(['/bin/sh', '-ec', script], options)).stdout.trim()
  }

  async close(): Promise<void> {
    const child = this.#child
    if (child.exitCode === null && child.signalCode === null && child.pid !== undefined) {
      const ended = new Promise<void>((resolve) => child.once('exit', () => resolve()))
      child.kill('SIGKILL')
      await ended
    }
    const leader = `/proc/${this.#leader}`
    if (this.#leader > 0)
      await until('the machine to be gone', 10_000, () => !existsSync(leader) || undefined)
    rmSync(this.shared, { recursive: true, force: true })
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

function children(pid: number | undefined): number[] {
  if (pid === undefined) return []
  try {
    const text = readFileSync(`/proc/${pid}/task/${pid}/children`, 'utf8')
    return text.split(' ').filter(Boolean).map(Number)
  } catch {
    return []
  }
}
