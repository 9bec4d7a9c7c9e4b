/**
 * The link is cut for good in the middle of a disk, and the same disk is sent again to what the far side has by then: what
 * crosses is what was missing, and little more. All messages count, both ways, without what SSH and TCP add.
 */
import assert from 'node:assert/strict'
import { after, type TestContext, test } from 'node:test'
import { LostError } from '../../../lib/core/errors.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import type { ChunkSource } from '../../../lib/engine/sources.ts'
import { type StockedImage, StockSource } from '../../../lib/engine/stock-source.ts'
import { closeRigs, noise, type Rig, rig } from './rig.ts'

after(closeRigs)

const BLOCK = 4096
const DISK_BYTES = 64 * MIB
/** What the issue allows. */
const MORE_MAX = 1.03
/** A chunk of which one block is missing is sent whole where no block of the image is known: two as long as chunks can be. */
const CUT_CHUNKS_BYTES = 512 * KIB
const DISK = noise(DISK_BYTES, 5)

/** Blocks of the disk that are not there. */
function missingBytes(far: Buffer): number {
  let missing = 0
  for (let at = 0; at < DISK_BYTES; at += BLOCK)
    if (DISK.compare(far, at, at + BLOCK, at, at + BLOCK) !== 0) missing += BLOCK
  return missing
}

/** As a mirror job writes: 1 MiB at once, 16 under way, each group from its end to its start. */
async function mirror({ sender }: Rig, enough: () => boolean = () => false): Promise<void> {
  for (let group = 0; group < DISK_BYTES && !enough(); group += 16 * MIB) {
    const writes: Promise<void>[] = []
    for (let at = group + 15 * MIB; at >= group; at -= MIB)
      writes.push(sender.write(at, DISK.subarray(at, at + MIB)))
    await Promise.all(writes)
  }
}

/** Gives what the far side has when the link is cut. */
async function cutAt(far: Buffer, share: number, sources: ChunkSource[] = []): Promise<Buffer> {
  const one = await rig({ contents: Buffer.from(far), minimum: 4096, sources })
  const lay = DISK_BYTES - missingBytes(far)
  const reached = (): boolean => lay + one.device.writtenBytes >= share * DISK_BYTES
  const writing = mirror(one, reached).catch(() => undefined)
  while (!reached()) await new Promise((resolve) => setImmediate(resolve))
  one.wire.cut(new LostError('cut for good'))
  await writing
  await new Promise((resolve) => setTimeout(resolve, 20))
  return Buffer.from(one.device.bytes)
}

/** The second attempt, to its end. */
async function again(
  context: TestContext,
  far: Buffer,
  missing: number,
  sources: ChunkSource[] = [],
  more = 0,
): Promise<Rig> {
  const one = await rig({ contents: Buffer.from(far), minimum: 4096, sources })
  await mirror(one)
  // A FLUSH that waits for the last of it would have that sent whole: bytes for a round trip.
  await one.sender.settle()
  await one.sender.flush()
  assert.ok(one.device.durable.equals(DISK))
  const { bytes } = one.wire
  context.diagnostic(`missing ${missing}, sent ${bytes}: ${(bytes / missing).toFixed(4)}`)
  assert.ok(bytes <= missing * MORE_MAX + more, `${bytes} bytes for ${missing}`)
  return one
}

const CUTS: readonly { readonly name: string; readonly shares: readonly number[] }[] = [
  { name: '50%', shares: [0.5] },
  { name: '90%', shares: [0.9] },
  { name: '30%, 60% and 90%', shares: [0.3, 0.6, 0.9] },
]

for (const { name, shares } of CUTS) {
  test(`cut for good at ${name}: what is sent then is what was missing`, async (context) => {
    let far: Buffer = Buffer.alloc(DISK_BYTES)
    for (const share of shares) far = await cutAt(far, share)
    const missing = missingBytes(far)
    assert.ok(missing < DISK_BYTES * (1.01 - shares.at(-1)!), 'as much is there as was said')
    const { sender } = await again(context, far, missing)
    assert.equal(sender.account.bySource.literal, missing, 'not one block that lies there is sent')
  })
}

/** Images as a site has them: of the same size, with other content. */
function stockOf(salvage: Buffer, others: number): { stock: StockSource; reads: Map<string, number> } {
  const reads = new Map<string, number>()
  const image = (number: number, path: string, bytes: Buffer): StockedImage => ({
    number,
    path,
    size: DISK_BYTES,
    source: {
      read: async (offset, length) => {
        reads.set(path, (reads.get(path) ?? 0) + 1)
        return Buffer.from(bytes.subarray(offset, offset + length))
      },
    },
  })
  const other = noise(DISK_BYTES, 99)
  const images = Array.from({ length: others }, (_, at) => image(at, `/images/${at}.raw`, other))
  images.push(image(others, '/images/.swam-salvage/one', salvage))
  const source = new StockSource(
    {
      images,
      image: (number) => images[number],
      // Nothing is known of them yet: nobody waits for a scan.
      lookup: () => [],
      blockCount: 0,
      lookupBlock: () => [],
    },
    new Set(),
    (path) => path.includes('.swam-salvage'),
  )
  return { stock: source, reads }
}

for (const { name, shares } of CUTS.slice(1)) {
  test(`the same, and libvirt takes the image away each time (${name}): its salvage is found among others`, async (context) => {
    let salvage: Buffer = Buffer.alloc(DISK_BYTES)
    for (const share of shares)
      salvage = await cutAt(Buffer.alloc(DISK_BYTES), share, [stockOf(salvage, 40).stock])
    const { stock, reads } = stockOf(salvage, 40)
    const missing = missingBytes(salvage)
    const { sender } = await again(context, Buffer.alloc(DISK_BYTES), missing, [stock], CUT_CHUNKS_BYTES)
    assert.ok(sender.account.bySource.chunk > DISK_BYTES * (shares.at(-1)! - 0.02))
    assert.ok(reads.size > 1, 'what is not there is looked for in others too')
  })
}
