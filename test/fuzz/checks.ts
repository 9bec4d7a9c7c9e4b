/** Oracles that targets share: errors of the right class, splits that change nothing, a failure that stays one. */
import assert from 'node:assert/strict'
import { crc32 } from 'node:zlib'
import { ProtocolError } from '../../lib/core/errors.ts'
import { random } from '../random.ts'
import { below } from './mutate.ts'

type ErrorClass = abstract new (...parameters: never[]) => Error

/** What `work` gives, or undefined when it threw an error of one of the classes. Any other error goes on. */
export function allowing<Result>(
  classes: readonly ErrorClass[],
  work: () => Result,
): { readonly value: Result } | { readonly error: Error } {
  try {
    return { value: work() }
  } catch (error) {
    if (classes.some((one) => error instanceof one)) return { error: error as Error }
    throw error
  }
}

export interface Pushable {
  push(bytes: Buffer): Iterable<unknown>
}

/** A value as text: buffers by length and sum, so that large ones compare quickly. */
export function show(value: unknown): string {
  if (typeof value === 'bigint') return `${value}n`
  if (value instanceof Uint8Array) return `${value.length} bytes ${crc32(value).toString(16)}`
  if (value instanceof Map || value instanceof Set) return show([...value])
  if (ArrayBuffer.isView(value) || Array.isArray(value)) return `[${Array.from(value as never, show)}]`
  if (typeof value !== 'object' || value === null) return JSON.stringify(value) ?? 'undefined'
  return `{${Object.entries(value).map(([key, inner]) => `${key}:${show(inner)}`)}}`
}

/** Messages and the error, if one was thrown, of an input that is pushed in pieces. */
function outcome(decoder: Pushable, input: Buffer, cuts: readonly number[]): string[] {
  const messages: unknown[] = []
  const lines: string[] = []
  let start = 0
  try {
    for (const end of [...cuts, input.length]) {
      const piece = Buffer.from(input.subarray(start, end))
      start = end
      for (const message of decoder.push(piece)) messages.push(message)
      // What was pushed is the caller's again: no message may still look at it.
      piece.fill(0xee)
    }
  } catch (error) {
    if (!(error instanceof ProtocolError)) throw error
    lines.push(`error: ${error.message}`)
    stays(decoder, input)
  }
  return [...messages.map(show), ...lines]
}

/** A decoder that failed gives no message any more. */
function stays(decoder: Pushable, input: Buffer): void {
  for (const more of [input, Buffer.alloc(64)]) {
    try {
      for (const message of decoder.push(Buffer.from(more))) {
        assert.fail(`a decoder that had failed gave ${show(message)}`)
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error
    }
  }
}

/** Places to cut an input at, the same for the same input. */
export function cutsOf(input: Buffer): number[] {
  const next = random(crc32(input))
  const cuts = new Set<number>()
  for (let count = below(next, 6); count > 0; count--) cuts.add(below(next, input.length + 1))
  return [...cuts].sort((a, b) => a - b)
}

function same(pieces: readonly string[], whole: readonly string[]): void {
  if (pieces.join('\n') !== whole.join('\n')) assert.deepEqual(pieces, whole)
}

/** The same bytes give the same messages, in one piece and in any other. Gives them as text. */
export function checkSplits(make: () => Pushable, input: Buffer): string[] {
  const whole = outcome(make(), input, [])
  same(outcome(make(), input, cutsOf(input)), whole)
  // Byte by byte costs more than all else: for every sixteenth input.
  if (input.length <= 512 && crc32(input) % 16 === 0) {
    const each = Array.from({ length: Math.max(0, input.length - 1) }, (_value, index) => index + 1)
    same(outcome(make(), input, each), whole)
  }
  return whole
}
