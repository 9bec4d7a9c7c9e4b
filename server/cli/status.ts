/** `swam status`: the daemon, the redirect, the peers, and the migrations that run now. */
import {
  type BySource,
  type MigrationReport,
  type ProcessReport,
  SOURCE_NAMES,
  type StatusReport,
} from '../report.ts'
import { ask, type GlobalOptions, type Output, ofGuest } from './context.ts'
import { bytesText, durationText, jsonLine, percentText, plainText, rateText, tableText } from './format.ts'

/** With the migrations of `guest` only, if one is named. Throws when none of it runs (exit code 5). */
export async function statusCommand(
  guest: string | undefined,
  options: GlobalOptions,
  output: Output,
): Promise<void> {
  const all = (await ask(options, 'status')) as unknown as StatusReport
  const report = { ...all, migrations: ofGuest(all.migrations, guest, 'swam status') }
  output.out(options.json === true ? jsonLine(report) : `${statusText(report, Date.now())}\n`)
}

export function statusText(report: StatusReport, wallMs: number): string {
  const { daemon, redirect, peers, migrations } = report
  const up = durationText(Math.max(0, wallMs - daemon.startedAt))
  const lines = [
    `swamd ${plainText(daemon.release)}, process ${daemon.pid}, up ${up}`,
    processText(report.process),
    redirectText(redirect),
    '',
  ]
  if (peers.length === 0) lines.push('no peers are configured')
  else {
    const rows = peers.map((peer) => [
      peer.name,
      peer.site === '' ? '-' : peer.site,
      peer.address,
      peer.up ? 'up' : 'down',
      durationText(peer.rttMs),
      peer.error ?? '',
    ])
    lines.push(tableText(['peer', 'site', 'address', 'state', 'round trip', ''], rows))
  }
  lines.push('')
  if (migrations.length === 0) lines.push('no migration is running')
  else {
    lines.push(
      tableText(['guest', '', 'peer', 'phase', 'done', 'asked', 'wire', 'rate', 'eta'], migrations.map(row)),
    )
    for (const migration of migrations) lines.push(...details(migration))
  }
  return lines.join('\n')
}

function processText(report: ProcessReport): string {
  const { maxMs, p99Ms, lastMinute } = report.eventLoop
  const files = report.openDescriptors === null ? '' : `, ${report.openDescriptors} open files`
  const delays = `last minute ${lastMinute.maxMs} ms, ever ${maxMs} ms, 99% below ${p99Ms} ms`
  return `memory ${bytesText(report.rssBytes)}${files}, longest delay of its work: ${delays}`
}

function redirectText(redirect: StatusReport['redirect']): string {
  if (redirect.mode === 'off') return 'redirect off: nothing is caught'
  const state = redirect.ok ? 'ok' : `broken: ${plainText(redirect.error ?? 'no reason known')}`
  const repaired =
    redirect.repairs === 0
      ? ''
      : `, repaired ${redirect.repairs} times (${plainText(redirect.lastRepair ?? '')})`
  return `redirect ${redirect.mode}: ${state}, ${redirect.armed} armed${repaired}`
}

function row(migration: MigrationReport): string[] {
  const { disks } = migration
  const asked = disks.reduce((sum, disk) => sum + disk.askedBytes, 0) + migration.ram.askedBytes
  const applied = disks.reduce((sum, disk) => sum + disk.appliedBytes, 0)
  const size = disks.reduce((sum, disk) => sum + disk.size, 0)
  return [
    migration.guest,
    migration.direction === 'out' ? 'to' : 'from',
    migration.peer,
    migration.phase,
    percentText(applied, size),
    bytesText(asked),
    bytesText(migration.wireBytes),
    rateText(migration.wireBytes, migration.elapsedMs),
    durationText(migration.etaMs),
  ]
}

function details(migration: MigrationReport): string[] {
  const name = plainText(migration.guest)
  if (!migration.accelerated)
    return [`${name}: not accelerated: ${plainText(migration.reason ?? 'no reason known')}`]
  const lines = migration.disks.map(
    (disk) => `${name} ${plainText(disk.target)}: ${bySourceText(disk.bySource)}`,
  )
  if (migration.linkBroken) lines.push(`${name}: the link broke, waiting for it to come back`)
  const { convergence } = migration
  if (convergence !== undefined && convergence !== null) {
    const [dirty, link] = [convergence.dirtyBytesPerSecond, convergence.linkBytesPerSecond].map((bytes) =>
      rateText(bytes, 1000),
    )
    const rates = `the guest dirties ${dirty}, the link takes ${link}`
    lines.push(`${name}: ${rates}${convergence.converges ? '' : ': it does not converge'}`)
  }
  if (migration.ram.askedBytes > 0) {
    const { askedBytes, wireBytes } = migration.ram
    lines.push(`${name} memory: ${bytesText(askedBytes)} asked, ${bytesText(wireBytes)} on the wire`)
  }
  return lines
}

/** What people read for the sources. */
export const SOURCE_WORDS: Readonly<Record<keyof BySource, string>> = {
  zero: 'zero',
  inPlace: 'in place',
  chunk: 'chunks of other images',
  block: 'blocks of other images',
  session: 'sent before',
  neighbour: 'neighbours',
  delta: 'delta',
  literal: 'sent',
  digest: 'digest',
}

export function bySourceText(bySource: BySource): string {
  const parts = SOURCE_NAMES.filter((name) => bySource[name] > 0).map(
    (name) => `${SOURCE_WORDS[name]} ${bytesText(bySource[name])}`,
  )
  return parts.length === 0 ? 'nothing yet' : parts.join(', ')
}
