/** Images of which every byte's source is known, and the command as a user calls it. */
import { mkdtemp, open, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { Readable } from 'node:stream'
import { KIB } from '../../../lib/core/units.ts'
import { runSwam } from '../../../server/cli/program.ts'

export interface Outcome {
  readonly code: number
  readonly out: string
  readonly err: string
}

export async function swam(...argv: readonly string[]): Promise<Outcome> {
  let out = ''
  let err = ''
  const code = await runSwam(argv, Readable.from([]), {
    out: (text) => (out += text),
    err: (text) => (err += text),
  })
  return { code, out, err }
}

export async function inFolder(work: (folder: string) => Promise<void>): Promise<void> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-analyze-test-'))
  try {
    await work(folder)
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** A sparse file of this size with these bytes in it. */
export async function image(
  path: string,
  size: number,
  parts: readonly (readonly [offset: number, bytes: Buffer])[],
): Promise<string> {
  await using file = await open(path, 'w')
  await file.truncate(size)
  for (const [offset, bytes] of parts) await file.write(bytes, 0, bytes.length, offset)
  return path
}

/** Short SHA-256 measurement: the ratio is not what most tests are about. */
export const QUICK = { have: [], backing: [], sha256Ms: 1 } as const

/** Between two runs of data: apart, they are cut apart. */
export const GAP: number = 64 * KIB
