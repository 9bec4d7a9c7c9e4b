/**
 * Puts the leaves of a disk together from what passes a receiver: what it writes, what it found in place, zeroes. Chunks are cut at
 * any byte, so a leaf is made of two of them as a rule. A leaf that is whole is digested by a worker; one that is written in part
 * waits for the rest, and gives way to others when there is no room: then it is lost, and has to be read back.
 *
 * Bytes are copied here when they are handed over, so nothing of a chunk is held; all disks of the daemon share the room.
 */
import { LEAF_BYTES } from '../core/units.ts'
import { leafCount } from '../proof/leaves.ts'

/** The room: leaves in shared memory, so that a worker reads them where they lie. */
export class LeafSlots {
  readonly #max: number
  #made = 0
  readonly #idle: Uint8Array<SharedArrayBuffer>[] = []

  constructor({ bytesMax }: { readonly bytesMax: number }) {
    this.#max = Math.floor(bytesMax / LEAF_BYTES)
  }

  /** Undefined: there is none left. */
  take(): Uint8Array<SharedArrayBuffer> | undefined {
    const idle = this.#idle.pop()
    if (idle !== undefined || this.#made >= this.#max) return idle
    this.#made++
    return new Uint8Array(new SharedArrayBuffer(LEAF_BYTES))
  }

  give(slot: Uint8Array<SharedArrayBuffer>): void {
    this.#idle.push(slot)
    // Between migrations the memory is the host's again.
    if (this.#idle.length < this.#made) return
    this.#idle.length = 0
    this.#made = 0
  }
}

export interface LeafAssemblyOptions {
  readonly size: number
  readonly slots: LeafSlots
  /** The digest of one leaf. */
  readonly digest: (bytes: Uint8Array) => Promise<Uint8Array>
  readonly whole: (leaf: number, digest: Uint8Array) => void
  /** Nobody knows what it is now. @param zeroesOnly but that nothing was written to it besides zeroes */
  readonly lost: (leaf: number, zeroesOnly: boolean) => void
  readonly fail: (error: unknown) => void
}

interface Filling {
  readonly bytes: Uint8Array<SharedArrayBuffer>
  /** What of it is there: [from, to), sorted, apart from each other. */
  parts: { from: number; to: number }[]
  zeroesOnly: boolean
}

export class LeafAssembly {
  readonly #options: LeafAssemblyOptions
  /** The oldest first. */
  readonly #filling = new Map<number, Filling>()
  /** The one digest of each leaf that counts. */
  readonly #digesting = new Map<number, Promise<void>>()
  #closed = false

  constructor(options: LeafAssemblyOptions) {
    this.#options = options
  }

  /** Whether it is known only when it has been digested, or is there in part. */
  has(leaf: number): boolean {
    return this.#filling.has(leaf) || this.#digesting.has(leaf)
  }

  /** @param data undefined: zeroes */
  put(offset: number, length: number, data: Uint8Array | undefined): void {
    if (this.#closed) return
    for (let at = offset; at < offset + length; ) {
      const leaf = Math.floor(at / LEAF_BYTES)
      const from = at - leaf * LEAF_BYTES
      const bytes = Math.min(LEAF_BYTES - from, offset + length - at)
      this.#part(leaf, from, from + bytes, data?.subarray(at - offset, at - offset + bytes))
      at += bytes
    }
  }

  #part(leaf: number, from: number, to: number, data: Uint8Array | undefined): void {
    // What is being digested is older, and nobody hears of it any more: but it was no zeroes.
    const older = this.#digesting.delete(leaf)
    const filling = this.#filling.get(leaf) ?? this.#begin(leaf)
    if (filling === undefined) {
      this.#options.lost(leaf, false)
      return
    }
    if (data === undefined) filling.bytes.fill(0, from, to)
    else filling.bytes.set(data, from)
    if (older || data !== undefined) filling.zeroesOnly = false
    filling.parts = joined(filling.parts, from, to)
    const [first] = filling.parts
    if (first!.from === 0 && first!.to === this.#leafBytes(leaf)) this.#digest(leaf, filling)
  }

  #begin(leaf: number): Filling | undefined {
    const { slots } = this.#options
    let bytes = slots.take()
    if (bytes === undefined) {
      for (const oldest of this.#filling.keys()) {
        this.giveUp(oldest)
        break
      }
      bytes = slots.take()
    }
    if (bytes === undefined) return undefined
    const filling: Filling = { bytes, parts: [], zeroesOnly: true }
    this.#filling.set(leaf, filling)
    return filling
  }

  #leafBytes(leaf: number): number {
    const { size } = this.#options
    return leaf === leafCount(size) - 1 ? size - leaf * LEAF_BYTES : LEAF_BYTES
  }

  #digest(leaf: number, { bytes }: Filling): void {
    const { slots, digest, whole, fail } = this.#options
    this.#filling.delete(leaf)
    const digested = digest(bytes.subarray(0, this.#leafBytes(leaf)))
      .then((result) => {
        if (this.#digesting.get(leaf) !== digested) return
        this.#digesting.delete(leaf)
        whole(leaf, result)
      })
      .catch((error: unknown) => {
        this.#digesting.delete(leaf)
        fail(error)
      })
      .finally(() => slots.give(bytes))
    this.#digesting.set(leaf, digested)
  }

  /** Leaves of which only a part is there. */
  get incomplete(): number[] {
    return [...this.#filling.keys()]
  }

  /** Nothing more is expected to come of it. */
  giveUp(leaf: number): void {
    const filling = this.#filling.get(leaf)
    this.drop(leaf)
    if (filling !== undefined) this.#options.lost(leaf, filling.zeroesOnly)
  }

  /** It is known otherwise. */
  drop(leaf: number): void {
    this.#digesting.delete(leaf)
    const filling = this.#filling.get(leaf)
    if (filling === undefined) return
    this.#filling.delete(leaf)
    this.#options.slots.give(filling.bytes)
  }

  /** The same of many, most of which are not here. */
  dropAll(first: number, end: number): void {
    const known = [...this.#filling.keys(), ...this.#digesting.keys()]
    for (const leaf of known) if (leaf >= first && leaf < end) this.drop(leaf)
  }

  /** Resolves when what is whole now is digested. */
  async settled(): Promise<void> {
    await Promise.all([...this.#digesting.values()])
  }

  close(): void {
    this.#closed = true
    this.#digesting.clear()
    for (const leaf of [...this.#filling.keys()]) this.drop(leaf)
  }
}

function joined(parts: readonly { from: number; to: number }[], from: number, to: number): Filling['parts'] {
  const result: Filling['parts'] = []
  let [start, end] = [from, to]
  for (const part of parts) {
    if (part.to < start || part.from > end) result.push(part)
    else {
      start = Math.min(start, part.from)
      end = Math.max(end, part.to)
    }
  }
  result.push({ from: start, to: end })
  return result.sort((a, b) => a.from - b.from)
}
