/**
 * What the tests share in which hosts, disks and guests fail in the middle: a far disk that is full, of another size,
 * read-only or broken, a source disk that is broken, and what an administrator or the guest itself does meanwhile.
 * A row must end as with plain libvirt, which runs in the same lab without daemons, and leave nothing behind; the
 * next migration is right and accelerated.
 */
import assert from 'node:assert/strict'
import { rmSync, statSync } from 'node:fs'
import type { LabHost } from '../lab/host.ts'
import type { Lab, MigrateResult } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest, TinyOptions } from '../lab/tiny.ts'
import { begin, noGuestAt, nothingLeft, other, runsOn, watchAnswers } from './swam-failing.ts'
import { entry, logs, MIB, moveThrough, QUIET, resume, startBoth, status } from './swam-lab.ts'

const IMAGES = '/var/lib/libvirt/images'
/** The promise: whatever plain libvirt needs, and this much more. */
const BEYOND_PLAIN_MS = 2000
/** A failed migration must not stay in status; libvirt tells no hook when its QEMU did not start. */
const STATUS_MS = 6000
const RAM_MIB_PER_SECOND = 2
const LIBVIRT_HANGS_MS = 60_000
const DESTROY_CRASHES_MAX = 2

/** Its records lie behind the first block, which a hostile guest writes itself. */
export const SMALL_GUEST: TinyOptions = {
  diskMiB: 192,
  randomMiB: 96,
  ramMiB: 80,
  write: { ...QUIET, areaBytes: 4 << 20, areaOffset: 64 << 20 },
}

export async function stopBoth(lab: Lab): Promise<void> {
  await Promise.all(lab.hosts().map((host) => host.stopSwamd()))
}

/** The guest, born anew at hosta, and nothing of it at hostb. */
export async function bornAnew(lab: Lab, guest: TinyGuest): Promise<void> {
  for (const host of lab.hosts()) {
    await reviveLibvirtd(host)
    await host.exec('virsh', ['-q', 'destroy', guest.name], { check: false })
    rmSync(guest.imagePath(host.name), { force: true })
  }
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(1)
}

/**
 * libvirt 9.0 ends with a segmentation fault when a guest powers off while its disk is mirrored, or never ends the
 * migration, with or without SWAM.
 */
export async function reviveLibvirtd(host: LabHost): Promise<boolean> {
  const alive = async (): Promise<boolean> =>
    (await host.exec('virsh', ['-q', '-c', 'qemu:///system', 'list'], { check: false })).code === 0
  if (await alive()) return false
  const command = 'setsid /usr/sbin/libvirtd --listen --pid-file /run/libvirt/libvirtd.pid'
  await host.shell(
    `${command} >>/var/log/swam-lab/libvirtd.out 2>&1 </dev/null & echo $! >/run/swam-lab/libvirtd`,
  )
  await until(`libvirtd on ${host.name}`, 30_000, async () => ((await alive()) ? true : undefined))
  return true
}

async function killLibvirtd(host: LabHost): Promise<void> {
  await host.shell('kill -KILL "$(cat /run/swam-lab/libvirtd)"', { check: false })
}

// ---- disks -----------------------------------------------------------------------------------------------------

export interface DiskRow {
  readonly name: string
  /** Makes it so, before the migration; both hosts are given as it goes. */
  readonly spoil: (places: Places) => Promise<void>
  readonly mend: (places: Places) => Promise<void>
  /** Both plain libvirt and SWAM say this to whoever typed virsh. */
  readonly virsh: RegExp
  /** What the history says at the source, and at the far side. */
  readonly history: readonly [out: RegExp, into: RegExp]
  /** libvirt gives up before the mirror begins. */
  readonly early?: boolean
  /** How long it may be in status afterwards, where that is longer than usual. */
  readonly statusMs?: number
}

export interface Places {
  readonly source: LabHost
  readonly far: LabHost
  /** The guest's image, as both hosts name it. */
  readonly image: string
  readonly bytes: number
}

