/**
 * How far a guest's memory has come, by QEMU's migration stream as it passes (QEMU 7.2 to 10.0: migration/savevm.c and ram.c). It
 * only looks: whatever it does not know, another device that is sent while the guest runs or memory that goes over other
 * connections, ends the looking and nothing else. Offsets and lengths in bytes.
 *
 * `QEVM` version 3, a configuration, commands, and sections: of `ram` the list of its blocks first, then, part by part, pages in the order
 * of their blocks and offsets. When the last block is through, QEMU begins anew with what was written meanwhile. After the guest
 * is paused the last part is one of type END.
 */
import { RAM_BLOCKS_MAX } from '../core/limits.ts'

const MAGIC = 0x5145_564d
const VERSION = 3
/** Records; END (3) is none that is known here: then the guest is paused. */
const SECTION_START = 1
const SECTION_PART = 2
const CONFIGURATION = 7
const COMMAND = 8
const FOOTER = 0x7e
/** Flags of a page, below its offset. */
const FLAGS = 0xfff
const ZERO = 0x02
const MEM_SIZE = 0x04
const PAGE = 0x08
const EOS = 0x10
const CONTINUE = 0x20
const MULTIFD_FLUSH = 0x200
const PAGE_BYTES = 4096
/** The longest record that is looked at as a whole: a section with a name of 255 bytes. */
const RECORD_LENGTH = 512

type State = 'header' | 'records' | 'ram' | 'blocks' | 'over'

/** Where each of QEMU's blocks of memory begins, if all lay one behind the other in the order of the list. */
interface Block {
  readonly start: number
  readonly length: number
}

export class RamProgress {
  #state: State = 'header'
  /** Bytes of what is looked at that came before, and those that follow and are not looked at. */
  #carry: Buffer = Buffer.alloc(0)
  #skip = 0
  #section = -1
  #blocks = new Map<string, Block>()
  #block: Block | undefined
  #totalBytes = 0
  #listedBytes = 0
  #at = 0
  #pass = 1
  #passedBytes = 0

  /** Whether it is known where the memory is: after its list came, and while all that comes is. */
  get known(): boolean {
    return this.#listedBytes > 0 && this.#state !== 'blocks' && this.#state !== 'over'
  }

  /** Times that QEMU has begun with the first of its memory. */
  get pass(): number {
    return this.#pass
  }

  /** Of all memory. */
  get totalBytes(): number {
    return this.#totalBytes
  }

  /** Where in it the last page lies that came; and what has come since this pass began. */
  get at(): number {
    return this.#at
  }

  get passedBytes(): number {
    return this.#passedBytes
  }

  push(bytes: Uint8Array): void {
    let at = 0
    const view = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length)
    while (this.#state !== 'over' && at < bytes.length) {
      const skipped = Math.min(this.#skip, bytes.length - at)
      this.#skip -= skipped
      at += skipped
      if (at === bytes.length) return
      const carried = this.#carry.length
      if (carried === 0 && this.#state === 'ram') {
        const end = this.#pages(view, at)
        if (end !== at) {
          at = end
          continue
        }
      }
      const next = view.subarray(at, at + RECORD_LENGTH)
      const record = carried === 0 ? next : Buffer.concat([this.#carry, next])
      const used = this.#record(record)
      if (used === undefined) {
        // Not all of it is here; or it is longer than anything that is known.
        if (record.length >= RECORD_LENGTH) this.#state = 'over'
        this.#carry = Buffer.from(record)
        return
      }
      this.#carry = Buffer.alloc(0)
      at += used - carried
    }
  }

  /** Pages of the same block, which is nearly all there is. @returns where something else begins, or what is not whole yet */
  #pages(bytes: Buffer, from: number): number {
    const { start, length } = this.#block ?? { start: 0, length: 0 }
    let at = from
    while (at + 8 < bytes.length) {
      const low = bytes.readUInt32BE(at + 4)
      const flags = low & FLAGS
      const offset = bytes.readUInt32BE(at) * 2 ** 32 + low - flags
      if ((flags !== (ZERO | CONTINUE) && flags !== (PAGE | CONTINUE)) || offset >= length) return at
      const used = flags === (PAGE | CONTINUE) ? 8 + PAGE_BYTES : 9
      this.#came(start + offset, used)
      at += used
      if (at > bytes.length) {
        this.#skip = at - bytes.length
        return bytes.length
      }
    }
    return at
  }

  #came(at: number, bytes: number): void {
    if (at < this.#at) {
      this.#pass++
      this.#passedBytes = 0
    }
    this.#at = at
    this.#passedBytes += bytes
  }

