/**
 * The lab: two libvirt hosts on one machine, each in namespaces and on a root of its own, joined by an emulated WAN.
 *   await using lab = await Lab.up({ name: 'mine', rttMs: 10, mbit: 1000 })
 * Key idea: nothing has a name outside. Hosts are processes and their namespaces, so ending the recorded processes and
 * removing the state directory leaves nothing. If the process that holds a lab dies, wanlink notices (its standard
 * input ends) and ends the hosts; the directory is removed by the next `up` or `down` of that name.
 * It judges nothing: tests and benches do.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import {
  accessSync,
  closeSync,
  constants,
  existsSync,
  mkdirSync,
  openSync,
  readFileSync,
  statSync,
  truncateSync,
} from 'node:fs'
import { resolve } from 'node:path'
import { SwamError } from '../../lib/core/errors.ts'
import { LabHost } from './host.ts'
import { CACHE_DIR, releaseRoot } from './release.ts'
import { CommandError, monotonicMs, run, until } from './run.ts'
import { type IpFamily, writeSeeds } from './seed.ts'
import {
  cleanLab,
  HOST_NAMES,
  type HostName,
  isAlive,
  type LabRecord,
  labDir,
  type ProcessRecord,
  readRecord,
  recordOf,
  writeRecord,
} from './state.ts'
import { TinyGuest, type TinyOptions } from './tiny.ts'
import { Wan, type WanSettings, wanArguments } from './wan.ts'

export interface LabOptions extends WanSettings {
  /** Labs of different names live side by side (default "lab"). */
  readonly name?: string
  /** Debian release of the hosts' libvirt and QEMU, when it shall not be this machine's own. */
  readonly release?: string | Readonly<Partial<Record<HostName, string>>>
  /** Lay out user swam, its keys and config, the hook and the programs (default false). swamd itself is started by tests. */
  readonly swam?: boolean
  readonly swamConfig?: Readonly<Record<string, unknown>>
  /** Which addresses the names hosta and hostb have (default 4); hosta4, hosta6 and so on always exist. */
  readonly ipFamily?: IpFamily
  /** Where heartbeat samples are appended; default: in the lab's state, gone with it. */
  readonly samplesDir?: string
  /** Let the lab live on when this process ends (the command line does). */
  readonly detached?: boolean
}

