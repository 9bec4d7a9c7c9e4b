/**
 * `swam catalog`: the maps that the daemon keeps of this host's images. It works on the files themselves, whether the daemon runs
 * or not, and changes no image: what a map says is only ever a hint.
 */
import { realpath, stat } from 'node:fs/promises'
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import { type FolderMap, MapFolder } from '../../lib/catalog/map-folder.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { AnswerError } from '../control.ts'
import { mapLimits } from '../map-limits.ts'
import { type GlobalOptions, type Output, requireRoot } from './context.ts'
import { EXIT } from './exit-codes.ts'
import { bytesText, jsonLine, plainText, tableText } from './format.ts'

export type CatalogAction = 'list' | 'stats' | 'verify' | 'add' | 'remove'

const STATES: Readonly<Record<FolderMap['state'], string>> = {
  good: '',
  old: 'the image has changed since',
  away: 'the image is not there now',
  gone: 'the image is gone',
  damaged: 'damaged',
}

/** Gives the exit code: 1 when `verify` found a map that is not exact. Throws what exit-codes.ts knows. */
export async function catalogCommand(
  action: CatalogAction,
  image: string | undefined,
  options: GlobalOptions,
  output: Output,
): Promise<number> {
  requireRoot('swam catalog')
  const config = await loadConfig(options.config ?? DEFAULT_CONFIG_PATH)
  const limits = mapLimits(config)
  const folder = new MapFolder({ stateDir: config.stateDir, ...limits })
  if (action === 'add' || action === 'remove') {
    // The daemon knows an image by where it really lies; one that is gone has no such place any more.
    const path = await realpath(image!).catch(() => image!)
    if (action === 'add') {
      if ((await stat(path).catch(missing)) === undefined)
        throw new AnswerError('SWAM_NOT_FOUND', `${path}: no such image`)
      await folder.make(path)
    } else if (!folder.remove(path))
      throw new AnswerError('SWAM_NOT_FOUND', `no map of ${path} in ${folder.path}: see swam catalog list`)
    return EXIT.done
  }
  const { maps, forgotten } = await folder.look()
  if (action === 'verify') return await verify(folder, maps, options, output)
  const stats = statsOf(maps, forgotten.length, limits.bytesMax)
  const report = action === 'list' ? { version: 1, maps } : { version: 1, ...stats }
  const text = action === 'list' ? listText(maps) : statsText(stats)
  output.out(options.json === true ? jsonLine(report) : `${text}\n`)
  return EXIT.done
}

/** What is there and cannot be looked at is no image of this host, which is said. */
function missing(error: unknown): null | undefined {
  const { code } = error as NodeJS.ErrnoException
  return code === 'ENOENT' || code === 'ENOTDIR' ? undefined : null
}

async function verify(
  folder: MapFolder,
  maps: readonly FolderMap[],
  options: GlobalOptions,
  output: Output,
): Promise<number> {
  const checked: { path: string; exact: boolean; problem: string | null }[] = []
  const left: string[] = []
  const away = maps.filter(({ state }) => state === 'away').map(({ path }) => path)
  for (const { path, format, state, problem, place } of maps) {
    // Only the daemon knows what is a qcow2: a map, which is not ours, is no reason for root to read a file as one.
    if (format === 'qcow2') {
      if (state !== 'away') left.push(path)
      continue
    }
    if (state === 'damaged') checked.push({ path: place, exact: false, problem })
    if (state !== 'good') continue
    try {
      const exact = await folder.isExact(path)
      checked.push({ path, exact, problem: exact ? null : 'the image holds something else' })
    } catch (error) {
      // Somebody writes to it: its map will be made again anyway.
      if (!(error instanceof RefusedError)) throw error
      checked.push({ path, exact: false, problem: errorText(error) })
    }
  }
  const wrong = checked.filter(({ exact }) => !exact)
  if (options.json === true) output.out(jsonLine({ version: 1, checked, left, away }))
  else {
    for (const { path, problem } of wrong) output.out(`${plainText(path)}: ${plainText(problem ?? '')}\n`)
    output.out(`${checked.length} maps checked, ${wrong.length} are not exact\n`)
    if (left.length > 0) output.out(`${left.length} of qcow2 images are left to the daemon\n`)
    if (away.length > 0)
      output.out(`${away.length} of images that are not there now cannot be held against them\n`)
  }
  return wrong.length === 0 ? EXIT.done : EXIT.failed
}

interface Stats {
  readonly maps: number
  readonly good: number
  /** Of images that are not there now. */
  readonly away: number
  /** Images that are here, and whose maps were taken away for their age or for want of room. */
  readonly forgotten: number
  readonly mapBytes: number
  /** What all maps may take. */
  readonly mapBytesMax: number
  readonly chunks: number
  readonly blocks: number
}

function statsOf(maps: readonly FolderMap[], forgotten: number, mapBytesMax: number): Stats {
  const sum = (pick: (map: FolderMap) => number): number => maps.reduce((total, map) => total + pick(map), 0)
  return {
    maps: maps.length,
    good: maps.filter(({ state }) => state === 'good').length,
    away: maps.filter(({ state }) => state === 'away').length,
    forgotten,
    mapBytes: sum(({ mapBytes }) => mapBytes),
    mapBytesMax,
    chunks: sum(({ chunks }) => chunks),
    blocks: sum(({ blocks }) => blocks),
  }
}

function statsText(stats: Stats): string {
  const { maps, good, away, forgotten, mapBytes, mapBytesMax, chunks, blocks } = stats
  const room = `${bytesText(mapBytes)} (at most ${bytesText(mapBytesMax)})`
  const text = `${maps} maps of ${room}, ${good} of images as they are; ${chunks} chunks, ${blocks} blocks of 4 KiB`
  const notes = [
    ...(away > 0 ? [`${away} of images that are not there now`] : []),
    ...(forgotten > 0
      ? [`${forgotten} images here have no map any more: limits.catalogGiB, limits.catalogDays`]
      : []),
  ]
  return [text, ...notes].join('\n')
}

function listText(maps: readonly FolderMap[]): string {
  if (maps.length === 0) return 'no image is known yet'
  const rows = maps.map(({ path, place, size, chunks, blocks, mapBytes, state, problem, keptUntil }) => [
    plainText(path === '' ? place : path),
    bytesText(size),
    String(chunks),
    String(blocks),
    bytesText(mapBytes),
    plainText(problem ?? stateText(state, keptUntil)),
  ])
  return tableText(['image', 'size', 'chunks', 'blocks', 'map', ''], rows)
}

function stateText(state: FolderMap['state'], keptUntil: number | null): string {
  const text = STATES[state]
  return keptUntil === null ? text : `${text}; kept until ${new Date(keptUntil).toISOString().slice(0, 10)}`
}
