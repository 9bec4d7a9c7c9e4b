/**
 * The lab: two libvirt hosts on one machine, each in namespaces and on a root of its own, joined by an emulated WAN.
 *   await using lab = await Lab.up({ name: 'mine', rttMs: 10, mbit: 1000 })
 * Key idea: nothing has a name outside. Hosts are processes and their namespaces, so ending the recorded processes and
 * removing the state directory leaves nothing. If the process that holds a lab dies, wanlink notices (its standard
 * input ends) and ends the hosts; the directory is removed by the next `up` or `down` of that name.
 * It judges nothing: tests and benches do.
 */
import type { ChildProcess } from 'node:child_process'
import { closeSync, existsSync, openSync, truncateSync } from 'node:fs'
import { SwamError } from '../../lib/core/errors.ts'
import { LabHost } from './host.ts'
import { CommandError, monotonicMs, run } from './run.ts'
import { checkMachine, type LabOptions, Starter } from './start.ts'
import {
  cleanLab,
  HOST_NAMES,
  type HostName,
  isAlive,
  type LabRecord,
  labDir,
  readRecord,
  sweepDead,
} from './state.ts'
import { TinyGuest, type TinyOptions } from './tiny.ts'
import { Wan } from './wan.ts'

export type { LabOptions } from './start.ts'

export interface MigrateOptions {
  /** How virsh reaches the far libvirtd (default tcp: quicker). */
  readonly transport?: 'tcp' | 'ssh'
  /** Added to `migrate --live --copy-storage-all`. */
  readonly args?: readonly string[]
  /** Another `--copy-storage-…`, or none. */
  readonly storage?: 'all' | 'inc' | 'none'
  /** Make missing images at the target, empty and of the right size, as a plain migration needs (default: no swam). */
  readonly createTarget?: boolean
  /** The far host's name as virsh gets it, when it shall not be hosta or hostb. */
  readonly address?: string
  readonly timeoutMs?: number
  /** QEMU's own limit, set once the migration has begun (default 300): less means more rounds over the memory. */
  readonly maxDowntimeMs?: number
}

export interface MigrateResult {
  readonly ok: boolean
  readonly stderr: string
  readonly totalMs: number
  /** On the lab's clock. */
  readonly startedAt: number
  readonly endedAt: number
  /** `virsh domjobinfo --completed` at the target; empty after a failure. */
  readonly jobinfo: Readonly<Record<string, string>>
}

/** Ends a lab of this name if there is one: idempotent, and also for what a killed process left. */
export async function labDown(name: string): Promise<void> {
  await cleanLab(labDir(name))
}

export class Lab {
  readonly name: string
  readonly dir: string
  readonly swam: boolean
  readonly samplesDir: string
  readonly wan: Wan
  readonly #hosts: readonly LabHost[]
  #lifeline: ChildProcess | undefined

