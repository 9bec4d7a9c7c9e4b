/**
 * What the end-to-end tests of SWAM share: a lab with both daemons up, their `status` and `history` as objects, and the
 * link's own counters for the connections that a migration names. It holds nothing: a test owns its lab.
 * Deadlines are wide, because the lab may share two cores with others; what is measured is asserted by the tests.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import type { ConnectionReport, HistoryReport, MigrationReport, StatusReport } from '../../server/report.ts'
import { SOURCE_NAMES } from '../../server/report.ts'
import { Lab, type LabOptions, type MigrateOptions, type MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import type { WanConnection, WanStats } from '../lab/wan.ts'

export const MIB: number = 1 << 20

/** A guest that writes little: what changes meanwhile must not hide what is measured. */
export const QUIET: { readonly bytes: number; readonly intervalMs: number } = {
  bytes: 16384,
  intervalMs: 500,
}

/** Small and fast: a migration of it takes some seconds. */
export const SMALL: { readonly diskMiB: number; readonly randomMiB: number; readonly ramMiB: number } = {
  diskMiB: 256,
  randomMiB: 32,
  ramMiB: 80,
}

export async function swamLab(part: string, options: Omit<LabOptions, 'name' | 'swam'> = {}): Promise<Lab> {
  return await Lab.up({ rttMs: 10, mbit: 1000, ...options, name: `swam-${part}-${process.pid}`, swam: true })
}

/** Starts the daemons that do not run, and waits until each has its peer. */
export async function startBoth(lab: Lab): Promise<void> {
  await Promise.all(
    lab.hosts().map(async (host) => {
      if ((await host.swamdPid()) === undefined) await host.startSwamd()
    }),
  )
  await until('the daemons to know each other', 60_000, async () => {
    const reports = await Promise.all(lab.hosts().map(({ name }) => status(lab, name)))
    return reports.every((report) => report?.peers.every(({ up }) => up)) ? true : undefined
  })
}

/** What swamd says at that host; undefined when none answers. */
export async function status(lab: Lab, host: HostName): Promise<StatusReport | undefined> {
  const { code, stdout } = await lab.host(host).swam('status', '--json')
  return code === 0 ? (JSON.parse(stdout) as StatusReport) : undefined
}

export async function history(lab: Lab, host: HostName): Promise<readonly MigrationReport[]> {
  const { code, stdout, stderr } = await lab.host(host).swam('history', '--json')
  assert.equal(code, 0, stderr)
  const report = JSON.parse(stdout) as HistoryReport
  assert.equal(report.version, 1)
  return report.migrations
}

/** The newest entry about the guest that began after `startedAt`; a daemon writes it some seconds after the end. */
export async function entry(
  lab: Lab,
  host: HostName,
  guest: { readonly name: string },
  startedAt: number,
): Promise<MigrationReport> {
  return await until(`the history of ${guest.name} at ${host}`, 60_000, async () =>
    (await history(lab, host)).findLast((one) => one.guest === guest.name && one.startedAt >= startedAt),
  )
}

export interface Moved {
  readonly done: MigrateResult
  readonly out: MigrationReport
  readonly in: MigrationReport
  readonly link: WanStats
  /** What the daemons said while it ran. */
  readonly seen: Readonly<Record<HostName, readonly MigrationReport[]>>
}

export interface MoveOptions extends MigrateOptions {
  readonly watch?: boolean
  /** Not the whole disks are copied (`--copy-storage-inc`). */
  readonly partial?: boolean
  /** Disks that are copied, when not all are. */
  readonly copied?: readonly string[]
  /** Memory goes past SWAM. */
  readonly memoryDirect?: boolean
}

/**
 * A migration with `--suspend` that must go through SWAM: equal images, nothing around it on the link, and both
 * histories. The guest stays suspended at `to`.
 */
export async function moveThrough(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  to: HostName,
  options: MoveOptions = {},
): Promise<Moved> {
  const since = Date.now()
  await lab.wan.reset()
  const seen: Record<HostName, MigrationReport[]> = { hosta: [], hostb: [] }
  const watching = new AbortController()
  const watched = options.watch === true ? watch(lab, guest, seen, watching.signal) : Promise.resolve()
  const done = await lab
    .migrate(guest, from, to, { ...options, args: ['--suspend', ...(options.args ?? [])] })
    .finally(() => watching.abort())
  await watched
  assert.ok(done.ok, `${done.stderr}\n${logs(lab)}`)
  await assertEqual(lab, guest)
  await assertRecords(guest, to)
  const out = await entry(lab, from, guest, since)
  const into = await entry(lab, to, guest, since)
  const link = await lab.wan.stats()
  for (const [report, direction] of [
    [out, 'out'],
    [into, 'in'],
  ] as const) {
    assert.equal(report.direction, direction)
    assert.equal(report.uuid, guest.uuid)
    assertDone(report, options)
    assert.deepEqual(
      report.disks.map(({ target }) => target).sort(),
      options.copied ?? guest.disks.map(({ target }) => target),
    )
  }
  assert.equal(out.id, into.id)
  assert.deepEqual(direct(link), [], 'nothing goes around SWAM')
  return { done, out, in: into, link, seen }
}

/** Both hosts' disks of a guest that stands still. */
export async function assertEqual(lab: Lab, guest: TinyGuest): Promise<void> {
  for (const { target, format } of guest.disks)
    await lab.compareImages(guest.imagePath('hosta', target), guest.imagePath('hostb', target), format)
}

