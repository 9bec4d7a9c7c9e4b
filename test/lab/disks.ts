/**
 * The disks of a tiny guest: how each is made on a host, where it lies there, and what a file system on it must hold.
 * A disk is an image file, or on hosts that say so a block device (a loop device over a file: this kernel has no
 * device-mapper). File systems are made on the machine, used by the guest's kernel, and looked at through a copy.
 */
import { createCipheriv, createHash } from 'node:crypto'
import { rmSync } from 'node:fs'
import { open } from 'node:fs/promises'
import type { LabHost } from './host.ts'
import { checkRecords, type RecordCheck, type WritePlan } from './records.ts'
import { run } from './run.ts'
import type { HostName } from './state.ts'

export interface DiskOptions {
  readonly diskMiB?: number
  /** How much of the disk, from its start, holds random content; the rest is a hole. */
  readonly randomMiB?: number
  /** The same seed gives the same random content. */
  readonly seed?: string
  readonly format?: 'raw' | 'qcow2'
  /** The random content lies in a backing file of the same format, NAME-vda.base.qcow2; the disk is an overlay on it. */
  readonly backed?: boolean
  /** Where it is a block device, /dev/lab-GUEST-TARGET, made with `makeVolume`. */
  readonly volumes?: readonly HostName[]
  /** Unix socket inside the hosts of an NBD server that has the disk, instead of QEMU opening the file. */
  readonly nbdSocket?: string
}

/** A disk beside vda. */
export interface FurtherDisk extends DiskOptions {
  /** Records on it as on vda (default), a file system with files, or nothing that writes to it. */
  readonly content?: 'records' | 'ext4' | 'xfs' | 'none'
}

/** guest/init.c writes files as if they were the slots of this plan. */
export const FILE_PLAN: WritePlan = {
  bytes: 65536,
  intervalMs: 200,
  pattern: 'sequential',
  batch: 1,
  areaOffset: 0,
  areaBytes: 64 * 65536,
}

export class GuestDisk {
  readonly target: string
  readonly name: string
  readonly options: FurtherDisk
  readonly #volumes = new Map<HostName, string>()

  /** @param name of its file, without what stands behind the dot */
  constructor(target: string, name: string, options: FurtherDisk) {
    this.target = target
    this.name = name
    this.options = options
  }

  get format(): 'raw' | 'qcow2' {
    return this.options.format ?? 'raw'
  }

  get imageName(): string {
    return `${this.name}.${this.format}`
  }

  get baseName(): string {
    return `${this.name}.base.${this.format}`
  }

  get bytes(): number {
    return (this.options.diskMiB ?? 256) * 2 ** 20
  }

  /** On the machine, as that host has it. */
  path(host: LabHost): string {
    return this.#volumes.get(host.name) ?? `${host.imagesDir}/${this.imageName}`
  }

  /** As libvirt on that host names it. */
  xml(host: HostName, cache: string): string {
    const image = `/var/lib/libvirt/images/${this.imageName}`
    const { nbdSocket } = this.options
    let [type, source] = ['file', `<source file='${image}'/>`]
    if (this.options.volumes?.includes(host) === true)
      [type, source] = ['block', `<source dev='/dev/lab-${this.name}'/>`]
    // With a path of a file as its export name libvirt takes the disk at the target for one that exists.
    else if (nbdSocket !== undefined)
      [type, source] = [
        'network',
        `<source protocol='nbd' name='${image}'><host transport='unix' socket='${nbdSocket}'/></source>`,
      ]
    return `<disk type='${type}' device='disk'><driver name='qemu' type='${this.format}'${cache}/>
${source}<target dev='${this.target}' bus='virtio'/></disk>
`
  }

