/**
 * What the demo leaves: out/demo.json (its newest whole run), out/demo-samples.jsonl and out/demo-heartbeats.gz (every
 * sample of every run, only ever appended), and the table on standard output. No figure is made here, only set in rows.
 */
import { spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  createReadStream,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  writeFileSync,
} from 'node:fs'
import { join, resolve } from 'node:path'
import { gzipSync } from 'node:zlib'

const REPOSITORY = resolve(import.meta.dirname, '../..')
const OUT = join(REPOSITORY, 'out')

export interface DemoImage {
  readonly host: string
  readonly path: string
  readonly sha256: string
}

export interface DemoRun {
  /** `swam-resumed`: out once more, and typed again after an attempt whose link was cut for good. Only the second one counts. */
  readonly name: 'plain-out' | 'swam-out' | 'swam-back' | 'swam-resumed'
  /** What QEMU asked to be written at the far side, without zeroes of holes. */
  readonly diskBytes: number
  readonly diskWireBytes: number
  readonly wireBytes: number
  readonly totalMs: number
  readonly equal: boolean
  /** Of the disk at the destination and of the one at the source, guest paused. */
  readonly sha256: string
  readonly sourceSha256: string
  /** Of `swam-resumed`: the attempt that failed. */
  readonly failed?: { readonly appliedBytes: number; readonly diskWireBytes: number }
}

export interface DemoReport {
  readonly version: 1
  readonly commit: string
  readonly startedAt: string
  readonly link: { readonly rttMs: number; readonly mbit: number }
  readonly images: readonly DemoImage[]
  readonly runs: readonly DemoRun[]
  readonly downtime: {
    readonly guest: string
    readonly plainMs: readonly number[]
    readonly swamMs: readonly number[]
  }
  readonly missingShare: number
}

export function commitOfTree(): string {
  const git = (...args: string[]): string => {
    const done = spawnSync('git', ['-c', 'safe.directory=*', '-C', REPOSITORY, ...args], { encoding: 'utf8' })
    return done.status === 0 ? done.stdout.trim() : ''
  }
  const commit = git('rev-parse', '--verify', '-q', 'HEAD') || 'none'
  return git('status', '--porcelain') === '' ? commit : `${commit}-dirty`
}

export function saveReport(report: DemoReport): string {
  mkdirSync(OUT, { recursive: true })
  const file = join(OUT, 'demo.json')
  writeFileSync(`${file}.new`, `${JSON.stringify(report, null, 2)}\n`)
  renameSync(`${file}.new`, file)
  return file
}

export function appendSample(sample: Readonly<Record<string, unknown>>): void {
  mkdirSync(OUT, { recursive: true })
  appendFileSync(join(OUT, 'demo-samples.jsonl'), `${JSON.stringify({ version: 1, ...sample })}\n`)
}

/** Every heartbeat that the lab stamped, as one more member of a gzip file. */
export function appendHeartbeats(directory: string, title: string): void {
  if (!existsSync(directory)) return
  const parts = readdirSync(directory)
    .toSorted()
    .map((name) => `# ${title} ${name}\n${readFileSync(join(directory, name), 'latin1')}`)
  mkdirSync(OUT, { recursive: true })
  if (parts.length > 0) appendFileSync(join(OUT, 'demo-heartbeats.gz'), gzipSync(parts.join('')))
}

export async function sha256File(path: string): Promise<string> {
  const hash = createHash('sha256')
  for await (const part of createReadStream(path, { highWaterMark: 4 << 20 })) hash.update(part as Buffer)
  return hash.digest('hex')
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((x, y) => x - y)
  const middle = sorted.length / 2
  return sorted.length % 2 === 1 ? sorted[Math.floor(middle)]! : (sorted[middle - 1]! + sorted[middle]!) / 2
}

export function demoTable(report: DemoReport): string {
  const { plainMs, swamMs } = report.downtime
  const head = ['run', 'disk asked', 'disk on the wire', 'all on the wire', 'total', 'downtime*', 'images']
  const mb = (bytes: number): string => `${(bytes / 1e6).toFixed(1)} MB`
  const plain = report.runs.find((run) => run.name === 'plain-out')
  const rows = report.runs.map((run) => {
    const samples = run.name === 'plain-out' ? plainMs : swamMs
    const ratio = plain && run !== plain ? ` (${(run.diskWireBytes / plain.diskWireBytes).toFixed(3)})` : ''
    return [
      run.name,
      mb(run.diskBytes),
      mb(run.diskWireBytes) + ratio,
      mb(run.wireBytes),
      `${(run.totalMs / 1000).toFixed(1)} s`,
      samples.length === 0 || !run.name.endsWith('-out') ? '-' : `${median(samples).toFixed(0)} ms`,
      run.equal ? 'equal' : 'DIFFER',
    ]
  })
  const widths = head.map((name, at) => Math.max(name.length, ...rows.map((row) => row[at]!.length)))
  const line = (cells: readonly string[]): string =>
    cells.map((cell, at) => (at === 0 ? cell.padEnd(widths[at]!) : cell.padStart(widths[at]!))).join('  ')
  const link = `${report.link.mbit} Mbit/s, ${report.link.rttMs} ms round trip`
  return [
    `Debian guest over ${link}; ${(report.missingShare * 100).toFixed(1)}% of its non-zero 4 KiB blocks are not in the base image`,
    line(head),
    ...rows.map(line),
    ...report.runs.flatMap(({ name, failed }) =>
      failed === undefined
        ? []
        : [
            `${name}: the second attempt, after the link was cut for good when ${mb(failed.appliedBytes)} were at the far side; the first one had put ${mb(failed.diskWireBytes)} on the wire`,
          ],
    ),
    `* median of ${plainMs.length} plain and ${swamMs.length} SWAM migrations of the ${report.downtime.guest} guest, by its heartbeats`,
  ].join('\n')
}
