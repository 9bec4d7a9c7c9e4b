/**
 * Tells an image that SWAM's hook has made and that nobody has written since: by a time of modification that no clock
 * gives. It stands on the file itself, so every daemon, hook and later migration sees it; the first write ends it.
 */
import { lstat } from 'node:fs/promises'
import type { DomainDisk } from './domain-xml.ts'

/** 1975-10-26, 01:21:00: whole seconds, which every file system keeps. */
export const UNWRITTEN: Date = new Date(183_518_460_000)

export async function isUnwritten(path: string): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined)
  return found?.isFile() === true && found.mtimeMs === UNWRITTEN.getTime()
}

/** The disks of a guest whose images hold nothing yet. */
export async function unwrittenDisks(
  disks: readonly DomainDisk[],
): Promise<{ target: string; path: string }[]> {
  const found: { target: string; path: string }[] = []
  for (const { target, source, type } of disks) {
    if (type === 'file' && source !== undefined && (await isUnwritten(source)))
      found.push({ target, path: source })
  }
  return found
}
