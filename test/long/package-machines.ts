/**
 * What the tests of the package on machines share: the package in several versions, apt, what systemd says of swamd, and two
 * machines with a cable between them.
 */
import assert from 'node:assert/strict'
import { randomUUID } from 'node:crypto'
import { copyFileSync, writeFileSync } from 'node:fs'
import type { HistoryReport, MigrationReport, StatusReport } from '../../server/report.ts'
import { Machine, type MachineRelease } from '../lab/machine.ts'
import { run, until } from '../lab/run.ts'

/** The same tree under a higher version. */
export const NEWER = '99.1.2'

/** `undefined`: this tree's own version. */
export async function build(...versions: readonly (string | undefined)[]): Promise<void> {
  for (const one of versions) {
    await run('debian/build', one === undefined ? [] : [one], { timeoutMs: 600_000 })
  }
}

/** They lie below /mnt then. */
export function share(machine: Machine, ...versions: readonly string[]): void {
  for (const one of versions) {
    copyFileSync(`out/swam_${one}_amd64.deb`, `${machine.shared}/swam_${one}.deb`)
  }
}

/** `environment`: `NAME=value …`. Gives what it printed. */
export async function apt(machine: Machine, words: string, environment = ''): Promise<string> {
  const program = `env DEBIAN_FRONTEND=noninteractive ${environment} apt-get -q -y`
  const text = await machine.shell(`${program} ${words} 2>&1`, { timeoutMs: 400_000 })
  return text.replaceAll('\r\n', '\n')
}

export async function unit(machine: Machine, name = 'swamd'): Promise<Record<string, string>> {
  const text = await machine.shell(`systemctl show ${name}`)
  return Object.fromEntries(text.split('\n').map((line) => line.split(/=(.*)/s).slice(0, 2)))
}

export async function status(machine: Machine): Promise<StatusReport> {
  return JSON.parse(await machine.shell('swam status --json')) as StatusReport
}

export async function history(machine: Machine): Promise<readonly MigrationReport[]> {
  return (JSON.parse(await machine.shell('swam history --json')) as HistoryReport).migrations
}

/** The daemon answers, and systemd has heard its READY. Gives its pid. */
export async function isUp(machine: Machine, release: string): Promise<number> {
  const shown = await unit(machine)
  assert.deepEqual(
    [shown['ActiveState'], shown['SubState'], shown['Type'], shown['UnitFileState'], shown['Result']],
    ['active', 'running', 'notify', 'enabled', 'success'],
  )
  const { daemon, redirect } = await status(machine)
  assert.equal(daemon.release, release)
  assert.equal(String(daemon.pid), shown['MainPID'])
  assert.deepEqual([redirect.mode, redirect.ok], ['nft', true])
  return daemon.pid
}

export interface Host {
  readonly machine: Machine
  /** Its host name, and what the other one finds it by. */
  readonly name: string
  readonly address: string
}

/** A cable between them, names, and root's SSH both ways as `virsh migrate qemu+ssh://` needs it. */
async function connect(a: Host, b: Host): Promise<void> {
  const end = (host: Host): string[] => ['name', 'cable0', 'netns', String(host.machine.leader)]
  await run('ip', ['link', 'add', ...end(a), 'type', 'veth', 'peer', ...end(b)])
  for (const { machine, address } of [a, b]) {
    await machine.shell(`ip address add ${address}/24 dev cable0; ip link set cable0 up
printf '127.0.0.1 localhost\\n${a.address} ${a.name}\\n${b.address} ${b.name}\\n' >/etc/hosts
mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519`)
  }
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const key = await from.machine.shell('cat /root/.ssh/id_ed25519.pub')
    await to.machine.shell(`echo '${key}' >>/root/.ssh/authorized_keys`)
    const hostKey = await to.machine.shell("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub")
    await from.machine.shell(`echo '${to.name} ${hostKey}' >/root/.ssh/known_hosts`)
    await until('ssh', 20_000, async () =>
      (await from.machine.exec(['ssh', to.name, 'true'], { check: false })).code === 0 ? true : undefined,
    )
  }
}

/** Two machines with a cable between them that have the versions of the package below /mnt. */
export class Pair implements AsyncDisposable {
  readonly a: Host
  readonly b: Host

  private constructor(a: Host, b: Host) {
    this.a = a
    this.b = b
  }

  static async boot(
    [releaseA, nameA]: readonly [MachineRelease, string],
    [releaseB, nameB]: readonly [MachineRelease, string],
    versions: readonly string[] = [],
  ): Promise<Pair> {
    const first = await Machine.boot(releaseA, nameA)
    try {
      const second = await Machine.boot(releaseB, nameB)
      const pair = new Pair(
        { machine: first, name: nameA, address: '10.9.0.1' },
        { machine: second, name: nameB, address: '10.9.0.2' },
      )
      try {
        await connect(pair.a, pair.b)
        for (const { machine } of [pair.a, pair.b]) share(machine, ...versions)
        return pair
      } catch (error) {
        await second.close()
        throw error
      }
    } catch (error) {
      await first.close()
      throw error
    }
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.b.machine.close()
    await this.a.machine.close()
  }
}

export async function peersUp(...hosts: readonly Host[]): Promise<void> {
  await until('the peers to be up', 60_000, async () => {
    const all = await Promise.all(hosts.map(({ machine }) => status(machine)))
    return all.every(({ peers }) => peers.length === 1 && peers[0]?.up) ? true : undefined
  })
}

/** Both daemons write it some seconds after the end. */
export async function entry(host: Host, count: number): Promise<MigrationReport> {
  return await until(
    `entry ${count} in the history of ${host.name}`,
    60_000,
    async () => {
      const all = await history(host.machine)
      return all.length >= count ? all[count - 1] : undefined
    },
    300,
  )
}

export function imageOf(guest: string): string {
  return `/var/lib/libvirt/images/${guest}.raw`
}

/** A guest that boots from nothing, with a disk of random bytes, which is what is moved. Gives the disk's digest. */
export async function startGuest(machine: Machine, name: string, diskMib: number): Promise<string> {
  const image = imageOf(name)
  // As old as both releases' QEMU have it.
  const xml = `<domain type='qemu'><name>${name}</name><uuid>${randomUUID()}</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${image}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`
  writeFileSync(`${machine.shared}/${name}.xml`, xml)
  await machine.shell(`head -c ${diskMib}M /dev/urandom >${image}; virsh -q create /mnt/${name}.xml`)
  return await machine.shell(`sha256sum <${image}`)
}

export async function runs(host: Host): Promise<string> {
  return await host.machine.shell('virsh -q list --name --state-running')
}
