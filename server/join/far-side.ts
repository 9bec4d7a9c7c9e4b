/**
 * The far host, through the administrator's own OpenSSH client: one connection, on which a command of `swam` there
 * answers line by line. Config, agent, jump hosts, known hosts and passwords are ssh's business; it talks to the terminal
 * itself. What it says on standard error becomes part of the one line that an error is.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { isIP } from 'node:net'
import { ProtocolError, RefusedError } from '../../lib/core/errors.ts'
import {
  JOIN_ANSWER_MS,
  JOIN_CLOSE_MS,
  JOIN_COMMAND_MS,
  JOIN_LOGIN_MS,
  JOIN_MESSAGE_CHARACTERS_MAX,
  JOIN_STDERR_CHARACTERS_MAX,
  PEER_STDERR_BYTES_MAX,
  SSH_SETTINGS_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { runCommand } from '../../lib/host/command.ts'
import { isHostName } from '../../lib/host/qemu-conf.ts'
import { JsonLines, lineText } from './lines.ts'

const SWAM_PATH = '/usr/bin/swam'
/** The shell's statuses for a program that is not there, and for one that may not be run. */
const NOT_FOUND_STATUS = 127

export interface FarTarget {
  /** As it was typed. */
  readonly text: string
  readonly host: string
  readonly user: string
  /** What the administrator's ssh config makes of the host. */
  readonly hostName: string
}

const TARGET = /^(?:([A-Za-z0-9_][A-Za-z0-9._-]{0,63})@)?([^@\s]{1,255})$/

/** `user@host` or `host`: checked before any program gets it. */
export function isTarget(text: string): boolean {
  const host = TARGET.exec(text)?.[2] ?? ''
  return isHostName(host) || isIP(host) !== 0
}

/** Asks ssh what the administrator's config makes of it. */
export async function farTarget(text: string, port: number | undefined): Promise<FarTarget> {
  if (!isTarget(text))
    throw new RefusedError(`expected user@host, found ${JSON.stringify(text.slice(0, 80))}`)
  const match = TARGET.exec(text)
  const host = match?.[2] ?? ''
  const settings = await runCommand(['ssh', '-G', ...portWords(port), '--', text], {
    deadlineMs: JOIN_COMMAND_MS,
    outputBytesMax: SSH_SETTINGS_BYTES_MAX,
  })
  const setting = (key: string): string => new RegExp(`^${key} (\\S+)$`, 'm').exec(settings)?.[1] ?? ''
  return { text, host, user: match?.[1] ?? setting('user'), hostName: setting('hostname') }
}

/** `arguments_` of swam there: words of ours only, no text of others. */
export function farCommand(target: FarTarget, words: readonly string[]): string {
  return [...(target.user === 'root' ? [] : ['sudo', '-n']), SWAM_PATH, ...words].join(' ')
}

export function sshWords(target: FarTarget, port: number | undefined, command: string): string[] {
  return ['-T', '-o', 'BatchMode=no', ...portWords(port), '--', target.text, command]
}

function portWords(port: number | undefined): string[] {
  return port === undefined ? [] : ['-p', String(port)]
}

export interface FarWaits {
  readonly loginMs: number
  readonly answerMs: number
  readonly closeMs: number
}

const WAITS: FarWaits = { loginMs: JOIN_LOGIN_MS, answerMs: JOIN_ANSWER_MS, closeMs: JOIN_CLOSE_MS }

export class FarSide implements AsyncDisposable {
  readonly #target: FarTarget
  readonly #waits: FarWaits
  readonly #child: ChildProcessWithoutNullStreams
  readonly #lines: JsonLines
  readonly #ended: Promise<number | null>
  #said = ''
  #answers = 0

  constructor(
    target: FarTarget,
    port: number | undefined,
    words: readonly string[],
    waits: FarWaits = WAITS,
  ) {
    this.#target = target
    this.#waits = waits
    this.#child = spawn('ssh', sshWords(target, port, farCommand(target, words)), { stdio: 'pipe' })
    this.#lines = new JsonLines(this.#child.stdout, target.text)
    this.#child.stderr.on('data', (bytes: Buffer) => {
      if (this.#said.length < PEER_STDERR_BYTES_MAX) this.#said += bytes.toString('utf8')
    })
    // Whoever does not read is judged by how it ends.
    this.#child.stdin.on('error', () => undefined)
    this.#ended = new Promise((resolve) => {
      this.#child.on('error', (error) => {
        this.#said += error.message
        resolve(null)
      })
      this.#child.on('close', (code) => resolve(code))
    })
  }

  /** The far side's word, when it is yes; its no is a RefusedError. */
  async ask(request: object): Promise<Record<string, unknown>> {
    this.#child.stdin.write(lineText(request))
    const answer = await this.#lines.next(this.#answers++ === 0 ? this.#waits.loginMs : this.#waits.answerMs)
    if (answer === undefined) throw new RefusedError(this.#explain(await this.#ended))
    if (answer['ok'] === true) return answer
    const { message } = answer
    if (typeof message !== 'string') throw new ProtocolError(`${this.#target.text}: said no without a reason`)
    throw new RefusedError(`${this.#target.text}: ${message.slice(0, JOIN_MESSAGE_CHARACTERS_MAX)}`)
  }

  #explain(status: number | null): string {
    const { text, user } = this.#target
    const said = this.#said
      .trim()
      .replaceAll(/\p{C}+/gu, ' ')
      .slice(-JOIN_STDERR_CHARACTERS_MAX)
    if (status === NOT_FOUND_STATUS)
      return `${text}: there is no swam there: install the package there first (${said})`
    if (/^sudo: /m.test(this.#said)) {
      return `${text}: ${user} may not become root there without a password: take root@…, or allow it "sudo -n ${SWAM_PATH}" (${said})`
    }
    if (status === 255) return `ssh ${text}: ${said || 'it ended without a word'}`
    return `${text}: swam there ended with ${status ?? 'a signal'}: ${said || 'it said nothing'}`
  }

  /** The far command ends with its input. Idempotent. */
  async close(): Promise<void> {
    this.#child.stdin.end()
    const timer = setTimeout(() => this.#child.kill('SIGTERM'), this.#waits.closeMs)
    await this.#ended
    clearTimeout(timer)
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}
