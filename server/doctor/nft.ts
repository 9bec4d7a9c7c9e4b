/** nftables: the program, the kernel's part, and the table of a daemon that runs. */
import type { Finding } from './finding.ts'
import { outcome, type Place } from './place.ts'

const WHY = 'connections of migrations are caught by nftables: without it they go direct'

export async function checkNft(place: Place): Promise<Finding[]> {
  const { config, status } = place
  if (config === undefined || config.redirect !== 'nft') return []
  const findings: Finding[] = []
  const { output, missing, stderr } = await outcome('nft', 'list', 'tables')
  if (missing) {
    const what = 'there is no program nft, or it does not end'
    findings.push({ id: 'nft-missing', level: 'error', what, why: WHY, mend: 'apt-get install -y nftables' })
  } else if (output === undefined) {
    const what = `nft fails: ${stderr.trim().split('\n')[0]}`
    const mend = 'modprobe -a nf_tables nft_nat'
    findings.push({ id: 'nft-unusable', level: 'error', what, why: WHY, mend })
  }
  // A table that somebody flushed is back within seconds; one that stays away is told by the daemon.
  if (status === undefined || status.redirect.mode !== 'nft' || status.redirect.ok) return findings
  return [
    ...findings,
    {
      id: 'nft-table',
      level: 'error',
      what: `swamd cannot keep its table: ${status.redirect.error ?? 'it gives no reason'}`,
      why: WHY,
      mend: 'systemctl restart swamd',
    },
  ]
}
