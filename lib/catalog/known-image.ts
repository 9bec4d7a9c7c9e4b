/** What the stock knows of one image, and what of it lies in the indexes. */
import type { ImageFormat, ImageIdentity } from './image-files.ts'
import type { MapSummary } from './image-map.ts'
import type { OpenImage } from './open-image.ts'

export interface Scan {
  /** Of its entries in the indexes, if it makes any. */
  readonly number: number | null
  readonly abort: AbortController
  readonly hurry: () => void
  readonly done: Promise<void>
}

/** What of an image lies in the indexes. */
interface Loaded {
  /** When its map was made; of an image without one: when it was scanned. */
  readonly madeAtMs: number
  /** What it was when it was scanned. */
  readonly identity: ImageIdentity
  readonly stale: boolean
  /** Entries. */
  readonly chunks: number
  readonly blocks: number
  readonly withBlocks: boolean
}

export interface Known {
  readonly path: string
  readonly format: ImageFormat
  identity: ImageIdentity
  /** Of its entries in the indexes. */
  number: number
  /** Entries of this number were forgotten: it cannot have others. */
  spent: boolean
  source: OpenImage | undefined
  map: MapSummary | undefined
  loaded: Loaded | undefined
  scan: Scan | undefined
  /** How many of its samples were looked up. */
  score: number
}
