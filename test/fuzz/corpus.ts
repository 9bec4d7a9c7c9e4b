/**
 * The corpus: test/fuzz/corpus/TARGET has small inputs to start from, its folder `regressions` every input that once broke
 * something, named for what broke. What a run finds goes to out/fuzz/TARGET, to be looked at and moved there.
 */
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const CORPUS = fileURLToPath(new URL('corpus', import.meta.url))
const FOUND = fileURLToPath(new URL('../../out/fuzz', import.meta.url))

export interface Seed {
  readonly name: string
  readonly bytes: Buffer
}

export function corpusOf(target: string): Seed[] {
  const folder = join(CORPUS, target)
  return readdirSync(folder, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map((entry) => join(entry.parentPath, entry.name))
    .sort()
    .map((path) => ({ name: path.slice(CORPUS.length + 1), bytes: readFileSync(path) }))
}

export function corpusTargets(): string[] {
  return readdirSync(CORPUS).sort()
}

/** Into the corpus, under a name; for test/fuzz/make-corpus.ts. */
export function saveSeed(target: string, name: string, bytes: Uint8Array): void {
  mkdirSync(join(CORPUS, target), { recursive: true })
  writeFileSync(join(CORPUS, target, name), bytes)
}

/** Gives the path. */
export function saveFinding(target: string, kind: string, input: Uint8Array): string {
  const folder = join(FOUND, target)
  mkdirSync(folder, { recursive: true })
  const path = join(folder, `${kind}-${createHash('sha256').update(input).digest('hex').slice(0, 16)}`)
  writeFileSync(path, input)
  return path
}
