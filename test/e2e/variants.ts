/**
 * The variants of `virsh migrate` as rows, for a lab of any releases: each moves a guest with `--suspend`, compares its
 * disks byte for byte and holds them to what the guest was told. Most must go through SWAM, with both histories and
 * nothing around it on the link; what cannot must go direct, be right, and say why on both sides.
 */
import assert from 'node:assert/strict'
import { copyFileSync, existsSync, rmSync, writeFileSync } from 'node:fs'
import type { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import { otherHost } from '../lab/seed.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest, TinyOptions } from '../lab/tiny.ts'
import {
  assertEqual,
  assertRecords,
  entry,
  logs,
  MIB,
  type Moved,
  type MoveOptions,
  moveThrough,
  QUIET,
  resume,
  SMALL,
} from './swam-lab.ts'

/** A guest of the rows, and where it is. */
export class Traveller {
  readonly lab: Lab
  readonly guest: TinyGuest
  at: HostName = 'hosta'

  constructor(lab: Lab, options: TinyOptions) {
    this.lab = lab
    this.guest = lab.tinyGuest({ ...SMALL, write: { ...QUIET, areaBytes: 4 * MIB }, ...options })
  }

  async start(): Promise<void> {
    await this.guest.create(this.at)
    await this.guest.waitBoot()
    await this.guest.waitProgress(2)
  }

  get to(): HostName {
    return otherHost(this.at)
  }

  /** Through SWAM, and goes on there. */
  async through(options: MoveOptions = {}): Promise<Moved> {
    const { to } = this
    const moved = await moveThrough(this.lab, this.guest, this.at, to, options)
    await resume(this.lab, this.guest, to)
    this.at = to
    return moved
  }

  /** Past SWAM, and goes on there. The ports are where the far QEMU is reached; both histories say why. */
  async direct(reason: RegExp, ports: readonly number[], options: MoveOptions = {}): Promise<void> {
    const { lab, guest, at, to } = this
    const since = Date.now()
    await lab.wan.reset()
    const done = await lab.migrate(guest, at, to, {
      ...options,
      args: ['--suspend', ...(options.args ?? [])],
    })
    assert.ok(done.ok, `${done.stderr}\n${logs(lab)}`)
    await assertEqual(lab, guest)
    await assertRecords(guest, to)
    for (const [host, direction] of [
      [at, 'out'],
      [to, 'in'],
    ] as const) {
      const found = await entry(lab, host, guest, since)
      const text = JSON.stringify(found)
      assert.equal(found.direction, direction)
      assert.equal(found.accelerated, false, text)
      assert.match(found.reason ?? '', reason, text)
      assert.deepEqual([found.phase, found.error], ['done', null], text)
    }
    const end = to === 'hosta' ? 'a' : 'b'
    const link = await lab.wan.stats()
    const used = new Set(link.connections.map((one) => Number(one[end].slice(one[end].lastIndexOf(':') + 1))))
    for (const port of ports) assert.ok(used.has(port), `no connection to port ${port}: ${[...used]}`)
    await resume(lab, guest, to)
    this.at = to
  }

  /** Refused: virsh fails, the guest runs on where it is, nothing that was made for it stays. */
  async refused(message: RegExp, options: MoveOptions = {}): Promise<void> {
    const { lab, guest, at, to } = this
    const missing = guest.disks.filter(({ target }) => !existsSync(guest.imagePath(to, target)))
    const done = await lab.migrate(guest, at, to, options)
    assert.ok(!done.ok, `it must fail\n${logs(lab)}`)
    const said = `${done.stderr}\n${lab.host(to).swamdLog()}`
    assert.match(said, message)
    assert.equal((await lab.host(at).virsh('domstate', guest.name)).trim(), 'running')
    await guest.waitProgress(2)
    for (const { target } of missing) {
      await until(`the image of ${target} to be gone`, 10_000, () =>
        existsSync(guest.imagePath(to, target)) ? undefined : true,
      )
    }
  }

  async destroy(): Promise<void> {
    await this.lab.host(this.at).virsh('destroy', this.guest.name)
    for (const host of this.lab.hosts()) {
      for (const disk of this.guest.disks) {
        const path = disk.path(host)
        if (!path.startsWith('/dev/')) rmSync(path, { force: true })
      }
    }
  }
}

/** Where the other disk of `--migrate-disks` lies on both hosts already, as on shared storage. */
export function copyImage(guest: TinyGuest, target: string, from: HostName): void {
  copyFileSync(guest.imagePath(from, target), guest.imagePath(otherHost(from), target))
}

/** Domain XML for `--xml`: the guest as it shall be at that host. */
export async function targetXml(traveller: Traveller): Promise<string> {
  const { lab, guest, at, to } = traveller
  const live = await lab.host(at).virsh('dumpxml', '--migratable', guest.name)
  const disk =
    /<disk type='[^']*' device='disk'>[\s\S]*?<\/source>|<disk type='[^']*' device='disk'>[\s\S]*?<source [^>]*\/>/
  const there = disk.exec(guest.xml(to))
  assert.ok(there && disk.test(live), live)
  const name = `${guest.name}-target.xml`
  writeFileSync(
    `${lab.host(at).labDir}/${name}`,
    live.replace(disk, () => there[0]),
  )
  return `/var/lib/libvirt/lab/${name}`
}
