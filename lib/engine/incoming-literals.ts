/**
 * Literals as they come to a receiver: of chunks that were asked for, or not yet (the sender guessed), or not any more (they
 * were found here). What comes unasked is held until it is needed, within bounds of the disk and of the migration.
 */
import { ProtocolError } from '../core/errors.ts'
import { EARLY_BYTES_MAX, MIGRATION_EAGER_BYTES_MAX } from '../core/limits.ts'
import type { DiskMessage } from '../wire/disk.ts'
import { LiteralReader } from './literal-stream.ts'
import type { ReceiverBudget, Task } from './task.ts'

export interface IncomingLiteralsOptions {
  readonly features: ReadonlySet<string>
  readonly budget: ReceiverBudget
  /** Chunks that are described and not applied. */
  readonly tasks: ReadonlyMap<number, Task>
  readonly nextSeq: () => number
  readonly ended: () => boolean
  readonly fail: (error: unknown) => void
}

export class IncomingLiterals {
  readonly #options: IncomingLiteralsOptions
  readonly #reader: LiteralReader
  /** Bytes that came without having been asked for, and are still held. */
  #earlyBytes = 0

  constructor(options: IncomingLiteralsOptions) {
    this.#options = options
    this.#reader = new LiteralReader(options.features)
  }

  /** In the order in which they came; what fails is told to `fail`. */
  receive(message: Extract<DiskMessage, { type: 'literal' }>): void {
    void this.#receive(message).catch((error: unknown) => this.#options.fail(error))
  }

  async #receive({ chunks, codec, data }: Extract<DiskMessage, { type: 'literal' }>): Promise<void> {
    const { tasks, nextSeq, ended, budget } = this.#options
    let total = 0
    let early = 0
    for (const { seq, length } of chunks) {
      const task = tasks.get(seq)
      const whole = task === undefined || task.end - task.start === length
      if (seq >= nextSeq() || !(whole || task.partsBytes === length || length <= task.bodyBytesMax)) {
        throw new ProtocolError(`LITERAL: chunk ${seq} of ${length} bytes was not described`)
      }
      if (task?.came === true) throw new ProtocolError(`LITERAL: chunk ${seq} came twice`)
      if (task !== undefined) task.came = true
      total += length
      if (task?.literal === undefined) early += length
    }
    this.#earlyBytes += early
    if (this.#earlyBytes > EARLY_BYTES_MAX) {
      throw new ProtocolError(`LITERAL: ${this.#earlyBytes} bytes came that nobody asked for`)
    }
    const raw = await this.#reader.read(codec, data, total)
    if (raw.length !== total) throw new ProtocolError(`LITERAL: ${raw.length} bytes, expected ${total}`)
    let at = 0
    for (const { seq, length } of chunks) {
      if (ended()) return
      const bytes = raw.subarray(at, at + length)
      at += length
      const task = tasks.get(seq)
      // Applied already, or zeroes, which have no literal.
      if (task?.digest === undefined || task.taken) continue
      if (task.literal !== undefined) task.literal(bytes)
      else {
        // A copy: a few bytes must not keep a literal of a MiB alive.
        this.keep(task, Buffer.from(bytes))
        if (budget.eagerBytes > MIGRATION_EAGER_BYTES_MAX)
          throw new ProtocolError(`LITERAL: ${budget.eagerBytes} bytes came that nobody asked for yet`)
        task.wake?.()
      }
    }
    this.#earlyBytes -= early
  }

  /** A chunk's bytes that came unasked; `undefined` gives up what is kept of it. */
  keep(task: Task, bytes: Buffer | undefined): void {
    const more = (bytes?.length ?? 0) - (task.eager?.length ?? 0)
    this.#options.budget.eagerBytes += more
    this.#earlyBytes += more
    task.eager = bytes
  }

  close(): void {
    this.#reader.close()
  }
}

/** What a literal is refused with that does not fit its chunk. */
export function misfit({ seq, start, digest }: Task, bytes: Buffer): ProtocolError {
  return new ProtocolError(
    `LITERAL of chunk ${seq} at ${start}: ${bytes.length} bytes do not match the digest ` +
      `${digest?.toString('hex', 0, 8)}…`,
  )
}
