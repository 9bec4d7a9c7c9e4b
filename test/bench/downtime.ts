/**
 * How long a guest stands still: plain and SWAM in turn, the same guest there and back, at two round trips, with four kinds of
 * guests. By the world's clock (the gap between heartbeats, stamped by the lab), by libvirt's, and the disk's part of it: from the
 * moment at which QEMU paused the guest until the last FLUSH of its disk was answered; of a plain migration, until the far QEMU's
 * last answer was there, by the link. Most of that time nobody waits for the disk: libvirt has not asked for its last FLUSH yet. So
 * beside it what QEMU waited for answers of the disk in that time, by swamd. After each migration the guest's records must be on the disk that it arrived on, and where
 * it never writes both disks must be the same.
 */
import assert from 'node:assert/strict'
import { spawn } from 'node:child_process'
import { open } from 'node:fs/promises'
import { DISK_WAITS_MAX } from '../../lib/core/limits.ts'
import type { DiskWait } from '../../lib/engine/account.ts'
import type { MigrationReport } from '../../server/report.ts'
import { entry, history, startBoth } from '../e2e/swam-lab.ts'
import { Lab, type MigrateResult } from '../lab/lab.ts'
import type { WritePlan } from '../lab/records.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import type { WanConnection } from '../lab/wan.ts'

const RTTS = (process.env['SWAM_BENCH_RTTS'] ?? '20,100').split(',').map(Number)
const RUNS = Number(process.env['SWAM_BENCH_RUNS'] ?? 10)
const ONLY = process.env['SWAM_BENCH_GUESTS']?.split(',')
const MBIT = 1000
/** libvirt takes the first two ports of the range: memory, then disks. */
const DISK_PORT = 49153
const MIB = 1 << 20
const SIZES = { diskMiB: 512, randomMiB: 32, ramMiB: 112 }

/**
 * What each guest writes, once a second: 5 MB of scattered blocks, 4 MiB of a hot set of 64, 64 pages of a database. A plain mirror is
 * ready only at a moment at which nothing is dirty and nothing under way, and has 16 requests of adjacent 64 KiB under way in a
 * round trip: a guest that writes more often than in 100 ms, or to more places than these, is never migrated plain over such a link.
 */
const GUESTS: Readonly<Record<string, Partial<WritePlan>>> = {
  idle: { pattern: 'idle' },
  scattered: {
    pattern: 'scattered',
    bytes: 4096,
    batch: 1220,
    intervalMs: 1000,
    areaOffset: 128 * MIB,
    areaBytes: 16 * MIB,
  },
  hot: {
    pattern: 'scattered',
    bytes: 65_536,
    batch: 64,
    intervalMs: 1000,
    areaOffset: 128 * MIB,
    areaBytes: 64 * MIB,
  },
  database: {
    pattern: 'pages',
    bytes: 8192,
    batch: 64,
    intervalMs: 1000,
    areaOffset: 128 * MIB,
    areaBytes: 32 * MIB,
  },
}

interface Run {
  /** Between two heartbeats, by the lab's clock. */
  readonly worldMs: number
  readonly libvirtMs: number
  /** From the pause to the last FLUSH answered: by swamd, or by what the far QEMU's last answer was seen at the link. */
  readonly diskMs: number
  /** Of that, for how long an answer was waited for; of a plain migration nobody knows. */
  readonly waitMs: number | null
  /** The last waits for the disk, from the pause on. */
  readonly waits: readonly DiskWait[]
  readonly totalMs: number
  readonly wireBytes: number
  readonly diskWireBytes: number | null
}

interface Case {
  readonly guest: string
  readonly rttMs: number
  readonly plainMs: number
  readonly swamMs: number
  readonly diskMsP90: number
  readonly waitMsP90: number
  /** The median of plain's, and what 9 of 10 of them had at most. */
  readonly plainDiskMs: number
  readonly plainDiskMsP90: number
  readonly plain: readonly Run[]
  readonly swam: readonly Run[]
}

export async function run(): Promise<{ readonly mbit: number; readonly cases: readonly Case[] }> {
  const cases: Case[] = []
  for (const rttMs of RTTS) {
    for (const name of Object.keys(GUESTS)) {
      if (ONLY !== undefined && !ONLY.includes(name)) continue
      const one = await caseOf(name, rttMs)
      cases.push(one)
      process.stderr.write(`${line(one)}\n`)
    }
  }
  return { mbit: MBIT, cases }
}

