/**
 * kill -9 while maps are made: after each, what lies at a map's place is none or a whole one, the next scan goes on and does not begin
 * anew, and the map in the end says what that of a scan says that nobody disturbed.
 */
import assert from 'node:assert/strict'
import { type ChildProcess, spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import { mkdtempSync, readdirSync, rmSync, utimesSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { after, test } from 'node:test'
import { ImageSource } from '../../../lib/catalog/image-files.ts'
import { ImageMap } from '../../../lib/catalog/image-map.ts'
import { mapPath } from '../../../lib/catalog/image-map-format.ts'
import { MapFolder } from '../../../lib/catalog/map-folder.ts'
import { MAP_PIECE_CHUNKS_MAX } from '../../../lib/core/limits.ts'
import { BLOCK_BYTES, MIB } from '../../../lib/core/units.ts'
import { random } from '../../random.ts'
import { randomBytes } from '../chunk/samples.ts'

const root = mkdtempSync(join(tmpdir(), 'swam-killed-'))
after(() => rmSync(root, { recursive: true }))

const PROGRAM = join(import.meta.dirname, 'scan-program.ts')
const SIZE = 144 * MIB
const SECTION = MAP_PIECE_CHUNKS_MAX * 2 * BLOCK_BYTES

/** Every other block is data: a chunk each, so that sections are full, and written, now and then. */
const path = join(root, 'disk.raw')
{
  const bytes = Buffer.alloc(SIZE)
  const block = randomBytes(BLOCK_BYTES, 1)
  for (let at = 0; at < SIZE; at += 2 * BLOCK_BYTES) {
    block.writeUInt32LE(at, 0)
    block.copy(bytes, at)
  }
  writeFileSync(path, bytes)
  // Times that do not change while it is read.
  utimesSync(path, 1_000_000_000, 1_000_000_000)
}

class Scan {
  readonly child: ChildProcess
  readonly steps: number[] = []
  last = ''
  readonly #ended: Promise<unknown>

  constructor(catalog: string, onStep: (bytesDone: number) => void, bytesPerSecond: number) {
    this.child = spawn(process.execPath, [PROGRAM, catalog, path, String(bytesPerSecond)], {
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    this.#ended = once(this.child, 'close')
    createInterface({ input: this.child.stdout! }).on('line', (line) => {
      this.last = line
      if (!/^\d+$/.test(line)) return
      this.steps.push(Number(line))
      onStep(Number(line))
    })
  }

  async ended(): Promise<NodeJS.Signals | null> {
    await this.#ended
    return this.child.signalCode
  }
}

async function scanned(catalog: string): Promise<Scan> {
  const scan = new Scan(catalog, () => undefined, 0)
  assert.equal(await scan.ended(), null)
  return scan
}

/** Of the map: how many of each, and a digest of all. */
function contents(catalog: string): { chunks: number; blocks: number; digest: string } {
  const { map } = ImageMap.at(mapPath(catalog, path))
  const chunks = createHash('sha256')
  const blocks = createHash('sha256')
  for (const piece of map.pieces()) {
    if (Array.isArray(piece)) {
      for (const { key, offset, length } of piece)
        chunks.update(`${key.toString('hex')} ${offset} ${length}\n`)
      continue
    }
    const { offset, hints } = piece
    for (let at = 0; at < hints.length; at += 8)
      blocks.update(`${hints.toString('hex', at, at + 8)} ${offset + (at / 8) * BLOCK_BYTES}\n`)
  }
  map.close()
  return { chunks: map.count, blocks: map.blockCount, digest: chunks.digest('hex') + blocks.digest('hex') }
}

test('killed again and again, a scan comes to its end, and to the same map', {
  timeout: 300_000,
}, async (t) => {
  const quiet = join(root, 'quiet')
  assert.equal((await scanned(quiet)).last, 'done scanned')
  const expected = contents(quiet)

  const catalog = join(root, 'catalog')
  const next = random(7)
  let resumed = 0
  const kills: string[] = []
  // Each time some way behind what is known, and within a step: the kill comes at any moment of it.
  for (const share of [0.1, 0.5, 0.55, 0.95, 0.999]) {
    const delayMs = next() * 30
    const scan = new Scan(
      catalog,
      (bytesDone) => {
        if (bytesDone >= share * SIZE) setTimeout(() => scan.child.kill('SIGKILL'), delayMs)
      },
      256 * MIB,
    )
    const signal = await scan.ended()
    kills.push(`${share}: ${signal ?? scan.last}, from ${scan.steps[0] ?? 0}`)
    // A section of chunks is full each 64 MiB here.
    if ((scan.steps[0] ?? 0) > SECTION) resumed++
    await using source = await ImageSource.open(path)
    // Throws where a map is not whole.
    using map = ImageMap.open(catalog, path, source.identity)
    if (map !== undefined) assert.deepEqual(contents(catalog), expected, kills.join('; '))
    else assert.equal(signal, 'SIGKILL')
  }
  t.diagnostic(kills.join('; '))
  assert.ok(resumed >= 3, kills.join('; '))
  await scanned(catalog)
  assert.deepEqual(readdirSync(catalog), [mapPath('', path)], 'nothing lies beside it')
  assert.equal((await scanned(catalog)).last, 'done from its map')
  // Its sections may be cut at other places; what is in them may not be another thing.
  assert.equal(await new MapFolder({ stateDir: root, images: [root] }).isExact(path), true, 'verified')
  assert.deepEqual(contents(catalog), contents(quiet))
})
