/**
 * `npm run bench -- NAME [--out FILE]`: runs one benchmark. FILE gets its one JSON object with all samples, the commit and the time; a table of
 * its plain numbers, or the bench's own, goes to stdout. A bench verifies what arrived and throws otherwise, or names what it could
 * not have in `failures`: exit 1, after the rest was given out. Nothing here judges a figure.
 */
import { writeFile } from 'node:fs/promises'
import { parseArgs } from 'node:util'
import { errorText } from '../../lib/core/errors.ts'
import { commitOfTree } from '../demo/report.ts'

interface Bench {
  run(): Promise<object & { readonly failures?: readonly string[] }>
  /** Set by a bench whose figures do not read well one below the other. */
  table?(result: object): string
}

const BENCHES: Readonly<Record<string, () => Promise<Bench>>> = {
  catalog: () => import('./catalog.ts'),
  chunk: () => import('./chunk.ts'),
  delta: () => import('./delta.ts'),
  downtime: () => import('./downtime.ts'),
  nbd: () => import('./nbd.ts'),
  peer: () => import('./peer.ts'),
  pipeline: () => import('./pipeline.ts'),
  resume: () => import('./resume.ts'),
  'wan-bytes': () => import('./wan-bytes.ts'),
}

function table(value: unknown, path = ''): string[] {
  if (typeof value !== 'object' || value === null) return [`${path.padEnd(56)} ${String(value)}`]
  if (Array.isArray(value) && value.every((item) => typeof item === 'number')) {
    return [`${path.padEnd(56)} ${value.map((item) => Math.round(item * 100) / 100).join('  ')}`]
  }
  return Object.entries(value).flatMap(([key, item]) => table(item, path === '' ? key : `${path}.${key}`))
}

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({ options: { out: { type: 'string' } }, allowPositionals: true })
  const load = BENCHES[positionals[0] ?? '']
  if (load === undefined || positionals.length !== 1) {
    process.stderr.write(
      `usage: npm run bench -- NAME [--out FILE], NAME one of: ${Object.keys(BENCHES).join(', ')}\n`,
    )
    return 2
  }
  const bench = await load()
  const commit = commitOfTree()
  const startedAt = new Date().toISOString()
  const result = { commit, startedAt, ...(await bench.run()) }
  process.stdout.write(`${bench.table?.(result) ?? table(result).join('\n')}\n`)
  if (values.out !== undefined) await writeFile(values.out, `${JSON.stringify(result)}\n`)
  for (const failure of result.failures ?? []) process.stderr.write(`bench: ${failure}\n`)
  return (result.failures ?? []).length === 0 ? 0 : 1
}

main().then(
  (code) => process.exit(code),
  (error: unknown) => {
    process.stderr.write(`bench: ${errorText(error)}\n`)
    process.exit(1)
  },
)
