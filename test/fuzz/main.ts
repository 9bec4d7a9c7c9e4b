/**
 * One group of targets in a process of its own: `bin/node test/fuzz/main.ts GROUP [--seconds N] [--seed N] [--trace FILE]
 * [--keep]`, or `--input FILE --target NAME` to run one input again. Prints a line for each target at the end; exits with
 * 1 when it found something, and says where the input lies. `--keep` saves what ran new code to out/fuzz.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { random } from '../random.ts'
import { corpusOf, saveFinding } from './corpus.ts'
import { Coverage } from './coverage.ts'
import { TargetFuzzer } from './fuzzer.ts'
import { GROUPS } from './groups.ts'
import { Finding } from './target.ts'
import { Trace } from './trace.ts'

/** Targets of one group take turns, so that each gets its share also of a short run. */
const TURN_MS = 250

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    seconds: { type: 'string', default: '60' },
    seed: { type: 'string' },
    trace: { type: 'string' },
    keep: { type: 'boolean', default: false },
    target: { type: 'string' },
    input: { type: 'string' },
  },
})

const ROOT = new URL('../..', import.meta.url).href
const OWN = ['lib/', 'server/', 'config/', 'hooks/'].map((folder) => `${ROOT}${folder}`)

async function main(): Promise<void> {
  const targets = (GROUPS[positionals[0] ?? ''] ?? Object.values(GROUPS).flat()).filter(
    ({ name }) => values.target === undefined || name === values.target,
  )
  const seed = values.seed === undefined ? Date.now() % 2 ** 31 : Number(values.seed)
  const trace = new Trace(values.trace)
  const coverage = new Coverage((url) => OWN.some((folder) => url.startsWith(folder)))
  const parts = { random: random(seed), coverage, trace }
  process.stdout.write(`seed ${seed}\n`)
  const fuzzers = targets.map((target) => {
    const seeds =
      values.input === undefined
        ? corpusOf(target.name).map(({ bytes }) => bytes)
        : [readFileSync(values.input)]
    return new TargetFuzzer(target, seeds, parts)
  })
  // What nobody awaits any more belongs to the input that runs now, or to the one before.
  const stray = Promise.withResolvers<never>()
  for (const event of ['uncaughtException', 'unhandledRejection'] as const) {
    process.on(event, (error: unknown) => stray.reject(error))
  }
  const work = async (): Promise<void> => {
    for (const fuzzer of fuzzers) await fuzzer.replay()
    if (values.input !== undefined) return
    const until = performance.now() + Number(values.seconds) * 1000
    while (performance.now() < until) {
      for (const fuzzer of fuzzers) await fuzzer.run(Math.min(TURN_MS, until - performance.now()))
    }
  }
  await Promise.race([work(), stray.promise])
  for (const { target, executions, kept } of fuzzers) {
    process.stdout.write(`${target.name}: ${executions} inputs, ${kept.length} of them ran new code\n`)
    if (values.keep) for (const input of kept) saveFinding(target.name, 'new', input)
  }
  process.stdout.write(`${coverage.functions} functions of our own were run\n`)
}

try {
  await main()
  process.exit(0)
} catch (error) {
  process.stderr.write(`${error instanceof Error ? (error.stack ?? error.message) : String(error)}\n`)
  if (error instanceof Finding) {
    const path = saveFinding(error.target, 'crash', error.input)
    process.stderr.write(`the input lies in ${path.slice(fileURLToPath(ROOT).length)}\n`)
  }
  process.exit(1)
}
