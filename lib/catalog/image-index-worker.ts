/**
 * The thread behind an ImageIndexer: scans one image after the other into its map and the shared indexes, and takes what maps say
 * into the indexes, also while a scan is under way. It runs at the lowest priority, so that it takes the time and the disk that
 * others leave. A failed image is reported and the next one is begun; only a fault of our own ends the thread.
 */
import { execFile } from 'node:child_process'
import { readlinkSync } from 'node:fs'
import { setPriority } from 'node:os'
import { basename } from 'node:path'
import { parentPort, workerData } from 'node:worker_threads'
import { Chunker } from '../chunk/chunker.ts'
import { errorText } from '../core/errors.ts'
import { CATALOG_FREE_CHUNKS_MAX, IMAGE_RESCAN_MS } from '../core/limits.ts'
import { BLOCK_BYTES, HINT_BYTES } from '../core/units.ts'
import { ChunkIndex, type SharedChunkIndex } from './chunk-index.ts'
import { type ImageIdentity, ImageSource, sameIdentity } from './image-files.ts'
import {
  blocksOf,
  chunkAt,
  ImageMap,
  type MapEntries,
  type MapSummary,
  type PartialMap,
} from './image-map.ts'
import { CHUNK_ENTRY_BYTES, CHUNKS, type MappedDisk } from './image-map-format.ts'
import { ImageMapWriter } from './image-map-writer.ts'
import { type ScanStart, scanImage } from './image-scan.ts'
import { KnownParts } from './known-parts.ts'
import { noRoomFor } from './map-space.ts'
import { type ImageRef, type OpenImage, openImage } from './open-image.ts'
import { PacedReads } from './paced-reads.ts'

export type IndexRequest =
  | {
      readonly type: 'index'
      readonly id: number
      readonly image: ImageRef
      /** Of its entries in the indexes; null: only its map is made. */
      readonly imageNumber: number | null
      /** Scan it whatever its map says. */
      readonly anew: boolean
      /** 0: as fast as it goes. */
      readonly bytesPerSecond: number
      /** A map that gets larger is given up; 0: none is made. */
      readonly mapBytesMax: number
    }
  | {
      readonly type: 'load'
      readonly id: number
      readonly image: ImageRef
      readonly imageNumber: number
      readonly withBlocks: boolean
    }
  | { readonly type: 'peek'; readonly id: number; readonly image: ImageRef }
  | { readonly type: 'hurry' | 'abort'; readonly id: number }

/** How far an image is; `chunks` were cut, `inserted` of them were new to the index and found room, and so with blocks. */
export interface IndexProgress {
  readonly bytesDone: number
  readonly bytesTotal: number
  readonly zeroBytes: number
  readonly chunks: number
  readonly inserted: number
  readonly insertedBlocks: number
}

export type IndexReply =
  | { readonly type: 'progress'; readonly id: number; readonly progress: IndexProgress }
  | {
      readonly type: 'done'
      readonly id: number
      readonly identity: ImageIdentity
      readonly progress: IndexProgress
      readonly stale: boolean
      /** From its map: nothing of the image was read. */
      readonly mapped: boolean
      /** Why its map could not be used, or not be written. */
      readonly problem: string | undefined
      /** How large the map was when it was given up for that; else 0. */
      readonly tooLargeBytes: number
    }
  | {
      readonly type: 'peeked'
      readonly id: number
      readonly summary: MapSummary | undefined
      readonly problem: string | undefined
    }
  | { readonly type: 'failed'; readonly id: number; readonly message: string }

export interface IndexWorkerData {
  readonly shared: SharedChunkIndex
  /** The same for blocks of 4 KiB. */
  readonly sharedBlocks: SharedChunkIndex
  /** Where maps lie; without it every image is scanned. */
  readonly catalog: string | undefined
  /** CATALOG_FREE_BYTES_MIN. */
  readonly freeBytesMin: number | undefined
  /** CATALOG_FREE_CHUNKS_MAX. */
  readonly freeChunksMax: number | undefined
}

if (parentPort === null) throw new Error('image-index-worker.ts runs as a worker thread only')

