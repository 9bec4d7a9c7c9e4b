/** What the tests of the package on machines share: the package in two versions, apt, and what systemd says of swamd. */
import assert from 'node:assert/strict'
import { copyFileSync } from 'node:fs'
import { release as version } from '../../server/release.ts'
import type { HistoryReport, MigrationReport, StatusReport } from '../../server/report.ts'
import type { Machine } from '../lab/machine.ts'
import { run } from '../lab/run.ts'

/** The same tree under a higher version. */
export const NEWER = '99.1.2'

export async function buildBoth(): Promise<void> {
  for (const words of [[], [NEWER]]) {
    await run('debian/build', words, { timeoutMs: 600_000 })
  }
}

/** Both lie below /mnt then. */
export function share(machine: Machine): void {
  for (const one of [version(), NEWER]) {
    copyFileSync(`out/swam_${one}_amd64.deb`, `${machine.shared}/swam_${one}.deb`)
  }
}

/** `environment`: `NAME=value …`. Gives what it printed. */
export async function apt(machine: Machine, words: string, environment = ''): Promise<string> {
  const program = `env DEBIAN_FRONTEND=noninteractive ${environment} apt-get -q -y`
  const text = await machine.shell(`${program} ${words} 2>&1`, { timeoutMs: 400_000 })
  return text.replaceAll('\r\n', '\n')
}

export async function unit(machine: Machine, name = 'swamd'): Promise<Record<string, string>> {
  const text = await machine.shell(`systemctl show ${name}`)
  return Object.fromEntries(text.split('\n').map((line) => line.split(/=(.*)/s).slice(0, 2)))
}

export async function status(machine: Machine): Promise<StatusReport> {
  return JSON.parse(await machine.shell('swam status --json')) as StatusReport
}

export async function history(machine: Machine): Promise<readonly MigrationReport[]> {
  return (JSON.parse(await machine.shell('swam history --json')) as HistoryReport).migrations
}

/** The daemon answers, and systemd has heard its READY. Gives its pid. */
export async function isUp(machine: Machine, release: string): Promise<number> {
  const shown = await unit(machine)
  assert.deepEqual(
    [shown['ActiveState'], shown['SubState'], shown['Type'], shown['UnitFileState'], shown['Result']],
    ['active', 'running', 'notify', 'enabled', 'success'],
  )
  const { daemon, redirect } = await status(machine)
  assert.equal(daemon.release, release)
  assert.equal(String(daemon.pid), shown['MainPID'])
  assert.deepEqual([redirect.mode, redirect.ok], ['nft', true])
  return daemon.pid
}
