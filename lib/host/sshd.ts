/**
 * What sshd says of itself: `sshd -T` prints its effective settings, one `key value` a line, and needs root. The host
 * key is read from the files that it names, ed25519 first, because that is what a peer pins.
 * It changes nothing and asks no daemon that runs: a setting that was edited and not reloaded is not seen.
 */
import { RefusedError } from '../core/errors.ts'
import { COMMAND_OUTPUT_BYTES_MAX, HOST_KEYS_MAX, JOIN_COMMAND_MS } from '../core/limits.ts'
import { type RunCommand, runCommand } from './command.ts'

/** Keys in lower case; a key that comes several times (`hostkey`, `port`, `allowusers`) has several values. */
export type SshdSettings = ReadonlyMap<string, readonly string[]>

const KEY_ORDER = [
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
  'ssh-rsa',
]
const LIMITS = { deadlineMs: JOIN_COMMAND_MS, outputBytesMax: COMMAND_OUTPUT_BYTES_MAX }

export function parseSshdSettings(text: string): SshdSettings {
  const settings = new Map<string, string[]>()
  for (const line of text.split('\n')) {
    const match = /^([a-z0-9]{1,64})(?: (.*))?$/i.exec(line.trim())
    if (match === null) continue
    const key = match[1]!.toLowerCase()
    const values = settings.get(key)
    if (values === undefined) settings.set(key, [match[2] ?? ''])
    else values.push(match[2] ?? '')
  }
  return settings
}

/** `login`: as they are for that user, with the Match blocks that apply. */
export async function sshdSettings(login?: string, run: RunCommand = runCommand): Promise<SshdSettings> {
  const forLogin = login === undefined ? [] : ['-C', `user=${login},host=localhost,addr=127.0.0.1`]
  return parseSshdSettings(await run(['/usr/sbin/sshd', '-T', ...forLogin], LIMITS))
}

export function sshdPort(settings: SshdSettings): number {
  const port = Number(settings.get('port')?.[0] ?? 22)
  return Number.isInteger(port) && port > 0 && port < 65_536 ? port : 22
}

/** `TYPE BASE64` of the best host key that sshd uses. */
export async function hostKeyOf(settings: SshdSettings, run: RunCommand = runCommand): Promise<string> {
  const found: string[] = []
  const problems: string[] = []
  for (const file of (settings.get('hostkey') ?? []).slice(0, HOST_KEYS_MAX)) {
    try {
      found.push(publicKeyText(await run(['ssh-keygen', '-y', '-P', '', '-f', file], LIMITS)))
    } catch (error) {
      // sshd names its usual files whether they are there or not.
      problems.push(error instanceof Error ? error.message.slice(0, 200) : String(error))
    }
  }
  const best = KEY_ORDER.flatMap((type) => found.filter((key) => key.startsWith(`${type} `)))[0]
  if (best !== undefined) return best
  throw new RefusedError(`sshd has no host key that can be read: ${problems.join('; ') || 'it names none'}`)
}

/** `TYPE BASE64` of a line that may have a comment. */
export function publicKeyText(line: string): string {
  const match = /^([a-z0-9@.-]{1,64} [A-Za-z0-9+/]{16,8192}={0,2})(?:\s.*)?$/s.exec(line.trim())
  if (match === null) throw new RefusedError('expected a public key, TYPE BASE64')
  return match[1]!
}
