/**
 * `make demo`: a Debian guest migrates over an emulated WAN, first plain, then through SWAM while its base image lies
 * at the far side, then back, then out once more with a link that is cut for good in the middle, and again; then the tiny guest
 * migrates ten times, plain and SWAM in turn, for the downtime.
 *   demo.ts [--plain-only] [--pairs N] [--rtt-ms N] [--mbit N]
 * Key idea: every run out begins from the same snapshot with no image of the guest at the far side, so no run profits
 * from one before it; bytes are counted at the link and time by the lab, never by SWAM. Images that differ, or a run
 * that SWAM did not accelerate, fail the demo. It judges no ratios: it prints them.
 */
import { rmSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { parseArgs } from 'node:util'
import type { HistoryReport, MigrationReport, StatusReport } from '../../server/report.ts'
import { breakAt } from '../e2e/swam-resume.ts'
import { debianImages } from '../lab/debian/build.ts'
import { DebianGuest } from '../lab/debian/guest.ts'
import { Lab, type MigrateResult } from '../lab/lab.ts'
import { run, until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import { type LinkBytes, plainBytes, swamBytes } from './link.ts'
import {
  appendHeartbeats,
  appendSample,
  commitOfTree,
  type DemoImage,
  type DemoReport,
  type DemoRun,
  demoTable,
  saveReport,
  sha256File,
} from './report.ts'

const BASE = 'debian-12-base.raw'
const SETTLE_MS = 10_000

interface Options {
  readonly plainOnly: boolean
  readonly pairs: number
  readonly link: { readonly rttMs: number; readonly mbit: number }
}

class Demo {
  readonly #lab: Lab
  readonly #options: Options
  readonly #commit = commitOfTree()
  readonly #startedAt = new Date().toISOString()

  constructor(lab: Lab, options: Options) {
    this.#lab = lab
    this.#options = options
  }

  async play(): Promise<DemoReport> {
    const images = await debianImages()
    say(
      `${(images.missingShare * 100).toFixed(1)}% of the guest's non-zero 4 KiB blocks are not in the base image`,
    )
    const debian = new DebianGuest(this.#lab, images)
    const far = this.#lab.host('hostb')
    await run('cp', ['--sparse=always', images.base, `${far.imagesDir}/${BASE}`], { timeoutMs: 300_000 })
    const lying: DemoImage[] = [
      {
        host: 'hostb',
        path: `/var/lib/libvirt/images/${BASE}`,
        sha256: await sha256File(`${far.imagesDir}/${BASE}`),
      },
    ]

    const runs: DemoRun[] = []
    await this.#start(debian)
    runs.push(await this.#migrate('plain-out', debian, 'hosta', 'hostb'))
    await this.#lab.host('hostb').virsh('destroy', debian.name)
    if (!this.#options.plainOnly) {
      await this.#startSwam()
      await this.#start(debian)
      runs.push(await this.#migrate('swam-out', debian, 'hosta', 'hostb'))
      await this.#lab.host('hostb').virsh('resume', debian.name)
      say('the guest lives at hostb for a while')
      await debian.waitServing('hostb', 20, 120_000)
      runs.push(await this.#migrate('swam-back', debian, 'hostb', 'hosta'))
      await this.#lab.host('hosta').virsh('resume', debian.name)
      await debian.waitServing('hosta', 1)
      await this.#lab.host('hosta').virsh('destroy', debian.name)
      await this.#start(debian)
      const failed = await this.#breakHalfway(debian, runs.find(({ name }) => name === 'swam-out')!)
      runs.push({ ...(await this.#migrate('swam-resumed', debian, 'hosta', 'hostb')), failed })
      await this.#lab.host('hostb').virsh('destroy', debian.name)
      await this.#stopSwam()
    }
    for (const host of this.#lab.hosts()) rmSync(debian.imagePath(host.name), { force: true })
    const downtime = await this.#downtimes()
    return {
      version: 1,
      commit: this.#commit,
      startedAt: this.#startedAt,
      link: this.#options.link,
      images: lying,
      runs,
      downtime,
      missingShare: images.missingShare,
    }
  }

  async #start(debian: DebianGuest): Promise<void> {
    say('the Debian guest boots at hosta from its snapshot')
    const { bootMs } = await debian.start('hosta')
    say(`its web server answers after ${seconds(bootMs)}`)
    await sleep(SETTLE_MS)
  }

  async #migrate(name: DemoRun['name'], debian: DebianGuest, from: HostName, to: HostName): Promise<DemoRun> {
    const plain = name === 'plain-out'
    say(`${name}: virsh migrate --live --copy-storage-all --suspend, ${from} to ${to}`)
    if (plain) await this.#lab.createTarget(debian.name, from, to)
    await this.#lab.wan.reset()
    const since = Date.now()
    const args = ['--suspend']
    const result = await this.#lab.migrate(debian, from, to, {
      args,
      createTarget: false,
      timeoutMs: 900_000,
    })
    const bytes = await this.#linkBytes(name, result, from, debian.uuid, since)
    const [source, destination] = [debian.imagePath(from), debian.imagePath(to)]
    const sourceSha256 = await sha256File(source)
    const sha256 = await sha256File(destination)
    const compared = await run('qemu-img', ['compare', '-U', '-f', 'raw', '-F', 'raw', source, destination], {
      check: false,
      timeoutMs: 300_000,
    })
    const equal = compared.code === 0 && sha256 === sourceSha256
    const done: DemoRun = {
      name,
      ...bytes,
      totalMs: round(result.totalMs),
      equal,
      sha256,
      sourceSha256,
    }
    this.#sample({ kind: 'run', ...done, jobinfo: result.jobinfo })
    say(
      `${name}: ${seconds(result.totalMs)}, disk ${mb(bytes.diskBytes)} asked, ${mb(bytes.diskWireBytes)} on the wire, ` +
        `all ${mb(bytes.wireBytes)}; images ${equal ? 'equal' : `DIFFER: ${compared.stdout.trim()}`}`,
    )
    return done
  }

  /** The guest stays where it is; what the far side has of its disk by then stays there. */
  async #breakHalfway(debian: DebianGuest, whole: DemoRun): Promise<NonNullable<DemoRun['failed']>> {
    say('the same out once more; the link is cut for good when half of the disk is there')
    await this.#lab.wan.reset()
    const { appliedBytes, report } = await breakAt(this.#lab, debian, 'hosta', whole.diskBytes / 2)
    const { diskWireBytes } = swamBytes(await this.#lab.wan.stats(), report)
    this.#sample({ kind: 'failed', appliedBytes, diskWireBytes, report })
    say(`virsh failed, with ${mb(diskWireBytes)} of the disk on the wire (${report.error}); the link is back`)
    return { appliedBytes, diskWireBytes }
  }

  async #linkBytes(
    name: string,
    result: MigrateResult,
    from: HostName,
    uuid: string,
    since: number,
  ): Promise<LinkBytes> {
    const stats = await this.#lab.wan.stats()
    if (!result.ok) throw new Error(`${name}: virsh migrate failed: ${result.stderr}\n${this.#swamdLogs()}`)
    if (name.startsWith('plain')) return plainBytes(stats)
    const migration = await this.#migrationOf(from, uuid, since)
    if (!migration.accelerated) {
      throw new Error(`${name}: SWAM did not accelerate it: ${migration.reason}\n${this.#swamdLogs()}`)
    }
    this.#sample({ kind: 'account', name, migration, connections: stats.connections })
    return swamBytes(stats, migration)
  }

  /** The newest finished migration of that guest in the source's own history; one before it may have failed. */
  async #migrationOf(host: HostName, uuid: string, since = 0): Promise<MigrationReport> {
    return await until(`swam history on ${host} to list the migration of ${uuid}`, 15_000, async () => {
      const answer = await this.#lab.host(host).swam('history', '--json')
      if (answer.code !== 0) throw new Error(`swam history on ${host}: exit ${answer.code}: ${answer.stderr}`)
      const { migrations } = JSON.parse(answer.stdout) as HistoryReport
      return migrations
        .filter((each) => each.uuid === uuid && each.direction === 'out' && each.startedAt >= since)
        .toSorted((x, y) => y.startedAt - x.startedAt)[0]
    })
  }

  async #startSwam(): Promise<void> {
    for (const host of this.#lab.hosts()) await host.startSwamd()
    for (const host of this.#lab.hosts()) {
      await until(`swamd on ${host.name} to reach its peer`, 30_000, async () => {
        const answer = await host.swam('status', '--json')
        if (answer.code !== 0) return undefined
        return (JSON.parse(answer.stdout) as StatusReport).peers.every((peer) => peer.up) ? true : undefined
      })
    }
  }

  async #stopSwam(): Promise<void> {
    for (const host of this.#lab.hosts()) await host.stopSwamd()
  }

  #swamdLogs(): string {
    return this.#lab
      .hosts()
      .map((host) => `--- swamd on ${host.name}\n${host.swamdLog().slice(-3000)}`)
      .join('\n')
  }

  /** The tiny guest, plain and SWAM in turn, every time new and with nothing of it at the far side. */
  async #downtimes(): Promise<DemoReport['downtime']> {
    const plainMs: number[] = []
    const swamMs: number[] = []
    for (let pair = 1; pair <= this.#options.pairs; pair += 1) {
      plainMs.push(await this.#downtime(`plain-${pair}`, false))
      if (!this.#options.plainOnly) swamMs.push(await this.#downtime(`swam-${pair}`, true))
    }
    return { guest: 'tiny', plainMs, swamMs }
  }

  async #downtime(name: string, swam: boolean): Promise<number> {
    if (swam) await this.#startSwam()
    const tiny = this.#lab.tinyGuest({ name: `tiny-${name}`, seed: 'demo' })
    await tiny.create('hosta')
    await tiny.waitBoot()
    await tiny.waitProgress()
    const result = await this.#lab.migrate(tiny, 'hosta', 'hostb', { createTarget: !swam })
    if (!result.ok)
      throw new Error(`${tiny.name}: virsh migrate failed: ${result.stderr}\n${this.#swamdLogs()}`)
    if (swam) {
      const { accelerated, reason } = await this.#migrationOf('hosta', tiny.uuid)
      if (!accelerated) throw new Error(`${tiny.name}: SWAM did not accelerate it: ${reason}`)
    }
    await sleep(2000)
    const ms = round(await tiny.downtimeMs(result.startedAt, result.endedAt + 1000))
    await this.#lab.host('hostb').virsh('destroy', tiny.name)
    for (const host of this.#lab.hosts()) rmSync(tiny.imagePath(host.name), { force: true })
    if (swam) await this.#stopSwam()
    this.#sample({ kind: 'downtime', name, ms, totalMs: round(result.totalMs), jobinfo: result.jobinfo })
    say(`${tiny.name}: downtime ${ms} ms, total ${seconds(result.totalMs)}`)
    return ms
  }

  #sample(sample: Readonly<Record<string, unknown>>): void {
    const at = new Date().toISOString()
    appendSample({ commit: this.#commit, demo: this.#startedAt, at, link: this.#options.link, ...sample })
  }
}

function say(text: string): void {
  console.log(`${new Date().toISOString().slice(11, 19)} ${text}`)
}

function seconds(ms: number): string {
  return `${(ms / 1000).toFixed(1)} s`
}

function mb(bytes: number): string {
  return `${(bytes / 1e6).toFixed(1)} MB`
}

function round(ms: number): number {
  return Math.round(ms * 10) / 10
}

function readOptions(): Options {
  const { values } = parseArgs({
    options: {
      'plain-only': { type: 'boolean', default: false },
      pairs: { type: 'string', default: '5' },
      'rtt-ms': { type: 'string', default: '50' },
      mbit: { type: 'string', default: '100' },
    },
  })
  const number = (name: 'pairs' | 'rtt-ms' | 'mbit'): number => {
    const value = Number(values[name])
    if (!Number.isFinite(value) || value < 0) throw new Error(`--${name} ${values[name]}: expected a number`)
    return value
  }
  const link = { rttMs: number('rtt-ms'), mbit: number('mbit') }
  return { plainOnly: values['plain-only'], pairs: number('pairs'), link }
}

const options = readOptions()
await debianImages() // before the lab: on a fresh machine it takes minutes
const lab = await Lab.up({ name: 'demo', ...options.link, swam: !options.plainOnly })
let report: DemoReport
try {
  report = await new Demo(lab, options).play()
} finally {
  appendHeartbeats(lab.samplesDir, new Date().toISOString())
  await lab.down()
}
const file = saveReport(report)
console.log(`\n${demoTable(report)}\n\n${file}`)
if (!report.runs.every((each) => each.equal)) {
  console.error('demo: images differ after a migration')
  process.exitCode = 1
}
