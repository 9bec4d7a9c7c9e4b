/**
 * `swam analyze` without its words: how many bytes of an image would cross the link, and where the others come from, if the far
 * side had certain images. It opens what was named, scans what the far side is supposed to have, sends the image through the
 * whole engine onto a device that compares instead of keeping, and reports.
 *
 * It deliberately asks no daemon, reads no config, and estimates nothing: what it says was sent and verified. Everything that was
 * opened or started is closed again, whatever happens.
 */
import { randomBytes } from 'node:crypto'
import type { BlockDevice } from '../../lib/block/device.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { checkImage, type ImageFormat, sameIdentity } from '../../lib/catalog/image-files.ts'
import { Qcow2Export } from '../../lib/catalog/qcow2-export.ts'
import { indexBudgets } from '../../lib/catalog/stock-choice.ts'
import { sha256 } from '../../lib/chunk/digest.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import {
  ANALYZE_EXPORTS_MAX,
  ANALYZE_IMAGES_MAX,
  ANALYZE_INDEX_BYTES_MAX,
  ANALYZE_SHA256_MS,
} from '../../lib/core/limits.ts'
import { KIB } from '../../lib/core/units.ts'
import { StockBlocks, StockSource } from '../../lib/engine/stock-source.ts'
import { UsageError } from '../cli/exit-codes.ts'
import type { BySource } from '../report.ts'
import { HaveStock } from './have-stock.ts'
import {
  chainRules,
  checkDisk,
  type ImageName,
  imageName,
  imagesIn,
  isDirectory,
  openFile,
  openRaw,
} from './images.ts'
import { SparseImage } from './sparse-image.ts'
import { transfer } from './transfer.ts'
import { VerifyDevice } from './verify-device.ts'

export interface AnalyzeOptions {
  /** Images as they were typed: `PATH`, `raw:PATH`, `qcow2:PATH`. */
  readonly target: string
  /** Images that the far side has, and directories of them. */
  readonly have: readonly string[]
  /** What lies at the target's path already. */
  readonly inPlace?: string
  /** Files that qcow2 images may stand on. */
  readonly backing: readonly string[]
  /** Of images that are named without one; undefined: raw. */
  readonly format?: ImageFormat
  readonly signal?: AbortSignal
  /** Hears, in a line each, of what was left out. */
  readonly onNote?: (text: string) => void
  /** How long SHA-256 is measured, in milliseconds. */
  readonly sha256Ms?: number
  /** For tests: a device in the place of the one that verifies. */
  readonly wrapDevice?: (device: VerifyDevice) => BlockDevice
}

/** What `--json` prints. Sizes in bytes, `seconds` and `mbPerSecond` (of dataBytes, 10^6) of the transfer alone. */
export interface AnalyzeReport {
  readonly version: 1
  readonly target: string
  readonly format: ImageFormat
  readonly size: number
  /** In 4 KiB blocks that are not zero. */
  readonly dataBytes: number
  /** Frames both ways: payload, digests, headers, acknowledgements; without SSH. */
  readonly wireBytes: number
  readonly bySource: BySource
  readonly seconds: number
  readonly mbPerSecond: number
  /** mbPerSecond, compared with SHA-256 of 64 KiB buffers on one thread, measured just before. */
  readonly sha256Ratio: number
  /** Always: what cannot be verified is an error. */
  readonly verified: true
  /** How many images the far side was supposed to have, and how long they took to scan. */
  readonly haveImages: number
  readonly indexSeconds: number
}

/** Rejects with one line that says what cannot be used (images.ts), or what was not verified. */
export async function analyze(options: AnalyzeOptions): Promise<AnalyzeReport> {
  const lost = new AbortController()
  const signal = options.signal === undefined ? lost.signal : AbortSignal.any([options.signal, lost.signal])
  const images = new Images(options, { signal, onLost: (error) => lost.abort(error) })
  try {
    const report = await run(options, images, signal)
    signal.throwIfAborted()
    return report
  } catch (error) {
    // Why it was ended is a better reason than what failed because of it.
    signal.throwIfAborted()
    throw error
  } finally {
    await images.close()
  }
}

async function run(options: AnalyzeOptions, images: Images, signal: AbortSignal): Promise<AnalyzeReport> {
  const name = imageName(options.target, options.format)
  const target = await images.disk(name)
  const before = options.inPlace === undefined ? undefined : await images.disk(images.named(options.inPlace))
  if (before !== undefined && before.size !== target.size) {
    throw new RefusedError(
      `${before.path}: in place: expected an image of ${target.size} bytes, as ${name.path} has, found ${before.size}`,
    )
  }
  const { stock, indexMs } = await fillStock(options, images, target, before, signal)
  const sha256Rate = sha256BytesPerMs(options.sha256Ms ?? ANALYZE_SHA256_MS)
  const image = await SparseImage.of(target, signal)
  const device = new VerifyDevice(
    image,
    before === undefined ? undefined : await SparseImage.of(before, signal),
  )
  const sent = await notStale(target, async () => {
    const result = await transfer({
      image,
      device: options.wrapDevice?.(device) ?? device,
      sources: [new StockSource(stock, new Set(before === undefined ? [] : [before.path]))],
      blockPlaces: [new StockBlocks(stock)],
      signal,
    })
    await device.checkRest(signal)
    return result
  })
  const rate = sent.dataBytes / sent.elapsedMs
  return {
    version: 1,
    target: name.path,
    format: name.format,
    size: target.size,
    dataBytes: sent.dataBytes,
    wireBytes: sent.wireBytes,
    bySource: sent.bySource,
    seconds: rounded(sent.elapsedMs / 1000),
    mbPerSecond: rounded(rate / 1000),
    sha256Ratio: rounded(rate / sha256Rate),
    verified: true,
    haveImages: stock.images.length - (before === undefined ? 0 : 1),
    indexSeconds: rounded(indexMs / 1000),
  }
}

