/**
 * What the tests share in which a daemon ends or hangs in the middle: how a migration is brought to a certain moment,
 * what is measured meanwhile (how long the guest, libvirt and QEMU's monitor did not answer), and what must hold
 * afterwards: the guest runs on with its disk whole, nothing is left at either host, the history says why.
 *
 * Memory is held up by libvirt's own speed limit, so the moment after READY lasts for seconds; the last phase is made long
 * by a link that becomes slow and a guest that has written blocks all over its disk.
 */
import assert from 'node:assert/strict'
import { FLUSH_DEADLINE_MS, WATCHDOG_STALL_MS, WATCHDOG_TURN_MS } from '../../lib/core/limits.ts'
import { callControl } from '../../server/control.ts'
import type { MigrationPhase, StatusReport } from '../../server/report.ts'
import type { LabHost } from '../lab/host.ts'
import type { Lab, MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest, TinyOptions } from '../lab/tiny.ts'
import { direct, entry, history, logs, MIB, resume, startBoth } from './swam-lab.ts'

/**
 * `announced`: the far side has announced it and its new QEMU does not run yet. `bulk`: the disk is copied. `ready`: memory
 * moves. `flush`: the guest is paused and its disk written out. `memory`: it is paused, and the rest of its memory moves.
 */
export type Moment = 'idle' | 'announced' | 'bulk' | 'ready' | 'flush' | 'memory'

export interface Row {
  readonly side: 'source' | 'far'
  readonly moment: Moment
  /** `announced`: the far side has no image but the empty one that SWAM made. */
  readonly imageMade?: true
  readonly signal: 'SIGKILL' | 'SIGTERM' | 'SIGSTOP'
}

/** From a hang to the end of the process: the watchdog counts whole turns. */
export const HANG_MS: number = WATCHDOG_STALL_MS + WATCHDOG_TURN_MS
/** What a machine that is shared by guests in software emulation adds to a figure of seconds. */
export const SLACK_MS = 2000
/** How long virsh may take from the end of a daemon to its own: libvirt takes QEMU down at the far side meanwhile. */
export const GIVES_UP_MS = 8000
/** From here on it is as if the daemon had never been there. */
export const FORGOTTEN_MS = 10_000

const LINK_MBIT = 200
const FAST_MBIT = 1000
const SLOW_MBIT = 12
/** While memory shall last, also on a machine that takes three times as long for everything else. */
const RAM_MIB_PER_SECOND = 1
const REST_MBIT = 4
const UNLIMITED_MIB_PER_SECOND = 100_000
/** Of a channel, of a link without a sign, or of the far QEMU's disk, which libvirt takes down as soon as it knows. */
const SURVIVOR_ERROR = /(channel|bundle) .*host[ab]|the link gave no sign|connection (ended|lost)|stopped/
const VICTIM_ERROR: Readonly<Record<Row['signal'], RegExp>> = {
  SIGKILL: /was killed or crashed/,
  SIGSTOP: /hung and its watchdog killed it/,
  SIGTERM: /was stopped/,
}
const SLOW_HOOK = '/etc/libvirt/hooks/qemu.d/60-slow'
const SLOW_HOOK_FLAG = '/run/swam-lab/slow-hook'
const SLOW_HOOK_TURNS_MAX = 200

/** It writes blocks all over its disk, so that something is left for the moment in which it is paused. */
export const RESTLESS: TinyOptions = {
  diskMiB: 192,
  randomMiB: 128,
  ramMiB: 80,
  write: { bytes: 4096, intervalMs: 200, batch: 4, pattern: 'scattered', areaBytes: 32 << 20 },
}

export function other(host: HostName): HostName {
  return host === 'hosta' ? 'hostb' : 'hosta'
}

/** As `swam status` says it, without the start of a program: in some moments that takes too long. */
export async function quickStatus(host: LabHost): Promise<StatusReport | undefined> {
  const path = `/proc/${host.pid}/root/run/swam/control.sock`
  return (await callControl(path, 'status', {}, { timeoutMs: 2000 }).catch(() => undefined)) as
    | StatusReport
    | undefined
}

