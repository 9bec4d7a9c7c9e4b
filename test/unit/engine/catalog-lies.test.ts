/**
 * I3 with a real catalog behind the receiver: an image that changed or was cut after it was indexed, a map that is torn, has a bit
 * flipped, or lies and is signed. Never a byte is written that the guest's disk does not have there; at most more crosses.
 */
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, open, readFile, rm, stat, truncate, utimes, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { after, type TestContext, test } from 'node:test'
import { ImageSource, listImages } from '../../../lib/catalog/image-files.ts'
import { ImageMap } from '../../../lib/catalog/image-map.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { ImageMapWriter } from '../../../lib/catalog/image-map-writer.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { MIB } from '../../../lib/core/units.ts'
import { StockBlocks, StockSource } from '../../../lib/engine/stock-source.ts'
import { closeRigs, noise, rig } from './rig.ts'

after(closeRigs)

const DATA = noise(8 * MIB, 21)
const BLOCK = 4096

interface Place {
  readonly image: string
  readonly catalog: string
  readonly map: string
  readonly stock: ImageStock
  readonly problems: string[]
  /** The map is made in the background. */
  tend(): Promise<void>
  /** A migration is announced. */
  refresh(): Promise<void>
}

/** DATA lies in an image, where no guess by its offset finds it, in chunks and (every other MiB in another order of its blocks) in blocks. */
async function place(context: TestContext): Promise<Place> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-lies-'))
  const images = join(folder, 'images')
  const catalog = join(folder, 'catalog')
  await mkdir(images)
  const image = join(images, 'a.raw')
  const bytes = Buffer.alloc(16 * MIB)
  DATA.copy(bytes, 5 * MIB)
  for (let mib = 1; mib < 8; mib += 2) {
    for (let block = 0; block < 256; block++) {
      const from = mib * MIB + block * BLOCK
      DATA.copy(bytes, 5 * MIB + mib * MIB + ((block * 7) % 256) * BLOCK, from, from + BLOCK)
    }
  }
  await writeFile(image, bytes)
  await aged(image)
  const problems: string[] = []
  const stock = new ImageStock({
    indexBytesMax: MIB,
    blockIndexBytesMax: MIB,
    imagesMax: 4,
    catalog,
    onProblem: (text) => problems.push(text),
  })
  context.after(async () => {
    await stock.close()
    await rm(folder, { recursive: true })
  })
  const list = () => listImages([images])
  return {
    image,
    catalog,
    map: mapPath(catalog, image),
    stock,
    problems,
    tend: () => stock.tend(list, { busy: () => new Set(), bytesPerSecond: 1024 * MIB }),
    refresh: async () => {
      await stock.refresh(list, new Set())
      while (stock.busy) await new Promise((resolve) => setTimeout(resolve, 5))
    },
  }
}

async function aged(path: string): Promise<void> {
  const when = Math.floor(Date.now() / 1000) - 3600
  await utimes(path, when, when)
}

/** Sends DATA to an empty disk; gives what was sent of it, by the receiver's sources. */
async function migrated(stock: ImageStock): Promise<{ literal: number; chunk: number; block: number }> {
  const { sender, device, receiverError } = await rig({
    contents: Buffer.alloc(DATA.length),
    sources: [new StockSource(stock, new Set())],
    blockPlaces: [new StockBlocks(stock)],
  })
  for (let at = 0; at < DATA.length; at += MIB)
    await sender.write(at, Buffer.from(DATA.subarray(at, at + MIB)))
  // While a FLUSH waits nothing is looked for block by block.
  const told = (): number => {
    const { literal, chunk, block } = sender.account.bySource
    return literal + chunk + block
  }
  const end = Date.now() + 20_000
  while (told() < DATA.length && receiverError() === undefined && Date.now() < end)
    await new Promise((resolve) => setTimeout(resolve, 5))
  await sender.flush()
  assert.equal(receiverError(), undefined)
  assert.ok(device.durable.equals(DATA), "the disk is the guest's")
  for (const { offset, bytes } of device.written)
    assert.ok(bytes.equals(DATA.subarray(offset, offset + bytes.length)), `written at ${offset}`)
  const { literal, chunk, block } = sender.account.bySource
  assert.equal(told(), DATA.length, JSON.stringify(sender.account.bySource))
  return { literal, chunk, block }
}

/** Changes bytes of a file, whose times stay. */
async function poke(
  path: string,
  offset: number,
  change: (bytes: Buffer) => void,
  length = 1,
): Promise<void> {
  const { atime, mtime } = await stat(path)
  await using file = await open(path, 'r+')
  const bytes = Buffer.alloc(length)
  await file.read(bytes, 0, length, offset)
  change(bytes)
  await file.write(bytes, 0, length, offset)
  await utimes(path, atime, mtime)
}

