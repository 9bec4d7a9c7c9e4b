/**
 * One disk through the whole engine, without a network: what is read of an image is written to a DiskSender as a mirror job
 * of QEMU would, and a DiskReceiver puts it together on a device, over a link in memory with the real hello, frames,
 * acknowledgements and pacing. What the link carried is counted at the sender's end, both ways.
 *
 * The same memory as in swamd, one worker as in swamd, and no time in the figures: the sender gathers, and sends nothing unasked.
 */
import type { BlockDevice } from '../../lib/block/device.ts'
import { Describer } from '../../lib/chunk/describer.ts'
import { SlabPool } from '../../lib/chunk/slab.ts'
import { zeroRuns } from '../../lib/chunk/zero.ts'
import { ByteBudget } from '../../lib/core/byte-budget.ts'
import { errorText, LostError, RefusedError } from '../../lib/core/errors.ts'
import {
  ANALYZE_READS_MAX,
  ANALYZE_WINDOW_BYTES_MAX,
  FLUSH_DEADLINE_MS,
  LITERAL_BYTES_MAX,
  MIGRATION_DRAIN_MS,
  SESSION_ENTRIES_MAX,
  UNDETERMINED_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { KIB } from '../../lib/core/units.ts'
import { type BySource, DiskAccount } from '../../lib/engine/account.ts'
import type { BlockPlaces } from '../../lib/engine/block-finder.ts'
import { CLASS_CONTROL, type DiskEndpoint, DiskLink } from '../../lib/engine/link.ts'
import { DiskReceiver } from '../../lib/engine/receiver.ts'
import { DiskSender } from '../../lib/engine/sender.ts'
import type { ChunkSource } from '../../lib/engine/sources.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import { bundlePair } from '../../lib/peer/memory.ts'
import { ENGINE_FEATURES } from '../../lib/wire/disk.ts'
import type { SparseImage } from './sparse-image.ts'

export interface TransferOptions {
  readonly image: SparseImage
  /** Of the size of the image. What it refuses fails the transfer. */
  readonly device: BlockDevice
  /** Where the receiver looks beyond the device itself. */
  readonly sources: readonly ChunkSource[]
  readonly blockPlaces: readonly BlockPlaces[]
  readonly signal?: AbortSignal
}

export interface Transferred {
  /** Bytes of the image in 4 KiB blocks that are not all zero, counted as they were read. */
  readonly dataBytes: number
  /** What the link carried both ways, frame headers and acknowledgements included, from the opening of the disk on. */
  readonly wireBytes: number
  readonly bySource: Readonly<BySource>
  /** From the first read to the answer of the FLUSH. */
  readonly elapsedMs: number
}

/** Resolves when everything is applied and flushed. Rejects with RefusedError (either end said no), or the signal's reason. */
export async function transfer(options: TransferOptions): Promise<Transferred> {
  const { image, device, signal } = options
  signal?.throwIfAborted()
  await using describer = new Describer({ workers: 1 })
  const { near, far } = await bundlePair({ kind: 'disk', features: ENGINE_FEATURES })
  const onAbort = (): void => void near.close(new LostError(errorText(signal?.reason)))
  signal?.addEventListener('abort', onAbort, { once: true })
  try {
    listen(far, options)
    const helloBytes = near.bytesSent + near.bytesReceived
    const sender = newSender(near, device, describer)
    await sender.open(0, '')
    const startMs = performance.now()
    const dataBytes = await feed(image, sender, signal)
    // A FLUSH is in a hurry, and hurry costs bytes: a migration's bulk has none.
    await sender.settle()
    await sender.flush()
    const elapsedMs = performance.now() - startMs
    const { bySource } = sender.account
    const wireBytes = near.bytesSent + near.bytesReceived - helloBytes
    checkAccount(image, dataBytes, sender.account)
    await sender.close()
    return { dataBytes, wireBytes, bySource, elapsedMs }
  } catch (error) {
    signal?.throwIfAborted()
    throw error
  } finally {
    signal?.removeEventListener('abort', onAbort)
    await near.close()
  }
}

/** The far end: a receiver for the disk that the near end opens. */
function listen(bundle: Bundle, options: TransferOptions): void {
  const link: DiskLink = new DiskLink(bundle, ({ type, disk, epoch }): DiskEndpoint | undefined => {
    if (type !== 'open') return undefined
    const { device, sources, blockPlaces } = options
    const receiver = new DiskReceiver({
      link,
      disk,
      epoch,
      device,
      account: new DiskAccount('', device.size),
      sources,
      blockPlaces,
      memory: new ByteBudget({ bytesMax: ANALYZE_WINDOW_BYTES_MAX / 2 }),
      sessionEntriesMax: Math.min(SESSION_ENTRIES_MAX, Math.ceil(device.size / (32 * KIB))),
    })
    const opened = { type: 'opened', disk, epoch, errno: 0, text: '' } as const
    void receiver
      .scanTarget()
      .then(() => link.send(opened, CLASS_CONTROL))
      .catch((error: unknown) => bundle.close(new LostError(errorText(error))))
    // The OPEN itself needs no one any more; the receiver has registered for what follows.
    return { onMessage: () => undefined, onLost: () => undefined }
  })
}

function newSender(bundle: Bundle, device: BlockDevice, describer: Describer): DiskSender {
  return new DiskSender({
    link: new DiskLink(bundle),
    disk: 0,
    epoch: 1,
    size: device.size,
    blockSizes: device.blockSizes,
    account: new DiskAccount('', device.size),
    slabs: new SlabPool({ bytesMax: ANALYZE_WINDOW_BYTES_MAX }),
    describe: (bytes) => describer.describe(bytes),
    limits: {
      windowBytes: UNDETERMINED_BYTES_MAX,
      drainMs: MIGRATION_DRAIN_MS,
      flushDeadlineMs: FLUSH_DEADLINE_MS,
    },
    bulkOnly: true,
  })
}

/** Writes the whole image, its holes as zeroes; gives the bytes of its blocks that are not zero. */
async function feed(
  image: SparseImage,
  sender: DiskSender,
  signal: AbortSignal | undefined,
): Promise<number> {
  let at = 0
  let dataBytes = 0
  for await (const { offset, bytes } of readAhead(image)) {
    signal?.throwIfAborted()
    if (offset > at) await sender.writeZeroes(at, offset - at)
    for (const run of zeroRuns(bytes)) if (!run.zero) dataBytes += run.length
    at = offset + bytes.length
    await sender.write(offset, bytes)
  }
  if (at < image.size) await sender.writeZeroes(at, image.size - at)
  return dataBytes
}

/** The image's data in order, in pieces of a MiB as a mirror's, some of which are being read while one is used. */
export async function* readAhead(image: SparseImage): AsyncGenerator<{ offset: number; bytes: Buffer }> {
  const reading: { offset: number; bytes: Promise<Buffer> }[] = []
  for (const extent of image.extents) {
    for (let offset = extent.offset; offset < extent.end; offset += LITERAL_BYTES_MAX) {
      const bytes = image.source.read(offset, Math.min(LITERAL_BYTES_MAX, extent.end - offset))
      // Whoever stops before its turn comes does not wait for it.
      bytes.catch(() => undefined)
      reading.push({ offset, bytes })
      if (reading.length < ANALYZE_READS_MAX) continue
      const first = reading.shift()!
      yield { offset: first.offset, bytes: await first.bytes }
    }
  }
  for (const { offset, bytes } of reading) yield { offset, bytes: await bytes }
}

/** Every byte has one source: what was read, and what the far end says that it applied, must agree. Throws a RefusedError. */
export function checkAccount(
  image: { readonly path: string; readonly size: number },
  dataBytes: number,
  account: DiskAccount,
): void {
  const { zero, digest: _, ...others } = account.bySource
  const data = Object.values(others).reduce((sum, bytes) => sum + bytes, 0)
  if (data !== dataBytes || zero + data !== image.size) {
    throw new RefusedError(
      `analyze ${image.path}: ${dataBytes} bytes of ${image.size} were read that are not zero; ` +
        `the far end applied ${data}, and ${zero} zeroes`,
    )
  }
}
