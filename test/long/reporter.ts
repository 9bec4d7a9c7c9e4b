/**
 * A reporter of node's test runner: one JSON line for each test that ended, as it ends, so that a run that is cut short
 * leaves what it had. Keys: `file`, `name` (with the names of what it stands in), `ok`, `ms`, `said` (its diagnostics).
 */
import { relative } from 'node:path'
import type { TestEvent } from 'node:test/reporters'

export interface Ended {
  readonly file: string
  readonly name: string
  readonly ok: boolean
  readonly ms: number
  readonly said: readonly string[]
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
  for await (const event of source) {
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
        said: [],
      }
    } else if (event.type === 'test:diagnostic' && ended?.nesting === event.data.nesting) {
      ended.said.push(event.data.message)
    }
  }
  yield told()
}