export interface MigrateOptions {
  /** How virsh reaches the far libvirtd (default tcp: quicker). */
  readonly transport?: 'tcp' | 'ssh'
  /** Added to `migrate --live --copy-storage-all`. */
  readonly args?: readonly string[]
  /** Make missing images at the target, empty and of the right size, as a plain migration needs (default: no swam). */
  readonly createTarget?: boolean
  /** The far host's name as virsh gets it, when it shall not be hosta or hostb. */
  readonly address?: string
  readonly timeoutMs?: number
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

const REPOSITORY = resolve(import.meta.dirname, '../..')
const TOOLS: readonly (readonly [program: string, debianPackage: string])[] = [
  ['cc', 'gcc libc6-dev'],
  ['ip', 'iproute2'],
  ['nft', 'nftables'],
  ['unshare', 'util-linux'],
  ['ssh-keygen', 'openssh-client'],
  ['sshd', 'openssh-server'],
  ['libvirtd', 'libvirt-daemon-system'],
  ['virsh', 'libvirt-clients'],
  ['qemu-img', 'qemu-utils'],
  ['qemu-system-x86_64', 'qemu-system-x86'],
]

function checkMachine(): void {
  if (process.getuid?.() !== 0) throw new SwamError('LAB_MACHINE', 'the lab needs root')
  const folders = ['/usr/sbin', '/usr/bin', '/sbin', '/bin', '/usr/local/bin']
  const missing = TOOLS.filter(([program]) => !folders.some((folder) => existsSync(`${folder}/${program}`)))
  if (missing.length > 0) {
    throw new SwamError(
      'LAB_MACHINE',
      `missing: apt-get install ${missing.map(([, name]) => name).join(' ')}`,
    )
  }
  try {
    accessSync('/dev/net/tun', constants.W_OK)
  } catch (cause) {
    throw new SwamError('LAB_MACHINE', 'no /dev/net/tun: the emulated link needs the kernel module tun', {
      cause,
    })
  }
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

  private constructor(record: LabRecord, samplesDir: string) {
    this.name = record.name
    this.dir = record.dir
    this.swam = record.swam
    this.samplesDir = samplesDir
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
    const starter = new Starter(dir, name, options)
    try {
      const { record, lifeline } = await starter.start()
      const lab = new Lab(record, options.samplesDir ?? `${dir}/samples`)
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
    return new Lab(record, `${dir}/samples`)
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
    const words = ['migrate', '--live', '--copy-storage-all', ...(options.args ?? []), name, target]
    const startedAt = monotonicMs()
    const done = await this.host(from).exec('virsh', ['-q', '-c', 'qemu:///system', ...words], {
      check: false,
      timeoutMs: options.timeoutMs ?? 300_000,
    })
    const endedAt = monotonicMs()
    const ok = done.code === 0
    const jobinfo: Record<string, string> = {}
    if (ok) {
      for (const line of (
        await this.host(to).virsh('domjobinfo', name, '--completed', '--keep-completed')
      ).split('\n')) {
        const at = line.indexOf(':')
        if (at > 0) jobinfo[line.slice(0, at).trim()] = line.slice(at + 1).trim()
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

/** Starts the processes of one lab, recording each at once. */
class Starter {
  readonly #dir: string
  readonly #options: LabOptions
  #record: LabRecord

  constructor(dir: string, name: string, options: LabOptions) {
    this.#dir = dir
    this.#options = options
    const owner = options.detached === true ? {} : { owner: recordOf('owner', process.pid) }
    this.#record = { version: 1, name, dir, swam: options.swam ?? false, ...owner, processes: [], inits: {} }
  }

  async start(): Promise<{ record: LabRecord; lifeline: ChildProcess | undefined }> {
    const { release } = this.#options
    const releases = HOST_NAMES.map((name) => (typeof release === 'object' ? release[name] : release))
    if (this.#options.swam === true) checkReadable(REPOSITORY)
    const roots = [await releaseRoot(releases[0]), await releaseRoot(releases[1])]
    writeRecord(this.#record)
    for (const name of HOST_NAMES) {
      mkdirSync(`${this.#dir}/${name}/images`, { recursive: true, mode: 0o755 })
      mkdirSync(`${this.#dir}/${name}/log`, { mode: 0o755 })
      mkdirSync(`${this.#dir}/${name}/lab`)
      // QEMU's user makes its console files here, as it would in a world-writable /tmp.
      await run('chmod', ['1777', `${this.#dir}/${name}/lab`])
    }
    const samples = this.#options.samplesDir ?? `${this.#dir}/samples`
    mkdirSync(samples, { recursive: true })
    await Promise.all([
      ...['wanlink', 'beats'].map((program) =>
        run('cc', [
          '-O2',
          '-Wall',
          '-Wextra',
          '-o',
          `${this.#dir}/${program}`,
          `${import.meta.dirname}/${program}.c`,
        ]),
      ),
      writeSeeds(this.#dir, {
        ipFamily: this.#options.ipFamily ?? 4,
        swam: this.#options.swam ?? false,
        ...(this.#options.swamConfig === undefined ? {} : { swamConfig: this.#options.swamConfig }),
      }),
    ])
    const inits = await Promise.all(HOST_NAMES.map((name, at) => this.#startHost(name, roots[at]!)))
    const watched = HOST_NAMES.map((name) => `${name}=${this.#dir}/${name}/lab`)
    const beats = this.#spawn('beats', `${this.#dir}/beats`, ['--out', samples, ...watched], 'beats.log')
    const lifeline = await this.#startWan(inits, beats.record)
    return { record: this.#record, lifeline }
  }

  #spawn(
    role: string,
    command: string,
    args: readonly string[],
    log: string,
    pipe = false,
  ): { child: ChildProcess; record: ProcessRecord } {
    const out = openSync(`${this.#dir}/${log}`, 'a')
    const child = spawn(command, [...args], {
      detached: true,
      cwd: '/',
      stdio: [pipe ? 'pipe' : 'ignore', out, out],
      env: { PATH: '/usr/sbin:/usr/bin:/sbin:/bin', LC_ALL: 'C.UTF-8' },
    })
    closeSync(out)
    child.on('error', () => {}) // a program that cannot start has no pid
    if (child.pid === undefined) throw new SwamError('LAB_PROCESS', `cannot start ${role}: ${command}`)
    const record = recordOf(role, child.pid)
    this.#record = { ...this.#record, processes: [...this.#record.processes, record] }
    writeRecord(this.#record)
    child.unref()
    return { child, record }
  }

  async #startHost(name: HostName, root: string): Promise<ProcessRecord> {
    const namespaces = [
      '--net',
      '--mount',
      '--uts',
      '--ipc',
      '--pid',
      '--fork',
      '--kill-child',
      '--propagation',
      'private',
    ]
    // What libvirt learns by probing QEMU (two seconds) holds for every lab of that release; libvirt checks its age.
    const learned = `${CACHE_DIR}/capabilities-${root === '/' ? 'own' : root.slice(root.lastIndexOf('/') + 1)}`
    mkdirSync(learned, { recursive: true })
    const script = [`${import.meta.dirname}/host.sh`, name, `${this.#dir}/${name}`, root, REPOSITORY, learned]
    const { record } = this.#spawn(
      name,
      'unshare',
      [...namespaces, '/bin/sh', ...script],
      `${name}/log/host.log`,
    )
    const init = await until(
      `process 1 of ${name}`,
      10_000,
      () => {
        if (!isAlive(record)) {
          const log = readFileSync(`${this.#dir}/${name}/log/host.log`, 'utf8')
          throw new SwamError('LAB_HOST', `${name} did not start: ${log.slice(-1000)}`)
        }
        const pid = Number(readFileSync(`/proc/${record.pid}/task/${record.pid}/children`, 'utf8').trim())
        return pid > 0 ? recordOf(`init of ${name}`, pid) : undefined
      },
      5,
    )
    this.#record = { ...this.#record, inits: { ...this.#record.inits, [name]: init } }
    writeRecord(this.#record)
    return init
  }

  async #startWan(inits: readonly ProcessRecord[], beats: ProcessRecord): Promise<ChildProcess | undefined> {
    const socket = `${this.#dir}/wan.sock`
    const args = [
      '--a-ns',
      `/proc/${inits[0]!.pid}/ns/net`,
      '--b-ns',
      `/proc/${inits[1]!.pid}/ns/net`,
      '--socket',
      socket,
    ]
    const settings = { rttMs: 10, mbit: 1000, ...this.#options }
    for (const [name, value] of wanArguments(settings)) args.push(`--${name}`, value)
    const held = this.#options.detached !== true
    if (held) for (const each of [...inits, beats]) args.push('--guard', String(each.pid))
    const { child, record } = this.#spawn('wanlink', `${this.#dir}/wanlink`, args, 'wanlink.log', held)
    ;(child.stdin as { unref?: () => void } | null)?.unref?.()
    await until('wanlink to listen', 10_000, () => {
      if (!isAlive(record)) {
        throw new SwamError(
          'LAB_WAN',
          `wanlink ended: ${readFileSync(`${this.#dir}/wanlink.log`, 'utf8').slice(-500)}`,
        )
      }
      return existsSync(socket) ? true : undefined
    })
    return held ? child : undefined
  }
}

/** User swam runs the programs from the bind-mounted repository: what it cannot read would fail in strange ways later. */
function checkReadable(path: string): void {
  for (const each of [path, `${path}/bin`, `${path}/server`, `${path}/node_modules`]) {
    if (!existsSync(each)) continue
    if ((statSync(each).mode & 0o005) !== 0o005) {
      throw new SwamError('LAB_MACHINE', `${each}: others must be allowed to read it (chmod -R o+rX ${path})`)
    }
  }
}