/** A hook of the administrator's own, after SWAM's, that holds up one event for as long as `holdHook` says. */
export async function addSlowHook(lab: Lab): Promise<void> {
  const script = `#!/bin/sh
cat >/dev/null
turns=0
while [ "$(cat ${SLOW_HOOK_FLAG} 2>/dev/null)" = "$2/$3" ] && [ $turns -lt ${SLOW_HOOK_TURNS_MAX} ]; do
  sleep 0.1
  turns=$((turns + 1))
done
exit 0
`
  for (const host of lab.hosts()) {
    await host.exec('tee', [SLOW_HOOK], { input: script })
    await host.shell(`chmod 755 ${SLOW_HOOK}`)
  }
}

/** `prepare/begin`: announced, and the new QEMU does not run; `started/begin`: armed, and nothing is connected yet. */
export async function holdHook(host: LabHost, event: 'prepare/begin' | 'started/begin'): Promise<void> {
  await host.exec('tee', [SLOW_HOOK_FLAG], { input: `${event}\n` })
}

export async function releaseHook(host: LabHost): Promise<void> {
  await host.shell(`rm -f ${SLOW_HOOK_FLAG}`)
}

export interface Under {
  readonly result: Promise<MigrateResult>
  /** Throws when it is over already. */
  readonly goesOn: () => void
}

/** Starts a migration into an empty place; the link is as fast as the moment needs. */
export async function begin(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  options: { readonly args?: readonly string[]; readonly createTarget?: boolean } = {},
): Promise<Under> {
  const to = other(from)
  await lab.host(to).shell(`rm -f /var/lib/libvirt/images/${guest.imageName}`)
  await lab.host(from).virsh('migrate-setspeed', guest.name, String(UNLIMITED_MIB_PER_SECOND))
  await lab.wan.set({ mbit: LINK_MBIT })
  await lab.wan.reset()
  let over: MigrateResult | undefined
  const result = lab.migrate(guest, from, to, options).then((done) => {
    over = done
    return done
  })
  const goesOn = (): void => {
    if (over !== undefined) assert.fail(`it ended too early: ${over.stderr}\n${logs(lab)}`)
  }
  return { result, goesOn }
}

/** Waits until the migration is in the middle of that moment. */
export async function reach(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  moment: Moment,
  under: Under,
): Promise<void> {
  const source = lab.host(from)
  const ask = async (wanted: MigrationPhase): Promise<{ applied: number; ram: number } | undefined> => {
    under.goesOn()
    const found = (await quickStatus(source))?.migrations.find((one) => one.guest === guest.name)
    if (found === undefined || found.phase !== wanted) return undefined
    return {
      applied: found.disks.reduce((sum, disk) => sum + disk.appliedBytes, 0),
      ram: found.ram.askedBytes,
    }
  }
  if (moment === 'idle') return
  if (moment === 'announced') {
    await until('the announcement', 60_000, async () => ((await ask('announced')) ? true : undefined), 10)
    return
  }
  await until('the bulk', 60_000, async () => {
    const found = await ask('copying')
    return found !== undefined && found.applied > 4 * MIB ? true : undefined
  })
  if (moment === 'bulk') return
  await source.virsh('migrate-setspeed', guest.name, String(RAM_MIB_PER_SECOND))
  await lab.wan.set({ mbit: FAST_MBIT })
  await until('memory to move', 60_000, async () => {
    const found = await ask('ready')
    return found !== undefined && found.ram > MIB ? true : undefined
  })
  if (moment === 'ready') return
  await lab.wan.set({ mbit: SLOW_MBIT })
  // So that something waits for the flush.
  await rest(2000)
  // Whatever is left of the memory may take its time: QEMU pauses the guest at once.
  await source.virsh('migrate-setmaxdowntime', guest.name, '1000000')
  await until('the pause', 60_000, async () => {
    under.goesOn()
    const { stdout } = await source.exec('virsh', ['-r', 'domstate', guest.name], { check: false })
    return stdout.trim() === 'paused' ? true : undefined
  })
  if (moment === 'flush') return
  // QEMU's monitor does not answer in this phase, with or without SWAM: the bytes tell.
  let before: number | undefined
  await until('the rest of the memory to move', 60_000, async () => {
    under.goesOn()
    const found = (await quickStatus(source))?.migrations.find((one) => one.guest === guest.name)
    if (found?.disks.some((disk) => disk.appliedBytes < disk.askedBytes) !== false) return undefined
    if (before === undefined) {
      before = found.ram.askedBytes
      await lab.wan.set({ mbit: REST_MBIT })
    }
    return found.ram.askedBytes > before + MIB ? true : undefined
  })
}

