/**
 * The error classes of SWAM. One subclass for each thing a caller handles differently; each carries a stable `code`
 * and, where there is one, a `cause`. Messages name the operation, the place, what was expected and what was found.
 */
export class SwamError extends Error {
  readonly code: string
  constructor(code: string, message: string, options?: { cause?: unknown }) {
    super(message, options)
    this.name = new.target.name
    this.code = code
  }
}

/** The other end broke the protocol: the connection is dropped. */
export class ProtocolError extends SwamError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('SWAM_PROTOCOL', message, options)
  }
}

/** The other end understood and said no (an NBD error, a refused request). `errno` is an NBD errno where there is one. */
export class RefusedError extends SwamError {
  readonly errno: number | undefined
  constructor(message: string, options?: { cause?: unknown; errno?: number }) {
    super('SWAM_REFUSED', message, options)
    this.errno = options?.errno
  }
}

/** There is no swamd at the far host: what it knew is gone. */
export class AbsentError extends RefusedError {}

/** The connection or the process at its other end is gone. */
export class LostError extends SwamError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('SWAM_LOST', message, options)
  }
}

/** A deadline passed. */
export class TimeoutError extends SwamError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('SWAM_TIMEOUT', message, options)
  }
}

/** The configuration cannot be used. */
export class ConfigError extends SwamError {
  constructor(message: string, options?: { cause?: unknown }) {
    super('SWAM_CONFIG', message, options)
  }
}

/** The text of anything that was thrown, for logs and answers. */
export function errorText(error: unknown): string {
  return error instanceof Error ? error.message : String(error)
}
