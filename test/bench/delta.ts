/**
 * What rewritten pages of a database cost on the wire, against the 4 KiB blocks of them that changed: on the way out, while the
 * guest goes on at READY (each round of QEMU's mirror brings the 64 KiB in which something changed), and ten minutes of such
 * work later on the way back, where only the far side has the old version. The whole engine over a bundle in memory, frames and
 * acknowledgements included, nothing sent unasked that a migration would not; pages are noise, so nothing compresses. After each
 * way every byte of the far disk is compared.
 */
import assert from 'node:assert/strict'
import { MemoryDevice } from '../../lib/block/memory.ts'
import { Describer } from '../../lib/chunk/describer.ts'
import { SlabPool } from '../../lib/chunk/slab.ts'
import { ByteBudget } from '../../lib/core/byte-budget.ts'
import { KIB, MIB } from '../../lib/core/units.ts'
import { DiskAccount } from '../../lib/engine/account.ts'
import { CLASS_CONTROL, DiskLink } from '../../lib/engine/link.ts'
import { DiskReceiver } from '../../lib/engine/receiver.ts'
import { DiskSender } from '../../lib/engine/sender.ts'
import { VersionMemory } from '../../lib/engine/sent-versions.ts'
import { bundlePair } from '../../lib/peer/memory.ts'
import { ENGINE_FEATURES } from '../../lib/wire/disk.ts'
import { random } from '../random.ts'
import { noise } from '../unit/engine/rig.ts'

const SIZE = 512 * MIB
const BLOCK = 4 * KIB
const MIRRORED = 64 * KIB
const PAGE = 8 * KIB
const ROW = 100
/** Twenty-five changes a second. */
const OUT_ROUNDS = 60
const ROUND_PAGES = 25
const BACK_PAGES = 15_000

export interface Way {
  /** 4 KiB blocks that changed since they were last sent, in bytes: what a plain delta at 4 KiB would send. */
  readonly blockBytes: number
  readonly wireBytes: number
  readonly share: number
}

export async function run(): Promise<{
  readonly blockBytes: number
  readonly wireBytes: number
  readonly out: Way
  readonly back: Way
}> {
  await using describer = new Describer({ workers: 1 })
  const disk = noise(SIZE, 1)
  const far = new MemoryDevice({ size: SIZE })
  const out = await session(describer, far, async (sender, wire) => {
    for (let at = 0; at < SIZE; at += MIB) await sender.write(at, Buffer.from(disk.subarray(at, at + MIB)))
    await sender.settle()
    await sender.flush()
    const before = wire()
    let blockBytes = 0
    for (let round = 0; round < OUT_ROUNDS; round++) {
      const blocks = change(disk, ROUND_PAGES, round + 1)
      blockBytes += blocks.size * BLOCK
      const regions = new Set([...blocks].map((block) => Math.floor((block * BLOCK) / MIRRORED)))
      for (const region of regions)
        await sender.write(
          region * MIRRORED,
          Buffer.from(disk.subarray(region * MIRRORED, (region + 1) * MIRRORED)),
        )
      await sender.settle()
    }
    await sender.flush()
    return { blockBytes, wireBytes: wire() - before }
  })
  await compare(far, disk)
  // Ten minutes there; then back onto what was left here, which is what the far disk is now.
  const blocks = change(disk, BACK_PAGES, 1000)
  const back = await session(describer, far, async (sender, wire) => {
    for (let at = 0; at < SIZE; at += MIB) await sender.write(at, Buffer.from(disk.subarray(at, at + MIB)))
    await sender.settle()
    await sender.flush()
    return { blockBytes: blocks.size * BLOCK, wireBytes: wire() }
  })
  await compare(far, disk)
  return {
    blockBytes: out.blockBytes + back.blockBytes,
    wireBytes: out.wireBytes + back.wireBytes,
    out,
    back,
  }
}

export function table(result: object): string {
  const { out, back } = result as Awaited<ReturnType<typeof run>>
  return [['out', out] as const, ['back', back] as const]
    .map(
      ([name, { blockBytes, wireBytes, share }]) =>
        `${name.padEnd(5)} ${(blockBytes / 1e6).toFixed(2)} MB of 4 KiB blocks changed, ${(wireBytes / 1e6).toFixed(2)} MB on the wire: ${share.toFixed(3)}`,
    )
    .join('\n')
}

/** Some pages change in a row each. Gives the blocks that did. */
function change(disk: Buffer, pages: number, seed: number): Set<number> {
  const next = random(seed)
  const blocks = new Set<number>()
  for (let at = 0; at < pages; at++) {
    const page = Math.floor(next() * (SIZE / PAGE)) * PAGE
    const row = page + Math.floor(next() * (PAGE - ROW))
    noise(ROW, seed * 1_000_000 + at).copy(disk, row)
    blocks.add(Math.floor(row / BLOCK))
    blocks.add(Math.floor((row + ROW - 1) / BLOCK))
  }
  return blocks
}

async function session(
  describer: Describer,
  device: MemoryDevice,
  work: (sender: DiskSender, wire: () => number) => Promise<{ blockBytes: number; wireBytes: number }>,
): Promise<Way> {
  const { near, far } = await bundlePair({ kind: 'disk', features: ENGINE_FEATURES })
  try {
    const farLink: DiskLink = new DiskLink(far, ({ type, disk, epoch }) => {
      if (type !== 'open') return undefined
      const receiver = new DiskReceiver({
        link: farLink,
        disk,
        epoch,
        device,
        account: new DiskAccount('vda', SIZE),
        sources: [],
        blockPlaces: [],
        memory: new ByteBudget({ bytesMax: 128 * MIB }),
        sessionEntriesMax: SIZE / (32 * KIB),
      })
      void receiver
        .scanTarget()
        .then(() => farLink.send({ type: 'opened', disk, epoch, errno: 0, text: '' }, CLASS_CONTROL))
      return { onMessage: () => undefined, onLost: () => undefined }
    })
    const sender = new DiskSender({
      link: new DiskLink(near),
      disk: 0,
      epoch: 1,
      size: SIZE,
      blockSizes: device.blockSizes,
      account: new DiskAccount('vda', SIZE),
      slabs: new SlabPool({ bytesMax: 128 * MIB }),
      describe: (bytes) => describer.describe(bytes),
      limits: { windowBytes: 128 * MIB, drainMs: 1000, flushDeadlineMs: 10_000 },
      versions: new VersionMemory(),
    })
    await sender.open(49_152, 'drive-virtio-disk0')
    const { blockBytes, wireBytes } = await work(sender, () => near.bytesSent + near.bytesReceived)
    await sender.close()
    return { blockBytes, wireBytes, share: wireBytes / blockBytes }
  } finally {
    await near.close()
  }
}

async function compare(device: MemoryDevice, disk: Buffer): Promise<void> {
  for (let at = 0; at < SIZE; at += MIB)
    assert.ok((await device.read(at, MIB)).equals(disk.subarray(at, at + MIB)), `the MiB at ${at} differs`)
}