/** The same by what libvirt says, for a migration that SWAM may have no part in. */
export async function reachByLibvirt(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  moment: 'bulk' | 'ready',
  under: Under,
): Promise<void> {
  const source = lab.host(from)
  const processed = async (what: 'File' | 'Memory', mib: number): Promise<true | undefined> => {
    under.goesOn()
    const { stdout } = await source.exec('virsh', ['-r', 'domjobinfo', guest.name], { check: false })
    const [, number = '0', unit = ''] =
      new RegExp(`^${what} processed: +([0-9.]+) (\\w+)`, 'm').exec(stdout) ?? []
    const scale: Readonly<Record<string, number>> = { MiB: 1, GiB: 1024 }
    return Number(number) * (scale[unit] ?? 0) > mib ? true : undefined
  }
  await until('the bulk', 60_000, () => processed('File', 8))
  if (moment === 'bulk') return
  await source.virsh('migrate-setspeed', guest.name, String(RAM_MIB_PER_SECOND))
  await lab.wan.set({ mbit: FAST_MBIT })
  await until('memory to move', 60_000, () => processed('Memory', 1))
}

export interface Answers {
  /** The longest time from a question to its answer; a question without an answer counts until now. */
  readonly domjobinfo: number
  readonly monitor: number
}

/** Asks libvirt for the job, and QEMU through its monitor, one after the other and all the time. */
export function watchAnswers(host: LabHost, guest: TinyGuest): { readonly stop: () => Promise<Answers> } {
  const longest = { domjobinfo: 0, monitor: 0 }
  const stopped = new AbortController()
  const ask = async (name: keyof Answers, words: readonly string[]): Promise<void> => {
    while (!stopped.signal.aborted) {
      const startedAt = performance.now()
      await host.exec('virsh', ['-c', 'qemu:///system', ...words], { check: false, timeoutMs: 90_000 })
      longest[name] = Math.max(longest[name], performance.now() - startedAt)
      await new Promise((resolve) => setTimeout(resolve, 100))
    }
  }
  const asking = [
    ask('domjobinfo', ['domjobinfo', guest.name]),
    ask('monitor', ['qemu-monitor-command', guest.name, '{"execute":"query-status"}']),
  ]
  return {
    stop: async () => {
      stopped.abort()
      await Promise.all(asking)
      return longest
    },
  }
}

/** Before a row: the guest runs there and has no job, whatever the one before it did. Gives where it runs. */
export async function settle(lab: Lab, guest: TinyGuest, at: HostName): Promise<HostName> {
  const host = lab.host(at)
  await lab.wan.set({ mbit: FAST_MBIT })
  await releaseHook(lab.host(other(at)))
  await host.exec('virsh', ['-c', 'qemu:///system', 'domjobabort', guest.name], { check: false })
  await until('the job to end', 60_000, async () => {
    const { stdout } = await host.exec('virsh', ['-r', 'domjobinfo', guest.name], { check: false })
    return /^Job type:\s+(None|Completed|Failed|Cancelled)/m.test(stdout) ? true : undefined
  }).catch(() => undefined)
  const well = (await runsAt(lab, guest, at)) && (await guest.waitProgress(1).catch(() => undefined))
  if (well) return at
  for (const each of lab.hosts()) {
    await each.exec('virsh', ['-c', 'qemu:///system', 'destroy', guest.name], { check: false })
  }
  await guest.create('hosta')
  await guest.waitBoot()
  return 'hosta'
}

export async function runsAt(lab: Lab, guest: TinyGuest, host: HostName): Promise<boolean> {
  const { stdout } = await lab.host(host).exec('virsh', ['-r', 'domstate', guest.name], { check: false })
  return stdout.trim() === 'running'
}

/** The guest runs at the source, with its disk whole, and the far side has nothing of it but files. */
export async function runsOn(lab: Lab, guest: TinyGuest, from: HostName, told: number): Promise<void> {
  const source = lab.host(from)
  await until('the guest to run', SLACK_MS, async () => ((await runsAt(lab, guest, from)) ? true : undefined))
  assert.ok((await guest.waitProgress(3)) > told, 'it goes on writing')
  const beat = (await guest.heartbeats()).at(-1)
  assert.equal(beat?.host, from)
  await noGuestAt(lab, other(from))
  await source.virsh('suspend', guest.name)
  const check = await guest.check(guest.imagePath(from))
  await source.virsh('resume', guest.name)
  assert.ok(check.ok, check.faults.join('\n'))
}

