/**
 * One libvirt host of the lab: a set of namespaces held by its process 1 (host.sh), entered by pid.
 * Programs started in it are children of the lab only while they run; what they leave behind belongs to the host and
 * ends with it. swamd is started as a real host's unit would: as user swam with two capabilities and no more.
 */

import { readFileSync, writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { parse, stringify } from 'smol-toml'
import { SwamError } from '../../lib/core/errors.ts'
import { type RunOptions, type RunResult, run, until } from './run.ts'
import { mergeConfig, type SwamKeys } from './seed.ts'
import { type HostName, isAlive, type ProcessRecord } from './state.ts'

const ENVIRONMENT = ['PATH=/usr/sbin:/usr/bin:/sbin:/bin', 'HOME=/root', 'LC_ALL=C.UTF-8', 'USER=root']
const CAPABILITIES = '+net_admin,+dac_read_search'
const LIBVIRTD_PID = '/run/swam-lab/libvirtd'
const SWAMD_PID = '/run/swam-lab/swamd.pid'

/** Same quoting for every word: the shell inside sees it as it is. */
export function shellQuote(word: string): string {
  return `'${word.replaceAll("'", "'\\''")}'`
}

export class LabHost {
  readonly name: HostName
  /** On the machine; in the host it is /var/lib/libvirt/images. */
  readonly imagesDir: string
  /** On the machine; in the host it is /var/lib/libvirt/lab: consoles, heartbeats, kernels. */
  readonly labDir: string
  /** On the machine; in the host it is /var/log/swam-lab: sshd.log, libvirtd.log, swamd.log. */
  readonly logDir: string
  readonly #init: ProcessRecord

  constructor(name: HostName, base: string, init: ProcessRecord) {
    this.name = name
    this.imagesDir = `${base}/images`
    this.labDir = `${base}/lab`
    this.logDir = `${base}/log`
    this.#init = init
  }

  /** Process 1 of the host as the machine sees it: `nsenter -t PID …`. */
  get pid(): number {
    return this.#init.pid
  }

  /** The words to put before a command so that it runs in this host: for callers that spawn by themselves. */
  enter(): readonly string[] {
    const namespaces = ['-t', String(this.#init.pid), '-m', '-u', '-n', '-p']
    return ['nsenter', ...namespaces, '--', 'env', '-i', ...ENVIRONMENT]
  }

  async exec(command: string, args: readonly string[] = [], options: RunOptions = {}): Promise<RunResult> {
    if (!isAlive(this.#init)) throw new SwamError('LAB_HOST', `${this.name} is down (its process 1 is gone)`)
    const { env, ...rest } = options
    const variables = Object.entries(env ?? {}).map(([key, value]) => `${key}=${value}`)
    const [program, ...words] = this.enter()
    return await run(program!, [...words, ...variables, command, ...args], rest)
  }

  async shell(script: string, options: RunOptions = {}): Promise<RunResult> {
    return await this.exec('/bin/sh', ['-ec', script], options)
  }

  /** Standard output of virsh on this host's own libvirtd. */
  async virsh(...args: readonly string[]): Promise<string> {
    return (await this.exec('virsh', ['-q', '-c', 'qemu:///system', ...args])).stdout
  }

  /** A file of the host, or '' when it is not there. For what lies in the images, lab and log folders use their paths. */
  async read(path: string): Promise<string> {
    return (await this.exec('cat', [path], { check: false })).stdout
  }

  async waitReady(timeoutMs: number): Promise<void> {
    const log = (): string => {
      try {
        return readFileSync(`${this.logDir}/host.log`, 'utf8').trim().slice(-1000)
      } catch {
        return ''
      }
    }
    let last = ''
    const ask = async (): Promise<true | undefined> => {
      if (!isAlive(this.#init)) throw new SwamError('LAB_HOST', `${this.name} did not come up: ${log()}`)
      const answer = await this.exec('virsh', ['-q', '-c', 'qemu:///system', 'hostname'], { check: false })
      last = answer.stderr.trim()
      return answer.code === 0 ? true : undefined
    }
    await until(`the log of ${this.name} to say up`, timeoutMs, () => {
      if (!isAlive(this.#init)) throw new SwamError('LAB_HOST', `${this.name} did not come up: ${log()}`)
      return this.#hasReady() ? true : undefined
    })
    await until(`libvirtd on ${this.name}`, timeoutMs, ask, 100).catch((cause: unknown) => {
      throw new SwamError('LAB_HOST', `libvirtd on ${this.name} does not answer: ${last} ${log()}`, { cause })
    })
  }

  /** As `systemctl restart libvirtd`: ends it, by force when it takes too long, and starts it again. Guests go on. */
  async restartLibvirtd(): Promise<void> {
    await this.shell(`
pid=$(cat ${LIBVIRTD_PID})
kill -TERM $pid
turns=0
while kill -0 $pid 2>/dev/null && [ $turns -lt 300 ]; do
  sleep 0.1
  turns=$((turns + 1))
done
kill -KILL $pid 2>/dev/null || true
setsid /usr/sbin/libvirtd --listen --pid-file /run/libvirt/libvirtd.pid </dev/null >>/var/log/swam-lab/libvirtd.out 2>&1 &
echo $! >${LIBVIRTD_PID}`)
    await this.waitReady(60_000)
  }

  #hasReady(): boolean {
    try {
      return readFileSync(`${this.logDir}/ready`, 'utf8') !== ''
    } catch {
      return false
    }
  }

  /** Starts swamd and waits for its control socket; its output goes to `logDir`/swamd.log. */
  async startSwamd(
    options: { timeoutMs?: number; env?: Readonly<Record<string, string>> } = {},
  ): Promise<void> {
    if ((await this.swamdPid()) !== undefined)
      throw new SwamError('LAB_SWAMD', `swamd already runs on ${this.name}`)
    const env = Object.entries({ HOME: '/var/lib/swam', ...options.env }).map(([k, v]) =>
      shellQuote(`${k}=${v}`),
    )
    const command = [
      'setsid env',
      ...env,
      'setpriv --reuid swam --regid swam --init-groups --no-new-privs',
      `--inh-caps=-all,${CAPABILITIES} --ambient-caps=-all,${CAPABILITIES} --bounding-set=-all,${CAPABILITIES}`,
      '/usr/sbin/swamd --config /etc/swam/swam.toml',
    ].join(' ')
    // A socket of a killed daemon would look like a daemon that is ready.
    await this.shell(
      `rm -f /run/swam/control.sock; ${command} </dev/null >>/var/log/swam-lab/swamd.log 2>&1 & echo $! >${SWAMD_PID}`,
    )
    await until(`/run/swam/control.sock on ${this.name}`, options.timeoutMs ?? 15_000, async () => {
      const there = await this.exec('test', ['-S', '/run/swam/control.sock'], { check: false })
      if (there.code === 0) return true
      if ((await this.swamdPid()) === undefined) {
        // Between two of its exec calls a process has no command line for a moment: absent is absent twice.
        await sleep(300)
        if ((await this.swamdPid()) !== undefined) return undefined
        throw new SwamError(
          'LAB_SWAMD',
          `swamd on ${this.name} ended at its start: ${this.swamdLog().slice(-2000)}`,
        )
      }
      return undefined
    })
  }

  /** Asks swamd to end and waits for it; does nothing when none runs. */
  async stopSwamd(timeoutMs = 10_000): Promise<void> {
    const pid = await this.swamdPid()
    if (pid === undefined) return
    await this.killSwamd('SIGTERM')
    await until(`swamd on ${this.name} to end after SIGTERM`, timeoutMs, async () =>
      (await this.swamdPid()) === undefined ? true : undefined,
    )
  }

  async killSwamd(signal: NodeJS.Signals = 'SIGKILL'): Promise<void> {
    const pid = await this.swamdPid()
    if (pid === undefined) throw new SwamError('LAB_SWAMD', `no swamd runs on ${this.name}`)
    await this.exec('/bin/sh', ['-c', `kill -${signal.replace('SIG', '')} ${pid}`])
    if (signal !== 'SIGKILL') return
    await until(`swamd on ${this.name} to be gone`, 5000, async () =>
      (await this.swamdPid()) === undefined ? true : undefined,
    )
  }

  /** The daemon's pid inside the host, when it is alive. */
  async swamdPid(): Promise<number | undefined> {
    const script = `p=$(cat ${SWAMD_PID} 2>/dev/null) && grep -q swam /proc/$p/cmdline 2>/dev/null && ! grep -q '^State:.Z' /proc/$p/status && echo $p`
    const pid = Number((await this.exec('/bin/sh', ['-c', script], { check: false })).stdout)
    return pid > 0 ? pid : undefined
  }

  swamdLog(): string {
    try {
      return readFileSync(`${this.logDir}/swamd.log`, 'utf8')
    } catch {
      return ''
    }
  }

  /** Changes keys of /etc/swam/swam.toml; a running swamd reads it at its next start. */
  async configureSwam(keys: SwamKeys): Promise<void> {
    const config = mergeConfig(parse(await this.read('/etc/swam/swam.toml')), keys)
    await this.exec('tee', ['/etc/swam/swam.toml'], { input: `${stringify(config)}\n` })
  }

  /** The CLI, as root. Never throws for an exit status: tests look at it. */
  async swam(...args: readonly string[]): Promise<RunResult> {
    return await this.exec('/usr/bin/swam', args, { check: false })
  }

  /** Starts a guest from its XML, transient; or defines it first and starts it. */
  async startGuest(xml: string, options: { define?: boolean } = {}): Promise<void> {
    const name = /<name>([^<>/]+)<\/name>/.exec(xml)?.[1]
    if (name === undefined) throw new SwamError('LAB_GUEST', 'the domain XML has no usable <name>')
    writeFileSync(`${this.labDir}/${name}.xml`, xml)
    await this.virsh(options.define === true ? 'define' : 'create', `/var/lib/libvirt/lab/${name}.xml`)
    if (options.define === true) await this.virsh('start', name)
  }
}