test('as it was indexed, next to nothing is sent', async (context) => {
  const { stock, tend, refresh, problems } = await place(context)
  await tend()
  await refresh()
  const { literal, chunk, block } = await migrated(stock)
  assert.ok(literal < MIB / 4, `${literal} bytes sent`)
  assert.ok(chunk > 2 * MIB && block > 2 * MIB, `${chunk} by chunk, ${block} by block`)
  assert.deepEqual(problems, [])
})

for (const [name, spoil] of [
  ['has changed since it was opened', (path: string) => poke(path, 5 * MIB, (b) => b.fill(7), 4 * MIB)],
  ['has a bit changed in each block', (path: string) => poke(path, 5 * MIB, flipEach, 8 * MIB)],
  ['was cut', (path: string) => truncate(path, 9 * MIB)],
  ['was cut to nothing', (path: string) => truncate(path, 0)],
] as const) {
  test(`an image that ${name}: what it has not any more is sent`, async (context) => {
    const { stock, image, tend, refresh } = await place(context)
    await tend()
    await refresh()
    await spoil(image)
    const { literal } = await migrated(stock)
    assert.ok(literal >= 3 * MIB, `${literal} bytes sent`)
  })
}

function flipEach(bytes: Buffer): void {
  for (let at = 0; at < bytes.length; at += BLOCK) bytes[at + ((at / BLOCK) % BLOCK)]! ^= 1
}

test('an image that changed between its scan and the migration, and does not tell: what differs is sent', async (context) => {
  const { stock, image, tend, refresh } = await place(context)
  await tend()
  await poke(image, 5 * MIB, (bytes) => bytes.fill(7), 4 * MIB)
  await refresh()
  const { literal } = await migrated(stock)
  assert.ok(literal >= 3 * MIB && literal < 5 * MIB, `${literal} bytes sent`)
})

for (const [name, spoil] of [
  [
    'with a bit flipped in its middle',
    (path: string, size: number) => poke(path, size >> 1, (b) => (b[0]! ^= 4)),
  ],
  [
    'with a bit flipped in its last section',
    (path: string, size: number) => poke(path, size - 90, (b) => (b[0]! ^= 1)),
  ],
  ['that is cut', (path: string, size: number) => truncate(path, size >> 1)],
  ['that is empty', (path: string) => truncate(path, 0)],
  ['of another version', (path: string) => poke(path, 0, (b) => (b[11]! += 1), 16)],
] as const) {
  test(`a map ${name}: it is said, and the image is scanned again`, async (context) => {
    const { stock, map, tend, refresh, problems } = await place(context)
    await tend()
    await spoil(map, (await stat(map)).size)
    await refresh()
    const { literal } = await migrated(stock)
    assert.ok(literal < MIB / 4, `${literal} bytes sent`)
    assert.match(problems.join('\n'), /^map of .*a\.raw: /)
  })
}

test('a map that lies, and is signed: every chunk and block at another place', async (context) => {
  const { stock, image, catalog, tend, refresh, problems } = await place(context)
  await tend()
  await using source = await ImageSource.open(image)
  const pieces = ((): unknown[] => {
    using map = ImageMap.open(catalog, image, source.identity)
    return [...(map?.pieces() ?? [])]
  })()
  const chunks = pieces.flatMap((piece) => (Array.isArray(piece) ? piece : [])) as {
    key: Buffer
    offset: number
    length: number
  }[]
  const runs = pieces.filter((piece) => !Array.isArray(piece)) as { offset: number; hints: Buffer }[]
  const hints = Buffer.concat(runs.map((run) => run.hints))
  const writer = new ImageMapWriter(catalog, image, source.identity)
  const digest = Buffer.alloc(32)
  for (const [index, { offset, length }] of chunks.entries()) {
    chunks[(index + 1) % chunks.length]!.key.copy(digest)
    writer.add(digest, 0, offset, length)
  }
  let at = 0
  for (const run of runs) {
    for (let block = 0; block < run.hints.length / 8; block++, at += 8)
      writer.addBlock(
        run.offset + block * BLOCK,
        Buffer.from(hints.subarray((at + 8) % hints.length).subarray(0, 8)),
      )
  }
  writer.finish()
  await refresh()
  const { literal, chunk } = await migrated(stock)
  assert.deepEqual(problems, [], 'nothing tells that it lies')
  assert.equal(chunk, 0)
  assert.ok(literal > 7 * MIB, `${literal} bytes sent`)
  assert.ok((await readFile(image)).length === 16 * MIB)
})