const truncated =
  (bytes: (own: number) => number) =>
  async ({ far, image, bytes: own }: Places): Promise<void> => {
    await far.shell(`rm -f ${image}; truncate -s ${bytes(own)} ${image}`)
  }
const removed = async ({ far, image }: Places): Promise<void> => {
  await far.shell(`rm -f ${image}`)
}
const OTHER_SIZE = {
  virsh: /Source and target image have different sizes/,
  history: [
    /vda: .* bytes, the guest's disk has \d+; .*the guest runs on here/,
    /vda: .* bytes, the guest's disk has/,
  ],
  mend: removed,
} as const
const READ_ONLY = {
  virsh: /Block node is read-only/,
  history: [
    /libvirt (did not start|stopped) the guest.*; .*the guest runs on here/,
    /libvirt (did not start|stopped) the guest/,
  ],
  early: true,
} as const

export const FULL: DiskRow = {
  name: 'the far disk is full',
  spoil: async ({ far, image, bytes }) => {
    await far.shell(
      `rm -f ${image}; mount -t tmpfs -o size=24m,mode=755 small ${IMAGES}; truncate -s ${bytes} ${image}`,
    )
  },
  mend: async ({ far }) => {
    await far.shell(`umount ${IMAGES}`)
  },
  virsh: /migration of disk vda failed: No space left on device/,
  history: [/the far side failed: .*No space left on device/, /No space left on device/],
}
export const SMALLER: DiskRow = { name: 'a smaller image', spoil: truncated((own) => own / 2), ...OTHER_SIZE }
export const LARGER: DiskRow = { name: 'a larger image', spoil: truncated((own) => own * 2), ...OTHER_SIZE }
export const READ_ONLY_MOUNT: DiskRow = {
  name: 'a file system that is mounted read-only',
  spoil: async (places) => {
    await truncated((own) => own)(places)
    await places.far.shell(`mount -o remount,bind,ro ${IMAGES}`)
  },
  mend: async ({ far }) => {
    await far.shell(`mount -o remount,bind,rw ${IMAGES}`)
  },
  ...READ_ONLY,
}
export const READ_ONLY_MODE: DiskRow = {
  name: 'an image that nobody may write',
  spoil: async (places) => {
    await truncated((own) => own)(places)
    await places.far.shell(`chown libvirt-qemu ${places.image}; chmod 0444 ${places.image}`)
  },
  mend: removed,
  ...READ_ONLY,
}
export const IMMUTABLE: DiskRow = {
  name: 'an image that nobody can change',
  spoil: async (places) => {
    await truncated((own) => own)(places)
    await places.far.shell(`chattr +i ${places.image}`)
  },
  mend: async (places) => {
    await places.far.shell(`chattr -i ${places.image}`)
    await removed(places)
  },
  ...READ_ONLY,
}

/** libvirt gives up before its QEMU runs, and no hook tells. */
export const NO_PLACE: DiskRow = {
  name: 'an image that cannot be made there',
  spoil: async ({ far }) => {
    await far.shell(`mount -t tmpfs -o ro,size=4k none ${IMAGES}`)
  },
  mend: async ({ far }) => {
    await far.shell(`umount ${IMAGES}`)
  },
  virsh: /no storage pool with matching target path|cannot be created|[Nn]o such file/,
  history: [
    /libvirt did not start the guest here: .*cannot create it.*the guest runs on here/,
    /libvirt did not start the guest here: .*cannot create it/,
  ],
  early: true,
  statusMs: 28_000,
}

/** A socket at which nbdkit gives the guest its disk, at both hosts. */
export const NBD_SOCKET = '/run/swam-lab/disk.sock'
const broken = (host: LabHost, what: 'read' | 'write', yes: boolean): Promise<unknown> =>
  host.shell(yes ? `touch /run/swam-lab/no-${what}` : `rm -f /run/swam-lab/no-${what}`)

