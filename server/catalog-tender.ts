/**
 * Keeps the catalog in the background: now and then the images are listed, and what has no map, or an
 * old one, is scanned at idle priority and a bounded rate (ImageStock.tend). One round at a time; it holds up nothing, and a host
 * whose images are all known does no more than to list them.
 */
import type { ImageStock, ListImages } from '../lib/catalog/stock.ts'
import { type Clock, systemClock } from '../lib/core/clock.ts'
import { CATALOG_FIRST_TEND_MS, CATALOG_TEND_MS } from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import { MIB } from '../lib/core/units.ts'
import type { ImageList } from './image-list.ts'

export interface CatalogTenderOptions {
  readonly stock: ImageStock
  readonly images: ImageList
  /** MiB of images that are read in a second; 0: none is. */
  readonly scanMiBps: number
  /** Images that are being received. */
  readonly busy: () => ReadonlySet<string>
  readonly log: Log
  readonly clock?: Clock
}

export class CatalogTender {
  readonly #options: CatalogTenderOptions
  readonly #clock: Clock
  #cancel: () => void = () => undefined
  #closed = false

  constructor(options: CatalogTenderOptions) {
    this.#options = options
    this.#clock = options.clock ?? systemClock
  }

  start(): void {
    this.#later(CATALOG_FIRST_TEND_MS)
  }

  #later(ms: number): void {
    if (this.#closed) return
    this.#cancel = this.#clock.after(ms, () => void this.#round().finally(() => this.#later(CATALOG_TEND_MS)))
  }

  async #round(): Promise<void> {
    const { stock, images, scanMiBps, busy, log } = this.#options
    try {
      await images.ask()
      if (this.#closed) return
      const list: ListImages = () => images.list()
      if (scanMiBps > 0) await stock.tend(list, { busy, bytesPerSecond: scanMiBps * MIB })
      else await stock.look(list)
    } catch (error) {
      if (!this.#closed) log.warn({ error }, 'the catalog of the images here could not be kept')
    }
  }

  /** The round that is under way ends with the stock. */
  close(): void {
    this.#closed = true
    this.#cancel()
  }
}
