/**
 * `swam doctor`: what is not as it should be on this host, why it matters, and the command that mends it; with `--peer` also
 * what the doctor of that host says, over the administrator's own SSH. Changes nothing.
 */
import { DEFAULT_CONFIG_PATH, loadConfig } from '../../config/load.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { DOCTOR_REPORT_BYTES_MAX, JOIN_LOGIN_MS } from '../../lib/core/limits.ts'
import { CommandError, runCommand } from '../../lib/host/command.ts'
import { examine, SUBJECTS } from '../doctor/examine.ts'
import type { Finding } from '../doctor/finding.ts'
import { reportOf } from '../doctor/report.ts'
import { farCommand, farTarget, isTarget, sshWords } from '../join/far-side.ts'
import { type GlobalOptions, noSuchPeer, type Output, requireRoot } from './context.ts'
import { EXIT } from './exit-codes.ts'
import { jsonLine, plainText } from './format.ts'

export interface DoctorOptions extends GlobalOptions {
  readonly peer?: string
}

/** Gives the exit code: 1 when there is a finding, here or there. */
export async function doctorCommand(options: DoctorOptions, output: Output): Promise<number> {
  requireRoot('swam doctor')
  const findings = await examine(options.config ?? DEFAULT_CONFIG_PATH, options.socket)
  const far = options.peer === undefined ? undefined : await farFindings(options.peer, options)
  const all = [...findings, ...(far?.findings ?? [])]
  if (options.json === true) {
    const there = far === undefined ? {} : { peer: far }
    output.out(jsonLine({ version: 1, ok: all.length === 0, findings, ...there }))
  } else {
    output.out(findingsText('', findings))
    if (far !== undefined) output.out(findingsText(`${far.host}: `, far.findings))
  }
  return all.length === 0 ? EXIT.done : EXIT.failed
}

export function findingsText(where: string, findings: readonly Finding[]): string {
  if (findings.length === 0) return plainText(`${where}all is well: ${SUBJECTS.join(', ')}`).concat('\n')
  return findings
    .map(({ level, id, what, why, mend }) =>
      [`${where}${level}: ${what} [${id}]`, `  why:  ${why}`, `  mend: ${mend}`]
        .map(plainText)
        .join('\n')
        .concat('\n'),
    )
    .join('')
}

/** A peer's name stands for root at its first address; anything else is what ssh gets. */
async function farFindings(
  given: string,
  options: DoctorOptions,
): Promise<{ host: string; findings: readonly Finding[] }> {
  const { peers } = await loadConfig(options.config ?? DEFAULT_CONFIG_PATH)
  const peer = peers.find(({ name }) => name === given)
  const text = peer === undefined ? given : `root@${peer.addresses[0]}`
  if ((peer === undefined && !given.includes('@')) || !isTarget(text)) throw noSuchPeer(given)
  const port = peer === undefined || peer.ssh.port === 22 ? undefined : peer.ssh.port
  const target = await farTarget(text, port)
  const words = sshWords(target, port, farCommand(target, ['doctor', '--json']))
  const known = peer === undefined ? [] : knownHost(peer.ssh.hostKey)
  const printed = await printedBy([...known, ...words], text)
  return { host: given, findings: reportOf(printed, text) }
}

/** root may know that host by a name only: the key that the config has of it vouches for its address. */
function knownHost(hostKey: string): string[] {
  const [type, base64] = hostKey.split(' ')
  return ['-o', `KnownHostsCommand=/bin/echo %H ${type} ${base64}`]
}

/** The far doctor's exit status 1 is no failure. */
export async function printedBy(
  words: readonly string[],
  where: string,
  waitMs: number = JOIN_LOGIN_MS,
): Promise<string> {
  try {
    return await runCommand(['ssh', ...words], {
      deadlineMs: waitMs,
      outputBytesMax: DOCTOR_REPORT_BYTES_MAX,
      exitCodes: [EXIT.done, EXIT.failed],
      interactive: true,
    })
  } catch (error) {
    const said = (error instanceof CommandError ? error.stderr : errorText(error))
      .trim()
      .replaceAll(/\p{C}+/gu, ' ')
      .slice(-500)
    throw new RefusedError(`${where}: swam doctor cannot be run there: ${said}`, { cause: error })
  }
}
