/** The doctor after a join: once the daemon has reached its new peer, or has had the time for it. */
import { join } from 'node:path'
import { loadConfig } from '../../config/load.ts'
import { JOIN_ASK_MS, JOIN_FINDINGS_MAX, JOIN_SETTLE_MS } from '../../lib/core/limits.ts'
import { callControl } from '../control.ts'
import { examine } from '../doctor/examine.ts'
import type { Finding } from '../doctor/finding.ts'
import type { StatusReport } from '../report.ts'

export async function examineJoined(configPath: string, name: string): Promise<readonly Finding[]> {
  const { runDir } = await loadConfig(configPath)
  const late = Date.now() + JOIN_SETTLE_MS
  while (Date.now() < late) {
    const status = await callControl(join(runDir, 'control.sock'), 'status', null).catch(() => undefined)
    // Without a daemon there is nothing to wait for.
    if (status === undefined) break
    if ((status as StatusReport).peers.find((peer) => peer.name === name)?.up === true) break
    await new Promise((resolve) => setTimeout(resolve, JOIN_ASK_MS))
  }
  return (await examine(configPath, undefined)).slice(0, JOIN_FINDINGS_MAX)
}
