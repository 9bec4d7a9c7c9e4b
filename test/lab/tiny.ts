/**
 * The tiny guest: up in two seconds under software emulation, writes numbered records for ever and says which of them
 * are durable, and sends a heartbeat every 5 ms. Its user space is guest/init.c; what its disk must hold is checked by
 * records.ts, how long it stood still by beats.ts. Its disk starts with random content, the same for the same seed.
 * A guest that panics says so (`waitProgress` throws).
 */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, readFileSync, truncateSync } from 'node:fs'
import { connect } from 'node:net'
import { SwamError } from '../../lib/core/errors.ts'
import { type Beat, type Gap, longestGap, readBeats } from './beats.ts'
import { type DiskOptions, type FurtherDisk, GuestDisk } from './disks.ts'
import { DOMAIN, MENDED } from './emulator.ts'
import type { LabHost } from './host.ts'
import { guestKernel } from './kernel.ts'
import { type RecordCheck, WRITE_DEFAULT, type WritePlan } from './records.ts'
import { until } from './run.ts'
import type { HostName } from './state.ts'

/** With the options of its first disk, vda. */
export interface TinyOptions extends DiskOptions {
  /** Also the name of its files (default "tiny"). */
  readonly name?: string
  readonly uuid?: string
  /** Disks beside vda: vdb, vdc and so on. */
  readonly more?: readonly FurtherDisk[]
  readonly ramMiB?: number
  /** QEMU's cache mode of the disk, when it shall not be the default. */
  readonly cache?: string
  readonly write?: Partial<WritePlan>
  /** Memory that changes all the time, and is held to what was written there last. */
  readonly dirty?: { readonly mib: number; readonly mibPerSecond: number }
  /** Memory on which the virtual CPU works all the time, a few pages at a time; each store is held to what was stored there last. */
  readonly hammerMiB?: number
  /** Milliseconds between heartbeats (default 5): under software emulation 200 a second cost a sixth of a core. */
  readonly beatMs?: number
  /** Machine type: "pc" is each release's newest. */
  readonly machine?: string
  /** A serial line on which the guest takes orders: `order`. */
  readonly control?: boolean
}

/** What the guest needs of its lab. */
export interface TinyPlace {
  readonly samplesDir: string
  hosts(): readonly LabHost[]
  host(name: HostName): LabHost
}

const INSIDE = '/var/lib/libvirt'

export class TinyGuest {
  readonly name: string
  readonly uuid: string
  readonly plan: WritePlan
  /** vda first. */
  readonly disks: readonly GuestDisk[]
  readonly #options: TinyOptions
  readonly #place: TinyPlace

  constructor(place: TinyPlace, options: TinyOptions) {
    this.#place = place
    this.#options = options
    this.name = options.name ?? 'tiny'
    if (!/^[a-z0-9][a-z0-9-]{0,40}$/.test(this.name)) {
      throw new SwamError('LAB_GUEST', `guest name ${JSON.stringify(this.name)}: expected a-z, 0-9 and -`)
    }
    const hash = createHash('sha256').update(this.name).digest('hex')
    this.uuid = options.uuid ?? hash.replace(/^(.{8})(.{4}).(.{3}).(.{3})(.{12}).*$/, '$1-$2-4$3-8$4-$5')
    this.plan = { ...WRITE_DEFAULT, ...options.write }
    this.disks = [options, ...(options.more ?? [])].map((disk, at) => {
      const target = `vd${String.fromCharCode(97 + at)}`
      return new GuestDisk(target, at === 0 ? this.name : `${this.name}-${target}`, disk)
    })
  }

  disk(target = 'vda'): GuestDisk {
    const found = this.disks.find((disk) => disk.target === target)
    if (!found) throw new SwamError('LAB_GUEST', `guest ${this.name} has no disk ${target}`)
    return found
  }

  get format(): 'raw' | 'qcow2' {
    return this.disk().format
  }

