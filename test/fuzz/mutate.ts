/**
 * Changes an input as a fuzzer does: bits, bytes, numbers at the edges of their ranges, words of the protocol, pieces
 * removed, repeated, moved, and taken from another input. Pure; all chance comes from the generator that is handed in.
 */
export type Random = () => number

export function below(random: Random, limit: number): number {
  return Math.floor(random() * limit)
}

export function pick<T>(random: Random, from: readonly T[]): T {
  return from[below(random, from.length)]!
}

/** Where decoders compare: zero, signs, one beyond each width, the ceilings that lie around 2^n. */
const NUMBERS: readonly bigint[] = [
  0n,
  1n,
  ...[4n, 7n, 8n, 12n, 15n, 16n, 18n, 20n, 22n, 24n, 25n, 31n, 32n, 53n, 63n, 64n].flatMap((bits) => [
    (1n << bits) - 1n,
    1n << bits,
    (1n << bits) + 1n,
  ]),
]
const WIDTHS = [1, 2, 4, 6, 8] as const

export function encodeNumber(value: bigint, bytes: number): Buffer {
  const target = Buffer.alloc(bytes)
  let rest = BigInt.asUintN(bytes * 8, value)
  for (let at = bytes - 1; at >= 0; at--) {
    target[at] = Number(rest & 0xffn)
    rest >>= 8n
  }
  return target
}

function overwrite(input: Buffer, at: number, bytes: Buffer): Buffer {
  const result = Buffer.from(input)
  bytes.copy(result, at)
  return result
}

/** @param other another input, to take pieces from */
export function mutate(
  random: Random,
  input: Buffer,
  other: Buffer,
  dictionary: readonly Buffer[],
  bytesMax: number,
): Buffer {
  let result = input
  // Mostly a few changes at a time: more of them seldom leave a message that gets anywhere.
  for (let changes = 1 + below(random, 1 << below(random, 4)); changes > 0; changes--) {
    result = mutateOnce(random, result, other, dictionary)
    if (result.length > bytesMax) result = result.subarray(0, bytesMax)
  }
  return Buffer.from(result)
}

function mutateOnce(random: Random, input: Buffer, other: Buffer, dictionary: readonly Buffer[]): Buffer {
  const at = below(random, input.length + 1)
  const end = at + below(random, Math.min(1 + input.length - at, 1 << (1 + below(random, 9))))
  const width = pick(random, WIDTHS)
  switch (below(random, 13)) {
    case 0: {
      const result = Buffer.from(input)
      if (at < result.length) result[at] = result[at]! ^ (1 << below(random, 8))
      return result
    }
    case 1:
      return overwrite(input, at, Buffer.from([below(random, 256)]))
    case 2:
      return overwrite(input, at, encodeNumber(pick(random, NUMBERS), width))
    case 3: {
      // A number that is there already, a little larger or smaller.
      if (at + width > input.length) return input
      const value = BigInt(`0x${input.toString('hex', at, at + width)}`)
      return overwrite(input, at, encodeNumber(value + BigInt(below(random, 33) - 16), width))
    }
    case 4:
      // What lengths are measured against.
      return overwrite(input, at, encodeNumber(BigInt(input.length - below(random, 64)), width))
    case 5:
      return Buffer.concat([input.subarray(0, at), input.subarray(end)])
    case 6:
      return Buffer.concat([input.subarray(0, end), input.subarray(at, end), input.subarray(end)])
    case 7: {
      const to = below(random, input.length + 1)
      const piece = input.subarray(at, end)
      return Buffer.concat([input.subarray(0, to), piece, input.subarray(to)])
    }
    case 8: {
      const from = below(random, other.length + 1)
      const length = below(random, other.length - from + 1)
      return Buffer.concat([input.subarray(0, at), other.subarray(from, from + length), input.subarray(end)])
    }
    case 9:
      return dictionary.length === 0 ? input : overwrite(input, at, pick(random, dictionary))
    case 10: {
      const word = dictionary.length === 0 ? Buffer.from([below(random, 256)]) : pick(random, dictionary)
      return Buffer.concat([input.subarray(0, at), word, input.subarray(at)])
    }
    case 11: {
      const noise = Buffer.alloc(1 + below(random, 32), 0)
      for (let index = 0; index < noise.length; index++) noise[index] = below(random, 256)
      return Buffer.concat([input.subarray(0, at), noise, input.subarray(at)])
    }
    default:
      return decimal(random, input, at)
  }
}

/** For text: the decimal number at or behind this place becomes another one. */
function decimal(random: Random, input: Buffer, at: number): Buffer {
  let start = at
  while (start < input.length && !isDigit(input[start]!)) start++
  let end = start
  while (end < input.length && isDigit(input[end]!)) end++
  if (start === end) return input
  const text = pick(random, NUMBERS).toString()
  const sign = below(random, 4) === 0 ? '-' : ''
  return Buffer.concat([input.subarray(0, start), Buffer.from(sign + text), input.subarray(end)])
}

function isDigit(byte: number): boolean {
  return byte >= 0x30 && byte <= 0x39
}
