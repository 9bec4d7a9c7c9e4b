/** `swam history`: every migration of this host, finished or failed, the latest last. */
import {
  type BySource,
  emptyBySource,
  type HistoryReport,
  type MigrationReport,
  SOURCE_NAMES,
} from '../report.ts'
import { ask, type GlobalOptions, type Output, ofGuest } from './context.ts'
import { bytesText, durationText, jsonLine, plainText, tableText, timeText } from './format.ts'
import { bySourceText } from './status.ts'

/** Of `guest` only, if one is named. Throws when the history has none of it (exit code 5). */
export async function historyCommand(
  guest: string | undefined,
  options: GlobalOptions,
  output: Output,
): Promise<void> {
  const all = (await ask(options, 'history')) as unknown as HistoryReport
  const report = { ...all, migrations: ofGuest(all.migrations, guest, 'swam history') }
  const text = (): string =>
    [historyText(report), ...(guest === undefined ? [] : proofLines(report))].join('\n')
  output.out(options.json === true ? jsonLine(report) : `${text()}\n`)
}

/** What both ends agreed on when the guest went on, for whoever compares them by eye; `swam verify` compares disks. */
export function proofLines({ migrations }: HistoryReport): string[] {
  return migrations.flatMap(({ startedAt, disks, verified, unverified }) => {
    const when = timeText(startedAt)
    if (typeof unverified === 'string') return [`${when}  not proved: ${plainText(unverified)}`]
    const lines = disks.flatMap(({ target, root, proof }) => {
      if (typeof root !== 'string' || proof === undefined || proof === null) return []
      const { leaves, provedLeaves, unreadLeaves } = proof
      const unread =
        unreadLeaves === null
          ? ''
          : unreadLeaves === 0
            ? ', read back'
            : `, ${unreadLeaves} of them not read back`
      return [`${when}  ${plainText(target)}  root ${root}  ${provedLeaves} of ${leaves} pieces${unread}`]
    })
    return verified === true ? lines : []
  })
}

export function historyText(report: HistoryReport): string {
  if (report.migrations.length === 0) return 'no migration yet'
  const heads = [
    'when',
    'guest',
    '',
    'peer',
    'result',
    'proof',
    'time',
    'downtime',
    'disk asked',
    'memory',
    'wire',
    '',
  ]
  const rows = report.migrations.map((migration) => [
    timeText(migration.startedAt),
    migration.guest,
    migration.direction === 'out' ? 'to' : 'from',
    migration.peer,
    resultText(migration),
    proofText(migration),
    durationText(migration.elapsedMs),
    durationText(migration.downtimeMs),
    bytesText(migration.disks.reduce((sum, disk) => sum + disk.askedBytes, 0)),
    bytesText(migration.ram.askedBytes),
    bytesText(migration.wireBytes),
    explanation(migration),
  ])
  return tableText(heads, rows)
}

function resultText(migration: MigrationReport): string {
  if (migration.phase !== 'done') return migration.phase
  return migration.accelerated ? 'done' : 'done, direct'
}

function proofText({ verified }: MigrationReport): string {
  if (verified === null) return ''
  return verified ? 'equal' : 'DIFFERED'
}

function explanation(migration: MigrationReport): string {
  if (migration.error !== null) return plainText(migration.error)
  if (!migration.accelerated) return plainText(migration.reason ?? 'not accelerated')
  const sum = emptyBySource()
  for (const disk of migration.disks) for (const name of SOURCE_NAMES) sum[name] += disk.bySource[name]
  return bySourceText(sum satisfies BySource)
}
