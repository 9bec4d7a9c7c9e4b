/**
 * The one interface to a disk: what the NBD server exports, what the NBD client gives, and what the engine reads
 * and writes. Decorators (faults, limits) have the same interface. Offsets and lengths are bytes, safe integers, and
 * already checked against `size` by whoever took them from outside.
 * Failures reject with an error; a RefusedError carries the NBD errno that fits best.
 */
export interface BlockSizes {
  /** Every offset and length must be a multiple of this (a power of two, 1 to 65536). */
  readonly minimum: number
  readonly preferred: number
  /** Ceiling of one READ or WRITE payload. */
  readonly maximum: number
}

export interface DeviceFeatures {
  readonly readOnly: boolean
  readonly flush: boolean
  readonly fua: boolean
  readonly trim: boolean
  readonly writeZeroes: boolean
  readonly fastZero: boolean
  readonly cache: boolean
  readonly multiConn: boolean
  /** base:allocation is answered by `blockStatus`. */
  readonly blockStatus: boolean
}

/** A device that can do everything and is written to. */
export const ALL_FEATURES: DeviceFeatures = {
  readOnly: false,
  flush: true,
  fua: true,
  trim: true,
  writeZeroes: true,
  fastZero: true,
  cache: true,
  multiConn: true,
  blockStatus: true,
}

/** One extent of base:allocation. A hole need not read as zero unless `zero` says so. */
export interface StatusExtent {
  readonly length: number
  readonly hole: boolean
  readonly zero: boolean
}

export interface BlockDevice {
  readonly size: number
  readonly blockSizes: BlockSizes
  readonly features: DeviceFeatures
  /** The buffer belongs to the caller. */
  read(offset: number, length: number): Promise<Buffer>
  /** `data` belongs to the device from the call on: the caller neither changes nor reuses it. */
  write(offset: number, data: Buffer, flags?: { readonly fua?: boolean }): Promise<void>
  writeZeroes(
    offset: number,
    length: number,
    flags?: { readonly fua?: boolean; readonly noHole?: boolean; readonly fastZero?: boolean },
  ): Promise<void>
  trim(offset: number, length: number, flags?: { readonly fua?: boolean }): Promise<void>
  cache(offset: number, length: number): Promise<void>
  /** Extents from `offset` on, contiguous, at least one, covering at most `length` (it may stop early). */
  blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]>
  flush(): Promise<void>
  /** Idempotent. */
  close(): Promise<void>
}