/** Opens and scans what the far side has. */
async function fillStock(
  options: AnalyzeOptions,
  images: Images,
  target: ExtentSource,
  before: ExtentSource | undefined,
  signal: AbortSignal,
): Promise<{ stock: HaveStock; indexMs: number }> {
  const stock = new HaveStock({
    ...indexBudgets(ANALYZE_INDEX_BYTES_MAX),
  })
  const startMs = performance.now()
  // Also what is written over: of the old version files may lie elsewhere in the new one.
  if (before !== undefined) await stock.add(before, signal)
  for (const source of await images.have(target)) await stock.add(source, signal)
  if (stock.refused > 0) {
    options.onNote?.(
      `the index is full: ${stock.refused} chunks of these images are only found at their own offset, as in swamd`,
    )
  }
  return { stock, indexMs: performance.now() - startMs }
}

/** A guest that writes meanwhile is the likelier reason for bytes that differ. */
async function notStale<Result>(target: ExtentSource, work: () => Promise<Result>): Promise<Result> {
  const refuse = async (cause: unknown): Promise<void> => {
    if (!(await target.isStale())) return
    throw new RefusedError(`${target.path}: it was written to while it was read: nothing can be said of it`, {
      cause,
    })
  }
  try {
    const result = await work()
    await refuse(undefined)
    return result
  } catch (error) {
    await refuse(error)
    throw error
  }
}

/** On this thread, in buffers as long as a chunk is on average. */
function sha256BytesPerMs(durationMs: number): number {
  const bytes = randomBytes(64 * KIB)
  const startMs = performance.now()
  let digested = 0
  let elapsedMs = 0
  do {
    sha256(bytes)
    digested += bytes.length
    elapsedMs = performance.now() - startMs
  } while (elapsedMs < durationMs)
  return digested / elapsedMs
}

function rounded(value: number): number {
  return Number(value.toPrecision(4))
}

/** Everything that is opened for one analysis. */
class Images {
  readonly #options: AnalyzeOptions
  readonly #context: { readonly signal: AbortSignal; readonly onLost: (error: Error) => void }
  readonly #backings: readonly ImageName[]
  readonly #open: ExtentSource[] = []
  #exports = 0

  constructor(options: AnalyzeOptions, context: { signal: AbortSignal; onLost: (error: Error) => void }) {
    this.#options = options
    this.#context = context
    // --format is of the images that were named, not of what lies below them.
    this.#backings = options.backing.map((text) => imageName(text, undefined))
  }

  named(text: string): ImageName {
    return imageName(text, this.#options.format)
  }

  /** An image that the engine can take as a disk. */
  async disk(name: ImageName): Promise<ExtentSource> {
    const source = await this.#openImage(name, true)
    checkDisk(name.path, source)
    return source
  }

  /** Bytes to look into, of any length: as raw, a file of qcow2 is one too. */
  async #image(name: ImageName): Promise<ExtentSource> {
    const source = await this.#openImage(name, false)
    checkImage(name.path, source)
    return source
  }

  /** What the far side has: images by name must be usable, of a directory what is. The target is not its own source there. */
  async have(target: ExtentSource): Promise<ExtentSource[]> {
    const found: ExtentSource[] = []
    const own = await identityOf(this.named(this.#options.target))
    for (const text of this.#options.have) {
      const name = this.named(text)
      if (await isDirectory(name)) found.push(...(await this.#haveOf(name, own)))
      else found.push(await this.#image(name))
      if (found.length > ANALYZE_IMAGES_MAX) {
        throw new RefusedError(`${target.path}: --have: expected at most ${ANALYZE_IMAGES_MAX} images`)
      }
    }
    return found
  }

  async #haveOf(directory: ImageName, own: Identity): Promise<ExtentSource[]> {
    const found: ExtentSource[] = []
    for (const name of await imagesIn(directory)) {
      if (sameIdentity(await identityOf(name), own)) {
        this.#note(`${name.path}: left out: it is the image that is analyzed`)
        continue
      }
      try {
        found.push(await this.#image(name))
      } catch (error) {
        this.#context.signal.throwIfAborted()
        this.#note(`left out: ${errorText(error)}`)
      }
    }
    return found
  }

  async #openImage(name: ImageName, thorough: boolean): Promise<ExtentSource> {
    const { signal, onLost } = this.#context
    signal.throwIfAborted()
    if (name.format === 'qcow2' && ++this.#exports > ANALYZE_EXPORTS_MAX) {
      throw new UsageError(`${name.path}: expected at most ${ANALYZE_EXPORTS_MAX} qcow2 images at once`)
    }
    const source =
      name.format === 'raw'
        ? await openRaw(name)
        : await Qcow2Export.open(name, chainRules(this.#backings, thorough), { signal, onLost })
    this.#open.push(source)
    return source
  }

  #note(text: string): void {
    this.#options.onNote?.(text)
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#open.splice(0).map((source) => source.close()))
  }
}

type Identity = Parameters<typeof sameIdentity>[0]

async function identityOf(name: ImageName): Promise<Identity> {
  const file = await openFile(name)
  try {
    return file.identity
  } finally {
    await file.close()
  }
}
