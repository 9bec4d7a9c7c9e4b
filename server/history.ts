/**
 * The history: one JSON line a migration in stateDir/history.jsonl, appended when it ends. A torn line (a crash, a full
 * disk), or one that is no report at all, is skipped when reading. Kept short by rewriting once it is twice as long as it
 * should be.
 * What is under way stands in stateDir/running.json: whatever a daemon that was killed left there becomes history when
 * the next one starts.
 */
import { appendFile, readFile, rename, rm, stat, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import {
  HISTORY_ANSWER_CHARACTERS_MAX,
  HISTORY_BYTES_MAX,
  HISTORY_ENTRIES_MAX,
  HISTORY_LINES_MAX,
} from '../lib/core/limits.ts'
import { isReport, type MigrationReport } from './report.ts'

export class History {
  readonly #path: string
  readonly #runningPath: string
  #chain: Promise<void> = Promise.resolve()
  #anyRunning = true

  constructor(stateDir: string) {
    this.#path = join(stateDir, 'history.jsonl')
    this.#runningPath = join(stateDir, 'running.json')
  }

  /** Entries in the order in which they ended, the newest last. */
  async read(): Promise<MigrationReport[]> {
    return (await this.lines()).flatMap(entryOf)
  }

  /** The same as they stand in the file: each is the JSON of one. */
  async lines(): Promise<string[]> {
    await this.#chain
    const size = await stat(this.#path).then(
      ({ size }) => size,
      () => 0,
    )
    if (size === 0 || size > HISTORY_BYTES_MAX * 2) return []
    const lines = (await readFile(this.#path, 'utf8')).split('\n')
    const valid: string[] = []
    for (const [index, line] of lines.filter((one) => one !== '').entries()) {
      if (entryOf(line).length > 0) valid.push(line)
      // Years of migrations: other work goes on in between.
      if (index % HISTORY_LINES_MAX === 0) await new Promise((resolve) => setImmediate(resolve))
    }
    // Peers and guests give names of any length: an answer must fit what the CLI accepts.
    return newest(valid, HISTORY_ENTRIES_MAX, HISTORY_ANSWER_CHARACTERS_MAX)
  }

  /** Everything that was appended is in the file. */
  async settled(): Promise<void> {
    await this.#chain
  }

  /** What is under way now, in case that nobody can say it later. */
  async running(reports: readonly MigrationReport[]): Promise<void> {
    if (reports.length === 0 && !this.#anyRunning) return
    this.#anyRunning = reports.length > 0
    await this.#exclusive(async () => {
      if (reports.length === 0) {
        await rm(this.#runningPath, { force: true })
        return
      }
      await writeFile(
        `${this.#runningPath}.new`,
        `${reports.map((report) => JSON.stringify(report)).join('\n')}\n`,
      )
      await rename(`${this.#runningPath}.new`, this.#runningPath)
    })
  }

  /** At the start: what a daemon before this one left unfinished is failed, or went on without it. Gives how many. */
  async recover(error: string): Promise<number> {
    const text = await readFile(this.#runningPath, 'utf8').catch(() => '')
    const left = text.split('\n').flatMap(entryOf)
    const known = new Set((await this.read()).map(({ id }) => id))
    for (const report of left) {
      if (known.has(report.id)) continue
      const reason = report.accelerated ? null : (report.reason ?? error)
      await this.append({ ...report, phase: 'failed', error, reason, etaMs: null })
    }
    await this.running([])
    return left.length
  }

  async append(report: MigrationReport): Promise<void> {
    await this.#exclusive(async () => {
      // A torn line before this one must not swallow it.
      await appendFile(this.#path, `\n${JSON.stringify(report)}\n`)
      const { size } = await stat(this.#path)
      if (size > HISTORY_BYTES_MAX) await this.#shorten()
    })
  }

  /** One write at a time, in the order of the calls. */
  async #exclusive(work: () => Promise<void>): Promise<void> {
    const step = this.#chain.then(work)
    this.#chain = step.catch(() => undefined)
    await step
  }

  async #shorten(): Promise<void> {
    const lines = (await readFile(this.#path, 'utf8')).split('\n')
    // Half of the bytes too: a few long entries must not keep it long for ever.
    const kept = newest(lines, HISTORY_ENTRIES_MAX / 2, HISTORY_BYTES_MAX / 2)
    await writeFile(`${this.#path}.new`, `${kept.join('\n')}\n`)
    await rename(`${this.#path}.new`, this.#path)
  }
}

/** The last lines that are not empty, in their order: at most so many, with at most so many characters. */
function newest(lines: readonly string[], countMax: number, charactersMax: number): string[] {
  const found: string[] = []
  let characters = 0
  for (let at = lines.length - 1; at >= 0 && found.length < countMax; at--) {
    const line = lines[at]!
    if (line === '') continue
    characters += line.length
    if (characters > charactersMax) break
    found.push(line)
  }
  return found.reverse()
}

/** The entry that a line holds; none in an empty line, in the last line of a crash, or in what is no report. */
function entryOf(line: string): MigrationReport[] {
  try {
    const entry: unknown = JSON.parse(line)
    return isReport(entry) ? [entry] : []
  } catch {
    return []
  }
}