const port = parentPort
const { shared, sharedBlocks, catalog, freeBytesMin } = workerData as IndexWorkerData
const { freeChunksMax = CATALOG_FREE_CHUNKS_MAX } = workerData as IndexWorkerData
const index = ChunkIndex.attach(shared)
const blocks = ChunkIndex.attach(sharedBlocks)
const chunker = new Chunker()
/** What is asked for and not done; the reads of a scan when it has begun. */
const jobs = new Map<number, { readonly abort: AbortController; reads?: PacedReads; hurried?: boolean }>()
let scans: Promise<void> = Promise.resolve()
let loads: Promise<void> = Promise.resolve()

// On Linux a priority belongs to a thread; the link names /proc/PID/task/TID of the thread that reads it.
const thread = basename(readlinkSync('/proc/thread-self'))
setPriority(Number(thread), 19)
// Where the disk's scheduler knows priorities. Without util-linux there are none.
execFile('ionice', ['-c', '3', '-p', thread], { timeout: 5000 }, () => undefined).unref()

function reply(message: IndexReply): void {
  port.postMessage(message)
}

type Request<Type extends IndexRequest['type']> = Extract<IndexRequest, { readonly type: Type }>

async function indexImage(request: Request<'index'>, signal: AbortSignal): Promise<void> {
  const { id, imageNumber, anew } = request
  const { path, format } = request.image
  signal.throwIfAborted()
  let problem: string | undefined
  try {
    const identity = await identityOf(path)
    using map = anew || catalog === undefined ? undefined : ImageMap.open(catalog, path, identity, format)
    if (map !== undefined) {
      const progress = await insertMapped(map, imageNumber, true, signal)
      reply({ type: 'progress', id, progress })
      reply({ type: 'done', id, identity, progress, stale: false, mapped: true, problem, tooLargeBytes: 0 })
      return
    }
  } catch (error) {
    signal.throwIfAborted()
    problem = errorText(error)
  }
  const lost = new AbortController()
  const source = await openImage(request.image, { signal, onLost: (error) => lost.abort(error) })
  try {
    await scanInto(request, source, problem, AbortSignal.any([signal, lost.signal]))
  } finally {
    await source.close()
  }
}

/** Its map and, if it has a number, the indexes. */
async function scanInto(
  request: Request<'index'>,
  source: OpenImage,
  before: string | undefined,
  signal: AbortSignal,
): Promise<void> {
  const { id, imageNumber } = request
  const { path, format } = request.image
  const { identity, size: bytesTotal } = source
  const counts = { chunks: 0, inserted: 0, insertedBlocks: 0 }
  let progress: IndexProgress = { bytesDone: 0, bytesTotal, zeroBytes: 0, ...counts }
  const map = new MapKeeper(path, identity, { format, bytes: bytesTotal }, request)
  const reads = new PacedReads(source, request.bytesPerSecond)
  const job = jobs.get(id)
  if (job !== undefined) job.reads = reads
  if (job?.hurried === true) reads.hurry()
  const image = imageNumber
  try {
    const from = await resumed(map.partial, image, counts, signal)
    using beneath = await mapBeneath(source, signal)
    await scanImage(reads, chunker, {
      signal,
      from,
      ...(beneath === undefined ? {} : { known: beneath.known }),
      onChunk: (offset, length, digests, digestOffset) => {
        counts.chunks++
        if (image !== null && index.insert(digests, digestOffset, { image, offset, length }))
          counts.inserted++
        map.add(digests, digestOffset, offset, length)
      },
      onBlock: (offset, hint) => {
        if (image !== null && blocks.insert(hint, 0, { image, offset, length: BLOCK_BYTES }))
          counts.insertedBlocks++
        map.addBlock(offset, hint)
      },
      onProgress: (bytesDone, zeroBytes) => {
        progress = { bytesDone, bytesTotal, zeroBytes, ...counts }
        reply({ type: 'progress', id, progress })
      },
    })
    const stale = (await source.isStale()) || !sameIdentity(map.identity, identity)
    map.finish(stale)
    const problem = before ?? map.problem
    const { identity: scanned, tooLargeBytes } = map
    reply({ type: 'done', id, identity: scanned, progress, stale, mapped: false, problem, tooLargeBytes })
  } finally {
    map.abort()
  }
}

