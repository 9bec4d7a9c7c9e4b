/**
 * The tiny guest: up in two seconds under software emulation, writes numbered records for ever and says which of them
 * are durable, and sends a heartbeat every 5 ms. Its user space is guest/init.c; what its disk must hold is checked by
 * records.ts, how long it stood still by beats.ts. Its disk starts with random content, the same for the same seed.
 * Its virtual CPU has a real-time priority because of QEMU's software emulation: a virtual CPU that loses the processor
 * while it marks a page dirty can lose that page in the migration. Seen in some 90 plain migrations,
 * part of them on a busy machine: two guests corrupted at the target; in 58 with the priority none. It lowers the odds
 * and mends nothing. A guest that panics says so (`waitProgress` throws).
 */
import { createCipheriv, createHash } from 'node:crypto'
import { once } from 'node:events'
import { copyFileSync, existsSync, readFileSync, rmSync, truncateSync } from 'node:fs'
import { open } from 'node:fs/promises'
import { connect } from 'node:net'
import { SwamError } from '../../lib/core/errors.ts'
import { type Beat, type Gap, longestGap, readBeats } from './beats.ts'
import type { LabHost } from './host.ts'
import { guestKernel } from './kernel.ts'
import { checkRecords, type RecordCheck, WRITE_DEFAULT, type WritePlan } from './records.ts'
import { run, until } from './run.ts'
import type { HostName } from './state.ts'

