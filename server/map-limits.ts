/** What the config says of maps: how long they are kept, and how much of them. */
import type { Config } from '../config/schema.ts'
import { GIB } from '../lib/core/units.ts'

const MS_OF_A_DAY = 86_400_000

export interface MapLimits {
  /** The directories of images. */
  readonly images: readonly string[]
  /** 0: there are no maps. */
  readonly bytesMax: number
  readonly ageMsMax: number
}

export function mapLimits({ images, limits }: Pick<Config, 'images' | 'limits'>): MapLimits {
  const { catalogGiB, catalogDays } = limits
  return { images, bytesMax: catalogGiB * GIB, ageMsMax: catalogDays * MS_OF_A_DAY }
}
