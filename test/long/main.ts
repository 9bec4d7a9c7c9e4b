/**
 * `make test-long`: the tests of the lab one after another, the soak last, and beside them an hour of fuzzing and the engine's
 * seeds, SCHED_IDLE so that they take what processor time is left. With arguments only those files. It writes out/test-long.md: when,
 * which commit, which machine, every test with its time and what it said; as far as it came, if it is cut short.
 */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, globSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { cpus, release } from 'node:os'
import { parseArgs } from 'node:util'
import { run } from '../lab/run.ts'
import type { Ended } from './reporter.ts'

const OUT = 'out'
const FUZZ_SECONDS = 1200 // three turns of two groups: an hour
const SOAK_MINUTES = 60
const LAST = 'test/long/swam-resources.test.ts'
const SEEDS = 'test/long/engine-seeds.test.ts'

interface Part {
  readonly name: string
  readonly files: readonly string[]
  readonly before: readonly string[]
}

function results(part: Part): string {
  return `${OUT}/test-long-${part.name}.jsonl`
}

async function runPart(part: Part): Promise<boolean> {
  if (part.files.length === 0) return true
  rmSync(results(part), { force: true })
  const words = [
    ...part.before,
    process.execPath,
    '--test',
    '--test-concurrency=1',
    '--test-reporter=spec',
    '--test-reporter-destination=stdout',
    `--test-reporter=./test/long/reporter.ts`,
    `--test-reporter-destination=${results(part)}`,
    ...part.files,
  ]
  const env = {
    ...process.env,
    SWAM_FUZZ_SECONDS: process.env['SWAM_FUZZ_SECONDS'] ?? String(FUZZ_SECONDS),
    SWAM_SOAK_MINUTES: process.env['SWAM_SOAK_MINUTES'] ?? String(SOAK_MINUTES),
  }
  const child = spawn(words[0]!, words.slice(1), { stdio: ['ignore', 'inherit', 'inherit'], env })
  const [code] = (await once(child, 'close')) as [number | null]
  return code === 0
}

function ended(part: Part): Ended[] {
  if (!existsSync(results(part))) return []
  const text = readFileSync(results(part), 'utf8')
  return text
    .slice(0, text.lastIndexOf('\n') + 1)
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as Ended)
}

async function version(command: string): Promise<string> {
  return (await run(command, ['--version'], { check: false })).stdout.split('\n')[0]?.trim() ?? ''
}

async function summary(parts: readonly Part[], startedAt: Date, whole: string): Promise<string> {
  const git = async (...args: string[]): Promise<string> => (await run('git', args)).stdout.trim()
  const changed =
    (await git('status', '--porcelain', '--untracked-files=no')) === '' ? '' : ', with changes not committed'
  const all = parts.flatMap(ended)
  const failed = all.filter(({ ok }) => !ok)
  const minutes = Math.round((Date.now() - startedAt.getTime()) / 60_000)
  const lines = [
    `# ${startedAt.toISOString().slice(0, 16)}Z: make test-long at ${await git('rev-parse', '--short', 'HEAD')}${changed}`,
    '',
    `${whole}. ${all.length} tests, ${failed.length} failed, ${minutes} minutes.`,
    `${cpus().length} processors, kernel ${release()}; ${await version('qemu-system-x86_64')}; libvirt ${await version('virsh')}; node ${process.version}.`,
    '',
  ]
  for (const part of parts) {
    lines.push(
      `## ${part.name}: ${part.files.length} files`,
      '',
      '| test | | s | said |',
      '|---|---|---|---|',
    )
    for (const { name, ok, ms, said } of ended(part)) {
      const cells = [name, ok ? 'passed' : '**failed**', (ms / 1000).toFixed(1), said.join('; ')]
      lines.push(`| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |`)
    }
    lines.push('')
  }
  return lines.join('\n')
}

const { positionals } = parseArgs({ allowPositionals: true })
const files = positionals.length > 0 ? positionals : globSync('test/{fuzz,long}/**/*.test.ts').sort()
const isFuzz = (file: string): boolean => file.startsWith('test/fuzz/') || file === SEEDS
const labs = files.filter((file) => !isFuzz(file) && file !== LAST)
const parts: readonly Part[] = [
  { name: 'fuzz', files: files.filter(isFuzz), before: ['chrt', '--idle', '0'] },
  { name: 'lab', files: labs, before: [] },
  { name: 'resources', files: files.filter((file) => file === LAST), before: [] },
]
mkdirSync(OUT, { recursive: true })
for (const part of parts) rmSync(results(part), { force: true })
const startedAt = new Date()
const write = async (whole: string): Promise<void> =>
  writeFileSync(`${OUT}/test-long.md`, await summary(parts, startedAt, whole))
const [fuzz, lab, resources] = parts as [Part, Part, Part]
const interim = setInterval(() => void write('Under way, or cut short'), 60_000)
const passed = await Promise.all([
  runPart(fuzz),
  (async () => [await runPart(lab), await runPart(resources)].every(Boolean))(),
])
clearInterval(interim)
const what = positionals.length > 0 ? `Only ${positionals.join(', ')}` : 'Whole'
// A test that was ended from outside is in no list.
await write(passed.every(Boolean) ? what : `${what}, **not green, or cut short**`)
console.log(`${OUT}/test-long.md`)
process.exitCode = passed.every(Boolean) ? 0 : 1