  /** @returns the bytes that it took; undefined when more are needed */
  #record(bytes: Buffer): number | undefined {
    switch (this.#state) {
      case 'header':
        return this.#header(bytes)
      case 'records':
        return this.#recordOf(bytes)
      case 'ram':
        return this.#page(bytes)
      case 'blocks':
        return this.#listed(bytes)
      default:
        return bytes.length
    }
  }

  #header(bytes: Buffer): number | undefined {
    if (bytes.length < 8) return undefined
    const isOne = bytes.readUInt32BE(0) === MAGIC && bytes.readUInt32BE(4) === VERSION
    this.#state = isOne ? 'records' : 'over'
    return 8
  }

  #recordOf(bytes: Buffer): number | undefined {
    if (bytes.length < 5) return undefined
    const type = bytes.readUInt8(0)
    const number = bytes.readUInt32BE(1)
    if (type === CONFIGURATION) this.#skip = number
    else if (type === COMMAND) this.#skip = number & 0xffff
    else if (type === SECTION_START) return this.#start(bytes, number)
    else if (type === SECTION_PART && number === this.#section) this.#state = 'ram'
    else if (type !== FOOTER) this.#state = 'over'
    return 5
  }

  #start(bytes: Buffer, section: number): number | undefined {
    if (bytes.length < 6) return undefined
    const name = bytes.readUInt8(5)
    const length = 6 + name + 8
    if (bytes.length < length) return undefined
    const isRam = bytes.toString('latin1', 6, 6 + name) === 'ram'
    this.#section = section
    this.#state = isRam ? 'ram' : 'over'
    return length
  }

  #page(bytes: Buffer): number | undefined {
    if (bytes.length < 8) return undefined
    const flags = bytes.readUInt16BE(6) & FLAGS
    const offset = Number(bytes.readBigUInt64BE(0)) - flags
    if (flags === EOS) this.#state = 'records'
    else if (flags === MEM_SIZE && this.#totalBytes === 0) {
      this.#totalBytes = offset
      this.#state = 'blocks'
    } else if (flags !== MULTIFD_FLUSH) return this.#memory(bytes, flags, offset)
    return 8
  }

  #memory(bytes: Buffer, flags: number, offset: number): number | undefined {
    const kind = flags & ~CONTINUE
    if (kind !== ZERO && kind !== PAGE) {
      this.#state = 'over'
      return 8
    }
    let used = 8
    if (kind === flags) {
      if (bytes.length < 9) return undefined
      used += 1 + bytes.readUInt8(8)
      if (bytes.length < used) return undefined
      this.#block = this.#blocks.get(bytes.toString('latin1', 9, used))
    }
    this.#skip = kind === PAGE ? PAGE_BYTES : 1
    if (this.#block === undefined || offset >= this.#block.length) {
      this.#state = 'over'
      return used
    }
    this.#came(this.#block.start + offset, used + this.#skip)
    return used
  }

  #listed(bytes: Buffer): number | undefined {
    const name = bytes.length === 0 ? 0 : bytes.readUInt8(0)
    const used = 1 + name + 8
    if (bytes.length < used) return undefined
    const length = Number(bytes.readBigUInt64BE(1 + name))
    this.#blocks.set(bytes.toString('latin1', 1, 1 + name), { start: this.#listedBytes, length })
    this.#listedBytes += length
    const many = this.#blocks.size > RAM_BLOCKS_MAX
    if (this.#listedBytes > this.#totalBytes || length === 0 || many) this.#state = 'over'
    else if (this.#listedBytes === this.#totalBytes) this.#state = 'ram'
    return used
  }
}
