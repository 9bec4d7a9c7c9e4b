/**
 * What SWAM itself sends for an image, asked of `swam analyze`: the whole engine without a network. The one place where the
 * bench of bytes meets the program; it takes the program's word for the bytes, and that what arrived was compared.
 */
import { join, resolve } from 'node:path'
import { runProgram } from './program.ts'

const SWAM = join(resolve(import.meta.dirname, '../..'), 'bin/swam')

export interface SwamFigure {
  /** Payload, digests and frames, both directions, without SSH. */
  readonly wireBytes: number
  /** Bytes of the image by where they came from. */
  readonly bySource: Readonly<Record<string, number>>
  readonly seconds: number
  /** Whether what arrived was compared with the original and is equal. */
  readonly verified: boolean
}

/** Both are paths of raw images. Rejects when there is no `swam analyze`, when it fails, or when its answer is not what it promises. */
export async function swamBytes(target: string, have: readonly string[]): Promise<SwamFigure> {
  const haves = have.flatMap((path) => ['--have', `raw:${path}`])
  const output = await runProgram(SWAM, ['analyze', `raw:${target}`, ...haves, '--json'])
  const found = parse(output)
  if (isFigure(found)) return found
  throw new Error(
    `swam analyze ${target}: expected JSON with wireBytes, bySource, seconds, verified, found ${output.slice(0, 300)}`,
  )
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}

function isFigure(value: unknown): value is SwamFigure {
  if (typeof value !== 'object' || value === null) return false
  const { wireBytes, bySource, seconds, verified } = value as Partial<Record<keyof SwamFigure, unknown>>
  const numbers = typeof wireBytes === 'number' && typeof seconds === 'number'
  return numbers && typeof bySource === 'object' && bySource !== null && typeof verified === 'boolean'
}