function line({
  guest,
  rttMs,
  plainMs,
  swamMs,
  diskMsP90,
  waitMsP90,
  plainDiskMs,
  plainDiskMsP90,
  plain,
  swam,
}: Case): string {
  const mean = (runs: readonly Run[], of: (run: Run) => number): number =>
    runs.reduce((sum, one) => sum + of(one), 0) / runs.length
  return (
    `${guest.padEnd(10)} rtt ${String(rttMs).padStart(3)} ms: plain ${plainMs.toFixed(0)} ms, SWAM ${swamMs.toFixed(0)} ms ` +
    `(${(swamMs / plainMs).toFixed(2)}), disk's part in 9 of 10 at most ${diskMsP90.toFixed(0)} ms ` +
    `(median ${median(swam, (one) => one.diskMs).toFixed(0)}; plain ${plainDiskMsP90.toFixed(0)}, median ${plainDiskMs.toFixed(0)}), ` +
    `of it waiting ${waitMsP90.toFixed(0)} ms; total ` +
    `${mean(plain, (one) => one.totalMs / 1000).toFixed(1)} and ${mean(swam, (one) => one.totalMs / 1000).toFixed(1)} s, ` +
    `${mean(plain, (one) => one.wireBytes / 1e6).toFixed(1)} and ${mean(swam, (one) => one.wireBytes / 1e6).toFixed(1)} MB`
  )
}

export function table(result: object): string {
  return (result as { cases: readonly Case[] }).cases.map(line).join('\n')
}

async function caseOf(name: string, rttMs: number): Promise<Case> {
  await using lab = await Lab.up({ name: `bench-downtime-${process.pid}`, rttMs, mbit: MBIT, swam: true })
  const guest = lab.tinyGuest({ ...SIZES, write: GUESTS[name]! })
  await guest.create('hosta')
  await guest.waitBoot(120_000)
  const plain: Run[] = []
  const swam: Run[] = []
  let at: HostName = 'hosta'
  // The first one makes the far image, and is not counted. Then each goes there as often as back.
  const order = [
    'swam',
    ...Array.from({ length: RUNS }, (_, pair) =>
      pair % 2 === 0 ? ['plain', 'swam'] : ['swam', 'plain'],
    ).flat(),
  ]
  for (const [index, kind] of order.entries()) {
    const to: HostName = at === 'hosta' ? 'hostb' : 'hosta'
    const one = kind === 'plain' ? await goPlain(lab, guest, at, to) : await goThrough(lab, guest, at, to)
    if (index > 0) (kind === 'plain' ? plain : swam).push(one)
    at = to
    await verify(lab, guest, at)
  }
  const inNineOfTen = (figures: readonly number[]): number =>
    sorted(figures)[Math.ceil(figures.length * 0.9) - 1]!
  return {
    guest: name,
    rttMs,
    plainMs: median(plain, (one) => one.worldMs),
    swamMs: median(swam, (one) => one.worldMs),
    diskMsP90: inNineOfTen(swam.map((one) => one.diskMs)),
    waitMsP90: inNineOfTen(swam.map((one) => one.waitMs!)),
    plainDiskMs: median(plain, (one) => one.diskMs),
    plainDiskMsP90: inNineOfTen(plain.map((one) => one.diskMs)),
    plain,
    swam,
  }
}

/** What the guest was told is on the disk that it runs from, and what it never wrote is what lies at the other host. */
async function verify(lab: Lab, guest: TinyGuest, at: HostName): Promise<void> {
  const idle = guest.plan.pattern === 'idle'
  if (!idle) await guest.waitProgress(1)
  await lab.host(at).virsh('suspend', guest.name)
  if (!idle) {
    const check = await guest.check(guest.imagePath(at))
    assert.ok(check.ok, check.faults.join('\n'))
  }
  await compareOutside(guest, idle ? { start: 0, end: 0 } : areaOf(guest))
  await lab.host(at).virsh('resume', guest.name)
}

function areaOf({ plan }: TinyGuest): { start: number; end: number } {
  return { start: plan.areaOffset, end: plan.areaOffset + plan.areaBytes }
}

async function compareOutside(
  guest: TinyGuest,
  { start, end }: { readonly start: number; readonly end: number },
): Promise<void> {
  const files = await Promise.all([open(guest.imagePath('hosta')), open(guest.imagePath('hostb'))])
  try {
    for (let at = 0; at < guest.diskBytes; at += MIB) {
      if (at >= start && at < end) continue
      const [one, other] = await Promise.all(
        files.map(async (file) => (await file.read(Buffer.alloc(MIB), 0, MIB, at)).buffer),
      )
      assert.ok(one!.equals(other!), `the disks differ in the MiB at ${at}`)
    }
  } finally {
    await Promise.all(files.map((file) => file.close()))
  }
}

