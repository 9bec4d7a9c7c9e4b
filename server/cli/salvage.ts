/**
 * `swam salvage`: what is left of migrations that failed and whose images libvirt took away. It works on the files themselves, whether
 * the daemon runs or not; once a day systemd calls `swam salvage sweep`. What it removes costs the next attempt its bytes, and nobody
 * anything else.
 */
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import { AnswerError } from '../control.ts'
import { type GlobalOptions, type Output, requireRoot } from './context.ts'
import { EXIT } from './exit-codes.ts'
import { bytesText, durationText, jsonLine, plainText, tableText } from './format.ts'
import { type FoundLink, listSalvage, sweepSalvage } from './salvage-files.ts'

export type SalvageAction = 'list' | 'sweep' | 'remove'

/** `guest`: of `remove`, its uuid; none: of all. Gives the exit code. Throws what exit-codes.ts knows. */
export async function salvageCommand(
  action: SalvageAction,
  guest: string | undefined,
  options: GlobalOptions,
  output: Output,
): Promise<number> {
  requireRoot('swam salvage')
  const config = await loadConfig(options.config ?? DEFAULT_CONFIG_PATH)
  const problem = (text: string): void => output.err(`swam: ${plainText(text)}\n`)
  if (action === 'list') {
    const links = await listSalvage(config, problem)
    output.out(options.json === true ? jsonLine({ version: 1, images: links.map(shown) }) : listText(links))
    return EXIT.done
  }
  const which = (link: FoundLink): boolean => guest === undefined || link.uuid === guest
  const gone = await sweepSalvage(config, action === 'remove' ? { which, problem } : { problem })
  if (guest !== undefined && gone.length === 0)
    throw new AnswerError('SWAM_NOT_FOUND', `nothing is kept of a guest ${guest}: see swam salvage list`)
  if (options.json === true) output.out(jsonLine({ version: 1, removed: gone.map(shown) }))
  else if (gone.length > 0) output.out(`${gone.length} ${gone.length === 1 ? 'image' : 'images'} removed\n`)
  return EXIT.done
}

function shown({ uuid, target, format, path, bytes, inPlace, ageMs }: FoundLink): object {
  return { uuid, target, format, path, bytes, inPlace, ageMs: Math.round(ageMs) }
}

function listText(links: readonly FoundLink[]): string {
  if (links.length === 0) return 'nothing is kept\n'
  const rows = links.map(({ uuid, target, path, bytes, inPlace, ageMs }) => [
    uuid,
    target,
    bytesText(bytes),
    durationText(ageMs),
    inPlace ? 'still in its place' : '',
    plainText(path),
  ])
  return `${tableText(['guest', 'disk', 'size', 'since', '', 'path'], rows)}\n`
}
