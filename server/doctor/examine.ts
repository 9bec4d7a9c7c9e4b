/** All checks, one after the other. One that fails is a finding too: what could not be looked at is not said to be well. */
import { errorText } from '../../lib/core/errors.ts'
import { checkApparmor } from './apparmor.ts'
import { checkBandwidth } from './bandwidth.ts'
import { checkCrypto } from './crypto.ts'
import { checkDaemon } from './daemon.ts'
import type { Finding } from './finding.ts'
import { checkGuests } from './guests.ts'
import { checkHook } from './hook.ts'
import { checkImages } from './images.ts'
import { checkIpv6 } from './ipv6.ts'
import { checkKeys } from './keys.ts'
import { checkNft } from './nft.ts'
import { checkPeers } from './peers.ts'
import { lookAround, type Place } from './place.ts'
import { checkPorts } from './ports.ts'
import { checkSshd } from './sshd.ts'

const CHECKS: readonly { readonly subject: string; readonly run: (place: Place) => Promise<Finding[]> }[] = [
  { subject: 'daemon', run: checkDaemon },
  { subject: 'nft', run: checkNft },
  { subject: 'hook', run: checkHook },
  { subject: 'apparmor', run: checkApparmor },
  { subject: 'sshd', run: checkSshd },
  { subject: 'keys', run: checkKeys },
  { subject: 'peers', run: checkPeers },
  { subject: 'ipv6', run: checkIpv6 },
  { subject: 'ports', run: checkPorts },
  { subject: 'images', run: checkImages },
  { subject: 'guests', run: checkGuests },
  { subject: 'bandwidth', run: checkBandwidth },
  { subject: 'crypto', run: checkCrypto },
]

/** The subjects that are looked at, in order. */
export const SUBJECTS: readonly string[] = CHECKS.map(({ subject }) => subject)

export async function examine(configPath: string, socket: string | undefined): Promise<Finding[]> {
  const place = await lookAround(configPath, socket)
  const findings: Finding[] = []
  for (const { subject, run } of CHECKS) {
    try {
      findings.push(...(await run(place)))
    } catch (error) {
      findings.push({
        id: `${subject}-unknown`,
        level: 'warning',
        what: `${subject} could not be looked at: ${errorText(error).split('\n')[0]}`,
        why: 'what is not looked at may be wrong',
        mend: MENDS[subject] ?? 'swam doctor',
      })
    }
  }
  return findings
}

/** What says more, where a check needs a program that fails. */
const MENDS: Readonly<Record<string, string>> = { sshd: '/usr/sbin/sshd -t' }
