/**
 * A folder for the time of one bench, on a disk and not in memory. It goes when the work ends, however it ends; when this
 * process is told to end (Ctrl-C, SIGTERM), programs that run for the bench are killed first.
 */
import { rmSync } from 'node:fs'
import { mkdtemp, rm } from 'node:fs/promises'
import { constants } from 'node:os'
import { endPrograms } from './program.ts'

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Gives what `work` gives, or rejects as it does. */
export async function inScratch<Result>(work: (folder: string) => Promise<Result>): Promise<Result> {
  const folder = await mkdtemp('/var/tmp/swam-bench-')
  const onSignal = (signal: (typeof SIGNALS)[number]): void => {
    endPrograms()
    rmSync(folder, { recursive: true, force: true, maxRetries: 3 })
    process.exit(128 + constants.signals[signal])
  }
  for (const signal of SIGNALS) process.on(signal, onSignal)
  try {
    return await work(folder)
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal)
    await rm(folder, { recursive: true, force: true, maxRetries: 3 })
  }
}
