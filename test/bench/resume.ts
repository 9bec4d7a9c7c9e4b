/**
 * What a second attempt sends after a migration that broke: the link is cut for good at a share of the bulk, virsh fails, the
 * link comes back, and the same virsh command runs again, until it is done. `missing` is what the far image lacked of the
 * source's disk when the last attempt began: its 4 KiB blocks that are not zero and differ, of content that nothing
 * compresses. `sent` is what its disk connections then carried at the link, both ways, without the headers of IP and TCP: those are
 * 3.6% of a full packet and 5.4% with its acknowledgements, whoever sends what; `wireBytes` has them. The disks are compared at the end.
 */
import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import { entry, startBoth } from '../e2e/swam-lab.ts'
import { breakAt, missingBytes, sentFor } from '../e2e/swam-resume.ts'
import { Lab } from '../lab/lab.ts'

const MIB = 1 << 20
const SIZES = { diskMiB: 320, randomMiB: 256, ramMiB: 112 }
/** Slow enough that the last tenth takes seconds: the share is looked at from outside. */
const LINK = { rttMs: 20, mbit: 100 }
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
  readonly wireBytes: number
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
  const mb = (bytes: number): string => `${(bytes / 1e6).toFixed(2)} MB`
  return (result as { cuts: readonly Cut[] }).cuts
    .map(({ at, missing, sent, wireBytes }) => {
      const ratio = (bytes: number): string => (bytes / missing).toFixed(3)
      return `${at.padEnd(48)} missing ${mb(missing)}, sent ${mb(sent)}: ${ratio(sent)} (with IP and TCP ${ratio(wireBytes)})`
    })
    .join('\n')
}

async function cut(at: string, shares: readonly number[], made: boolean): Promise<Cut> {
  await using lab = await Lab.up({ name: `bench-resume-${process.pid}`, ...LINK, swam: true })
  const guest = lab.tinyGuest({ ...SIZES, write: { pattern: 'idle' } })
  await guest.create('hosta')
  await guest.waitBoot()
  await startBoth(lab)
  const [source, far] = [guest.imagePath('hosta'), guest.imagePath('hostb')]
  rmSync(far, { force: true })
  if (!made) await lab.createTarget(guest.name, 'hosta', 'hostb')
  for (const share of shares) await breakAt(lab, guest, 'hosta', share * SIZES.randomMiB * MIB)
  const missing = await missingBytes(source, far, SIZES.diskMiB * MIB)
  const most = SIZES.randomMiB * MIB * (1 - shares.at(-1)!)
  assert.ok(
    missing > 0 && missing <= most + 8 * MIB,
    `${missing} bytes are missing after a cut at ${shares.at(-1)!}`,
  )
  await lab.wan.reset()
  const since = Date.now()
  const done = await lab.migrate(guest, 'hosta', 'hostb', { createTarget: false, args: ['--suspend'] })
  const link = await lab.wan.stats()
  assert.ok(done.ok, done.stderr)
  await lab.compareImages(source, far, 'raw')
  const report = await entry(lab, 'hosta', guest, since)
  assert.ok(report.accelerated && report.phase === 'done', JSON.stringify(report))
  return { at, missing, ...sentFor(link, report) }
}
