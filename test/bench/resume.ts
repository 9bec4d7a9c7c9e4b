/**
 * What a second attempt sends after a migration that broke: the link is cut for good at a share of the bulk, virsh fails, the
 * link comes back, and the same virsh command runs again, until it is done. `missing` is what the far image lacked of the
 * source's disk when the second attempt began: its 4 KiB blocks that are not zero and differ, of content that nothing
 * compresses; `sent` what the disk's connections then carried. The disks are compared at the end.
 */
import assert from 'node:assert/strict'
import { open } from 'node:fs/promises'
import { entry, startBoth, status } from '../e2e/swam-lab.ts'
import { Lab } from '../lab/lab.ts'
import { until } from '../lab/run.ts'
import type { TinyGuest } from '../lab/tiny.ts'

const MIB = 1 << 20
const BLOCK = 4096
const SIZES = { diskMiB: 320, randomMiB: 256, ramMiB: 112 }
const CUTS: readonly { readonly at: string; readonly shares: readonly number[] }[] = [
  { at: '50%', shares: [0.5] },
  { at: '90%', shares: [0.9] },
  { at: '30%, 60%, 90%', shares: [0.3, 0.6, 0.9] },
]

export interface Cut {
  readonly at: string
  /** When the last attempt began. */
  readonly missing: number
  readonly sent: number
}

export async function run(): Promise<{ readonly cuts: readonly Cut[] }> {
  const cuts: Cut[] = []
  for (const { at, shares } of CUTS) {
    // An image that libvirt finds, and one that SWAM makes.
    for (const made of [false, true])
      cuts.push(await cut(`${at}${made ? ', into an image that SWAM made' : ''}`, shares, made))
  }
  return { cuts }
}

export function table(result: object): string {
  return (result as { cuts: readonly Cut[] }).cuts
    .map(
      ({ at, missing, sent }) =>
        `${at.padEnd(48)} missing ${(missing / 1e6).toFixed(2)} MB, sent ${(sent / 1e6).toFixed(2)} MB: ${(sent / missing).toFixed(3)}`,
    )
    .join('\n')
}

async function cut(at: string, shares: readonly number[], made: boolean): Promise<Cut> {
  await using lab = await Lab.up({ name: `bench-resume-${process.pid}`, rttMs: 20, mbit: 200, swam: true })
  const guest = lab.tinyGuest({ ...SIZES, write: { pattern: 'idle' } })
  await guest.create('hosta')
  await guest.waitBoot()
  await startBoth(lab)
  if (!made) await lab.createTarget(guest.name, 'hosta', 'hostb')
  for (const share of shares) {
    const broken = lab.migrate(guest, 'hosta', 'hostb', { createTarget: false })
    await until(`${share * 100}% to be copied`, 120_000, async () => {
      const [migration] = (await status(lab, 'hosta'))?.migrations ?? []
      const [disk] = migration?.disks ?? []
      return disk !== undefined && disk.appliedBytes >= share * SIZES.randomMiB * MIB ? true : undefined
    })
    await lab.wan.set({ cut: true })
    const { ok } = await broken
    await lab.wan.set({ cut: false })
    assert.equal(ok, false, 'it should have failed')
    assert.equal((await lab.host('hosta').virsh('domstate', guest.name)).trim(), 'running')
    await startBoth(lab)
    await until('the far side to be done with it', 60_000, async () =>
      (await status(lab, 'hostb'))?.migrations.length === 0 ? true : undefined,
    )
  }
  const missing = await missingBytes(guest)
  const since = Date.now()
  const done = await lab.migrate(guest, 'hosta', 'hostb', { createTarget: false, args: ['--suspend'] })
  assert.ok(done.ok, done.stderr)
  await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'), 'raw')
  const report = await entry(lab, 'hosta', guest, since)
  assert.ok(report.accelerated && report.phase === 'done', JSON.stringify(report))
  return { at, missing, sent: report.wireBytes - report.ram.wireBytes }
}

/** All of them, when the far image is gone. */
async function missingBytes(guest: TinyGuest): Promise<number> {
  await using here = await open(guest.imagePath('hosta'))
  const far = await open(guest.imagePath('hostb')).catch(() => undefined)
  try {
    const zero = Buffer.alloc(BLOCK)
    const [mine, theirs] = [Buffer.alloc(MIB), Buffer.alloc(MIB)]
    let missing = 0
    for (let at = 0; at < SIZES.diskMiB * MIB; at += MIB) {
      await here.read(mine, 0, MIB, at)
      theirs.fill(0)
      await far?.read(theirs, 0, MIB, at)
      for (let block = 0; block < MIB; block += BLOCK) {
        const bytes = mine.subarray(block, block + BLOCK)
        if (!bytes.equals(zero) && !bytes.equals(theirs.subarray(block, block + BLOCK))) missing += BLOCK
      }
    }
    return missing
  } finally {
    await far?.close()
  }
}
