/**
 * The thread behind mapOfDisk: reads a disk's map, or scans the image where there is none, and gives its chunks with the
 * hints of the blocks that they lie in. It runs at the lowest priority and is never more than ESTIMATE_PIECES_MAX pieces ahead.
 * When it is told to end it takes QEMU's export of a qcow2 with it.
 *
 * A map has chunks and blocks in sections of their own, each in the order of the image: they are read side by side.
 */
import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { basename } from 'node:path'
import { parentPort, workerData } from 'node:worker_threads'
import { ChunkIndex } from '../../lib/catalog/chunk-index.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { type ImageIdentity, ImageSource } from '../../lib/catalog/image-files.ts'
import { ImageMap, type MappedBlocks } from '../../lib/catalog/image-map.ts'
import { scanImage } from '../../lib/catalog/image-scan.ts'
import type { ImageRef } from '../../lib/catalog/open-image.ts'
import { Chunker } from '../../lib/chunk/chunker.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { ESTIMATE_PIECES_MAX, SESSION_ENTRIES_MAX } from '../../lib/core/limits.ts'
import { alignDown, BLOCK_BYTES, HINT_BYTES } from '../../lib/core/units.ts'
import { type DiskPiece, PieceBuilder } from './disk-piece.ts'
import { LiveImage } from './live-image.ts'

export interface DiskMapWorkerData {
  readonly image: ImageRef
  readonly catalog: string
}

export type DiskMapRequest = 'taken' | 'end'

export type DiskMapReply =
  /** `size`: of the disk, in bytes. `madeAt`: of the map, milliseconds since 1970; null: the image is scanned. */
  | {
      readonly type: 'begun'
      readonly size: number
      readonly madeAt: number | null
      readonly problem: string | undefined
    }
  | { readonly type: 'piece'; readonly piece: DiskPiece }
  | { readonly type: 'done' }
  | { readonly type: 'failed'; readonly message: string }

if (parentPort === null) throw new Error('disk-map-worker.ts runs as a worker thread only')

const port = parentPort
const { image, catalog } = workerData as DiskMapWorkerData
const { path, format } = image
const ended = new AbortController()
/** What the disk held before: a chunk that is there twice is sent once. 20 bytes each. */
const seen = ChunkIndex.create({ bytesMax: SESSION_ENTRIES_MAX * 25 })
let room = ESTIMATE_PIECES_MAX
let wake: () => void = () => undefined
let builder = new PieceBuilder()

// As in image-index-worker.ts: a priority belongs to a thread.
setPriority(Number(basename(readlinkSync('/proc/thread-self'))), 19)

function reply(message: DiskMapReply): void {
  port.postMessage(message)
}

port.on('message', (request: DiskMapRequest) => {
  if (request === 'taken') room++
  else ended.abort(new RefusedError(`map of ${path}: nobody wants it any more`))
  wake()
})

async function whileFull(): Promise<void> {
  while (room <= 0 && !ended.signal.aborted) await new Promise<void>((resolve) => (wake = resolve))
  ended.signal.throwIfAborted()
}

/** What a chunk's hints are taken from, in the order of the disk. */
class Blocks {
  readonly #hints = new Map<number, Buffer>()

  add(offset: number, hint: Buffer): void {
    this.#hints.set(offset, hint)
  }

  hint(offset: number): Buffer | undefined {
    return this.#hints.get(offset)
  }

  /** Nothing before it is asked for any more. */
  dropBefore(offset: number): void {
    for (const at of this.#hints.keys()) {
      if (at >= offset) return
      this.#hints.delete(at)
    }
  }
}

const blocks = new Blocks()

function add(key: Uint8Array, keyOffset: number, offset: number, length: number): void {
  const repeated = seen.lookup(Buffer.from(key.buffer, key.byteOffset + keyOffset, HINT_BYTES)).length > 0
  if (!repeated) seen.insert(key, keyOffset, { image: 0, offset, length })
  builder.add(key.subarray(keyOffset, keyOffset + HINT_BYTES), offset, length, repeated, (at) =>
    blocks.hint(at),
  )
  blocks.dropBefore(alignDown(offset + length, BLOCK_BYTES))
  if (builder.full) give()
}

function give(): void {
  if (builder.count === 0) return
  reply({ type: 'piece', piece: builder.piece() })
  builder = new PieceBuilder()
  room--
}

async function fromMap(map: ImageMap): Promise<void> {
  const runs = (function* (): Generator<MappedBlocks> {
    for (const piece of map.pieces()) if (!Array.isArray(piece)) yield piece
  })()
  let blocksEnd = 0
  const blocksUntil = (end: number): void => {
    while (blocksEnd < end) {
      const run = runs.next()
      if (run.done === true) return
      const { offset, hints } = run.value
      for (let at = 0; at < hints.length; at += HINT_BYTES)
        blocks.add(offset + (at / HINT_BYTES) * BLOCK_BYTES, hints.subarray(at, at + HINT_BYTES))
      blocksEnd = offset + (hints.length / HINT_BYTES) * BLOCK_BYTES
    }
  }
  for (const piece of map.pieces()) {
    if (!Array.isArray(piece)) continue
    for (const { key, offset, length } of piece) {
      blocksUntil(offset + length)
      add(key, 0, offset, length)
      if (room <= 0) await whileFull()
    }
  }
}

/** Nothing is read while nobody takes what was found. */
function paced(source: ExtentSource): ExtentSource {
  return {
    path: source.path,
    size: source.size,
    extents: (signal) => source.extents(signal),
    read: (offset, length) => source.read(offset, length),
    readInto: async (target, offset) => {
      await whileFull()
      return await source.readInto(target, offset)
    },
    isStale: () => source.isStale(),
    close: () => source.close(),
  }
}

async function fromImage(source: ExtentSource): Promise<void> {
  await scanImage(paced(source), new Chunker(), {
    signal: ended.signal,
    onBlock: (offset, hint) => blocks.add(offset, Buffer.from(hint)),
    onChunk: (offset, length, digests, digestOffset) => add(digests, digestOffset, offset, length),
  })
}

async function run(): Promise<void> {
  const identity = await identityOf()
  let problem: string | undefined
  let map: ImageMap | undefined
  try {
    map = ImageMap.openAny(catalog, path, identity, format)
  } catch (error) {
    problem = errorText(error)
  }
  if (map === undefined) {
    await using source = await LiveImage.open(image, ended.signal)
    reply({ type: 'begun', size: source.size, madeAt: null, problem })
    await fromImage(source)
  } else {
    using _ = map
    // Of a raw image that is how long it is now.
    const size = format === 'raw' ? identity.size : map.disk.bytes
    reply({ type: 'begun', size, madeAt: Math.round(map.madeAtMs), problem })
    await fromMap(map)
  }
  give()
  reply({ type: 'done' })
}

async function identityOf(): Promise<ImageIdentity> {
  await using file = await ImageSource.open(path)
  return file.identity
}

run()
  .catch((error: unknown) => reply({ type: 'failed', message: errorText(error) }))
  .finally(() => port.close())
