/** RangeBits: which parts of a device were touched, a bit for each `unit` bytes. 16 MiB for 8 TiB at 64 KiB. */
export class RangeBits {
  readonly #unit: number
  readonly #size: number
  readonly #bits: Uint32Array

  /** @param unit in bytes, a part of a range counts as the whole */
  constructor(size: number, unit: number) {
    this.#unit = unit
    this.#size = size
    this.#bits = new Uint32Array(Math.ceil(size / unit / 32))
  }

  /** @throws RangeError beyond the device */
  set(offset: number, length: number): void {
    for (let at = this.#first(offset, length); at * this.#unit < offset + length; at++)
      this.#bits[at >>> 5]! |= 1 << (at & 31)
  }

  /** Whether any of it was touched. */
  overlaps(offset: number, length: number): boolean {
    for (let at = this.#first(offset, length); at * this.#unit < offset + length; at++)
      if ((this.#bits[at >>> 5]! & (1 << (at & 31))) !== 0) return true
    return false
  }

  #first(offset: number, length: number): number {
    if (offset < 0 || length < 0 || offset + length > this.#size)
      throw new RangeError(`${length} bytes at ${offset} of ${this.#size}`)
    return Math.floor(offset / this.#unit)
  }
}
