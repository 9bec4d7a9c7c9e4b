/**
 * The Debian guest: systemd, nginx, redis, a 4 GiB disk that is a clone of a base image that lived on. It boots by its
 * own kernel, says on its console once a second what its web server answered, and sends heartbeats as the tiny guest
 * does. Its disk is always a fresh copy of one snapshot, guest.raw of the image cache; building that is build.ts.
 */
import { copyFileSync, existsSync, readFileSync, rmSync, truncateSync } from 'node:fs'
import { DOMAIN, MENDED } from '../emulator.ts'
import type { Lab } from '../lab.ts'
import { run, until } from '../run.ts'
import type { HostName } from '../state.ts'
import type { DebianImages } from './build.ts'

const INSIDE = '/var/lib/libvirt'
const CMDLINE = 'root=/dev/vda rw console=ttyS0 quiet fsck.mode=skip mitigations=off'

export class DebianGuest {
  readonly name = 'debian'
  readonly uuid = '6b0c3a0e-6f57-4f0b-9f2c-3d1c9b1d7a55'
  readonly imageName = 'debian.raw'
  readonly #lab: Lab
  readonly #images: DebianImages

  constructor(lab: Lab, images: DebianImages) {
    this.#lab = lab
    this.#images = images
  }

  /** The disk's path on the machine, as that host has it. */
  imagePath(host: HostName): string {
    return `${this.#lab.host(host).imagesDir}/${this.imageName}`
  }

  xml(): string {
    const serial = (file: string, port: number): string =>
      `<serial type='file'><source path='${INSIDE}/lab/${this.name}.${file}' append='on'/><target port='${port}'/></serial>`
    return `${DOMAIN}
<name>${this.name}</name><uuid>${this.uuid}</uuid><memory unit='MiB'>768</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='pc'>hvm</type><kernel>${INSIDE}/lab/debian.vmlinuz</kernel>
<initrd>${INSIDE}/lab/debian.initrd</initrd><cmdline>${CMDLINE}</cmdline></os>
<features><acpi/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
<disk type='file' device='disk'><driver name='qemu' type='raw'/>
<source file='${INSIDE}/images/${this.imageName}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
${serial('console', 0)}
${serial('beat', 1)}
</devices>${MENDED}</domain>
`
  }

  /** Starts it from the snapshot on `host`; no other host keeps an image of it. Resolves when its web server answers. */
  async start(host: HostName, timeoutMs = 180_000): Promise<{ bootMs: number }> {
    for (const each of this.#lab.hosts()) {
      rmSync(this.imagePath(each.name), { force: true })
      copyFileSync(this.#images.kernel, `${each.labDir}/debian.vmlinuz`)
      copyFileSync(this.#images.initrd, `${each.labDir}/debian.initrd`)
      if (existsSync(this.#console(each.name))) truncateSync(this.#console(each.name))
    }
    await run('cp', ['--sparse=always', this.#images.guest, this.imagePath(host)], { timeoutMs: 300_000 })
    const startedAt = this.#lab.now()
    await this.#lab.host(host).startGuest(this.xml())
    await this.waitServing(host, 1, timeoutMs)
    return { bootMs: this.#lab.now() - startedAt }
  }

  /** Waits until the web server has answered `times` more times while the guest runs on that host. */
  async waitServing(host: HostName, times: number, timeoutMs = 60_000): Promise<void> {
    const before = this.#answers(host)
    await until(
      `the Debian guest's web server to answer on ${host}: ${this.console(host).slice(-300)}`,
      timeoutMs,
      () => (this.#answers(host) >= before + times ? true : undefined),
    )
  }

  /** What it wrote to its console on that host. */
  console(host: HostName): string {
    const file = this.#console(host)
    return existsSync(file) ? readFileSync(file, 'latin1') : ''
  }

  #answers(host: HostName): number {
    return this.console(host).match(/^swam-guest web \d+ HTTP\/1\.\d 200/gm)?.length ?? 0
  }

  #console(host: HostName): string {
    return `${this.#lab.host(host).labDir}/${this.name}.console`
  }
}
