/**
 * What bench, demo and tests share of a migration that breaks and is typed again: the link is cut for good at a share of the disk,
 * virsh fails, the link comes back. And what is counted then: what the far image lacks, and what the second attempt puts on the link.
 */
import assert from 'node:assert/strict'
import { open, rm } from 'node:fs/promises'
import type { MigrationReport } from '../../server/report.ts'
import type { Lab, MigrateOptions } from '../lab/lab.ts'
import { run, until } from '../lab/run.ts'
import type { HostName } from '../lab/state.ts'
import type { WanConnection, WanStats } from '../lab/wan.ts'
import { noGuestAt, other, quickStatus } from './swam-failing.ts'
import { entry, logs, MIB, startBoth, status } from './swam-lab.ts'

const BLOCK_BYTES = 4096
/** IPv4 and TCP with timestamps, of each packet. */
const PACKET_HEADER_BYTES = 52
const SSH_PORT = ':22'

export interface Broken {
  /** Of the disks' data, by the source's own word just before the cut. */
  readonly appliedBytes: number
  readonly report: MigrationReport
}

/**
 * Migrates and cuts the link when `dataBytes` of the disks are applied, until the source's daemon has given up: nothing of the migration
 * comes after that. Both daemons run and know each other again at the end, and the far side has no guest.
 */
export async function breakAt(
  lab: Lab,
  guest: { readonly name: string },
  from: HostName,
  dataBytes: number,
  options: MigrateOptions = {},
): Promise<Broken> {
  const since = Date.now()
  const source = lab.host(from)
  let over = false
  const running = lab.migrate(guest, from, other(from), { createTarget: false, ...options }).finally(() => {
    over = true
  })
  const applied = async (): Promise<number> => {
    if (over)
      assert.fail(`it ended before ${dataBytes} bytes were applied: ${(await running).stderr}\n${logs(lab)}`)
    const found = (await quickStatus(source))?.migrations.find((one) => one.guest === guest.name)
    // Holes cost nothing, and some of them come first.
    return (found?.disks ?? []).reduce(
      (sum, { appliedBytes, bySource }) => sum + appliedBytes - bySource.zero,
      0,
    )
  }
  const appliedBytes = await until(`${dataBytes} bytes to be applied`, 300_000, async () => {
    const bytes = await applied()
    return bytes >= dataBytes ? bytes : undefined
  })
  await lab.wan.set({ cut: true })
  const report = await entry(lab, from, guest, since).finally(() => lab.wan.set({ cut: false }))
  assert.equal(report.phase, 'failed', JSON.stringify(report))
  const done = await running
  assert.equal(done.ok, false, 'virsh should have failed')
  assert.equal((await source.virsh('domstate', guest.name)).trim(), 'running')
  await noGuestAt(lab, other(from))
  await startBoth(lab)
  await until('the far side to be done with it', 60_000, async () =>
    (await status(lab, other(from)))?.migrations.length === 0 ? true : undefined,
  )
  return { appliedBytes, report }
}

/** Blocks of the source's disk that are not zero and that the far image, raw too, does not have in their place. */
export async function missingBytes(source: string, far: string, diskBytes: number): Promise<number> {
  await using here = await open(source)
  const there = await open(far).catch(() => undefined)
  try {
    const zero = Buffer.alloc(BLOCK_BYTES)
    const [mine, theirs] = [Buffer.alloc(MIB), Buffer.alloc(MIB)]
    let missing = 0
    for (let at = 0; at < diskBytes; at += MIB) {
      await here.read(mine, 0, MIB, at)
      theirs.fill(0)
      await there?.read(theirs, 0, MIB, at)
      for (let block = 0; block < MIB; block += BLOCK_BYTES) {
        const bytes = mine.subarray(block, block + BLOCK_BYTES)
        if (!bytes.equals(zero) && !bytes.equals(theirs.subarray(block, block + BLOCK_BYTES)))
          missing += BLOCK_BYTES
      }
    }
    return missing
  } finally {
    await there?.close()
  }
}

/** The same of images of another format, which may be in use: as raw copies beside them. */
export async function missingOf(
  source: string,
  far: string,
  format: string,
  diskBytes: number,
): Promise<number> {
  const copies = [`${source}.raw-copy`, `${far}.raw-copy`] as const
  try {
    for (const [at, path] of [source, far].entries())
      await run('qemu-img', ['convert', '-U', '-f', format, '-O', 'raw', path, copies[at]!], {
        timeoutMs: 120_000,
      })
    return await missingBytes(copies[0], copies[1], diskBytes)
  } finally {
    for (const copy of copies) await rm(copy, { force: true })
  }
}

export interface Sent {
  /** What was said for the disks, both ways: SSH, and what was repeated, included, without the headers of IP and TCP. */
  readonly sent: number
  /** The same with these: IP bytes at the link. */
  readonly wireBytes: number
}

/** By the link's own count since its last reset. All SSH counts but the connections that the source names as memory's. */
export function sentFor({ connections }: WanStats, report: MigrationReport): Sent {
  const ram = report.connections.filter(({ kind }) => kind === 'ram')
  const isRam = ({ a, b }: WanConnection): boolean =>
    ram.some(({ localPort, remotePort }) => {
      const ends = [`:${localPort}`, `:${remotePort}`]
      return ends.every((end) => a.endsWith(end) || b.endsWith(end))
    })
  const ssh = connections.filter(
    (one) => one.proto === 'tcp' && (one.a.endsWith(SSH_PORT) || one.b.endsWith(SSH_PORT)),
  )
  const disk = ssh.filter((one) => !isRam(one))
  assert.ok(
    disk.length > 0 && disk.length < ssh.length,
    `no memory or no disk among ${JSON.stringify(connections)}`,
  )
  const wireBytes = disk.reduce((sum, { bytesAB, bytesBA }) => sum + bytesAB + bytesBA, 0)
  const packets = disk.reduce((sum, one) => sum + one.packets, 0)
  return { wireBytes, sent: wireBytes - packets * PACKET_HEADER_BYTES }
}
