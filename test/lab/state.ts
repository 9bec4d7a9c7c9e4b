/**
 * What a lab remembers on disk: its options and every long-lived process it started, each with its start time.
 * Key idea: a process is only ever killed when the pid still has the start time that was recorded, so what a dead lab
 * left can be cleaned by whoever comes next, and a pid that was given to somebody else is left alone.
 * Namespaces and mounts need no record: they have no names and go with the processes.
 */
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { SwamError } from '../../lib/core/errors.ts'
import { until } from './run.ts'

export const HOST_NAMES = ['hosta', 'hostb'] as const
export type HostName = (typeof HOST_NAMES)[number]

export interface ProcessRecord {
  readonly role: string
  readonly pid: number
  /** Field 22 of /proc/PID/stat, in clock ticks since boot. */
  readonly start: string
}

export interface LabRecord {
  readonly version: 1
  readonly name: string
  readonly dir: string
  readonly samplesDir: string
  /** Who holds the lab; absent when it was made to outlive its maker (the command line). */
  readonly owner?: ProcessRecord
  readonly swam: boolean
  readonly processes: readonly ProcessRecord[]
  /** Process 1 of each host, seen from outside. */
  readonly inits: Readonly<Partial<Record<HostName, ProcessRecord>>>
}

export function labDir(name: string): string {
  if (!/^[a-z0-9][a-z0-9-]{0,30}$/.test(name)) {
    throw new SwamError('LAB_NAME', `lab name ${JSON.stringify(name)}: expected a-z, 0-9 and -, at most 31`)
  }
  return `/var/tmp/swam-lab-${name}`
}

export function startTime(pid: number): string | undefined {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, 'latin1')
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
    return fields[0] === 'Z' ? undefined : fields[19]
  } catch {
    return undefined
  }
}

export function recordOf(role: string, pid: number): ProcessRecord {
  const start = startTime(pid)
  if (start === undefined) throw new SwamError('LAB_PROCESS', `${role} (pid ${pid}) ended at once`)
  return { role, pid, start }
}

export function isAlive(record: ProcessRecord): boolean {
  return startTime(record.pid) === record.start
}

export function readRecord(dir: string): LabRecord | undefined {
  let text: string
  try {
    text = readFileSync(`${dir}/lab.json`, 'utf8')
  } catch {
    return undefined
  }
  const record = JSON.parse(text) as LabRecord
  if (record.version !== 1 || !Array.isArray(record.processes)) {
    throw new SwamError('LAB_STATE', `${dir}/lab.json: expected version 1 with processes`)
  }
  return record
}

export function writeRecord(record: LabRecord): void {
  mkdirSync(record.dir, { recursive: true, mode: 0o755 })
  writeFileSync(`${record.dir}/lab.json.new`, `${JSON.stringify(record, null, 1)}\n`)
  renameSync(`${record.dir}/lab.json.new`, `${record.dir}/lab.json`)
}

/** Ends what the record names and removes the state directory. Idempotent; does nothing where no lab was. */
export async function cleanLab(dir: string): Promise<void> {
  const record = readRecord(dir)
  if (record) {
    const all = [...Object.values(record.inits), ...record.processes]
    for (const each of all) {
      if (!isAlive(each)) continue
      try {
        process.kill(each.pid, 'SIGKILL')
      } catch {
        // It ended between the look and the kill.
      }
    }
    // A host's process 1 is gone only after everything in it is: then its mounts are gone as well.
    await until(`the processes of ${dir} to end`, 20_000, () => (all.some(isAlive) ? undefined : true), 10)
  }
  rmSync(dir, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 })
}

/** Cleans every lab whose holder was killed: names that carry a process id never come up again to be cleaned by. */
export async function sweepDead(): Promise<void> {
  for (const entry of readdirSync('/var/tmp')) {
    if (!/^swam-lab-[a-z0-9-]+$/.test(entry)) continue
    const owner = readRecord(`/var/tmp/${entry}`)?.owner
    if (owner && !isAlive(owner)) await cleanLab(`/var/tmp/${entry}`)
  }
}