  /** Makes it on that host, as it is before the first boot. */
  async make(host: LabHost): Promise<void> {
    const path = this.path(host)
    const { content, backed } = this.options
    const plain = this.format === 'raw'
    const raw = plain ? path : `${path}.raw`
    if (!path.startsWith('/dev/')) rmSync(path, { force: true })
    await this.#writeRandom(raw)
    if (content === 'ext4') await run('mkfs.ext4', ['-q', '-F', raw])
    if (content === 'xfs') await run('mkfs.xfs', ['-q', '-f', raw])
    if (plain) return
    const image = backed === true ? `${host.imagesDir}/${this.baseName}` : path
    await run('qemu-img', ['convert', '-f', 'raw', '-O', this.format, raw, image])
    rmSync(raw)
    if (backed === true) await this.makeOverlay(host)
  }

  /** An empty overlay on the base, which is there or will be. */
  async makeOverlay(host: LabHost): Promise<void> {
    const backing = ['-b', this.baseName, '-F', this.format, '-u']
    const path = this.path(host)
    await run('qemu-img', ['create', '-q', '-f', this.format, ...backing, path, String(this.bytes)])
  }

  async #writeRandom(path: string): Promise<void> {
    const file = await open(path, path.startsWith('/dev/') ? 'r+' : 'w', 0o644)
    try {
      const key = createHash('sha256')
        .update(this.options.seed ?? this.name)
        .digest()
      const stream = createCipheriv('aes-256-ctr', key, Buffer.alloc(16))
      const zeros = Buffer.alloc(1 << 20)
      for (let mib = 0; mib < (this.options.randomMiB ?? 128); mib += 1)
        await file.write(stream.update(zeros))
      if (!path.startsWith('/dev/')) await file.truncate(this.bytes)
    } finally {
      await file.close()
    }
  }

  /** The block device on that host, of the disk's size and empty, until it is disposed of. */
  async makeVolume(host: LabHost): Promise<AsyncDisposable> {
    const file = `${host.labDir}/${this.name}.volume`
    await run('truncate', ['-s', String(this.bytes), file])
    const device = (await run('losetup', ['--find', '--show', file])).stdout.trim()
    this.#volumes.set(host.name, device)
    // The host's /dev is its own: the owner that libvirt gives to the node there is not this machine's.
    const node = `/dev/lab-${this.name}`
    await host.shell(`rm -f ${node}; mknod -m 660 ${node} b 7 ${device.replace('/dev/loop', '')}`)
    return {
      [Symbol.asyncDispose]: async () => {
        this.#volumes.delete(host.name)
        await run('losetup', ['--detach', device])
        rmSync(file, { force: true })
      },
    }
  }

  /** Holds the disk to what the guest was told about it. Nobody must write it meanwhile. */
  async check(path: string, plan: WritePlan, durable: number): Promise<RecordCheck> {
    const { content } = this.options
    const copy = `${path.startsWith('/dev/') ? `/var/tmp/${this.name}-${process.pid}` : path}.check`
    const files = `${copy}.files`
    try {
      if (content !== 'ext4' && content !== 'xfs') {
        if (this.format === 'raw') return await checkRecords(path, plan, durable)
        await run('qemu-img', ['convert', '-U', '-f', this.format, '-O', 'raw', path, copy])
        return await checkRecords(copy, plan, durable)
      }
      await run('qemu-img', ['convert', '-U', '-f', this.format, '-O', 'raw', path, copy])
      // The mount replays the journal, as a boot after a crash would; then the file system must be whole.
      const script = `mount -o loop${content === 'xfs' ? ',nouuid' : ''} "$1" /mnt
for n in $(seq 0 63); do cat "/mnt/$n" 2>/dev/null || head -c 65536 /dev/zero; done >"$2"
umount /mnt`
      await run('unshare', ['-m', 'sh', '-ec', script, 'sh', copy, files])
      if (content === 'xfs') await run('xfs_repair', ['-n', copy])
      else await run('e2fsck', ['-f', '-n', copy])
      return await checkRecords(files, FILE_PLAN, durable)
    } finally {
      rmSync(copy, { force: true })
      rmSync(files, { force: true })
    }
  }
}