  get imageName(): string {
    return this.disk().imageName
  }

  /** The disk's path on the machine, as that host has it. */
  imagePath(host: HostName, target = 'vda'): string {
    return this.disk(target).path(this.#place.host(host))
  }

  get diskBytes(): number {
    return this.disk().bytes
  }

  #fileSystems(): string[] {
    return this.disks.map(({ options }) => options.content ?? 'records')
  }

  get #initrd(): string {
    return this.#fileSystems().includes('xfs') ? 'initrd-xfs' : 'initrd'
  }

  /** As it is on that host: they differ only where a disk is a block device on one of them. */
  xml(host: HostName = 'hosta'): string {
    const write = [this.plan.bytes, this.plan.intervalMs, this.plan.pattern, this.plan.batch]
    const words = [
      'console=ttyS0 quiet panic=0 no_timer_check',
      `swam.write=${write},${this.plan.areaOffset},${this.plan.areaBytes}`,
    ]
    const dirty = this.#options.dirty
    if (dirty) words.push(`swam.dirty=${dirty.mib},${dirty.mibPerSecond}`)
    if (this.#options.beatMs !== undefined) words.push(`swam.beat=${this.#options.beatMs}`)
    if (this.#options.hammerMiB !== undefined) words.push(`swam.hammer=${this.#options.hammerMiB}`)
    const ordered = this.#options.control === true
    if (ordered) words.push('swam.control')
    for (const { target, options } of this.disks.slice(1)) {
      const content = options.content ?? 'records'
      if (content === 'records') words.push(`swam.disk=${target}`)
      else if (content !== 'none') words.push(`swam.fs=${target},${content}`)
    }
    const cache = this.#options.cache === undefined ? '' : ` cache='${this.#options.cache}'`
    const serial = (file: string, port: number): string =>
      `<serial type='file'><source path='${INSIDE}/lab/${this.name}.${file}' append='on'/><target port='${port}'/></serial>`
    return `${DOMAIN}
<name>${this.name}</name><uuid>${this.uuid}</uuid>
<memory unit='MiB'>${this.#options.ramMiB ?? 128}</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='${this.#options.machine ?? 'pc'}'>hvm</type>
<kernel>${INSIDE}/lab/vmlinuz</kernel><initrd>${INSIDE}/lab/${this.#initrd}</initrd><cmdline>${words.join(' ')}</cmdline></os>
<features><acpi/><apic/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
${this.disks.map((disk) => disk.xml(host, cache)).join('')}<controller type='usb' model='none'/><memballoon model='none'/>
${serial('console', 0)}
${serial('beat', 1)}
${ordered ? `<serial type='unix'><source mode='bind' path='${INSIDE}/lab/${this.name}.orders'/><target port='2'/></serial>` : ''}
</devices>${MENDED}</domain>
`
  }

  /** Makes the disks on that host, as they are before the first boot. */
  async makeDisk(host: HostName): Promise<void> {
    for (const disk of this.disks) await disk.make(this.#place.host(host))
  }

  /** Starts it on that host; the disks are made unless `keepDisk` says to boot from what is there. */
  async create(host: HostName, options: { keepDisk?: boolean; define?: boolean } = {}): Promise<void> {
    const files = await guestKernel(this.#initrd === 'initrd' ? [] : ['xfs'])
    for (const each of this.#place.hosts()) {
      if (!existsSync(`${each.labDir}/vmlinuz`)) copyFileSync(files.kernel, `${each.labDir}/vmlinuz`)
      const initrd = `${each.labDir}/${this.#initrd}`
      if (!existsSync(initrd)) copyFileSync(files.initrd, initrd)
      // An earlier life's promises are not this one's.
      if (existsSync(this.#console(each))) truncateSync(this.#console(each))
    }
    if (options.keepDisk !== true) await this.makeDisk(host)
    await this.#place.host(host).startGuest(this.xml(host), { define: options.define === true })
  }

  #console(host: LabHost): string {
    return `${host.labDir}/${this.name}.console`
  }

  /** What it wrote to its console on that host. */
  console(host: HostName): string {
    try {
      return readFileSync(this.#console(this.#place.host(host)), 'latin1')
    } catch {
      return ''
    }
  }

  async waitBoot(timeoutMs = 60_000): Promise<void> {
    await until(`guest ${this.name} to boot`, timeoutMs, () => {
      const text = this.#consoles()
      this.#checkHealth(text)
      return /^R \d+\r?$/m.test(text) ? true : undefined
    })
  }

  /** Has the guest carry out an order (guest/init.c), and waits until it says so. */
  async order(host: HostName, line: string): Promise<void> {
    const said = (what: string): number =>
      this.#consoles()
        .split('\n')
        .filter((text) => text.trimEnd() === `C ${what}`).length
    await until(`guest ${this.name} to take orders`, 20_000, () => (said('ready') > 0 ? true : undefined))
    const before = said(line)
    const socket = connect(`${this.#place.host(host).labDir}/${this.name}.orders`)
    try {
      await once(socket, 'connect')
      socket.write(`${line}\n`)
      await until(`guest ${this.name} to obey ${JSON.stringify(line)}`, 20_000, () =>
        said(line) > before ? true : undefined,
      )
    } finally {
      socket.destroy()
    }
  }

  #consoles(): string {
    return this.#place
      .hosts()
      .map((host) => this.console(host.name))
      .join('\n')
  }

  /** A guest that panicked, rebooted or failed must not look like one that is slow. */
  #checkHealth(text: string): void {
    const failed = /^F .*$/m.exec(text) ?? /Kernel panic[^\r\n]*|BUG:[^\r\n]*|Oops:[^\r\n]*/.exec(text)
    if (failed)
      throw new SwamError('LAB_GUEST', `guest ${this.name}: ${failed[0]}\n${text.slice(failed.index - 200)}`)
    const boots = text.match(/^R \d+\r?$/gm)?.length ?? 0
    if (boots > 1) throw new SwamError('LAB_GUEST', `guest ${this.name} booted ${boots} times`)
  }

  /** The largest record number that the guest was told is durable on that disk; 0: none yet. */
  durable(target = 'vda'): number {
    const line = new RegExp(`^D${target === 'vda' ? '' : target.slice(2)} (\\d+)\\r?$`, 'gm')
    let largest = 0
    for (const host of this.#place.hosts()) {
      for (const match of this.console(host.name).matchAll(line))
        largest = Math.max(largest, Number(match[1]))
    }
    return largest
  }

  /** Waits until `more` further records are durable: the guest runs and its disk works. */
  async waitProgress(more = 3, timeoutMs = 30_000): Promise<number> {
    const from = this.durable()
    return await until(`guest ${this.name} to write ${more} records after ${from}`, timeoutMs, () => {
      this.#checkHealth(this.#consoles())
      const now = this.durable()
      return now >= from + more ? now : undefined
    })
  }

  /** Holds an image to what the guest was told. It must not be written meanwhile: suspend or destroy the guest first. */
  async check(image: string, durable?: number, target = 'vda'): Promise<RecordCheck> {
    return await this.disk(target).check(image, this.plan, durable ?? this.durable(target))
  }

  get samplesFile(): string {
    return `${this.#place.samplesDir}/${this.name}.samples`
  }

  async heartbeats(): Promise<Beat[]> {
    return await readBeats(this.samplesFile)
  }

  async longestGap(fromMs: number, toMs: number): Promise<Gap> {
    return longestGap(await this.heartbeats(), fromMs, toMs)
  }

  /** The longest silence that touches the window; times are of the lab's clock (`lab.now()`). */
  async downtimeMs(fromMs: number, toMs: number): Promise<number> {
    return (await this.longestGap(fromMs, toMs)).ms
  }
}