export const FAR_ERROR: DiskRow = {
  name: 'the far disk cannot be written',
  spoil: async ({ far }) => void (await broken(far, 'write', true)),
  mend: async ({ far }) => void (await broken(far, 'write', false)),
  virsh: /migration of disk vda failed: Input\/output error/,
  history: [/the far side failed: .*Input\/output error/, /Input\/output error/],
}
export const SOURCE_ERROR: DiskRow = {
  name: 'the source disk cannot be read',
  spoil: async ({ source }) => void (await broken(source, 'read', true)),
  mend: async ({ source }) => void (await broken(source, 'read', false)),
  virsh: /migration of disk vda failed: Input\/output error/,
  history: [/the guest runs on here/, /./],
}

/** nbdkit in front of the guest's image, with errors on demand: this kernel has no device-mapper. */
export async function serveDisk(host: LabHost, image: string, bytes: number): Promise<void> {
  const errors = ['read', 'write'].flatMap((what) => [
    `error-p${what}-rate=100%`,
    `error-p${what}-file=/run/swam-lab/no-${what}`,
  ])
  const filter = `--filter=error -P /run/swam-lab/nbdkit.pid -U ${NBD_SOCKET}`
  await host.shell(`[ -e ${image} ] || truncate -s ${bytes} ${image}
nbdkit ${filter} file ${image} ${errors.join(' ')}
chmod 0777 ${NBD_SOCKET}`)
}

/** One row from where the guest runs, and the next migration after it; gives where the guest runs then. */
export async function diskFails(
  lab: Lab,
  guest: TinyGuest,
  from: HostName,
  row: DiskRow,
  options: { readonly plain?: boolean } = {},
): Promise<{ readonly at: HostName; readonly figures: string }> {
  const to = other(from)
  const places = {
    source: lab.host(from),
    far: lab.host(to),
    image: `${IMAGES}/${guest.imageName}`,
    bytes: guest.diskBytes,
  }
  if (options.plain === true) {
    await stopBoth(lab)
    const plain = await spoilt(row, places, () => lab.migrate(guest, from, to, { createTarget: false }))
    await noGuestAt(lab, to)
    assert.ok(!plain.ok)
    assert.match(plain.stderr, row.virsh)
  }
  await startBoth(lab)
  const since = Date.now()
  const told = guest.durable()
  // An image in memory cannot be looked at from outside, and the source's is whole only while it can be read.
  const [done, gone] = await spoilt(row, places, async () => {
    const result = await lab.migrate(guest, from, to, { createTarget: false })
    return [result, await forgotten(lab, result)]
  })
  const figures = `virsh failed after ${Math.round(done.totalMs)} ms, status was empty ${gone} ms later: ${done.stderr}`
  try {
    assert.ok(!done.ok, 'it must fail')
    assert.match(done.stderr, row.virsh)
    assert.ok(gone < (row.statusMs ?? STATUS_MS), 'it must be forgotten')
    await runsOn(lab, guest, from, told)
    await nothingLeft(lab, done.endedAt)
    const [out, into] = [await entry(lab, from, guest, since), await entry(lab, to, guest, since)]
    for (const [report, expected] of [
      [out, row.history[0]],
      [into, row.history[1]],
    ] as const) {
      assert.equal(report.phase, 'failed')
      assert.match(report.error ?? '', expected, JSON.stringify(report))
      assert.equal(report.accelerated, row.early !== true, JSON.stringify(report))
    }
    await moveThrough(lab, guest, from, to)
    await resume(lab, guest, to)
  } catch (error) {
    throw new Error(`${row.name}: ${figures}\n${logs(lab)}`, { cause: error })
  }
  return { at: to, figures }
}

/** Whatever comes of it: an immutable file or a mount that stays would outlive the lab. */
async function spoilt<T>(row: DiskRow, places: Places, work: () => Promise<T>): Promise<T> {
  try {
    await row.spoil(places)
    return await work()
  } finally {
    await row.mend(places)
  }
}

