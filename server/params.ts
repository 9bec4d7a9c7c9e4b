/** Checks of what peers and the hook send as JSON: each names the method and the key that is wrong. */
import { ProtocolError } from '../lib/core/errors.ts'
import type { ExportInfo } from './migration/outgoing-options.ts'

export class Params {
  readonly #method: string
  readonly #values: Readonly<Record<string, unknown>>

  constructor(method: string, params: unknown) {
    if (typeof params !== 'object' || params === null || Array.isArray(params)) {
      throw new ProtocolError(`${method}: expected an object`)
    }
    this.#method = method
    this.#values = params as Record<string, unknown>
  }

  #wrong(key: string, expected: string): ProtocolError {
    const found = JSON.stringify(this.#values[key])?.slice(0, 80)
    return new ProtocolError(`${this.#method}: ${key}: expected ${expected}, found ${found}`)
  }

  text(key: string, charsMax = 255): string {
    const value = this.#values[key]
    if (typeof value !== 'string' || value.length > charsMax)
      throw this.#wrong(key, `a text of at most ${charsMax}`)
    return value
  }

  optionalText(key: string, charsMax: number): string | undefined {
    return this.#values[key] === null || !this.has(key) ? undefined : this.text(key, charsMax)
  }

  uuid(key: string): string {
    const value = this.text(key)
    if (!/^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$/.test(value)) throw this.#wrong(key, 'a uuid')
    return value
  }

  port(key: string): number {
    const value = this.#values[key]
    if (!isInteger(value, 1, 65535)) throw this.#wrong(key, 'a port')
    return value
  }

  list(key: string, itemsMax: number): readonly unknown[] {
    const value = this.#values[key]
    if (!Array.isArray(value) || value.length > itemsMax)
      throw this.#wrong(key, `a list of at most ${itemsMax}`)
    return value
  }

  ports(key: string, itemsMax: number): number[] {
    return this.list(key, itemsMax).map((value) => {
      if (!isInteger(value, 1, 65535)) throw this.#wrong(key, 'a list of ports')
      return value
    })
  }

  has(key: string): boolean {
    return this.#values[key] !== undefined
  }

  flag(key: string): boolean {
    const value = this.#values[key]
    if (typeof value !== 'boolean') throw this.#wrong(key, 'true or false')
    return value
  }

  optionalInteger(key: string, low: number, high: number): number | undefined {
    const value = this.#values[key]
    if (value === null || value === undefined) return undefined
    if (!isInteger(value, low, high)) throw this.#wrong(key, `an integer from ${low} to ${high}`)
    return value
  }

  exports(key: string): ExportInfo[] {
    return this.list(key, 64).map((item) => {
      const one = new Params(`${this.#method}: ${key}`, item)
      const sizes = new Params(`${this.#method}: blockSizes`, one.#values['blockSizes'])
      const integer = (from: Params, name: string, low: number, high: number): number => {
        const value = from.#values[name]
        if (!isInteger(value, low, high)) throw from.#wrong(name, `an integer from ${low} to ${high}`)
        return value
      }
      return {
        name: one.text('name', 4096),
        size: integer(one, 'size', 0, 2 ** 53 - 1),
        blockSizes: {
          minimum: integer(sizes, 'minimum', 1, 65536),
          preferred: integer(sizes, 'preferred', 1, 2 ** 31),
          maximum: integer(sizes, 'maximum', 65536, 2 ** 32),
        },
      }
    })
  }
}

function isInteger(value: unknown, low: number, high: number): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= low && value <= high
}
