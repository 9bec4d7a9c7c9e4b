/**
 * Fuzzes every decoder for a minute (SWAM_FUZZ_SECONDS: for another time), in groups that share a process; two groups run
 * at a time. A process that hangs or dies tells its last input through its trace file.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, before, describe, test } from 'node:test'
import { fileURLToPath } from 'node:url'
import { saveFinding } from './corpus.ts'
import { GROUPS } from './groups.ts'
import { readTrace } from './trace.ts'

const MAIN = fileURLToPath(new URL('main.ts', import.meta.url))
const SECONDS = Number(process.env['SWAM_FUZZ_SECONDS'] ?? 60)
/** No input takes this long, on the slowest machine: the process hangs. */
const HANG_MS = 60_000
const HEAP_MIB = 768

let folder = ''
before(async () => {
  folder = await mkdtemp(join(tmpdir(), 'swam-fuzz-'))
})
after(() => rm(folder, { recursive: true, force: true }))

describe('fuzzing', { concurrency: 2 }, () => {
  for (const [group, targets] of Object.entries(GROUPS)) {
    test(`${group}: ${targets.map(({ name }) => name).join(', ')}`, async (context) => {
      const trace = join(folder, `${group}.trace`)
      const child = spawn(
        process.execPath,
        [`--max-old-space-size=${HEAP_MIB}`, MAIN, group, '--seconds', `${SECONDS}`, '--trace', trace],
        // Code from a cache counts its blocks less exactly.
        {
          stdio: ['ignore', 'pipe', 'pipe'],
          env: { ...process.env, NODE_DISABLE_COMPILE_CACHE: '1' },
        },
      )
      let output = ''
      for (const stream of [child.stdout, child.stderr]) {
        stream.on('data', (bytes: Buffer) => (output += bytes.toString()))
      }
      let last = { count: -1, since: performance.now() }
      let hung = false
      const watcher = setInterval(() => {
        const count = readTrace(trace)?.count ?? 0
        if (count !== last.count) last = { count, since: performance.now() }
        else if (performance.now() - last.since > HANG_MS) {
          hung = true
          child.kill('SIGKILL')
        }
      }, 2000)
      const [code, signal] = (await once(child, 'close')) as [number | null, NodeJS.Signals | null]
      clearInterval(watcher)
      for (const line of output.trimEnd().split('\n')) context.diagnostic(line)
      if (code === 0) return
      if (code !== 1) {
        const traced = readTrace(trace)
        const path = traced && saveFinding(traced.target, hung ? 'hang' : 'death', traced.input)
        output += `\nits last input lies in ${path}`
      }
      assert.fail(`${hung ? 'hung' : `exit ${code}, signal ${signal}`}\n${output}`)
    })
  }
})
