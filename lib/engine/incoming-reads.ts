/** READs of a disk's sender: one after the other, each when the answer before it has left, so that none is held in memory. */
import type { BlockDevice } from '../block/device.ts'
import { readBytes } from '../block/read-bytes.ts'
import { ProtocolError } from '../core/errors.ts'
import { RECEIVER_READS_MAX } from '../core/limits.ts'
import type { TargetZeroes } from './target-zeroes.ts'

export interface IncomingReadsOptions {
  readonly device: BlockDevice
  readonly zeroes: TargetZeroes
  /** Resolves when everything older on [start, end) is applied. */
  readonly settled: (start: number, end: number) => Promise<void>
  readonly ended: () => boolean
  /** Resolves when the answer has left. */
  readonly reply: (id: number, data: Buffer) => Promise<void>
  readonly fail: (error: unknown) => void
}

export class IncomingReads {
  readonly #options: IncomingReadsOptions
  #waiting = 0
  #turn: Promise<void> = Promise.resolve()

  constructor(options: IncomingReadsOptions) {
    this.#options = options
  }

  /** @throws ProtocolError */
  read(id: number, offset: number, length: number): void {
    if (++this.#waiting > RECEIVER_READS_MAX) throw new ProtocolError(`READ: ${this.#waiting} wait already`)
    this.#turn = this.#turn
      .then(() => this.#read(id, offset, length))
      .catch((error: unknown) => this.#options.fail(error))
      .finally(() => this.#waiting--)
  }

  async #read(id: number, offset: number, length: number): Promise<void> {
    const { device, zeroes, settled, ended, reply } = this.#options
    if (offset + length > device.size) {
      throw new ProtocolError(`READ: ${length} bytes at ${offset}, the disk has ${device.size}`)
    }
    await settled(offset, offset + length)
    const data = await readBytes(device, offset, length)
    zeroes.applyTo(data, offset)
    if (!ended()) await reply(id, data)
  }
}