  private constructor(record: LabRecord) {
    this.name = record.name
    this.dir = record.dir
    this.swam = record.swam
    this.samplesDir = record.samplesDir
    this.wan = new Wan(`${record.dir}/wan.sock`)
    this.#hosts = HOST_NAMES.map((name) => {
      const init = record.inits[name]
      if (!init) throw new SwamError('LAB_STATE', `${record.dir}/lab.json names no process 1 of ${name}`)
      return new LabHost(name, `${record.dir}/${name}`, init)
    })
  }

  static async up(options: LabOptions = {}): Promise<Lab> {
    checkMachine()
    const name = options.name ?? 'lab'
    const dir = labDir(name)
    const owner = readRecord(dir)?.owner
    if (owner && owner.pid !== process.pid && isAlive(owner)) {
      throw new SwamError('LAB_BUSY', `lab ${name} is held by process ${owner.pid}: take another name`)
    }
    await cleanLab(dir)
    await sweepDead()
    const starter = new Starter(dir, name, options)
    try {
      const { record, lifeline } = await starter.start()
      const lab = new Lab(record)
      lab.#lifeline = lifeline
      await Promise.all(lab.#hosts.map((host) => host.waitReady(60_000)))
      return lab
    } catch (error) {
      await cleanLab(dir)
      throw error
    }
  }

  /** The lab that another process (the command line) made and left running. */
  static attach(name = 'lab'): Lab {
    const dir = labDir(name)
    const record = readRecord(dir)
    if (!record || !Object.values(record.inits).every(isAlive)) {
      throw new SwamError('LAB_DOWN', `no lab ${name} is up (${dir})`)
    }
    return new Lab(record)
  }

  host(name: HostName): LabHost {
    return this.#hosts[HOST_NAMES.indexOf(name)]!
  }

  hosts(): readonly LabHost[] {
    return this.#hosts
  }

  /** The clock of heartbeats and migrations. */
  now(): number {
    return monotonicMs()
  }

  tinyGuest(options: TinyOptions = {}): TinyGuest {
    return new TinyGuest(this, options)
  }

  /** The administrator's own command, run on the source: `virsh migrate --live --copy-storage-all GUEST qemu+tcp://TO/system`. */
  async migrate(
    guest: string | { readonly name: string },
    from: HostName,
    to: HostName,
    options: MigrateOptions = {},
  ): Promise<MigrateResult> {
    const name = typeof guest === 'string' ? guest : guest.name
    if (options.createTarget ?? !this.swam) await this.createTarget(name, from, to)
    const target = `qemu+${options.transport ?? 'tcp'}://${options.address ?? to}/system`
    const { storage = 'all' } = options
    const copy = storage === 'none' ? [] : [`--copy-storage-${storage}`]
    const words = ['migrate', '--live', ...copy, ...(options.args ?? []), name, target]
    const startedAt = monotonicMs()
    let running = true
    const migration = this.host(from)
      .exec('virsh', ['-q', '-c', 'qemu:///system', ...words], {
        check: false,
        timeoutMs: options.timeoutMs ?? 300_000,
      })
      .finally(() => {
        running = false
      })
    const { maxDowntimeMs } = options
    const limited = async (): Promise<boolean> => {
      const call = ['-q', '-c', 'qemu:///system', 'migrate-setmaxdowntime', name, String(maxDowntimeMs)]
      while (running)
        if ((await this.host(from).exec('virsh', call, { check: false })).code === 0) return true
      return false
    }
    const [done, limit] = await Promise.all([migration, maxDowntimeMs === undefined ? true : limited()])
    const endedAt = monotonicMs()
    if (!limit)
      throw new SwamError('LAB_MIGRATE', `migration of ${name}: ended before its downtime could be limited`)
    const ok = done.code === 0
    const jobinfo: Record<string, string> = {}
    if (ok) {
      for (const line of (
        await this.host(to).virsh('domjobinfo', name, '--completed', '--keep-completed')
      ).split('\n')) {
        const at = line.indexOf(':')
        if (at > 0)
          jobinfo[line.slice(0, at).trim()] = line
            .slice(at + 1)
            .trim()
            .replaceAll(/\s+/g, ' ')
      }
    }
    return { ok, stderr: done.stderr.trim(), totalMs: endedAt - startedAt, startedAt, endedAt, jobinfo }
  }

  /** Empty images at the target for every file disk of the guest that has none there yet. */
  async createTarget(name: string, from: HostName, to: HostName): Promise<void> {
    const xml = await this.host(from).virsh('dumpxml', name)
    const prefix = '/var/lib/libvirt/images/'
    for (const [disk] of xml.matchAll(/<disk [^>]*type='file'[\s\S]*?<\/disk>/g)) {
      const path = /<source file='([^']+)'/.exec(disk)?.[1]
      const target = /<target dev='([^']+)'/.exec(disk)?.[1]
      if (path === undefined || target === undefined || /device='cdrom'|<readonly\/>/.test(disk)) continue
      if (!path.startsWith(prefix))
        throw new SwamError('LAB_GUEST', `disk ${path}: expected it below ${prefix}`)
      const file = `${this.host(to).imagesDir}/${path.slice(prefix.length)}`
      if (existsSync(file)) continue
      const info = await this.host(from).virsh('domblkinfo', name, target)
      const size = Number(/^Capacity:\s+(\d+)/m.exec(info)?.[1])
      if (!(size > 0))
        throw new SwamError('LAB_GUEST', `domblkinfo ${name} ${target}: no capacity in ${info}`)
      const format = /<driver [^>]*type='([^']+)'/.exec(disk)?.[1] ?? 'raw'
      if (format === 'raw') {
        closeSync(openSync(file, 'w', 0o644))
        truncateSync(file, size)
      } else {
        await run('qemu-img', ['create', '-q', '-f', format, file, String(size)])
      }
    }
  }

  /** Throws unless both images have the same content. */
  async compareImages(x: string, y: string, format = 'raw'): Promise<void> {
    const result = await run('qemu-img', ['compare', '-U', '-f', format, '-F', format, x, y], {
      check: false,
    })
    if (result.code !== 0)
      throw new CommandError(`${x} and ${y} differ: ${result.stdout}${result.stderr}`, result)
  }

  async down(): Promise<void> {
    this.#lifeline?.stdin?.destroy()
    this.#lifeline = undefined
    await cleanLab(this.dir)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.down()
  }
}
