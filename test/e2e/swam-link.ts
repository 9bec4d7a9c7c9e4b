/**
 * Rows in which the link breaks in the middle of a migration: what happens to it, when, and what must come out. A row ends
 * either complete and equal, or failed with the guest running on at the source, its disk whole, and a reason; libvirt and
 * QEMU's monitor answer meanwhile.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { BREAK_MS, FLUSH_DEADLINE_MS, FLUSH_WATCH_MS, RESUME_MS } from '../../lib/core/limits.ts'
import type { MigrationReport } from '../../server/report.ts'
import type { LabHost } from '../lab/host.ts'
import type { Lab, MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import {
  arrived,
  begin,
  type Moment,
  nothingLeft,
  other,
  RESTLESS,
  reach,
  runsOn,
  SLACK_MS,
  settle,
  watchAnswers,
} from './swam-failing.ts'
import { assertDone, entry, logs, startBoth, status, swamLab } from './swam-lab.ts'

export type Fault =
  /** Packets get lost, all of them, for so long; undefined: until it failed. */
  | { readonly kind: 'cut'; readonly ms: number | undefined }
  /** The SSH connection of that bundle is killed. */
  | { readonly kind: 'connection'; readonly bundle: 'disk' | 'ram' }
  /** The source's sshd with all that it serves; it comes back after so long. */
  | { readonly kind: 'sshd'; readonly backMs: number | undefined }
  /** From here to the end of the migration. */
  | { readonly kind: 'loss'; readonly share: number }

export interface LinkRow {
  readonly name: string
  readonly moment: Moment
  readonly fault: Fault
  /** `either`: as the moment has it. */
  readonly outcome: 'done' | 'failed' | 'either'
  /** At least so often the link must have been replaced when it is done. */
  readonly resumes: number
}

/** QEMU waits for its disk: the deadline of its requests, and how often it is looked at. */
const DISK_GIVES_UP_MS = FLUSH_DEADLINE_MS + FLUSH_WATCH_MS
/** Nothing of QEMU waits: until the break is noticed, then until the time to resume is up. */
const LINK_GIVES_UP_MS = BREAK_MS + RESUME_MS
const PING_SLACK_MS = 6000
const FAST_MIB_PER_SECOND = '100000'
const FAST_MBIT = 1000
/** Slow enough that the bulk is still under way when the fault comes. */
const LINK_MBIT = 200

/** The rows one after the other with one guest, which stays where the row before left it. */
export async function linkRows(t: TestContext, part: string, rows: readonly LinkRow[]): Promise<void> {
  await using lab = await swamLab(part, { mbit: LINK_MBIT })
  const guest = lab.tinyGuest(RESTLESS)
  await guest.create('hosta')
  await guest.waitBoot()
  let at: HostName = 'hosta'
  for (const row of rows) {
    await t.test(row.name, async (context) => {
      const result = await linkBreaks(lab, guest, at, row)
      context.diagnostic(result.figures)
      at = result.at
    })
    assert.ok(await settle(lab, guest, at), `${row.name}: the guest is not where the next row expects it`)
  }
}

interface LinkOutcome {
  readonly done: MigrateResult
  readonly at: HostName
  readonly figures: string
}

async function linkBreaks(lab: Lab, guest: TinyGuest, from: HostName, row: LinkRow): Promise<LinkOutcome> {
  await startBoth(lab)
  await guest.waitProgress(2)
  const source = lab.host(from)
  const since = Date.now()
  const started = await begin(lab, guest, from, { args: ['--suspend'] })
  await reach(lab, guest, from, row.moment, started)
  started.goesOn()
  const told = guest.durable()
  const answers = watchAnswers(source, guest)
  const brokenAt = lab.now()
  const failure = await strike(lab, from, guest, row.fault, since)
  // Whatever is left of memory and disk shall not take for ever.
  await lab.wan.set({ mbit: FAST_MBIT })
  await source.exec('virsh', ['migrate-setspeed', guest.name, FAST_MIB_PER_SECOND], { check: false })
  const done = await started.result
  await lab.wan.set({ loss: 0 })
  const silent = await answers.stop()
  const out = await entry(lab, from, guest, since)
  const gap = await guest.longestGap(brokenAt, Math.min(lab.now(), done.endedAt + SLACK_MS))
  const pauseMs = gap.fromMs + gap.ms - Math.max(gap.fromMs, brokenAt)
  const figures = [
    `virsh ${done.ok ? 'done' : 'failed'} after ${seconds(done.endedAt - brokenAt)}`,
    ...(failure === undefined ? [] : [`swamd gave it up after ${seconds(failure - brokenAt)}`]),
    `resumed ${out.breaks} times`,
    `guest still for ${seconds(pauseMs)}`,
    `domjobinfo ${seconds(silent.domjobinfo)}`,
    `monitor ${seconds(silent.monitor)}`,
    out.error ?? '',
  ].join(', ')
  try {
    if (row.outcome !== 'either') assert.equal(done.ok, row.outcome === 'done', 'the outcome')
    // QEMU holds its main lock while it sends the last of the memory, with SWAM or without.
    const paused = row.moment === 'memory' || row.moment === 'flush'
    const bound = DISK_GIVES_UP_MS + (paused ? BREAK_MS : 0) + SLACK_MS
    assert.ok(silent.domjobinfo < bound, `libvirt answers within ${bound} ms`)
    assert.ok(silent.monitor < bound, `the monitor answers within ${bound} ms`)
    if (failure !== undefined) {
      const most = (row.moment === 'ready' ? LINK_GIVES_UP_MS : DISK_GIVES_UP_MS + BREAK_MS) + PING_SLACK_MS
      assert.ok(failure - brokenAt < most, `given up within ${most} ms`)
    }
    if (done.ok) await complete(lab, guest, from, row, out, since)
    else {
      assert.equal(out.phase, 'failed')
      assert.match(
        out.error ?? '',
        /flushDeadlineMs is|was not resumed within|cannot be resumed|broken link/,
        JSON.stringify(out),
      )
      await runsOn(lab, guest, from, told)
    }
    await nothingLeft(lab, lab.now())
  } catch (error) {
    throw new Error(`${row.name}: ${figures}\n${done.stderr}\n${logs(lab)}`, { cause: error })
  }
  return { done, at: done.ok ? other(from) : from, figures }
}

