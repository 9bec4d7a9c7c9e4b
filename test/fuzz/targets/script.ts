/**
 * An input as a script of steps for targets with state: numbers are read from it one after another, and at its end all of
 * them are 0. So every input is a script, and a small change of it is a small change of what happens.
 */
import { below, type Random } from '../mutate.ts'

export class Script {
  readonly #bytes: Buffer
  #at = 0

  constructor(bytes: Buffer) {
    this.#bytes = bytes
  }

  get over(): boolean {
    return this.#at >= this.#bytes.length
  }

  /** 0 to limit - 1; at most 65536. */
  below(limit: number): number {
    const value = limit > 256 ? this.#byte() * 256 + this.#byte() : this.#byte()
    return value % limit
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!
  }

  /** True once in so many. */
  once(times: number): boolean {
    return this.below(times) === times - 1
  }

  /** The next bytes as they are; fewer at the end. */
  take(length: number): Buffer {
    const bytes = this.#bytes.subarray(this.#at, this.#at + length)
    this.#at += bytes.length
    return bytes
  }

  #byte(): number {
    return this.#bytes[this.#at++] ?? 0
  }
}

/** Steps by chance. */
export function anySteps(random: Random, bytesMax: number): Buffer {
  return Buffer.from(Array.from({ length: 1 + below(random, bytesMax) }, () => below(random, 256)))
}

/** One turn of the event loop. */
export function turn(): Promise<void> {
  return new Promise((resolve) => setImmediate(resolve))
}

/** Waits for something that other parts of the process bring about; the fuzzer bounds the time. */
export async function until(condition: () => boolean): Promise<void> {
  for (let turns = 0; !condition(); turns++) {
    if (turns < 50) await turn()
    else await new Promise((resolve) => setTimeout(resolve, 1))
  }
}
