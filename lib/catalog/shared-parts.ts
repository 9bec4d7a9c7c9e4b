/**
 * Which parts of a qcow2 read as what it stands on, by `qemu-img map` of its chain. Whatever goes wrong, the answer is "none": it is
 * an optimisation. While a QEMU writes to the image, it is as old as the tables that qemu-img found: the caller is told if a
 * file of the chain changed, as with the export.
 */
import { IMAGE_MAP_BYTES_MAX, IMAGE_MAP_DEADLINE_MS } from '../core/limits.ts'
import { runCommand } from '../host/command.ts'
import { readingCommand } from '../host/qemu-tools.ts'
import { type BackingChain, jsonName } from './backing-chain.ts'
import type { DataExtent } from './data-extents.ts'

/** @param level of the file in the chain: 1 for the one that the image itself stands on */
export async function sharedParts(
  chain: BackingChain,
  level: number,
  signal?: AbortSignal,
): Promise<DataExtent[]> {
  try {
    const output = await runCommand(
      readingCommand(['qemu-img', 'map', '--output=json', jsonName(chain.node)]),
      {
        descriptors: chain.files.map(({ fd }) => fd),
        deadlineMs: IMAGE_MAP_DEADLINE_MS,
        outputBytesMax: IMAGE_MAP_BYTES_MAX,
        ...(signal === undefined ? {} : { signal }),
      },
    )
    return parseShared(output, level) ?? []
  } catch {
    signal?.throwIfAborted()
    return []
  }
}

/**
 * Exported for its test. Of an entry a line, without gaps: those that no file above that level has; `undefined` if it is
 * anything else.
 */
export function parseShared(output: string, level: number): DataExtent[] | undefined {
  const parts: { offset: number; end: number }[] = []
  let covered = 0
  for (const line of output.split('\n')) {
    const text = /\{[^{}]*\}/.exec(line)?.[0]
    if (text === undefined) continue
    let entry: { start?: unknown; length?: unknown; depth?: unknown }
    try {
      entry = JSON.parse(text)
    } catch {
      return undefined
    }
    const { start, length, depth } = entry
    if (start !== covered || typeof length !== 'number' || typeof depth !== 'number') return undefined
    if (!Number.isSafeInteger(length) || length < 1 || !Number.isSafeInteger(covered + length))
      return undefined
    covered += length
    if (depth < level) continue
    const last = parts.at(-1)
    if (last?.end === start) last.end = covered
    else parts.push({ offset: start, end: covered })
  }
  return parts
}
