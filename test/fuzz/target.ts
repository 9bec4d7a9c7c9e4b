/**
 * A fuzz target: one decoder, or one part with a decoder in it, and the oracle that judges what it does with an input.
 * The fuzzer itself watches what holds for all of them: time, memory, and errors that nobody caught.
 */
import type { Random } from './mutate.ts'

export interface FuzzTarget {
  /** Also the name of its folder in the corpus. */
  readonly name: string
  readonly inputBytesMax: number
  /** The largest buffer that may be asked for, whatever an input announces. */
  readonly allocationBytesMax: number
  /** Processor time of one input, when it is not the usual ceiling. */
  readonly cpuMsMax?: number
  /** Words of the protocol, for mutations. */
  readonly dictionary?: readonly Buffer[]
  /** An input made by the protocol's own rules; tried now and then instead of a mutation. */
  readonly generate?: (random: Random) => Buffer
  /** Throws when something is not as it must be. */
  run(input: Buffer): void | Promise<void>
  /** Ends what it keeps open between inputs. */
  close?(): Promise<void>
}

/** An input did what must never happen. */
export class Finding extends Error {
  readonly target: string
  readonly input: Buffer
  constructor(target: string, input: Buffer, cause: unknown) {
    super(
      `fuzz target ${target}: ${cause instanceof Error ? (cause.stack ?? cause.message) : String(cause)}`,
      {
        cause,
      },
    )
    this.target = target
    this.input = input
  }
}