/** From the end of virsh until neither status shows a migration; in milliseconds. */
async function forgotten(lab: Lab, done: MigrateResult): Promise<number> {
  await until('status to be empty', 30_000, async () => {
    const reports = await Promise.all(lab.hosts().map(({ name }) => status(lab, name)))
    return reports.every((report) => report?.migrations.length === 0) ? true : undefined
  })
  return Math.round(lab.now() - done.endedAt)
}

// ---- what is done to the guest ---------------------------------------------------------------------------------

export type Command = 'suspend' | 'domjobabort' | 'destroy' | 'off'
export type CommandMoment = 'bulk' | 'ready'

interface Figures {
  /** The command itself. */
  readonly commandMs: number
  /** From the command to the end of virsh migrate; a suspended guest's migration goes on. */
  readonly endMs: number
  /** The longest time in which QEMU's monitor or libvirt did not answer. */
  readonly silentMs: number
  readonly ok: boolean
  readonly stderr: string
  /** What became of the guest, in libvirt's words. */
  readonly states: readonly [source: string, far: string]
  readonly crashed: boolean
}

/** A command in that moment of a migration, plain and through SWAM; gives both figures in a line. */
export async function commandRow(
  lab: Lab,
  guest: TinyGuest,
  command: Command,
  moment: CommandMoment,
): Promise<string> {
  await stopBoth(lab)
  const [plain, plainCrashes] = await carriedOut(lab, guest, command, moment, true)
  await startBoth(lab)
  const since = Date.now()
  const [swam, swamCrashes] = await carriedOut(lab, guest, command, moment, false)
  const crashes =
    plainCrashes + swamCrashes > 0 ? `libvirtd ended ${plainCrashes}, ${swamCrashes} times; ` : ''
  const figures = `${crashes}plain ${text(plain)}; SWAM ${text(swam)}`
  try {
    assert.equal(plain.ok, command === 'suspend', 'plain libvirt')
    assert.equal(swam.ok, plain.ok)
    if (command !== 'off') assert.ok(!swam.crashed && !plain.crashed, 'libvirtd lives')
    if (!swam.crashed && !plain.crashed) assert.deepEqual(swam.states, plain.states)
    for (const name of ['commandMs', 'endMs', 'silentMs'] as const) {
      if (name === 'endMs' && command === 'suspend') continue
      if (command === 'off' && (swam.crashed || plain.crashed)) continue
      assert.ok(swam[name] <= plain[name] + BEYOND_PLAIN_MS, `${name}: ${swam[name]}, plain ${plain[name]}`)
    }
    await afterCommand(lab, guest, command, since)
  } catch (error) {
    throw new Error(`${command}, ${moment}: ${figures}\n${logs(lab)}`, { cause: error })
  }
  return figures
}

/**
 * libvirt 9.0 now and then ends at `virsh destroy`, as it usually does at a power-off: that says nothing about the
 * command, so it is tried again; always is a failure.
 */
async function carriedOut(
  lab: Lab,
  guest: TinyGuest,
  command: Command,
  moment: CommandMoment,
  createTarget: boolean,
): Promise<readonly [Figures, crashes: number]> {
  for (let crashes = 0; ; crashes++) {
    await bornAnew(lab, guest)
    const figures = await tried(lab, guest, command, moment, createTarget)
    if (!figures.crashed || command !== 'destroy' || crashes === DESTROY_CRASHES_MAX)
      return [figures, crashes]
  }
}

