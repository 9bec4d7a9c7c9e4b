/**
 * Brings up the processes of a lab: the hosts, the link, the stamping of heartbeats. Each is recorded on disk as soon as
 * it has a pid, so that whatever interrupts this can be cleaned up later.
 * It does not wait for libvirtd (host.ts does), and it never cleans up itself (lab.ts does).
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
} from 'node:fs'
import { resolve } from 'node:path'
import { SwamError } from '../../lib/core/errors.ts'
import { layOut } from './emulator.ts'
import { CACHE_DIR, releaseRoot } from './release.ts'
import { run, until } from './run.ts'
import { type IpFamily, type SwamConfig, writeSeeds } from './seed.ts'
import {
  HOST_NAMES,
  type HostName,
  isAlive,
  type LabRecord,
  type ProcessRecord,
  recordOf,
  writeRecord,
} from './state.ts'
import { type WanSettings, wanArguments } from './wan.ts'

export interface LabOptions extends WanSettings {
  /** Labs of different names live side by side (default "lab"). */
  readonly name?: string
  /** Debian release of the hosts' libvirt and QEMU, when it shall not be this machine's own. */
  readonly release?: string | Readonly<Partial<Record<HostName, string>>>
  /** Lay out user swam, its keys and config, the hook and the programs (default false). swamd itself is started by tests. */
  readonly swam?: boolean
  /** False: no keys and no peers are laid out, only what the package would install (default true). */
  readonly joined?: boolean
  /** Laid over the generated swam.toml of both hosts, or of each; a test can change it later with `host.configureSwam`. */
  readonly swamConfig?: SwamConfig
  /** Which addresses the names hosta and hostb have (default 4); hosta4, hosta6 and so on always exist. */
  readonly ipFamily?: IpFamily
  /** Where heartbeat samples are appended; default: in the lab's state, gone with it. */
  readonly samplesDir?: string
  /** Let the lab live on when this process ends (the command line does). */
  readonly detached?: boolean
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

/** Says at once, and with the package's name, what this machine lacks. */
export function checkMachine(): void {
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

export class Starter {
  readonly #dir: string
  readonly #options: LabOptions
  #record: LabRecord

  constructor(dir: string, name: string, options: LabOptions) {
    this.#dir = dir
    this.#options = options
    const owner = options.detached === true ? {} : { owner: recordOf('owner', process.pid) }
    const samplesDir = options.samplesDir ?? `${dir}/samples`
    const swam = options.swam ?? false
    this.#record = { version: 1, name, dir, samplesDir, swam, ...owner, processes: [], inits: {} }
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
    const samples = this.#record.samplesDir
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
      layOut(HOST_NAMES.map((name) => `${this.#dir}/${name}/lab`)),
      writeSeeds(this.#dir, {
        ipFamily: this.#options.ipFamily ?? 4,
        swam: this.#options.swam ?? false,
        joined: this.#options.joined ?? true,
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
