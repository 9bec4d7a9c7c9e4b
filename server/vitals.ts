/** How the daemon's own process is: memory, open descriptors, how late its event loop runs. For `swam status`. */
import { readdir } from 'node:fs/promises'
import type { Log } from '../lib/core/log.ts'
import { LoopWatch } from '../lib/core/loop-watch.ts'
import type { ProcessReport } from './report.ts'

/** A delay that is promised not to happen is worth a line, but not a hundred. */
const SAY_AGAIN_MS = 10_000

export class Vitals {
  readonly #watch: LoopWatch
  #saidAt = Number.NEGATIVE_INFINITY

  constructor(log: Log) {
    this.#watch = new LoopWatch({
      onLong: ({ lateMs, busyMs }) => {
        if (performance.now() - this.#saidAt < SAY_AGAIN_MS) return
        this.#saidAt = performance.now()
        log.warn({ lateMs: Math.round(lateMs), busyMs: Math.round(busyMs) }, 'the event loop was held up')
      },
    })
  }

  start(): void {
    this.#watch.start()
  }

  stop(): void {
    this.#watch.stop()
  }

  async report(): Promise<ProcessReport> {
    const { rss, heapUsed, external } = process.memoryUsage()
    // One of them is the directory itself.
    const descriptors = await readdir('/proc/self/fd').then(
      (names) => names.length - 1,
      () => null,
    )
    return {
      rssBytes: rss,
      heapBytes: heapUsed,
      externalBytes: external,
      openDescriptors: descriptors,
      eventLoop: this.#watch.report(),
    }
  }
}
