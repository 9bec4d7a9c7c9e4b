/**
 * A reporter of node's test runner: one JSON line for each test that ended, as it ends, so that a run that is cut short
 * leaves what it had. Keys: `file`, `name` (with the names of what it stands in), `ok`, `ms`, `said` (its diagnostics; of one that
 * failed first why).
 */
import { relative } from 'node:path'
import type { TestEvent } from 'node:test/reporters'
import { setTimeout as sleep } from 'node:timers/promises'

const WHY_CHARACTERS_MAX = 2000
const QUIET_MS = 500
/** node's own last lines look like what the last test said. */
const TOTALS = /^(tests|suites|pass|fail|cancelled|skipped|todo|duration_ms) [\d.]+$/

export interface Ended {
  readonly file: string
  readonly name: string
  readonly ok: boolean
  readonly ms: number
  readonly said: readonly string[]
}

/** What was thrown first stands first: what wraps it may be as long as both hosts' logs. node wraps what a test throws. */
function why(error: Error): string {
  const texts: string[] = []
  for (let at: unknown = error.cause ?? error; at instanceof Error; at = at.cause)
    texts.unshift(at.message.replaceAll(/\s+/g, ' ').slice(0, WHY_CHARACTERS_MAX))
  return texts.length === 0 ? error.message : texts.join(' --- ').slice(0, 2 * WHY_CHARACTERS_MAX)
}

// biome-ignore lint/style/noDefaultExport: node's test runner takes a reporter by its default export
export default async function* lines(source: AsyncIterable<TestEvent>): AsyncGenerator<string> {
  const above: string[] = []
  let ended:
    | { nesting: number; file: string; name: string; ok: boolean; ms: number; said: string[] }
    | undefined
  const told = (): string => {
    if (ended === undefined) return ''
    const { file, name, ok, ms, said } = ended
    ended = undefined
    return `${JSON.stringify({ file, name, ok, ms, said } satisfies Ended)}\n`
  }
  const events = source[Symbol.asyncIterator]()
  for (;;) {
    const next = events.next()
    // What a test said comes at once with its end; the next one may take an hour.
    if (ended !== undefined && (await Promise.race([next, sleep(QUIET_MS)])) === undefined) yield told()
    const { value: event, done } = await next
    if (done === true) break
    if (event.type === 'test:start') {
      yield told()
      above.length = event.data.nesting
      above.push(event.data.name)
    } else if (event.type === 'test:pass' || event.type === 'test:fail') {
      yield told()
      const { nesting, file = '', name, details } = event.data
      ended = {
        nesting,
        file: relative(process.cwd(), file),
        name: [...above.slice(0, nesting), name].join(' > '),
        ok: event.type === 'test:pass',
        ms: Math.round(details.duration_ms),
        said: event.type === 'test:fail' ? [why(event.data.details.error)] : [],
      }
    } else if (event.type === 'test:diagnostic' && ended?.nesting === event.data.nesting) {
      if (!TOTALS.test(event.data.message)) ended.said.push(event.data.message)
    }
  }
  yield told()
}