async function tried(
  lab: Lab,
  guest: TinyGuest,
  command: Command,
  moment: CommandMoment,
  createTarget: boolean,
): Promise<Figures> {
  const source = lab.host('hosta')
  const under = await begin(lab, guest, 'hosta', { createTarget })
  await reached(lab, guest, moment)
  under.goesOn()
  const answers = watchAnswers(source, guest)
  const startedAt = lab.now()
  if (command === 'off') await guest.order('hosta', 'off')
  else {
    const { code, stderr } = await source.exec('virsh', ['-q', '-c', 'qemu:///system', command, guest.name], {
      check: false,
    })
    if (code !== 0 && !/End of file/.test(stderr)) throw new Error(`virsh ${command}: ${stderr}`)
  }
  const commandMs = Math.round(lab.now() - startedAt)
  if (command === 'suspend') {
    // Whatever is left may go quickly: what is asked here is how long the command takes.
    await lab.wan.set({ mbit: 1000 })
    await source.exec('virsh', ['migrate-setspeed', guest.name, '100000'], { check: false })
  }
  const late = setTimeout(() => void killLibvirtd(source), LIBVIRT_HANGS_MS)
  const done = await under.result
  clearTimeout(late)
  const silent = await answers.stop()
  const crashed = (await reviveLibvirtd(source)) || done.endedAt - startedAt > LIBVIRT_HANGS_MS
  return {
    commandMs,
    endMs: Math.round(done.endedAt - startedAt),
    silentMs: Math.round(Math.max(silent.domjobinfo, silent.monitor)),
    ok: done.ok,
    stderr: done.stderr,
    states: [await stateAt(lab, guest, 'hosta'), await stateAt(lab, guest, 'hostb')],
    crashed,
  }
}

/** By what can be seen with and without SWAM: how much of the image is there, how much memory libvirt has sent. */
async function reached(lab: Lab, guest: TinyGuest, moment: CommandMoment): Promise<void> {
  const target = guest.imagePath('hostb')
  await until('the bulk', 60_000, () => {
    const blocks = statSync(target, { throwIfNoEntry: false })?.blocks ?? 0
    return blocks * 512 > 16 * MIB ? true : undefined
  })
  if (moment === 'bulk') return
  const source = lab.host('hosta')
  await source.virsh('migrate-setspeed', guest.name, String(RAM_MIB_PER_SECOND))
  await lab.wan.set({ mbit: 1000 })
  await until('memory to move', 60_000, async () => {
    const { stdout } = await source.exec('virsh', ['domjobinfo', guest.name], { check: false })
    const [, number, unit] = /^Memory processed:\s+([\d.]+) (\w+)/m.exec(stdout) ?? []
    return unit === 'MiB' && Number(number) > 1 ? true : undefined
  })
}

async function stateAt(lab: Lab, guest: TinyGuest, host: HostName): Promise<string> {
  const { code, stdout } = await lab
    .host(host)
    .exec('virsh', ['domstate', '--reason', guest.name], { check: false })
  return code === 0 ? stdout.trim() : 'none'
}

async function afterCommand(lab: Lab, guest: TinyGuest, command: Command, since: number): Promise<void> {
  const out = await entry(lab, 'hosta', guest, since)
  assert.equal(out.accelerated, true)
  if (command === 'suspend') {
    assert.equal(out.phase, 'done', JSON.stringify(out))
    await lab.host('hostb').virsh('suspend', guest.name)
    await assertEqualThen(lab, guest)
    return
  }
  assert.equal(out.phase, 'failed', JSON.stringify(out))
  if (command === 'domjobabort') {
    assert.match(out.error ?? '', /the guest runs on here/)
    await runsOn(lab, guest, 'hosta', guest.durable())
  }
  await nothingLeft(lab, lab.now())
}

/** What the far side wrote since it arrived is the only difference, so the promise is held instead. */
async function assertEqualThen(lab: Lab, guest: TinyGuest): Promise<void> {
  const check = await guest.check(guest.imagePath('hostb'))
  assert.ok(check.ok, check.faults.join('\n'))
  await nothingLeft(lab, lab.now())
}

function text({ commandMs, endMs, silentMs, stderr, states, crashed }: Figures): string {
  const end = `${stderr.split('\n')[0] ?? ''} [${states.join(' | ')}]${crashed ? ', libvirtd crashed or hung' : ''}`
  return `${commandMs} ms, over after ${endMs} ms, silent for ${silentMs} ms: ${end}`
}
