/** How long one turn of the event loop computes in a test, told apart from what a shared machine adds. */
import { LoopWatch } from '../lib/core/loop-watch.ts'

/** What swamd promises of its own work in one turn. */
export const BUSY_MS_MAX = 50
const TRIES = 3

/**
 * The longest delay of the event loop by this thread's own work, in milliseconds; of up to three tries the least. Work that gives
 * no turn to others does so each time; a collection of V8's that takes twice as long beside other tests does not.
 *
 * @param work called for each try; what it does before it calls `begin` is not looked at
 */
export async function leastBusyMs(work: (begin: () => void) => Promise<void>): Promise<number> {
  let least = Number.POSITIVE_INFINITY
  for (let at = 0; at < TRIES && least > BUSY_MS_MAX; at++) {
    const watch = new LoopWatch()
    await work(() => watch.start())
    // The timer that is due sees the last turn.
    await new Promise((resolve) => setTimeout(resolve, 50))
    watch.stop()
    least = Math.min(least, watch.report().busyMaxMs)
  }
  return least
}
