/**
 * The image of a disk whose guest runs, for an estimate. A raw file or a block device is read as it lies. Of a qcow2 QEMU's export knows
 * the tables as they were when it read them, while the guest's QEMU writes others: what is read through an old table is other bytes,
 * which is as good a guess, or an error. After an error the image is exported anew, with its tables as they are now.
 *
 * It deliberately believes nothing of what it reads, and never says that the image changed: it does all the time.
 */
import type { DataExtent } from '../../lib/catalog/data-extents.ts'
import type { ExtentSource } from '../../lib/catalog/extent-source.ts'
import { type ImageRef, type OpenImage, openImage } from '../../lib/catalog/open-image.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { ESTIMATE_EXPORTS_MAX } from '../../lib/core/limits.ts'

/** One disk cannot be read, and the others may be. */
export class UnreadableDisk extends RefusedError {}

/** One question at a time. */
export class LiveImage implements ExtentSource {
  readonly path: string
  /** When it was opened. */
  readonly size: number
  readonly #ref: ImageRef
  readonly #signal: AbortSignal
  /** None after a failure. */
  #image: OpenImage | undefined
  #failures = 0

  /** @throws UnreadableDisk, the signal's reason */
  static async open(ref: ImageRef, signal: AbortSignal): Promise<LiveImage> {
    try {
      return new LiveImage(ref, signal, await opened(ref, signal))
    } catch (error) {
      signal.throwIfAborted()
      throw new UnreadableDisk(errorText(error), { cause: error })
    }
  }

  private constructor(ref: ImageRef, signal: AbortSignal, image: OpenImage) {
    this.#ref = ref
    this.#signal = signal
    this.#image = image
    this.path = ref.path
    this.size = image.size
  }

  async extents(): Promise<DataExtent[]> {
    return await this.#ask((image) => image.extents(this.#signal))
  }

  async read(offset: number, length: number): Promise<Buffer> {
    return await this.#ask((image) => image.read(offset, length))
  }

  async readInto(target: Uint8Array, offset: number): Promise<number> {
    return await this.#ask((image) => image.readInto(target, offset))
  }

  isStale(): Promise<boolean> {
    return Promise.resolve(false)
  }

  /** Of a qcow2 as often as it takes, of one that cannot be read at all a few times. */
  async #ask<Answer>(question: (image: OpenImage) => Promise<Answer>): Promise<Answer> {
    for (;;) {
      this.#signal.throwIfAborted()
      try {
        this.#image ??= await opened(this.#ref, this.#signal)
        const answer = await question(this.#image)
        this.#failures = 0
        return answer
      } catch (error) {
        this.#signal.throwIfAborted()
        if (this.#ref.format === 'raw' || ++this.#failures > ESTIMATE_EXPORTS_MAX)
          throw new UnreadableDisk(errorText(error), { cause: error })
        await this.close()
      }
    }
  }

  /** Idempotent. */
  async close(): Promise<void> {
    const image = this.#image
    this.#image = undefined
    await image?.close()
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close()
  }
}

/** Who reads from an export that ended hears of it. */
async function opened(ref: ImageRef, signal: AbortSignal): Promise<OpenImage> {
  return await openImage(ref, { signal, onLost: () => undefined })
}
