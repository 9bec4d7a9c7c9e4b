/**
 * The exit codes of `swam`, which scripts rely on, and the one table from an error to its code.
 */
import { CommanderError } from 'commander'
import { ConfigError, LostError, SwamError, TimeoutError } from '../../lib/core/errors.ts'
import { AnswerError } from '../control.ts'

export const EXIT = {
  done: 0,
  failed: 1,
  usage: 2,
  notReachable: 3,
  notAllowed: 4,
  notFound: 5,
  badConfig: 6,
  /** Of `swam verify`: the guest is at work, so its disks are not judged. */
  inUse: 7,
  /** Of `swam verify`: an image is not what was proved. */
  differs: 8,
  /** Of `swam hook` only: a strict host refuses the migration. */
  hookRefused: 10,
} as const

/** What was typed cannot be meant. */
export class UsageError extends SwamError {
  constructor(message: string) {
    super('SWAM_USAGE', message)
  }
}

export function exitCodeOf(error: unknown): number {
  // --help and --version end with an error of commander's whose code is 0.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.done : EXIT.usage
  if (error instanceof UsageError) return EXIT.usage
  if (isNotAllowed(error)) return EXIT.notAllowed
  if (error instanceof SwamError && error.code === 'SWAM_IN_USE') return EXIT.inUse
  if (error instanceof ConfigError) return EXIT.badConfig
  if (error instanceof AnswerError) {
    return error.answerCode === 'SWAM_NOT_FOUND' ? EXIT.notFound : EXIT.failed
  }
  if (error instanceof LostError || error instanceof TimeoutError) return EXIT.notReachable
  return EXIT.failed
}

export function isNotAllowed(error: unknown): boolean {
  const code = (error as { cause?: { code?: unknown } } | undefined)?.cause?.code
  return code === 'EACCES' || code === 'EPERM'
}
