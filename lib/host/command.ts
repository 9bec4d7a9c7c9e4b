/**
 * Runs one program of the host (nft, virsh, qemu-img) with a deadline, a ceiling on its output and no shell. The
 * environment is small and in the C locale, because the output is parsed. A program that overstays is killed.
 * It does not stream and does not retry.
 */
import { type ChildProcessWithoutNullStreams, spawn } from 'node:child_process'
import { LostError, RefusedError, TimeoutError } from '../core/errors.ts'
import { COMMAND_STDERR_BYTES_MAX } from '../core/limits.ts'

export interface CommandOptions {
  readonly deadlineMs: number
  readonly outputBytesMax: number
  readonly input?: string
  readonly signal?: AbortSignal
}

export interface OwnCommandOptions extends CommandOptions {
  /** Of input and output. latin1: a file of somebody else's, whose bytes are to stay. */
  readonly encoding?: 'utf8' | 'latin1'
  /** Our open files that it has, too: the first one as FIRST_DESCRIPTOR. */
  readonly descriptors?: readonly number[]
  /** Exit codes that are no failure (default: 0). */
  readonly exitCodes?: readonly number[]
  /**
   * It may ask its user (ssh, a password): it gets the caller's environment, and SIGTERM where others are killed, so that it
   * leaves the terminal as it was.
   */
  readonly interactive?: boolean
}

/** Behind standard input, output and error. */
export const FIRST_DESCRIPTOR = 3

export const quietEnvironment = (): NodeJS.ProcessEnv => ({
  PATH: process.env['PATH'] ?? '/usr/sbin:/usr/bin:/sbin:/bin',
  LC_ALL: 'C',
  HOME: '/',
})

export type RunCommand = (argv: readonly string[], options: CommandOptions) => Promise<string>

/** The program ran and failed. */
export class CommandError extends RefusedError {
  readonly exitCode: number | null
  readonly stderr: string
  constructor(argv: readonly string[], exitCode: number | null, stderr: string) {
    const what = exitCode === null ? 'was killed' : `ended with ${exitCode}`
    super(`${argv.join(' ')}: ${what}: ${stderr.trim() || 'no message'}`)
    this.exitCode = exitCode
    this.stderr = stderr
  }
}

/** Gives standard output. Throws CommandError, TimeoutError, or LostError when the program cannot be started. */
export async function runCommand(argv: readonly string[], options: OwnCommandOptions): Promise<string> {
  return await runAs({}, argv, options)
}

/** Root's way to touch what belongs to a user: with that user's rights, and without root's groups. */
export async function runCommandAs(
  user: { readonly uid: number; readonly gid: number },
  argv: readonly string[],
  options: OwnCommandOptions,
): Promise<string> {
  return await runAs({ uid: user.uid, gid: user.gid, cwd: '/' }, argv, options)
}

function runAs(
  identity: { uid?: number; gid?: number; cwd?: string },
  argv: readonly string[],
  options: OwnCommandOptions,
): Promise<string> {
  return new Promise((resolve, reject) => {
    const [program, ...rest] = argv
    const { encoding = 'utf8' } = options
    const child = spawn(program!, rest, {
      stdio: ['pipe', 'pipe', 'pipe', ...(options.descriptors ?? [])],
      env: options.interactive === true ? process.env : quietEnvironment(),
      ...identity,
    }) as ChildProcessWithoutNullStreams
    const output: Buffer[] = []
    let outputBytes = 0
    let stderr = ''
    let failure: Error | undefined
    const fail = (error: Error): void => {
      failure ??= error
      child.kill(options.interactive === true ? 'SIGTERM' : 'SIGKILL')
      // A grandchild may hold the pipes open: the answer does not wait for it.
      child.stdout.destroy()
      child.stderr.destroy()
    }
    const name = argv.slice(0, 3).join(' ')
    const timer = setTimeout(
      () => fail(new TimeoutError(`${name}: not done within ${options.deadlineMs} ms`)),
      options.deadlineMs,
    )
    const onAbort = (): void => fail(new LostError(`${name}: no longer wanted`))
    if (options.signal?.aborted === true) onAbort()
    else options.signal?.addEventListener('abort', onAbort, { once: true })
    child.stdout.on('data', (piece: Buffer) => {
      outputBytes += piece.length
      if (outputBytes > options.outputBytesMax) {
        fail(
          new RefusedError(`${name}: expected at most ${options.outputBytesMax} bytes of output, found more`),
        )
      } else output.push(piece)
    })
    child.stderr.on('data', (piece: Buffer) => {
      stderr += piece.toString('utf8', 0, COMMAND_STDERR_BYTES_MAX - stderr.length)
    })
    child.on('error', (error) => {
      failure ??= new LostError(`${name}: cannot start it: ${error.message}`, { cause: error })
    })
    // A program that does not read its input is judged by its exit status.
    child.stdin.on('error', () => {})
    child.stdin.end(options.input ?? '', encoding)
    child.on('close', (code) => {
      clearTimeout(timer)
      options.signal?.removeEventListener('abort', onAbort)
      if (failure !== undefined) reject(failure)
      else if (code === null || !(options.exitCodes ?? [0]).includes(code))
        reject(new CommandError(argv, code, stderr))
      else resolve(Buffer.concat(output).toString(encoding))
    })
  })
}
