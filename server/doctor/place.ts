/**
 * What the checks look at: this host's config, its daemon, its login and the programs. What several of them need is read
 * once; what cannot be read is undefined, and the check that is about it says so.
 */
import { dirname, join } from 'node:path'
import { type Finding as ConfigFinding, ConfigFindingsError, loadConfig } from '../../config/load.ts'
import type { Config } from '../../config/schema.ts'
import { COMMAND_OUTPUT_BYTES_MAX, DOCTOR_CALL_MS, DOCTOR_COMMAND_MS } from '../../lib/core/limits.ts'
import { CommandError, runCommand } from '../../lib/host/command.ts'
import { type QemuConf, readQemuConf } from '../../lib/host/qemu-conf.ts'
import { type UserEntry, userEntry } from '../../lib/host/users.ts'
import { type About, aboutOf, type PeerAbout } from '../about.ts'
import { callControl } from '../control.ts'
import { LOGIN } from '../join/this-host.ts'
import type { StatusReport } from '../report.ts'

/** What the daemon says through its root-only socket. */
export interface DaemonAbout {
  /** What libvirt here is called. */
  readonly name: string
  /** When libvirt's hook was there last. */
  readonly hookAt: number | null
  readonly peers: readonly PeerAbout[]
}

export interface Place {
  readonly configPath: string
  readonly config: Config | undefined
  /** Why there is no config. */
  readonly configProblem: unknown
  readonly configFindings: readonly ConfigFinding[]
  readonly login: UserEntry | undefined
  readonly qemuConf: QemuConf
  readonly status: StatusReport | undefined
  readonly about: DaemonAbout | undefined
}

export async function lookAround(configPath: string, socket: string | undefined): Promise<Place> {
  let config: Config | undefined
  let configProblem: unknown
  try {
    config = await loadConfig(configPath)
  } catch (error) {
    configProblem = error
  }
  const runDir = socket === undefined ? (config?.runDir ?? '/run/swam') : dirname(socket)
  const options = { timeoutMs: DOCTOR_CALL_MS }
  const status = await callControl(join(runDir, 'control.sock'), 'status', null, options).catch(
    () => undefined,
  )
  const about = await callControl(join(runDir, 'hook.sock'), 'peersAbout', null, options).catch(
    () => undefined,
  )
  return {
    configPath,
    config,
    configProblem,
    configFindings: configProblem instanceof ConfigFindingsError ? configProblem.findings : [],
    login: await userEntry(LOGIN).catch(() => undefined),
    qemuConf: await readQemuConf(),
    status: status as StatusReport | undefined,
    about: about === undefined ? undefined : daemonAbout(about as Record<string, unknown>),
  }
}

/** Of our own daemon, whose peers' words were checked there; checked again where a text becomes part of a command. */
function daemonAbout(value: Record<string, unknown>): DaemonAbout {
  const peers = Array.isArray(value['peers']) ? (value['peers'] as Record<string, unknown>[]) : []
  return {
    name: String(value['name'] ?? ''),
    hookAt: typeof value['hookAt'] === 'number' ? value['hookAt'] : null,
    peers: peers.map(({ name, about, clockMs, error }) => ({
      name: String(name),
      about: about === null ? null : (aboutOf(about) as About),
      clockMs: typeof clockMs === 'number' ? clockMs : null,
      error: typeof error === 'string' ? error : null,
    })),
  }
}

/** Standard output, or undefined when the program is missing or fails. */
export async function tried(...argv: readonly string[]): Promise<string | undefined> {
  return (await outcome(...argv)).output
}

export interface Outcome {
  readonly output: string | undefined
  /** The program is not there, or did not end. */
  readonly missing: boolean
  readonly stderr: string
}

export async function outcome(...argv: readonly string[]): Promise<Outcome> {
  try {
    const output = await runCommand(argv, {
      deadlineMs: DOCTOR_COMMAND_MS,
      outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
    })
    return { output, missing: false, stderr: '' }
  } catch (error) {
    const ran = error instanceof CommandError
    return { output: undefined, missing: !ran, stderr: ran ? error.stderr : String(error) }
  }
}
