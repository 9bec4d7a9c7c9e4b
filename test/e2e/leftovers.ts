/**
 * What a daemon holds and what a migration may leave behind, as numbers that can be compared: descriptors of swamd by
 * kind, its threads, forced commands, SSH connections, listeners for caught connections, armed elements, files in
 * runDir. And the figures of its process.
 */
import assert from 'node:assert/strict'
import type { TestContext } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import type { ProcessReport } from '../../server/report.ts'
import { BUSY_MS_MAX } from '../busy.ts'
import type { LabHost } from '../lab/host.ts'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'
import { assertDone, entry, logs, status } from './swam-lab.ts'

/** What must be as it was when everything is over; by name, so that a difference reads well. */
export type Held = Readonly<Record<string, number | string>>

/* Not /dev/null: libuv keeps one open in each event loop once it had a stream, so a thread that first runs a program later has one more. */
const SCRIPT = `
p=$(cat /run/swam-lab/swamd.pid)
for fd in /proc/$p/fd/*; do readlink "$fd" || true; done | sed -e 's/:\\[.*//' -e 's,^/var/lib/libvirt/images/.*,image,' -e '/^\\/dev\\/null$/d' -e 's/^/descriptor /'
echo "threads $(ls /proc/$p/task | wc -l)"
echo "swam-peer $(pgrep -fc server/peer-entry || true)"
echo "commands $(ps --no-headers --ppid $p | wc -l)"
echo "sshd $(pgrep -c sshd || true)"
echo "ssh $(ss -Htn state established '( sport = :22 or dport = :22 )' | wc -l)"
echo "listeners $(ss -Htln 'sport >= :20000 and sport < :30000' | wc -l)"
echo "elements $(nft list table inet swam | grep -c expires || true)"
echo "files $(cd /run/swam && find . ! -name . | sort | tr '\\n' ' ')"
`

/** Counts lines that are equal; `descriptor pipe` three times becomes `descriptor pipe: 3`. */
export async function held(host: LabHost): Promise<Held> {
  const { stdout } = await host.shell(SCRIPT)
  const found: Record<string, number | string> = {}
  for (const line of stdout.split('\n')) {
    const [kind = '', ...rest] = line.split(' ')
    if (kind === '') continue
    if (kind === 'descriptor') {
      const name = `descriptors: ${rest.join(' ')}`
      found[name] = Number(found[name] ?? 0) + 1
    } else found[kind] = kind === 'files' ? rest.join(' ').trim() : Number(rest[0])
  }
  return found
}

/**
 * Waits until a host holds what it held before; gives what it holds at last, equal or not. Armed elements live for
 * 8 s, a migration's end is written some seconds after it, an SSH connection takes its time to go.
 */
export async function settled(host: LabHost, before: Held, timeoutMs = 30_000): Promise<Held> {
  const until = performance.now() + timeoutMs
  for (;;) {
    const now = await held(host)
    if (JSON.stringify(sorted(now)) === JSON.stringify(sorted(before)) || performance.now() > until)
      return now
    await sleep(500)
  }
}

function sorted(one: Held): [string, number | string][] {
  return Object.entries(one).sort(([x], [y]) => (x < y ? -1 : 1))
}

export async function vitals(lab: Lab): Promise<Readonly<Record<string, ProcessReport>>> {
  const found: Record<string, ProcessReport> = {}
  for (const { name } of lab.hosts()) {
    const report = await status(lab, name)
    if (report === undefined) throw new Error(`no swamd answers at ${name}`)
    found[name] = report.process
  }
  return found
}

/** No delay of the daemons' event loops is longer, of what they did themselves. */
export async function assertUnbusy(lab: Lab): Promise<void> {
  for (const [host, { eventLoop }] of Object.entries(await vitals(lab))) {
    assert.ok(
      eventLoop.busyMaxMs <= BUSY_MS_MAX,
      `${host}: the event loop was held up by ${eventLoop.busyMaxMs} ms`,
    )
  }
}

/** One line for a test's diagnostics. */
export function vitalsText(report: ProcessReport): string {
  const { maxMs, busyMaxMs, p99Ms } = report.eventLoop
  const mib = (bytes: number): string => `${Math.round(bytes / (1 << 20))} MiB`
  return (
    `memory ${mib(report.rssBytes)} (objects ${mib(report.heapBytes)}, buffers ${mib(report.externalBytes)}), ` +
    `${report.openDescriptors} open files, event loop late by at most ${maxMs} ms, by its own work ${busyMaxMs} ms, 99% ${p99Ms} ms`
  )
}

/** What the hosts hold when nothing of a migration is left but what a daemon keeps. */
export async function rested(lab: Lab): Promise<Held[]> {
  return await Promise.all(
    lab.hosts().map((host) =>
      until(`${host.name} to be at rest`, 20_000, async () => {
        const now = await held(host)
        return now['listeners'] === 0 && now['elements'] === 0 && now['ssh'] === 2 ? now : undefined
      }),
    ),
  )
}

/** What the daemons said about one migration. */
function about(lab: Lab, id: string): string {
  const lines = lab.hosts().flatMap((host) =>
    host
      .swamdLog()
      .split('\n')
      .filter((line) => line.includes(id))
      .map((line) => `${host.name}: ${line}`),
  )
  return lines.slice(-40).join('\n')
}

export async function say(t: TestContext, lab: Lab, when: string): Promise<void> {
  for (const [host, report] of Object.entries(await vitals(lab))) {
    t.diagnostic(`${when}: ${host}: ${vitalsText(report)}`)
  }
}

/**
 * All at once to that host, from the other one. `apartMs` after one another: each hook starts a Node, and eight of these
 * beside eight software-emulated guests take longer than a hook may on two cores.
 */
export async function move(lab: Lab, guests: readonly TinyGuest[], to: HostName, apartMs = 0): Promise<void> {
  const from: HostName = to === 'hosta' ? 'hostb' : 'hosta'
  const since = Date.now()
  const done = await Promise.all(
    guests.map(async (guest, at) => {
      await sleep(at * apartMs)
      return await lab.migrate(guest, from, to)
    }),
  )
  for (const each of done) assert.ok(each.ok, `${each.stderr}\n${logs(lab)}`)
  for (const guest of guests) {
    // The destination first: it says why one went direct, of which the source knows nothing.
    for (const host of [to, from]) {
      const report = await entry(lab, host, guest, since)
      try {
        assertDone(report)
      } catch (error) {
        assert.fail(`${(error as Error).message}\n${about(lab, report.id)}`)
      }
    }
  }
}
