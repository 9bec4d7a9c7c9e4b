/**
 * Runs a program and waits for it: the one place where the lab starts short-lived processes.
 * The program gets a process group of its own, so that a deadline reaches what it started too. A non-zero exit throws
 * unless `check` is false, and the message carries the command and the end of its stderr. No shell is involved.
 */
import { spawn } from 'node:child_process'
import { SwamError, TimeoutError } from '../../lib/core/errors.ts'

export interface RunOptions {
  readonly timeoutMs?: number
  readonly input?: string | Buffer
  /** Throw when the program does not exit with 0 (default true). */
  readonly check?: boolean
  readonly cwd?: string
  readonly env?: Readonly<Record<string, string | undefined>>
}

export interface RunResult {
  readonly code: number | null
  readonly signal: NodeJS.Signals | null
  readonly stdout: string
  readonly stderr: string
}

export class CommandError extends SwamError {
  readonly result: RunResult
  constructor(message: string, result: RunResult) {
    super('LAB_COMMAND', message)
    this.result = result
  }
}

const OUTPUT_BYTES_MAX = 64 << 20

export async function run(
  command: string,
  args: readonly string[],
  options: RunOptions = {},
): Promise<RunResult> {
  const shown = [command, ...args].join(' ').slice(0, 400)
  const timeoutMs = options.timeoutMs ?? 60_000
  const child = spawn(command, [...args], {
    detached: true,
    stdio: [options.input === undefined ? 'ignore' : 'pipe', 'pipe', 'pipe'],
    ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    ...(options.env === undefined ? {} : { env: { ...process.env, ...options.env } }),
  })
  const collected: { stdout: Buffer[]; stderr: Buffer[] } = { stdout: [], stderr: [] }
  let bytes = 0
  let late = false
  const kill = (): void => {
    try {
      if (child.pid !== undefined) process.kill(-child.pid, 'SIGKILL')
    } catch {
      // It ended by itself meanwhile.
    }
  }
  for (const name of ['stdout', 'stderr'] as const) {
    child[name]?.on('data', (data: Buffer) => {
      bytes += data.length
      if (bytes > OUTPUT_BYTES_MAX) kill()
      else collected[name].push(data)
    })
  }
  if (options.input !== undefined) {
    child.stdin?.on('error', () => {}) // it ended without reading: its exit status tells
    child.stdin?.end(options.input)
  }
  const timer = setTimeout(() => {
    late = true
    kill()
  }, timeoutMs)
  try {
    const result = await new Promise<RunResult>((resolve, reject) => {
      child.once('error', (cause) => {
        reject(new SwamError('LAB_COMMAND', `cannot start ${command}: ${cause.message}`, { cause }))
      })
      child.once('close', (code, signal) => {
        const text = (parts: Buffer[]): string => Buffer.concat(parts).toString('utf8')
        resolve({ code, signal, stdout: text(collected.stdout), stderr: text(collected.stderr) })
      })
    })
    const tail = (result.stderr.trim() || result.stdout.trim()).slice(-1500)
    if (late) throw new TimeoutError(`${shown}: not done after ${timeoutMs} ms: ${tail}`)
    if (bytes > OUTPUT_BYTES_MAX)
      throw new CommandError(`${shown}: over ${OUTPUT_BYTES_MAX} bytes of output`, result)
    if ((options.check ?? true) && result.code !== 0) {
      throw new CommandError(`${shown}: exit ${result.code ?? result.signal}: ${tail}`, result)
    }
    return result
  } finally {
    clearTimeout(timer)
  }
}

/** Asks every `everyMs` until the answer is not undefined; the message names what was waited for. */
export async function until<T>(
  what: string,
  timeoutMs: number,
  ask: () => Promise<T | undefined> | T | undefined,
  everyMs = 50,
): Promise<T> {
  const end = monotonicMs() + timeoutMs
  for (;;) {
    const answer = await ask()
    if (answer !== undefined) return answer
    if (monotonicMs() > end) throw new TimeoutError(`waited ${timeoutMs} ms for ${what}`)
    await new Promise((resolve) => setTimeout(resolve, everyMs))
  }
}

/** The lab's clock: CLOCK_MONOTONIC in milliseconds, the same in every process of this machine. */
export function monotonicMs(): number {
  return Number(process.hrtime.bigint()) / 1e6
}
