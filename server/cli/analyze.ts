/**
 * `swam analyze`: what of an image would cross the link. The words, the signals and the exit code; the work is in
 * server/analyze/. It asks no daemon, so no failure of it is "not reachable".
 */
import type { ImageFormat } from '../../lib/catalog/image-files.ts'
import { errorText, LostError, RefusedError, TimeoutError } from '../../lib/core/errors.ts'
import { type AnalyzeReport, analyze } from '../analyze/analyze.ts'
import { SOURCE_NAMES } from '../report.ts'
import type { GlobalOptions, Output } from './context.ts'
import { bytesText, durationText, jsonLine, plainText, shareText, tableText } from './format.ts'
import { SOURCE_WORDS } from './status.ts'

export interface AnalyzeCommandOptions extends GlobalOptions {
  readonly have?: readonly string[]
  readonly inPlace?: string
  readonly backing?: readonly string[]
  readonly format?: ImageFormat
}

const SIGNALS = ['SIGINT', 'SIGTERM', 'SIGHUP'] as const

/** Throws what exit-codes.ts knows, when an image cannot be used, or what arrived is not what was sent. */
export async function analyzeCommand(
  target: string,
  options: AnalyzeCommandOptions,
  output: Output,
): Promise<void> {
  const { have = [], backing = [], inPlace, format } = options
  const report = await interruptible('analyze', (signal) =>
    analyze({
      target,
      have,
      backing,
      ...(inPlace === undefined ? {} : { inPlace }),
      ...(format === undefined ? {} : { format }),
      signal,
      onNote: (text) => output.err(`swam: ${plainText(text)}\n`),
    }),
  )
  output.out(options.json === true ? jsonLine(report) : `${analyzeText(report)}\n`)
}

/** Until the work is done, a signal that would end us ends the work, which then cleans up. */
export async function interruptible<Result>(
  what: string,
  work: (signal: AbortSignal) => Promise<Result>,
): Promise<Result> {
  const abort = new AbortController()
  const onSignal = (name: string): void => abort.abort(new RefusedError(`${what}: interrupted by ${name}`))
  for (const name of SIGNALS) process.once(name, onSignal)
  try {
    return await work(abort.signal)
  } catch (error) {
    const daemonless = error instanceof LostError || error instanceof TimeoutError
    throw daemonless ? new RefusedError(errorText(error)) : error
  } finally {
    for (const name of SIGNALS) process.removeListener(name, onSignal)
  }
}

export function analyzeText(report: AnalyzeReport): string {
  const { bySource, dataBytes, wireBytes } = report
  const rows = SOURCE_NAMES.filter((name) => name !== 'digest' && bySource[name] > 0).map((name) => [
    SOURCE_WORDS[name],
    bytesText(bySource[name]),
    name === 'zero' ? '' : shareText(bySource[name], dataBytes),
  ])
  rows.push(['on the wire', bytesText(wireBytes), shareText(wireBytes, dataBytes)])
  rows.push(['of it digests', bytesText(bySource.digest), shareText(bySource.digest, dataBytes)])
  const images = report.haveImages === 1 ? '1 image' : `${report.haveImages} images`
  return [
    `${plainText(report.target)}: ${report.format}, ${bytesText(report.size)}, of it ${bytesText(dataBytes)} not zero`,
    `the far side has ${images}, scanned in ${durationText(report.indexSeconds * 1000)}`,
    '',
    tableText(['source', 'bytes', 'of the data'], rows),
    '',
    `${durationText(report.seconds * 1000)}, ${report.mbPerSecond.toFixed(0)} MB/s, ` +
      `${report.sha256Ratio.toFixed(2)} of SHA-256 on one thread; every byte was compared with the image`,
  ].join('\n')
}
