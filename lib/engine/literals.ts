/**
 * What the far side wants and does not have: gathers chunks, or the missing blocks of them, into literals of some 192 KiB,
 * packs and sends them. With FEATURE_STREAM they go into zstd streams, each packed one literal after the other: one of the
 * class of what a FLUSH waits for, two of the bulk, since one thread packs slower than a fast link takes (the second only
 * while the first is busy: a stream knows only its own past). Without it literals are frames of their own, packed side by side.
 */
import { compress } from '../chunk/zstd.ts'
import { LITERAL_BYTES_MAX, LITERAL_CHUNKS_MAX, LITERALS_IN_FLIGHT_MAX } from '../core/limits.ts'
import { KIB } from '../core/units.ts'
import { FEATURE_STREAM, type LiteralCodec } from '../wire/disk.ts'
import { partsOf } from './chunk-blocks.ts'
import { CLASS_BULK, CLASS_FINAL, type DiskLink } from './link.ts'
import { LiteralPacker } from './literal-stream.ts'
import { writeBody } from './pieces.ts'
import type { ChunkRecord } from './sender-parts.ts'

/** A frame of about 100 KiB compressed: acknowledged often enough for the pacing. */
export const LITERAL_TARGET_BYTES: number = 192 * KIB
/** What a fast link takes in so long is one literal: each costs turns of the event loop and of libuv's threads. */
const LITERAL_SECONDS = 0.004
const LITERAL_FAST_BYTES = 768 * KIB
const FINAL_STREAMS: readonly LiteralCodec[] = ['final']
const BULK_STREAMS: readonly LiteralCodec[] = ['bulk', 'bulk2']
/** One that is packed and one that is ready: packing takes about as long as a turn of the event loop may. */
const STREAM_LITERALS = 2

export interface LiteralOptions {
  readonly link: DiskLink
  readonly disk: number
  readonly epoch: number
  /** Whether the far side still lacks it: else its memory is gone. */
  readonly isNeeded: (record: ChunkRecord) => boolean
  /** Whether a FLUSH waits, and with it the guest. */
  readonly isUrgent: () => boolean
  readonly onSent: (plainBytes: number, packedBytes: number, wireBytes: number) => void
  readonly onError: (error: unknown) => void
}

export class LiteralSender {
  readonly #options: LiteralOptions
  readonly #packers = new Map<LiteralCodec, LiteralPacker>()
  /** Literals that a stream packs or has before it. The order in which it packs must be that in which they are sent. */
  readonly #busy = new Map<LiteralCodec, number>()
  readonly #spare = new SpareBuffers()
  #queue: ChunkRecord[] = []
  #sending = 0
  #closed = false

  constructor(options: LiteralOptions) {
    this.#options = options
  }

  /** `record.wantedBytes` and `record.missing` say what of it. Nothing leaves before `pump`. */
  queue(record: ChunkRecord): void {
    this.#queue.push(record)
  }

  pump(): void {
    const { link, isUrgent, onError } = this.#options
    while (!this.#closed && this.#sending < LITERALS_IN_FLIGHT_MAX) {
      const urgent = isUrgent()
      const streams = urgent ? FINAL_STREAMS : BULK_STREAMS
      const codec = link.features.has(FEATURE_STREAM) ? this.#leastBusy(streams) : 'zstd'
      const batch = codec === undefined ? [] : this.#batch()
      if (codec === undefined || batch.length === 0) return
      this.#sending++
      void this.#send(batch, codec, urgent)
        .catch(onError)
        .finally(() => {
          this.#sending--
          this.pump()
        })
    }
  }

  close(): void {
    this.#closed = true
    this.#queue = []
    for (const packer of this.#packers.values()) packer.close()
  }

  /** Undefined when all have enough to do. */
  #leastBusy(streams: readonly LiteralCodec[]): LiteralCodec | undefined {
    const load = (stream: LiteralCodec): number => this.#busy.get(stream) ?? 0
    const free = streams.filter((stream) => load(stream) < STREAM_LITERALS)
    return free.toSorted((one, other) => load(one) - load(other))[0]
  }