async function goPlain(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<Run> {
  for (const host of lab.hosts()) await host.stopSwamd()
  const { result, pausedAt, link, ...measured } = await go(lab, guest, from, to)
  const disk = link.connections.find((each) => (to === 'hostb' ? each.b : each.a).endsWith(`:${DISK_PORT}`))
  const answeredMs = to === 'hostb' ? disk?.dataBAMs : disk?.dataABMs
  assert.ok(typeof answeredMs === 'number', JSON.stringify(link.connections))
  const diskMs = link.resetAt + answeredMs - pausedAt
  assert.ok(diskMs >= 0, `the disk's last answer came ${-diskMs} ms before the guest paused`)
  return {
    ...measured,
    libvirtMs: libvirtMs(result),
    diskMs,
    waitMs: null,
    waits: [],
    totalMs: result.totalMs,
    diskWireBytes: null,
  }
}

async function goThrough(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<Run> {
  await startBoth(lab)
  const since = Date.now()
  const { result, pausedAt, link: _, ...measured } = await go(lab, guest, from, to)
  const report = await entry(lab, from, guest, since)
  const into = await entry(lab, to, guest, since)
  assert.ok(report.accelerated && into.accelerated && report.phase === 'done', JSON.stringify([report, into]))
  const flushedAt = Math.max(...report.disks.map((disk) => disk.flushedAt ?? 0))
  assert.ok(
    flushedAt >= pausedAt,
    `the last FLUSH was answered at ${flushedAt}, the guest paused at ${pausedAt}`,
  )
  return {
    ...measured,
    libvirtMs: libvirtMs(result),
    diskMs: flushedAt - pausedAt,
    waitMs: waitedMs(report, pausedAt),
    waits: (report.disks[0]!.waits ?? []).map(({ at, ms }) => ({ at: at - pausedAt, ms })),
    totalMs: result.totalMs,
    diskWireBytes: report.wireBytes - report.ram.wireBytes,
  }
}

/** QEMU's waits for the disk from then on. The account keeps the last few only: the oldest must be from before, or all be there. */
function waitedMs({ disks }: MigrationReport, from: number): number {
  assert.equal(disks.length, 1)
  const waits = disks[0]!.waits ?? []
  assert.ok(waits.length < DISK_WAITS_MAX || waits[0]!.at < from, JSON.stringify(waits))
  return waits.reduce((sum, { at, ms }) => sum + Math.max(0, Math.min(ms, at + ms - from)), 0)
}

interface Gone {
  readonly result: MigrateResult
  readonly worldMs: number
  readonly wireBytes: number
  /** By the wall clock, as `resetAt`, to which the link's times are related. */
  readonly pausedAt: number
  readonly link: { readonly resetAt: number; readonly connections: readonly WanConnection[] }
}

async function go(lab: Lab, guest: TinyGuest, from: HostName, to: HostName): Promise<Gone> {
  await lab.createTarget(guest.name, from, to)
  const pauses = await watchPauses(lab, guest, from)
  await lab.wan.reset()
  const since = Date.now()
  const result = await lab.migrate(guest, from, to)
  assert.ok(result.ok, `${result.stderr}\n${JSON.stringify(await history(lab, from).catch(() => []))}`)
  const worldMs = await guest.downtimeMs(result.startedAt, result.endedAt + 1000)
  const { connections, elapsedMs } = await lab.wan.stats()
  const link = { resetAt: Date.now() - elapsedMs, connections }
  const wireBytes = connections.reduce((sum, each) => sum + each.bytesAB + each.bytesBA, 0)
  const pausedAt = await until('libvirt to tell of the pause', 10_000, () =>
    pauses.at.findLast((ms) => ms >= since),
  )
  pauses.stop()
  return { result, worldMs, wireBytes, pausedAt, link }
}

function libvirtMs(result: MigrateResult): number {
  const text = result.jobinfo['Total downtime'] ?? result.jobinfo['Downtime w/o network'] ?? ''
  const ms = Number(/^(\d+) ms$/.exec(text)?.[1])
  assert.ok(Number.isFinite(ms), JSON.stringify(result.jobinfo))
  return ms
}

/** When libvirt said that the guest was paused, by the wall clock. */
async function watchPauses(
  lab: Lab,
  guest: TinyGuest,
  host: HostName,
): Promise<{ readonly at: number[]; stop(): void }> {
  const at: number[] = []
  let text = ''
  const ask = [
    '-c',
    'qemu:///system',
    'event',
    '--domain',
    guest.name,
    '--event',
    'lifecycle',
    '--loop',
    '--timestamp',
  ]
  const words = [...lab.host(host).enter(), 'virsh', ...ask]
  const child = spawn(words[0]!, words.slice(1), { stdio: ['ignore', 'pipe', 'ignore'] })
  child.stdout.setEncoding('utf8').on('data', (piece: string) => {
    text += piece
    const lines = text.split('\n')
    text = lines.pop()!
    for (const each of lines) {
      const time = /^(\d{4}-\d{2}-\d{2}) (\d{2}:\d{2}:\d{2}\.\d+)\+0000: .* Suspended /.exec(each)
      if (time !== null) at.push(Date.parse(`${time[1]}T${time[2]}Z`))
    }
  })
  await new Promise((resolve) => setTimeout(resolve, 300))
  const stop = (): void => {
    // virsh itself lives in the host, and ends when it has nobody to tell.
    child.stdout.destroy()
    child.kill()
  }
  return { at, stop }
}

function median(runs: readonly Run[], of: (run: Run) => number): number {
  return sorted(runs.map(of))[Math.floor(runs.length / 2)]!
}

function sorted(figures: readonly number[]): number[] {
  return figures.toSorted((x, y) => x - y)
}