/** What the guest was told is on each of its disks at that host. */
export async function assertRecords(guest: TinyGuest, host: HostName): Promise<void> {
  for (const { target, options } of guest.disks) {
    if (options.content === 'none') continue
    const check = await guest.check(guest.imagePath(host, target), undefined, target)
    assert.ok(check.ok && check.blocks > 0, `${target}: ${check.faults.join('\n')}`)
  }
}

async function watch(
  lab: Lab,
  guest: TinyGuest,
  seen: Record<HostName, MigrationReport[]>,
  signal: AbortSignal,
): Promise<void> {
  while (!signal.aborted) {
    for (const { name } of lab.hosts()) {
      const report = await status(lab, name)
      const found = report?.migrations.find((one) => one.guest === guest.name)
      if (found !== undefined) seen[name].push(found)
    }
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

export function assertDone(
  report: MigrationReport,
  options: Pick<MoveOptions, 'partial' | 'memoryDirect'> = {},
): void {
  const text = JSON.stringify(report)
  assert.equal(report.accelerated, true, text)
  assert.equal(report.phase, 'done', text)
  assert.equal(report.error, null, text)
  assert.equal(report.reason, null, text)
  assert.ok(report.disks.length > 0, text)
  for (const disk of report.disks) {
    assert.ok(
      options.partial === true || disk.askedBytes >= disk.size,
      `a mirror copies the whole disk: ${text}`,
    )
    assert.equal(appliedBySource(disk.bySource), disk.appliedBytes, text)
    // What a newer write took the place of is asked for, and never applied.
    assert.ok(disk.appliedBytes > 0 && disk.appliedBytes <= disk.askedBytes, text)
  }
  assert.equal(report.ram.askedBytes > 0, options.memoryDirect !== true, text)
}

/** `digest` is what describing cost on the wire; the others are bytes of the disk. */
export function appliedBySource(bySource: MigrationReport['disks'][number]['bySource']): number {
  return SOURCE_NAMES.reduce((sum, name) => sum + (name === 'digest' ? 0 : bySource[name]), 0)
}

/** The link's counters of the connections that a report names; throws when the link knows one of them not. */
export function linkOf(
  link: WanStats,
  host: HostName,
  connections: readonly ConnectionReport[],
): readonly WanConnection[] {
  return connections.map((each) => {
    const local = endpoint(each.localAddress, each.localPort)
    const remote = endpoint(each.remoteAddress, each.remotePort)
    const [a, b] = host === 'hosta' ? [local, remote] : [remote, local]
    const found = link.connections.find((one) => one.proto === 'tcp' && one.a === a && one.b === b)
    assert.ok(found, `connection ${a} to ${b} is not at the link: ${JSON.stringify(link.connections)}`)
    return found
  })
}

function endpoint(address: string, port: number): string {
  return address.includes(':') ? `[${address}]:${port}` : `${address}:${port}`
}

export function bytesOf(connections: readonly WanConnection[]): number {
  return connections.reduce((sum, each) => sum + each.bytesAB + each.bytesBA, 0)
}

/** Disk and RAM wire bytes, as the report has them and as the link counted them. */
export function wire(
  report: MigrationReport,
  host: HostName,
  link: WanStats,
): { disk: number; ram: number; linkDisk: number; linkRam: number } {
  const ofKind = (kind: string): number =>
    bytesOf(
      linkOf(
        link,
        host,
        report.connections.filter((each) => each.kind === kind),
      ),
    )
  const ram = report.ram.wireBytes
  return { disk: report.wireBytes - ram, ram, linkDisk: ofKind('disk'), linkRam: ofKind('ram') }
}

/** Within a tenth; small sums get 64 KiB for what comes after the last look. */
export function assertNear(found: number, expected: number, what: string): void {
  const slack = Math.max(expected / 10, 65536)
  assert.ok(Math.abs(found - expected) <= slack, `${what}: ${found}, the link counted ${expected}`)
}

/** TCP connections to the ports that migrations use; a client's own port may be one of these by chance. */
export function direct(link: WanStats): readonly WanConnection[] {
  const migration = (end: string): boolean => inRange(portOf(end))
  const service = (end: string): boolean => portOf(end) === 22 || portOf(end) === 16509
  return link.connections.filter(
    ({ proto, a, b }) => proto === 'tcp' && ((migration(a) && !service(b)) || (migration(b) && !service(a))),
  )
}

function portOf(end: string): number {
  return Number(end.slice(end.lastIndexOf(':') + 1))
}

function inRange(port: number): boolean {
  return port >= 49152 && port <= 49215
}

/** After `--suspend`: goes on at that host, and shows that it does. */
export async function resume(lab: Lab, guest: TinyGuest, host: HostName): Promise<void> {
  await lab.host(host).virsh('resume', guest.name)
  await guest.waitProgress(2)
}

export function logs(lab: Lab): string {
  return lab
    .hosts()
    .map((host) => `--- swamd at ${host.name}\n${host.swamdLog().slice(-3000)}`)
    .join('\n')
}

/** Rows that the long run has: in haste they are not there. */
export function rowsUnless(
  haste: boolean,
  t: TestContext,
): (name: string, row: () => Promise<void>) => Promise<void> {
  return haste ? async () => undefined : async (name, row) => await t.test(name, row)
}
