/**
 * The dialing end's way back: tries to make a new link in the place of a broken one, until it stands, the far end says
 * no, or time is up. The first try goes out at once; then it waits a little longer each time, up to a second.
 * It does not know what is sent over the link.
 */
import { type Clock, systemClock } from '../core/clock.ts'
import { errorText, LostError, RefusedError, TimeoutError } from '../core/errors.ts'
import { RESUME_BACKOFF_MS, RESUME_BACKOFF_MS_MAX, RESUME_TRY_MS_MAX } from '../core/limits.ts'
import type { ResumedLink, ResumeRequest } from './options.ts'

export interface ReconnectOptions {
  readonly reconnect: (request: ResumeRequest) => Promise<ResumedLink>
  /** The next number of a try. */
  readonly nextAttempt: () => number
  readonly deliveredBytes: number
  /** Aborted when the bundle ended meanwhile. */
  readonly signal: AbortSignal
  readonly clock?: Clock
}

/** @throws RefusedError when the far end does not know the bundle any more, LostError when the signal ends it */
export async function reconnect(options: ReconnectOptions): Promise<ResumedLink> {
  const { signal, deliveredBytes, clock = systemClock } = options
  let backoffMs = RESUME_BACKOFF_MS
  for (;;) {
    if (signal.aborted) throw new LostError(errorText(signal.reason))
    const attempt = options.nextAttempt()
    const late = new AbortController()
    const cancel = clock.after(RESUME_TRY_MS_MAX, () =>
      late.abort(new TimeoutError(`a try to resume was not done in ${RESUME_TRY_MS_MAX} ms`)),
    )
    try {
      const tried = AbortSignal.any([signal, late.signal])
      return await options.reconnect({ attempt, deliveredBytes, signal: tried })
    } catch (error) {
      if (error instanceof RefusedError) throw error
    } finally {
      cancel()
    }
    if (!signal.aborted) await pause(clock, backoffMs, signal)
    backoffMs = Math.min(RESUME_BACKOFF_MS_MAX, backoffMs * 2)
  }
}

function pause(clock: Clock, ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      cancel()
      signal.removeEventListener('abort', done)
      resolve()
    }
    const cancel = clock.after(ms, done)
    signal.addEventListener('abort', done)
  })
}