export interface TinyOptions {
  /** Also the name of its files (default "tiny"). */
  readonly name?: string
  readonly uuid?: string
  readonly diskMiB?: number
  /** How much of the disk, from its start, holds random content; the rest is a hole. */
  readonly randomMiB?: number
  readonly ramMiB?: number
  /** The same seed gives the same random content. */
  readonly seed?: string
  readonly format?: 'raw' | 'qcow2'
  /** QEMU's cache mode of the disk, when it shall not be the default. */
  readonly cache?: string
  readonly write?: Partial<WritePlan>
  /** Memory that changes all the time. */
  readonly dirty?: { readonly mib: number; readonly mibPerSecond: number }
  /** Machine type: "pc" is each release's newest. */
  readonly machine?: string
  /** A serial line on which the guest takes orders: `order`. */
  readonly control?: boolean
  /** Unix socket inside the hosts of an NBD server that has the disk, instead of QEMU opening the file. */
  readonly nbdSocket?: string
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
  }

  get format(): 'raw' | 'qcow2' {
    return this.#options.format ?? 'raw'
  }

  get imageName(): string {
    return `${this.name}.${this.format}`
  }

  /** The disk's path on the machine, as that host has it. */
  imagePath(host: HostName): string {
    return `${this.#place.host(host).imagesDir}/${this.imageName}`
  }

  get diskBytes(): number {
    return (this.#options.diskMiB ?? 256) << 20
  }

  xml(): string {
    const write = [this.plan.bytes, this.plan.intervalMs, this.plan.pattern, this.plan.batch]
    const words = [
      'console=ttyS0 quiet panic=0 no_timer_check',
      `swam.write=${write},${this.plan.areaOffset},${this.plan.areaBytes}`,
    ]
    const dirty = this.#options.dirty
    if (dirty) words.push(`swam.dirty=${dirty.mib},${dirty.mibPerSecond}`)
    const ordered = this.#options.control === true
    if (ordered) words.push('swam.control')
    const image = `${INSIDE}/images/${this.imageName}`
    const { nbdSocket } = this.#options
    // With a path of a file as its export name libvirt takes the disk at the target for one that exists.
    const disk =
      nbdSocket === undefined ? `<disk type='file' device='disk'>` : `<disk type='network' device='disk'>`
    const source =
      nbdSocket === undefined
        ? `<source file='${image}'/>`
        : `<source protocol='nbd' name='${image}'><host transport='unix' socket='${nbdSocket}'/></source>`
    const cache = this.#options.cache === undefined ? '' : ` cache='${this.#options.cache}'`
    const serial = (file: string, port: number): string =>
      `<serial type='file'><source path='${INSIDE}/lab/${this.name}.${file}' append='on'/><target port='${port}'/></serial>`
    return `<domain type='qemu'>
<name>${this.name}</name><uuid>${this.uuid}</uuid>
<memory unit='MiB'>${this.#options.ramMiB ?? 128}</memory><vcpu>1</vcpu>
<cputune><vcpusched vcpus='0' scheduler='fifo' priority='1'/></cputune>
<os><type arch='x86_64' machine='${this.#options.machine ?? 'pc'}'>hvm</type>
<kernel>${INSIDE}/lab/vmlinuz</kernel><initrd>${INSIDE}/lab/initrd</initrd><cmdline>${words.join(' ')}</cmdline></os>
<features><acpi/><apic/></features>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator>
${disk}<driver name='qemu' type='${this.format}'${cache}/>
${source}<target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/>
${serial('console', 0)}
${serial('beat', 1)}
${ordered ? `<serial type='unix'><source mode='bind' path='${INSIDE}/lab/${this.name}.orders'/><target port='2'/></serial>` : ''}
</devices></domain>
`
  }

  /** Makes the disk on that host, as it is before the first boot. */
  async makeDisk(host: HostName): Promise<void> {
    const path = this.imagePath(host)
    const raw = this.format === 'raw' ? path : `${path}.raw`
    rmSync(path, { force: true })
    const file = await open(raw, 'w', 0o644)
    try {
      const key = createHash('sha256')
        .update(this.#options.seed ?? this.name)
        .digest()
      const stream = createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
      const zeros = Buffer.alloc(1 << 20)
      for (let mib = 0; mib < (this.#options.randomMiB ?? 128); mib += 1)
        await file.write(stream.update(zeros))
      await file.truncate(this.diskBytes)
    } finally {
      await file.close()
    }
    if (raw === path) return
    await run('qemu-img', ['convert', '-f', 'raw', '-O', this.format, raw, path])
    rmSync(raw)
  }

  /** Starts it on that host; the disk is made unless `keepDisk` says to boot from what is there. */
  async create(host: HostName, options: { keepDisk?: boolean } = {}): Promise<void> {
    const files = await guestKernel()
    for (const each of this.#place.hosts()) {
      if (!existsSync(`${each.labDir}/vmlinuz`)) copyFileSync(files.kernel, `${each.labDir}/vmlinuz`)
      if (!existsSync(`${each.labDir}/initrd`)) copyFileSync(files.initrd, `${each.labDir}/initrd`)
      // An earlier life's promises are not this one's.
      if (existsSync(this.#console(each))) truncateSync(this.#console(each))
    }
    if (options.keepDisk !== true) await this.makeDisk(host)
    await this.#place.host(host).startGuest(this.xml())
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
    const said = (): number =>
      this.#consoles()
        .split('\n')
        .filter((text) => text.trimEnd() === `C ${line}`).length
    const before = said()
    const socket = connect(`${this.#place.host(host).labDir}/${this.name}.orders`)
    try {
      await once(socket, 'connect')
      socket.write(`${line}\n`)
      await until(`guest ${this.name} to obey ${JSON.stringify(line)}`, 20_000, () =>
        said() > before ? true : undefined,
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

  /** The largest record number that the guest was told is durable; 0: none yet. */
  durable(): number {
    let largest = 0
    for (const host of this.#place.hosts()) {
      for (const match of this.console(host.name).matchAll(/^D (\d+)\r?$/gm))
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
  async check(image: string, durable: number = this.durable()): Promise<RecordCheck> {
    if (this.format === 'raw') return await checkRecords(image, this.plan, durable)
    const copy = `${image}.check`
    try {
      await run('qemu-img', ['convert', '-U', '-f', this.format, '-O', 'raw', image, copy])
      return await checkRecords(copy, this.plan, durable)
    } finally {
      rmSync(copy, { force: true })
    }
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
