/**
 * How many bytes have to cross the link for an image when the far side has others: SWAM, the ideal, casync, borg, restic on
 * the same pairs of images. Every figure stands only when what arrived has the SHA-256 of the original. A figure that cannot be
 * had is null, its reason is among `failures`, and the others are measured all the same: they take minutes.
 */
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { errorText } from '../../lib/core/errors.ts'
import { commitOfTree } from '../demo/report.ts'
import { BACKUP_TOOLS, BackupStores, type BackupToolName, backupToolVersions } from './backup-tools.ts'
import { idealBytes } from './ideal.ts'
import { imagePairs, type Pair } from './pairs.ts'
import { inScratch } from './scratch.ts'
import { swamBytes } from './swam-bytes.ts'

const COLUMNS = ['swam', 'ideal', 'casync', 'borg', 'borg4k', 'restic'] as const
type Column = (typeof COLUMNS)[number]

interface Measured {
  readonly bytes: number
  /** What else was seen: seconds, and how the bytes come about. */
  readonly samples: object
}

type PairResult = Record<Column, number | null> & {
  name: string
  kind: string
  /** Of the target, in 4 KiB blocks that are not zero. */
  dataBytes: number
  samples: Partial<Record<Column, object>>
}

export interface WanBytes {
  readonly version: 1
  readonly name: 'wan-bytes'
  readonly commit: string
  readonly startedAt: string
  /** Debian versions of the programs, and of the zstd in Node that packs the ideal. */
  readonly tools: Readonly<Record<string, string>>
  readonly images: readonly object[]
  readonly pairs: readonly PairResult[]
  readonly failures: readonly string[]
}

export async function run(): Promise<WanBytes> {
  const startedAt = new Date().toISOString()
  const commit = commitOfTree()
  const tools = { ...(await backupToolVersions()), zstd: process.versions['zstd'] ?? 'unknown' }
  const pairs = await imagePairs()
  const results: PairResult[] = pairs.map(({ name, kind, target: { dataBytes } }) => {
    const figures = { swam: null, ideal: null, casync: null, borg: null, borg4k: null, restic: null }
    return { name, kind, dataBytes, ...figures, samples: {} }
  })
  const failures: string[] = []
  await inScratch(async (folder) => {
    for (const column of COLUMNS) {
      const place = join(folder, column)
      await mkdir(place)
      const measure = measureOf(column, place)
      for (const [number, pair] of pairs.entries()) {
        const failure = await note(results[number]!, column, async () => await measure(pair))
        if (failure !== undefined) failures.push(failure)
      }
      await rm(place, { recursive: true })
    }
  })
  const images = [...new Set(pairs.flatMap(({ target, have }) => [target, ...have]))]
  return { version: 1, name: 'wan-bytes', commit, startedAt, tools, images, pairs: results, failures }
}

/** A row for each pair, in MB (a million bytes). */
export function table({
  commit,
  startedAt,
  pairs,
}: Pick<WanBytes, 'commit' | 'startedAt' | 'pairs'>): string {
  const rows = pairs.map((pair) => [
    pair.name,
    megabytes(pair.dataBytes),
    ...COLUMNS.map((column) => megabytes(pair[column])),
    pair.swam === null || pair.ideal === null ? '-' : (pair.swam / pair.ideal).toFixed(3),
  ])
  const lines = [['MB', 'data', ...COLUMNS, 'swam/ideal'], ...rows].map(([first, ...rest]) =>
    [first!.padEnd(16), ...rest.map((cell) => cell.padStart(12))].join(''),
  )
  return [`wan-bytes, ${startedAt}, commit ${commit}`, ...lines].join('\n')
}

function megabytes(bytes: number | null): string {
  return bytes === null ? 'none' : (bytes / 1e6).toFixed(2)
}

/** Measures one figure into the result; gives the reason when it cannot be had. */
async function note(
  result: PairResult,
  column: Column,
  measure: () => Promise<Measured>,
): Promise<string | undefined> {
  try {
    const { bytes, samples } = await measure()
    result[column] = bytes
    result.samples[column] = samples
    process.stderr.write(`${column}: ${result.name}: ${bytes} bytes ${JSON.stringify(samples)}\n`)
    return undefined
  } catch (error) {
    const failure = `${column}: ${result.name}: ${errorText(error)}`
    process.stderr.write(`${failure}\n`)
    return failure
  }
}

function measureOf(column: Column, folder: string): (pair: Pair) => Promise<Measured> {
  if (column === 'swam') return measureSwam
  if (column === 'ideal') return async (pair) => await measureIdeal(pair, folder)
  return measureTool(column, folder)
}

async function measureSwam({ name, target, have }: Pair): Promise<Measured> {
  const figure = await swamBytes(target.path, paths(have))
  const { wireBytes, bySource, seconds, verified } = figure
  if (!verified)
    throw new Error(`swam analyze ${name}: expected what arrived to be verified, found it is not`)
  return { bytes: wireBytes, samples: { seconds, bySource } }
}

async function measureIdeal({ name, target, have }: Pair, folder: string): Promise<Measured> {
  const started = performance.now()
  const { bytes, blocks, sha256 } = await idealBytes(target.path, paths(have), folder)
  expectSha256(`the ideal of ${name}, put together again`, target.sha256, sha256)
  return { bytes, samples: { seconds: Math.round((performance.now() - started) / 100) / 10, blocks } }
}

function measureTool(name: BackupToolName, folder: string): (pair: Pair) => Promise<Measured> {
  const tool = BACKUP_TOOLS.find((one) => one.name === name)!
  const stores = new BackupStores(tool, folder)
  return async (pair) => {
    const { bytes, sha256, ...samples } = await stores.measure(pair.have, pair.target)
    expectSha256(`${pair.name} out of the store of ${name}`, pair.target.sha256, sha256)
    return { bytes, samples }
  }
}

function paths(images: Pair['have']): string[] {
  return images.map(({ path }) => path)
}

function expectSha256(what: string, expected: string, found: string): void {
  if (found !== expected) throw new Error(`${what}: expected SHA-256 ${expected}, found ${found}`)
}
