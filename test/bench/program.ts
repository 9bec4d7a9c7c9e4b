/**
 * Runs foreign programs for the benches: to their end, keeping what they print or only its SHA-256 (an image of gigabytes is
 * not kept). Programs come from the distribution's folders, whatever else stands in PATH. Each gets a process group of its
 * own, so that `endPrograms` reaches what it started too.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'

const FOLDERS = ['/usr/bin', '/bin', '/usr/sbin', '/sbin']
const STDERR_CHARACTERS_MAX = 4000

export interface ProgramOptions {
  readonly cwd?: string
  /** Beside this process's own. */
  readonly env?: Readonly<Record<string, string>>
  /** Exit codes that are no failure (default: 0 only). */
  readonly exitCodes?: readonly number[]
}

const living = new Set<ChildProcess>()

/** Gives what the program printed. Rejects, with the end of its stderr, when it cannot be started or its exit code is not expected. */
export async function runProgram(
  command: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<string> {
  const parts: Buffer[] = []
  await consume(command, args, options, (part) => void parts.push(part))
  return Buffer.concat(parts).toString()
}

/** Gives the SHA-256, in hexadecimal, of what the program printed; rejects as runProgram does. */
export async function sha256OfOutput(
  command: string,
  args: readonly string[],
  options: ProgramOptions = {},
): Promise<string> {
  const hash = createHash('sha256')
  await consume(command, args, options, (part) => void hash.update(part))
  return hash.digest('hex')
}

/** Kills every program that still runs, with what it started. For the case that this process is told to end. */
export function endPrograms(): void {
  for (const { pid } of living) {
    try {
      if (pid !== undefined) process.kill(-pid, 'SIGKILL')
    } catch {
      // It ended by itself meanwhile.
    }
  }
}

/** Throws, with the command that installs them, when programs are missing; `programs` are pairs of program and Debian package. */
export function requirePrograms(
  programs: readonly (readonly [program: string, debianPackage: string])[],
): void {
  const missing = programs.filter(
    ([program]) => !FOLDERS.some((folder) => existsSync(`${folder}/${program}`)),
  )
  if (missing.length === 0) return
  const names = missing.map(([program]) => program).join(', ')
  const packages = [...new Set(missing.map(([, name]) => name))].join(' ')
  throw new Error(`missing on this machine: ${names}: apt-get install ${packages}`)
}

/** The version of an installed Debian package. */
export async function packageVersion(name: string): Promise<string> {
  return await runProgram('dpkg-query', ['--show', '--showformat', '${' + 'Version}', name])
}

function consume(
  command: string,
  args: readonly string[],
  options: ProgramOptions,
  onOutput: (part: Buffer) => void,
): Promise<void> {
  const shown = [command, ...args].join(' ').slice(0, 300)
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe'],
      env: { ...process.env, PATH: FOLDERS.join(':'), LC_ALL: 'C.UTF-8', ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
    })
    living.add(child)
    let stderr = ''
    child.stdout.on('data', onOutput)
    child.stderr.on('data', (part: Buffer) => {
      stderr = (stderr + part.toString()).slice(-STDERR_CHARACTERS_MAX)
    })
    child.once('error', (cause) => {
      living.delete(child)
      reject(new Error(`cannot start ${shown}: ${cause.message}`, { cause }))
    })
    child.once('close', (code, signal) => {
      living.delete(child)
      const expected = options.exitCodes ?? [0]
      if (code !== null && expected.includes(code)) resolve()
      else
        reject(
          new Error(
            `${shown}: expected exit ${expected.join(' or ')}, found ${code ?? signal}: ${stderr.trim()}`,
          ),
        )
    })
  })
}
