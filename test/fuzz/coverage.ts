/**
 * What of our own code was run, by V8's block counters (node:inspector, in this process). One look costs a quarter of a
 * millisecond, so the fuzzer takes one for a whole batch of inputs and looks closer only when something was new.
 *
 * V8 says which ranges of a function ran how often; inner ranges stand after the outer ones. A function's characters are
 * painted with that, once for the look and once for all looks: new is a character that was never run before.
 */
import { type Profiler, Session } from 'node:inspector'

export class Coverage {
  readonly #session = new Session()
  readonly #inside: (url: string) => boolean
  readonly #seen = new Map<string, Uint8Array>()

  /** @param inside which files count */
  constructor(inside: (url: string) => boolean) {
    this.#inside = inside
    this.#session.connect()
    this.#post('Profiler.enable')
    this.#post('Profiler.startPreciseCoverage', { callCount: true, detailed: true })
  }

  /** Functions that ran at least once. */
  get functions(): number {
    return this.#seen.size
  }

  /** What ran since the last look. */
  take(): Profiler.ScriptCoverage[] {
    const { result } = this.#post('Profiler.takePreciseCoverage') as Profiler.TakePreciseCoverageReturnType
    return result.filter(({ url }) => this.#inside(url))
  }

  /** True when a look shows something that no kept one did. @param keep from now on it is known */
  isNew(scripts: readonly Profiler.ScriptCoverage[], keep: boolean): boolean {
    let found = false
    for (const script of scripts) {
      for (const { ranges } of script.functions) {
        const whole = ranges[0]
        if (whole === undefined || whole.count === 0) continue
        const key = `${script.scriptId} ${whole.startOffset} ${whole.endOffset}`
        const seen = this.#seen.get(key)
        const painted = paint(ranges, whole.startOffset, whole.endOffset)
        if (seen !== undefined && !hasNew(painted, seen)) continue
        found = true
        if (!keep) return true
        if (seen === undefined) this.#seen.set(key, painted)
        else for (let at = 0; at < seen.length; at++) seen[at] = seen[at]! | painted[at]!
      }
    }
    return found
  }

  close(): void {
    this.#session.disconnect()
  }

  #post(method: string, parameters?: object): unknown {
    let failure: Error | null = null
    let answer: unknown
    // In the same thread the answer comes before post returns.
    this.#session.post(method, parameters, (error, result) => {
      failure = error
      answer = result
    })
    if (failure !== null) throw failure
    return answer
  }
}

function paint(ranges: readonly Profiler.CoverageRange[], start: number, end: number): Uint8Array {
  const painted = new Uint8Array(end - start)
  for (const range of ranges) {
    painted.fill(range.count > 0 ? 1 : 0, range.startOffset - start, range.endOffset - start)
  }
  return painted
}

function hasNew(painted: Uint8Array, seen: Uint8Array): boolean {
  for (let at = 0; at < seen.length; at++) if (painted[at]! > seen[at]!) return true
  return false
}
