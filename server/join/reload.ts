/** Tells the daemon of this host that the peers in its config have changed, and says what came of it. */
import { join } from 'node:path'
import type { Config } from '../../config/schema.ts'
import { errorText, LostError } from '../../lib/core/errors.ts'
import { callControl } from '../control.ts'

/** Never throws: the change stands, whatever the daemon says. */
export async function reloadText(config: Config): Promise<string> {
  try {
    const answer = (await callControl(join(config.runDir, 'hook.sock'), 'reload', null)) as Record<
      string,
      unknown
    >
    const list = (key: string): string[] => {
      const value = answer?.[key]
      return Array.isArray(value) ? value.map((name) => String(name).slice(0, 64)) : []
    }
    const words = (['added', 'changed', 'removed'] as const).flatMap((key) =>
      list(key).length === 0 ? [] : [`${key}: ${list(key).join(', ')}`],
    )
    const busy = list('busy')
    const later =
      busy.length === 0 ? '' : `; ${busy.join(', ')}: migrations are under way, taken up when they are over`
    return `swamd read its peers anew (${words.join('; ') || 'nothing changed for it'})${later}`
  } catch (error) {
    if (error instanceof LostError) return 'swamd does not run: start it with systemctl start swamd'
    return `swamd did not read its peers anew (${errorText(error)}): systemctl restart swamd`
  }
}