async function complete(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  row: LinkRow,
  out: MigrationReport,
  since: number,
): Promise<void> {
  assertDone(out)
  assertDone(await entry(lab, other(from), guest, since))
  assert.ok(out.breaks >= row.resumes, `resumed ${out.breaks} times, expected ${row.resumes}`)
  assert.equal(out.linkBroken, false)
  await arrived(lab, guest, from)
}

/** Gives when the source's daemon said that it is over, where the fault lasts until then. */
async function strike(
  lab: Lab,
  from: HostName,
  guest: TinyGuest,
  fault: Fault,
  since: number,
): Promise<number | undefined> {
  const source = lab.host(from)
  let at: number | undefined
  const lasts = async (ms: number | undefined): Promise<void> => {
    if (ms !== undefined) {
      await new Promise((resolve) => setTimeout(resolve, ms))
      return
    }
    const report = await entry(lab, from, guest, since)
    at = lab.now()
    assert.equal(report.phase, 'failed', JSON.stringify(report))
  }
  switch (fault.kind) {
    case 'cut':
      await lab.wan.set({ cut: true })
      await lasts(fault.ms).finally(() => lab.wan.set({ cut: false }))
      return at
    case 'connection':
      await killConnection(lab, source, guest, fault.bundle)
      return undefined
    case 'loss':
      await lab.wan.set({ loss: fault.share })
      return undefined
    case 'sshd':
      await killSshd(source)
      await lasts(fault.backMs).finally(() => startSshd(source))
      return at
  }
}

async function killConnection(
  lab: Lab,
  source: LabHost,
  guest: TinyGuest,
  bundle: 'disk' | 'ram',
): Promise<void> {
  const found = (await status(lab, source.name))?.migrations.find((one) => one.guest === guest.name)
  const connection = found?.connections.find(({ kind }) => kind === bundle)
  assert.ok(connection, `no ${bundle} connection: ${JSON.stringify(found)}`)
  const { stdout } = await source.exec('ss', ['-tnpH', `dport = :${connection.remotePort}`])
  const pids = new Set([...stdout.matchAll(/"sshd[^"]*",pid=(\d+)/g)].map((match) => match[1]!))
  assert.ok(pids.size > 0, `no sshd serves it: ${stdout}`)
  // The one of two that is second ends by itself.
  await source.exec('kill', ['-9', ...pids], { check: false })
}

/** The listener and everything it serves, found by parentage from the lab's own pid file. */
async function killSshd(host: LabHost): Promise<void> {
  const script = [
    'tree() { echo $1; for c in $(ps -o pid= --ppid $1); do case $(ps -o comm= -p $c) in sshd*) tree $c;; esac; done; }',
    'pids=$(tree $(cat /run/sshd.pid))',
    'kill -9 $pids || true',
  ].join('\n')
  await host.shell(script)
}

async function startSshd(host: LabHost): Promise<void> {
  await host.exec('/usr/sbin/sshd', ['-f', '/etc/ssh/sshd_config', '-E', '/var/log/swam-lab/sshd.log'])
  await until(`sshd on ${host.name}`, 10_000, async () => {
    const { stdout } = await host.exec('ss', ['-Hltn', 'sport = :22'], { check: false })
    return stdout.trim() === '' ? undefined : true
  })
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}
