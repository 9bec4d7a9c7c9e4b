/**
 * A decorator for tests: the nth call of an operation fails with an NBD error, or waits for a promise first. What no
 * rule names goes through untouched. Calls are counted for each operation from 1.
 */
import { RefusedError } from '../core/errors.ts'
import type { BlockDevice, BlockSizes, DeviceFeatures, StatusExtent } from './device.ts'

export type BlockOperation = 'read' | 'write' | 'writeZeroes' | 'trim' | 'cache' | 'blockStatus' | 'flush'

export interface FaultRule {
  readonly operation: BlockOperation
  /** Which call, from 1; without it every call. */
  readonly nth?: number
  /** The call does not reach the device and rejects with this NBD error. */
  readonly errno?: number
  /** The call reaches the device (or fails) only after this. */
  readonly after?: Promise<unknown>
}

export class FaultyDevice implements BlockDevice {
  readonly #inner: BlockDevice
  readonly #rules: readonly FaultRule[]
  readonly #calls: Map<BlockOperation, number> = new Map()

  constructor(inner: BlockDevice, rules: readonly FaultRule[]) {
    this.#inner = inner
    this.#rules = rules
  }

  get size(): number {
    return this.#inner.size
  }

  get blockSizes(): BlockSizes {
    return this.#inner.blockSizes
  }

  get features(): DeviceFeatures {
    return this.#inner.features
  }

  /** How often an operation was called. */
  calls(operation: BlockOperation): number {
    return this.#calls.get(operation) ?? 0
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.#run('read', () => this.#inner.read(offset, length))
  }

  write(...args: Parameters<BlockDevice['write']>): Promise<void> {
    return this.#run('write', () => this.#inner.write(...args))
  }

  writeZeroes(...args: Parameters<BlockDevice['writeZeroes']>): Promise<void> {
    return this.#run('writeZeroes', () => this.#inner.writeZeroes(...args))
  }

  trim(...args: Parameters<BlockDevice['trim']>): Promise<void> {
    return this.#run('trim', () => this.#inner.trim(...args))
  }

  cache(offset: number, length: number): Promise<void> {
    return this.#run('cache', () => this.#inner.cache(offset, length))
  }

  blockStatus(offset: number, length: number): Promise<readonly StatusExtent[]> {
    return this.#run('blockStatus', () => this.#inner.blockStatus(offset, length))
  }

  flush(): Promise<void> {
    return this.#run('flush', () => this.#inner.flush())
  }

  close(): Promise<void> {
    return this.#inner.close()
  }

  async #run<Result>(operation: BlockOperation, call: () => Promise<Result>): Promise<Result> {
    const nth = this.calls(operation) + 1
    this.#calls.set(operation, nth)
    const rule = this.#rules.find((each) => each.operation === operation && (each.nth ?? nth) === nth)
    if (rule?.after !== undefined) await rule.after
    if (rule?.errno !== undefined) {
      throw new RefusedError(`${operation} number ${nth}: made to fail`, { errno: rule.errno })
    }
    return await call()
  }
}
