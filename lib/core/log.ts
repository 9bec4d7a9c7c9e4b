/**
 * The log: one JSON object a line (pino), to stdout, where journald picks it up. Parts of SWAM take a `Log` and never
 * know where it goes; `child` adds what all lines of one part share (the peer, the migration's id).
 * It has no files, no rotation and no pretty printing: the service manager does that.
 */
import { type DestinationStream, destination, pino } from 'pino'

export type LogFields = Readonly<Record<string, unknown>>

export interface Log {
  debug(fields: LogFields, message: string): void
  info(fields: LogFields, message: string): void
  warn(fields: LogFields, message: string): void
  error(fields: LogFields, message: string): void
  child(fields: LogFields): Log
}

/** Errors are logged under the key `error`; pino then writes their type, message, code and stack. */
export function createLog(options: {
  readonly level: string
  /** Another place than stdout, for tests. */
  readonly stream?: DestinationStream
}): Log {
  return pino(
    {
      level: options.level,
      base: null,
      errorKey: 'error',
      serializers: { error: pino.stdSerializers.err },
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
    },
    // Synchronous: the last lines before a crash are the ones that matter, and the log is not in the data's way.
    options.stream ?? destination({ dest: 1, sync: true }),
  )
}

/** For tests and for parts whose user does not care. */
export const silentLog: Log = {
  debug: () => {},
  info: () => {},
  warn: () => {},
  error: () => {},
  child: () => silentLog,
}