export async function noGuestAt(lab: Lab, host: HostName): Promise<void> {
  await until(`no QEMU at ${host}`, 15_000, async () => {
    const names = await lab.host(host).virsh('list', '--all', '--name')
    const { stdout } = await lab.host(host).exec('pgrep', ['-f', 'qemu-system'], { check: false })
    return names.trim() === '' && stdout.trim() === '' ? true : undefined
  })
}

/** After `--suspend`: both images are equal and hold what the guest was told; it goes on at the far side. */
export async function arrived(lab: Lab, guest: TinyGuest, from: HostName): Promise<void> {
  const to = other(from)
  await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'), guest.format)
  const check = await guest.check(guest.imagePath(to))
  assert.ok(check.ok, check.faults.join('\n'))
  await noGuestAt(lab, from)
  await resume(lab, guest, to)
}

/** A migration that is right, and does not touch SWAM: as if it were not installed. */
export async function goesDirect(lab: Lab, guest: TinyGuest, from: HostName): Promise<void> {
  const under = await begin(lab, guest, from, { args: ['--suspend'], createTarget: true })
  await lab.wan.set({ mbit: FAST_MBIT })
  const done = await under.result
  assert.ok(done.ok, `${done.stderr}\n${logs(lab)}`)
  assert.equal(direct(await lab.wan.stats()).length, 2, 'a RAM and a disk connection of its own')
  await arrived(lab, guest, from)
}

/**
 * What swamd makes for one migration, and what must be gone when it is over; in words, one a thing. Not the mark of an
 * incoming guest: it stays for ten seconds after a failure, and a dead daemon's until it starts again.
 */
async function leftAt(host: LabHost): Promise<string[]> {
  const alive = (await host.swamdPid()) !== undefined
  const script = [
    "ss -Hltn | awk '{print $4}' | grep -E '^(127[.]77[.]|\\[::1\\]:2)' | sed 's/^/listener /'",
    "nft list ruleset 2>/dev/null | grep -oE '10[.]8[.][0-9.]+ [.] [0-9]+|fd08::[0-9]+ [.] [0-9]+' | sed 's/^/caught /'",
    // The control bundle that the peer dialed is a relay of its own.
    alive ? 'true' : "ps -o args= -u swam | grep -v -e sshd -e defunct | sed 's/^/process /'",
    alive ? 'true' : "nft list tables 2>/dev/null | grep swam_hold | sed 's/^/table /'",
  ]
  const { stdout } = await host.exec('/bin/sh', ['-c', script.join('\n')], { check: false })
  const left = stdout.split('\n').filter((line) => line !== '')
  const status = alive ? await quickStatus(host) : undefined
  for (const { guest } of status?.migrations ?? []) left.push(`migration of ${guest}`)
  if ((status?.redirect.armed ?? 0) > 0) left.push(`${status?.redirect.armed} armed`)
  return left
}

/** Nothing of the migration is left at either host, at the latest `FORGOTTEN_MS` after the daemon was gone. */
export async function nothingLeft(lab: Lab, goneAt: number): Promise<void> {
  for (const host of lab.hosts()) {
    let left: string[] = []
    const restMs = Math.max(SLACK_MS, goneAt + FORGOTTEN_MS - lab.now())
    await until(`nothing to be left at ${host.name}`, restMs, async () => {
      left = await leftAt(host)
      return left.length === 0 ? true : undefined
    }).catch((error: unknown) => assert.fail(`left at ${host.name}: ${left.join(', ')} (${error})`))
  }
}

export interface Outcome {
  /** Where the guest runs now. */
  readonly at: HostName
  readonly figures: string
}