/** Of the nearest image beneath that has a map of just what it is now, and what is not to be read for it. */
async function mapBeneath(
  source: OpenImage,
  signal: AbortSignal,
): Promise<({ readonly known: KnownParts } & Disposable) | undefined> {
  if (catalog === undefined || source.sharedWith === undefined) return undefined
  for (const [index, { path, identity, format }] of (source.beneath ?? []).entries()) {
    let map: ImageMap | undefined
    try {
      map = ImageMap.open(catalog, path, identity, format)
    } catch {
      // Whoever scans that image says so.
    }
    if (map === undefined) continue
    const beneath = map
    const close = (): void => beneath.close()
    try {
      const known = new KnownParts(map, await source.sharedWith(index, signal))
      return { known, [Symbol.dispose]: close }
    } catch (error) {
      close()
      throw error
    }
  }
  return undefined
}

/** Takes in what an earlier scan has left of the map, and says where to go on. */
async function resumed(
  partial: PartialMap | undefined,
  image: number | null,
  counts: { chunks: number; inserted: number; insertedBlocks: number },
  signal: AbortSignal,
): Promise<ScanStart> {
  if (partial === undefined) return { chunksEnd: 0, blocksEnd: 0, zeroBytes: 0 }
  const { chunksEnd, blocksEnd } = partial
  try {
    const taken = await insertEntries(partial.sections(), image, true, signal)
    counts.chunks += taken.chunks
    counts.inserted += taken.inserted
    counts.insertedBlocks += taken.insertedBlocks
    return { chunksEnd, blocksEnd, zeroBytes: chunksEnd - taken.dataBytes }
  } finally {
    partial.close()
  }
}

/** From its map, which may be of another time. Where it fails, what was taken in until then is in the indexes. */
async function loadImage(request: Request<'load'>, signal: AbortSignal): Promise<void> {
  const { id, imageNumber, withBlocks } = request
  const { path, format } = request.image
  signal.throwIfAborted()
  const identity = await identityOf(path)
  using map = catalog === undefined ? undefined : ImageMap.openUnproven(catalog, path, identity, format)
  if (map === undefined) throw new Error('it has no map any more')
  const progress = await insertMapped(map, imageNumber, withBlocks, signal)
  const stale = !map.isOf(identity)
  const nothing = { problem: undefined, tooLargeBytes: 0 }
  reply({ type: 'done', id, identity: map.identity, progress, stale, mapped: true, ...nothing })
}

async function identityOf(path: string): Promise<ImageIdentity> {
  await using file = await ImageSource.open(path)
  return file.identity
}

async function insertMapped(
  map: ImageMap,
  image: number | null,
  withBlocks: boolean,
  signal: AbortSignal,
): Promise<IndexProgress> {
  const { dataBytes, ...counts } = await insertEntries(map.entries(), image, withBlocks, signal)
  const size = map.disk.bytes
  return { bytesDone: size, bytesTotal: size, zeroBytes: size - dataBytes, ...counts }
}

/** Into the indexes, if it has a number. */
async function insertEntries(
  all: Iterable<MapEntries>,
  image: number | null,
  withBlocks: boolean,
  signal: AbortSignal,
): Promise<{ chunks: number; inserted: number; insertedBlocks: number; dataBytes: number }> {
  let chunks = 0
  let inserted = 0
  let insertedBlocks = 0
  let dataBytes = 0
  for (const { kind, entries } of all) {
    signal.throwIfAborted()
    if (kind === CHUNKS) {
      chunks += entries.length / CHUNK_ENTRY_BYTES
      for (let at = 0; at < entries.length; at += CHUNK_ENTRY_BYTES) {
        const { offset, length } = chunkAt(entries, at / CHUNK_ENTRY_BYTES)
        if (image !== null && index.insert(entries, at, { image, offset, length })) inserted++
        dataBytes += length
      }
    } else if (image !== null && withBlocks) {
      const { offset: first, hints } = blocksOf(entries)
      for (let at = 0; at < hints.length; at += HINT_BYTES) {
        const offset = first + (at / HINT_BYTES) * BLOCK_BYTES
        if (blocks.insert(hints, at, { image, offset, length: BLOCK_BYTES })) insertedBlocks++
      }
    }
    await new Promise((resolve) => setImmediate(resolve))
  }
  return { chunks, inserted, insertedBlocks, dataBytes }
}

