/**
 * The history: one JSON line a migration in stateDir/history.jsonl, appended when it ends. A torn last line (a crash,
 * a full disk) is skipped when reading. Kept short by rewriting once it is twice as long as it should be.
 */
import { appendFile, readFile, rename, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { HISTORY_BYTES_MAX, HISTORY_ENTRIES_MAX } from '../lib/core/limits.ts'
import type { MigrationReport } from './report.ts'

export class History {
  readonly #path: string
  #chain: Promise<void> = Promise.resolve()

  constructor(stateDir: string) {
    this.#path = join(stateDir, 'history.jsonl')
  }

  /** Entries in the order in which they ended, the newest last. */
  async read(): Promise<MigrationReport[]> {
    await this.#chain
    const size = await stat(this.#path).then(
      ({ size }) => size,
      () => 0,
    )
    if (size === 0 || size > HISTORY_BYTES_MAX * 2) return []
    const entries: MigrationReport[] = []
    for (const line of (await readFile(this.#path, 'utf8')).split('\n')) {
      try {
        const entry: unknown = JSON.parse(line)
        if (typeof entry === 'object' && entry !== null && 'id' in entry)
          entries.push(entry as MigrationReport)
      } catch {
        // The last line of a crash.
      }
    }
    return entries.slice(-HISTORY_ENTRIES_MAX)
  }

  /** Everything that was appended is in the file. */
  async settled(): Promise<void> {
    await this.#chain
  }

  async append(report: MigrationReport): Promise<void> {
    const step = this.#chain.then(async () => {
      // A torn line before this one must not swallow it.
      await appendFile(this.#path, `\n${JSON.stringify(report)}\n`)
      const { size } = await stat(this.#path)
      if (size > HISTORY_BYTES_MAX) await this.#shorten()
    })
    this.#chain = step.catch(() => undefined)
    await step
  }

  async #shorten(): Promise<void> {
    const lines = (await readFile(this.#path, 'utf8')).split('\n').filter((line) => line !== '')
    await writeFile(`${this.#path}.new`, `${lines.slice(-HISTORY_ENTRIES_MAX / 2).join('\n')}\n`)
    await rename(`${this.#path}.new`, this.#path)
  }
}