/** One row: brings a migration to the moment, lets the daemon end or hang, and looks at all that must hold. */
export async function daemonFails(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  row: Row,
  options: { readonly thenDirect?: boolean } = {},
): Promise<Outcome> {
  const { side, moment, signal } = row
  const to = other(from)
  const victim = lab.host(side === 'source' ? from : to)
  await startBoth(lab)
  await guest.waitProgress(2)
  const since = Date.now()
  if (moment === 'announced') await holdHook(lab.host(to), 'prepare/begin')
  const pid = await victim.swamdPid()
  if (moment === 'idle') await victim.killSwamd(signal)
  let failedAt = lab.now()
  // What goes direct finds an image, as a plain migration needs it; else SWAM makes one.
  const createTarget = (moment === 'idle' || moment === 'announced') && row.imageMade !== true
  const started = await begin(lab, guest, from, { args: ['--suspend'], createTarget })
  if (moment !== 'idle') {
    await reach(lab, guest, from, moment, started)
    started.goesOn()
    failedAt = lab.now()
    await victim.killSwamd(signal)
    await releaseHook(lab.host(to))
  }
  const told = guest.durable()
  const answers = watchAnswers(lab.host(from), guest)
  const gone = until(`swamd at ${victim.name} to end`, HANG_MS + SLACK_MS, async () =>
    (await victim.swamdPid()) === undefined ? lab.now() : undefined,
  )
  const goneAt = await gone
  if (moment === 'flush' || moment === 'memory') await lab.wan.set({ mbit: FAST_MBIT })
  const done = await started.result
  const silent = await answers.stop()
  // What it was paused before that is the row's own doing.
  const gap = await guest.longestGap(failedAt, Math.min(lab.now(), done.endedAt + SLACK_MS))
  const pauseMs = gap.fromMs + gap.ms - Math.max(gap.fromMs, failedAt)
  const figures = [
    `swamd (${pid}) gone after ${seconds(goneAt - failedAt)}`,
    `virsh ${done.ok ? 'done' : 'failed'} after ${seconds(done.endedAt - failedAt)}`,
    `guest still for ${seconds(pauseMs)}`,
    `domjobinfo ${seconds(silent.domjobinfo)}`,
    `monitor ${seconds(silent.monitor)}`,
    done.stderr.split('\n')[0],
  ].join(', ')
  const context = (): string => `${figures}\n${logs(lab)}`
  try {
    if (row.imageMade === true && side === 'source') {
      // Nobody can see to it that the image is filled: libvirt would have missed it.
      assert.match(done.stderr, /missing here, create it first/)
    } else if (moment === 'idle' || moment === 'announced') assert.ok(done.ok, 'it goes direct')
    else {
      if (moment === 'bulk' || moment === 'ready') assert.ok(!done.ok, 'it must fail')
      assert.ok(done.endedAt - goneAt < GIVES_UP_MS, 'virsh gives up soon')
    }
    // A link without a daemon at its other end is given up at the latest when flushDeadlineMs has passed.
    const bound = (signal === 'SIGSTOP' ? HANG_MS : FLUSH_DEADLINE_MS) + SLACK_MS
    assert.ok(silent.domjobinfo < bound && silent.monitor < bound, `answers within ${bound} ms`)
    assert.ok(pauseMs < bound + (moment === 'flush' || moment === 'memory' ? SLACK_MS : 0), 'the guest runs')
    if (done.ok) await arrived(lab, guest, from)
    else await runsOn(lab, guest, from, told)
    await nothingLeft(lab, goneAt)
    await survivorSays(lab, guest, from, row, since, done.ok)
    if (options.thenDirect === true && !done.ok) {
      await rest(goneAt + FORGOTTEN_MS - lab.now())
      await goesDirect(lab, guest, from)
    }
    await victimSays(lab, guest, row, victim, since)
  } catch (error) {
    throw new Error(`${row.signal} ${row.side} ${row.moment}: ${context()}`, { cause: error })
  }
  return { at: done.ok || options.thenDirect === true ? to : from, figures }
}

async function rest(ms: number): Promise<void> {
  if (ms > 0) await new Promise((resolve) => setTimeout(resolve, ms))
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

/** The daemon that lives says at once what became of it. */
async function survivorSays(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  row: Row,
  since: number,
  ok: boolean,
): Promise<void> {
  // A source whose far side was gone from the start was never told.
  if (row.moment === 'idle' && row.side === 'far') return
  const found = await entry(lab, row.side === 'source' ? other(from) : from, guest, since)
  if (row.moment === 'idle' || row.moment === 'announced') {
    assert.equal(found.accelerated, false)
    assert.ok((found.reason ?? '').length > 0, JSON.stringify(found))
  } else if (!ok) {
    assert.equal(found.phase, 'failed')
    assert.match(found.error ?? '', SURVIVOR_ERROR, JSON.stringify(found))
  }
}

/** The one that was killed says it when it runs again. */
async function victimSays(
  lab: Lab,
  guest: TinyGuest,
  row: Row,
  victim: LabHost,
  since: number,
): Promise<void> {
  if (row.moment === 'idle') return
  await victim.startSwamd()
  const own = (await history(lab, victim.name)).find(
    (one) => one.guest === guest.name && one.startedAt >= since,
  )
  assert.match(own?.error ?? '', VICTIM_ERROR[row.signal], JSON.stringify(own))
}