async function peekMap({ id, image }: Request<'peek'>): Promise<void> {
  const { path, format } = image
  const identity = await identityOf(path)
  try {
    const summary = catalog === undefined ? undefined : ImageMap.peek(catalog, path, identity, format)
    reply({ type: 'peeked', id, summary, problem: undefined })
  } catch (error) {
    reply({ type: 'peeked', id, summary: undefined, problem: errorText(error) })
  }
}

/** A map that cannot be written (a full disk) is a pity, and no reason not to know the image now. */
class MapKeeper {
  problem: string | undefined
  tooLargeBytes = 0
  /** What the map is of: of an image whose scan is resumed, what it was when that began. */
  readonly identity: ImageIdentity
  /** What is in it already. */
  readonly partial: PartialMap | undefined
  readonly #bytesMax: number
  #writer: ImageMapWriter | undefined
  #chunks = 0

  /** With `anew` nothing is taken from an earlier scan. */
  constructor(
    path: string,
    identity: ImageIdentity,
    disk: MappedDisk,
    { anew, mapBytesMax }: Pick<Request<'index'>, 'anew' | 'mapBytesMax'>,
  ) {
    this.#bytesMax = mapBytesMax
    const directory = mapBytesMax === 0 ? undefined : catalog
    const ageMsMax = anew ? 0 : IMAGE_RESCAN_MS
    const resumed =
      directory === undefined
        ? undefined
        : ImageMapWriter.resume(directory, path, identity, { disk, ageMsMax })
    this.partial = resumed?.partial
    this.identity = this.partial?.identity ?? identity
    if (resumed !== undefined) this.#writer = resumed.writer
    else if (directory !== undefined)
      this.#try(() => (this.#writer = new ImageMapWriter(directory, path, identity, { disk })))
    this.#checkRoom()
  }

  add(digests: Uint8Array, digestOffset: number, offset: number, length: number): void {
    this.#try(() => this.#writer?.add(digests, digestOffset, offset, length))
    this.#checkSize()
    if (++this.#chunks % freeChunksMax === 0) this.#checkRoom()
  }

  addBlock(offset: number, hint: Buffer): void {
    this.#try(() => this.#writer?.addBlock(offset, hint))
    this.#checkSize()
  }

  finish(changed: boolean): void {
    this.#try(() => this.#writer?.finish(changed))
  }

  abort(): void {
    this.#writer?.abort()
  }

  #checkSize(): void {
    const bytes = this.#writer?.bytes ?? 0
    if (bytes <= this.#bytesMax) return
    this.tooLargeBytes = bytes
    this.#giveUp(`${bytes} bytes and more, expected at most ${this.#bytesMax} (limits.catalogGiB)`)
  }

  #checkRoom(): void {
    if (this.#writer === undefined || catalog === undefined) return
    const problem = noRoomFor(catalog, freeBytesMin)
    if (problem !== undefined) this.#giveUp(problem)
  }

  #try(work: () => unknown): void {
    if (this.problem !== undefined) return
    try {
      work()
    } catch (error) {
      this.#giveUp(errorText(error))
    }
  }

  #giveUp(problem: string): void {
    this.problem = problem
    this.#writer?.abort()
    this.#writer = undefined
  }
}

function begin(
  id: number,
  after: Promise<void>,
  work: (signal: AbortSignal) => Promise<void>,
): Promise<void> {
  const abort = new AbortController()
  jobs.set(id, { abort })
  return after
    .then(() => work(abort.signal))
    .catch((error: unknown) => reply({ type: 'failed', id, message: errorText(error) }))
    .finally(() => jobs.delete(id))
}

port.on('message', (request: IndexRequest) => {
  switch (request.type) {
    case 'abort':
      jobs.get(request.id)?.abort.abort()
      return
    case 'hurry': {
      const job = jobs.get(request.id)
      if (job !== undefined) job.hurried = true
      job?.reads?.hurry()
      return
    }
    case 'index':
      scans = begin(request.id, scans, (signal) => indexImage(request, signal))
      return
    case 'load':
      loads = begin(request.id, loads, (signal) => loadImage(request, signal))
      return
    case 'peek':
      loads = begin(request.id, loads, () => peekMap(request))
  }
})
