/** What an ImageStock is given, and what it gives. */
import type { ImageFile, ImageFormat } from './image-files.ts'
import type { IndexedImage } from './image-index.ts'
import type { ForgottenMap, MapRetentionOptions } from './map-retention.ts'
import type { OpenImage } from './open-image.ts'

export interface StockImage {
  readonly number: number
  readonly path: string
  readonly format: ImageFormat
  readonly size: number
  readonly source: Pick<OpenImage, 'read' | 'allocatedBytes'>
}

export interface StockOptions {
  readonly indexBytesMax: number
  /** The same for the index of 4 KiB blocks. */
  readonly blockIndexBytesMax: number
  /** Images that are kept open at once. */
  readonly imagesMax: number
  /** Where the files lie that a qcow2 may stand on, without symbolic links. */
  readonly directories?: readonly string[]
  /** Where maps of what was found lie (image-map.ts); without it every image is scanned again by the next daemon. */
  readonly catalog?: string
  /** How long maps are kept, and how much of them; without it, as long as their images are there. */
  readonly retention?: Omit<MapRetentionOptions, 'catalog'>
  /** Numbers of images in one index; tests have fewer. */
  readonly numbersMax?: number
  /** The same of IMAGE_REST_MS. */
  readonly restMs?: number
  /** The same of CATALOG_FREE_BYTES_MIN. */
  readonly freeBytesMin?: number
  readonly onProblem?: (text: string) => void
  /** An image is known, from its map or from a scan. */
  readonly onIndexed?: (image: IndexedImage) => void
  /** An image that is here has its map no more, for its age or for want of room. */
  readonly onForgotten?: (map: ForgottenMap) => void
}

/** What lies here now. An older list must not come after a newer one: what it lacks is forgotten. */
export type ListImages = () => Promise<readonly ImageFile[]>

/** What `tend` is to do. */
export interface TendOptions {
  /** Images that are being written by a migration now. */
  readonly busy: () => ReadonlySet<string>
  /** Bytes of images that are read in a second. */
  readonly bytesPerSecond: number
}
