/**
 * What all commands share: where to write, which config and socket are meant, and one call to the daemon whose failures
 * say in one line what to do.
 */
import { stat } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import { LostError, ProtocolError, SwamError, TimeoutError } from '../../lib/core/errors.ts'
import { AnswerError, callControl } from '../control.ts'
import type { MigrationReport } from '../report.ts'
import { isNotAllowed } from './exit-codes.ts'

export const DEFAULT_RUN_DIRECTORY: string = '/run/swam'
export const HOOK_SOCKET_NAME: string = 'hook.sock'

export interface GlobalOptions {
  readonly config?: string
  readonly socket?: string
  readonly json?: boolean
}

/** Where a command writes; the tests put their own in. */
export interface Output {
  out(text: string): void
  err(text: string): void
}

export async function socketPath(options: GlobalOptions): Promise<string> {
  if (options.socket !== undefined) return options.socket
  const path = options.config ?? DEFAULT_CONFIG_PATH
  // A host without a config file may still run a daemon at the usual place.
  if (options.config === undefined && (await stat(path).catch(() => undefined)) === undefined) {
    return `${DEFAULT_RUN_DIRECTORY}/control.sock`
  }
  return `${(await loadConfig(path)).runDir}/control.sock`
}

/**
 * Asks the daemon at the socket of root's hook what is not for every member of its group; the answer must be an object with
 * `version: 1`.
 */
export async function askRoot(
  options: GlobalOptions,
  method: string,
  params: object | null,
  timeoutMs: number,
): Promise<Record<string, unknown>> {
  const path = join(dirname(await socketPath(options)), HOOK_SOCKET_NAME)
  let answer: unknown
  try {
    answer = await callControl(path, method, params, { timeoutMs })
  } catch (error) {
    throw isNotAllowed(error) ? notRoot(method, error) : advised(error, path)
  }
  return versioned(answer, `${path}: ${method}`)
}

/** What changes this host is for root. */
export function requireRoot(what: string): void {
  if (process.getuid?.() !== 0) throw notRoot(what, undefined)
}

function notRoot(what: string, error: unknown): LostError {
  const cause =
    (error as { cause?: unknown } | undefined)?.cause ??
    Object.assign(new Error('not root'), { code: 'EPERM' })
  return new LostError(`not allowed: ${what} is for root: become root (sudo swam …)`, { cause })
}

/** Exit code 5. */
export function noSuchPeer(name: string): AnswerError {
  return new AnswerError('SWAM_NOT_FOUND', `no peer is called ${name}: see swam peer list`)
}

/** The migrations of the guest that was named, by name or uuid; exit code 5 when there are none. `command`: shows all. */
export function ofGuest(
  migrations: readonly MigrationReport[],
  guest: string | undefined,
  command: string,
): readonly MigrationReport[] {
  if (guest === undefined) return migrations
  const own = migrations.filter(({ guest: name, uuid }) => name === guest || uuid === guest)
  if (own.length > 0) return own
  throw new AnswerError('SWAM_NOT_FOUND', `no migration of a guest ${guest} here: ${command} shows all`)
}

/** Asks the daemon; the answer must be an object with `version: 1`. */
export async function ask(options: GlobalOptions, method: string): Promise<Record<string, unknown>> {
  const path = await socketPath(options)
  let answer: unknown
  try {
    answer = await callControl(path, method, null)
  } catch (error) {
    throw advised(error, path)
  }
  return versioned(answer, `${path}: ${method}`)
}

function versioned(answer: unknown, place: string): Record<string, unknown> {
  if (typeof answer !== 'object' || answer === null || (answer as { version?: unknown }).version !== 1) {
    throw new ProtocolError(`${place}: expected an answer of version 1: are swam and swamd of one release?`)
  }
  return answer as Record<string, unknown>
}

function advised(error: unknown, path: string): unknown {
  if (!(error instanceof SwamError)) return error
  if (isNotAllowed(error)) {
    const message = `not allowed to talk to swamd at ${path}: become root, or a member of its group (adduser USER swam)`
    return new LostError(message, { cause: error.cause })
  }
  if (error instanceof LostError) {
    const message = `swamd is not reachable at ${path}: start it (systemctl start swamd), or name its --config or --socket`
    return new LostError(message, { cause: error.cause })
  }
  if (error instanceof TimeoutError) {
    return new TimeoutError(`swamd does not answer at ${path}: see its log (journalctl -u swamd)`, {
      cause: error,
    })
  }
  return error
}