  #batch(): ChunkRecord[] {
    const batch: ChunkRecord[] = []
    const target = targetBytes(this.#options.link.rateBytesPerSecond)
    let bytes = 0
    while (
      this.#queue.length > 0 &&
      batch.length < LITERAL_CHUNKS_MAX &&
      bytes + this.#queue[0]!.wantedBytes <= LITERAL_BYTES_MAX
    ) {
      const record = this.#queue.shift()!
      // Found at the far side before its turn came.
      if (!this.#options.isNeeded(record)) continue
      batch.push(record)
      bytes += record.wantedBytes
      if (bytes >= target) break
    }
    return batch
  }

  async #send(batch: readonly ChunkRecord[], stream: LiteralCodec, urgent: boolean): Promise<void> {
    const { link, disk, epoch, onSent } = this.#options
    const plain = this.#spare.take(batch.reduce((sum, { wantedBytes }) => sum + wantedBytes, 0))
    fill(plain, batch)
    const chunks = batch.map(({ seq, wantedBytes }) => ({ seq, length: wantedBytes }))
    const { codec, data } = await this.#pack(stream, plain)
    if (this.#closed) return
    if (codec !== 'raw') this.#spare.give(plain)
    const sent = link.send(
      { type: 'literal', disk, epoch, chunks, codec, data },
      urgent ? CLASS_FINAL : CLASS_BULK,
    )
    this.pump()
    onSent(plain.length, data.length, await sent)
  }

  async #pack(stream: LiteralCodec, plain: Buffer): Promise<{ codec: LiteralCodec; data: Buffer }> {
    if (stream === 'zstd') {
      const packed = await compress(plain)
      return packed.length < plain.length ? { codec: 'zstd', data: packed } : { codec: 'raw', data: plain }
    }
    this.#busy.set(stream, (this.#busy.get(stream) ?? 0) + 1)
    try {
      return { codec: stream, data: await this.#packer(stream).pack(plain) }
    } finally {
      this.#busy.set(stream, this.#busy.get(stream)! - 1)
    }
  }

  #packer(codec: LiteralCodec): LiteralPacker {
    let packer = this.#packers.get(codec)
    if (packer === undefined) {
      packer = new LiteralPacker(this.#options.link.features)
      this.#packers.set(codec, packer)
    }
    return packer
  }
}

/**
 * Memory of literals while they are packed, used again: new memory for each makes V8 collect garbage for every 14 MB. What is taken
 * is not cleared; what a frame still refers to must not be given.
 */
class SpareBuffers {
  readonly #spare: ArrayBuffer[] = []

  take(bytes: number): Buffer {
    return Buffer.from(this.#spare.pop() ?? new ArrayBuffer(LITERAL_BYTES_MAX), 0, bytes)
  }

  give({ buffer }: Buffer): void {
    if (this.#spare.length < LITERALS_IN_FLIGHT_MAX) this.#spare.push(buffer as ArrayBuffer)
  }
}

function targetBytes(rateBytesPerSecond: number): number {
  const inTime = rateBytesPerSecond * LITERAL_SECONDS
  return Math.min(LITERAL_FAST_BYTES, Math.max(LITERAL_TARGET_BYTES, inTime))
}

function fill(plain: Buffer, batch: readonly ChunkRecord[]): void {
  let at = 0
  for (const { slab, slabOffset, offset, length, missing, differences } of batch) {
    if (differences !== undefined) {
      const blocks = { start: offset, end: offset + length, missing: missing!, old: differences.old }
      const chunk = slab!.bytes.subarray(slabOffset, slabOffset + length)
      at = writeBody(blocks, differences.maps, chunk, plain, at)
      continue
    }
    const parts =
      missing === undefined ? [{ from: 0, to: length }] : partsOf(offset, offset + length, missing)
    for (const { from, to } of parts) {
      plain.set(slab!.bytes.subarray(slabOffset + from, slabOffset + to), at)
      at += to - from
    }
  }
}
