/** `swam verify`, as the tests of proofs in the lab call it. */
import type { VerifyReport } from '../../server/verify/verify.ts'
import type { Lab } from '../lab/lab.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'

export interface Verified {
  readonly code: number | null
  readonly report: VerifyReport | undefined
  readonly stderr: string
}

export async function verified(lab: Lab, host: HostName, guest: TinyGuest): Promise<Verified> {
  const { code, stdout, stderr } = await lab.host(host).swam('verify', guest.name, '--json')
  return { code, stderr, report: stdout === '' ? undefined : (JSON.parse(stdout) as VerifyReport) }
}
