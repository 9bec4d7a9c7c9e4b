/**
 * What this host is, for the other side of a join: read from sshd, the key, libvirt's qemu.conf and the interfaces. And
 * where it lays things: the key beside the config, the far side's line in the home of user swam, which is read and written
 * with that user's rights only, so that no link there leads root anywhere.
 */
import { randomBytes } from 'node:crypto'
import { chmod, chown, lstat, readFile, realpath, rename, rm, stat, writeFile } from 'node:fs/promises'
import { dirname, join } from 'node:path'
import { loadConfig } from '../../config/load.ts'
import type { Config } from '../../config/schema.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { AUTHORIZED_KEYS_BYTES_MAX, JOIN_ADDRESSES_MAX, JOIN_COMMAND_MS } from '../../lib/core/limits.ts'
import { runCommand, runCommandAs } from '../../lib/host/command.ts'
import { ownAddresses, ownNames, shortHostName } from '../../lib/host/names.ts'
import { readQemuConf } from '../../lib/host/qemu-conf.ts'
import { hostKeyOf, publicKeyText, sshdPort, sshdSettings } from '../../lib/host/sshd.ts'
import { type UserEntry, userEntry } from '../../lib/host/users.ts'
import { release } from '../release.ts'
import type { HostFacts } from './facts.ts'

/** The login that peers' keys open. */
export const LOGIN: string = 'swam'

const LIMITS = { deadlineMs: JOIN_COMMAND_MS, outputBytesMax: AUTHORIZED_KEYS_BYTES_MAX }
const KEYS = { ...LIMITS, encoding: 'latin1' } as const

export async function login(look: typeof userEntry = userEntry): Promise<UserEntry> {
  const entry = await look(LOGIN)
  if (entry === undefined || !entry.home.startsWith('/')) {
    throw new RefusedError(`there is no user ${LOGIN}: install the package swam first`)
  }
  return entry
}

/** What no path in a config leads to; tests put their own in. */
export interface JoinHost {
  /** The user that peers' keys open. */
  login(): Promise<UserEntry>
  facts(config: Config, configPath: string): Promise<HostFacts>
}

export const THIS_HOST: JoinHost = { login: () => login(), facts: ownFacts }

/** Beside the config: two daemons on one machine have two keys. */
export function keyPathFor(configPath: string): string {
  return join(dirname(configPath), 'id_ed25519')
}

async function ownFacts(config: Config, configPath: string): Promise<HostFacts> {
  const settings = await sshdSettings()
  return {
    release: release(),
    site: config.site,
    user: LOGIN,
    sshPort: sshdPort(settings),
    hostKey: await hostKeyOf(settings),
    publicKey: await publicKeyAt(keyPathFor(configPath)),
    names: await ownNames(await readQemuConf()),
    addresses: ownAddresses().slice(0, JOIN_ADDRESSES_MAX),
  }
}

/** Null: there is no key yet. */
export async function publicKeyAt(path: string): Promise<string | null> {
  if ((await lstat(path).catch(() => undefined)) === undefined) return null
  try {
    return publicKeyText(await runCommand(['ssh-keygen', '-y', '-P', '', '-f', path], LIMITS))
  } catch (error) {
    const text = errorText(error).replace(/\s+/g, ' ').slice(0, 300)
    throw new RefusedError(`${path}: not a key without a passphrase that only its owner can read: ${text}`)
  }
}

/** Gives the public key. The new key has its name only when its owner and mode are right. */
export async function makeKey(path: string, owner: UserEntry): Promise<string> {
  const made = `${path}.${randomBytes(6).toString('hex')}`
  try {
    const comment = `${LOGIN}@${shortHostName()}`
    await runCommand(['ssh-keygen', '-q', '-t', 'ed25519', '-N', '', '-C', comment, '-f', made], LIMITS)
    await chown(made, owner.uid, owner.gid)
    await chmod(made, 0o600)
    const key = publicKeyText(await readFile(`${made}.pub`, 'utf8'))
    await rename(`${made}.pub`, `${path}.pub`)
    await rename(made, path)
    return key
  } finally {
    await rm(made, { force: true })
    await rm(`${made}.pub`, { force: true })
  }
}

/** A character a byte: comments in it may be in any encoding. '' when there is none. */
export async function readAuthorizedKeys(owner: UserEntry): Promise<string> {
  const script = 'f=$1/.ssh/authorized_keys; if [ -e "$f" ] || [ -L "$f" ]; then exec cat -- "$f"; fi'
  return await runCommandAs(owner, ['/bin/sh', '-c', script, 'sh', owner.home], KEYS)
}

/** The new text in the place of the old one, if that is what still lies there. */
export async function replaceAuthorizedKeys(owner: UserEntry, before: string, after: string): Promise<void> {
  if ((await readAuthorizedKeys(owner)) !== before) {
    const file = `${owner.home}/.ssh/authorized_keys`
    throw new RefusedError(`${file} was changed by somebody else meanwhile: run the command again`)
  }
  const script = `set -eu
umask 077
mkdir -p "$1/.ssh"
f=$(mktemp "$1/.ssh/.authorized_keys.XXXXXX")
trap 'rm -f "$f"' EXIT
cat >"$f"
chmod 600 "$f"
mv -f "$f" "$1/.ssh/authorized_keys"
`
  await runCommandAs(owner, ['/bin/sh', '-c', script, 'sh', owner.home], { ...KEYS, input: after })
}

/**
 * The new text in the place of the old one, if that is what still lies there: checked as the daemon would before it has
 * the name, with owner and mode of the old file.
 */
export async function replaceConfig(path: string, before: string, after: string): Promise<void> {
  const file = await realpath(path)
  const { uid, gid, mode } = await stat(file)
  const made = `${file}.new-${randomBytes(6).toString('hex')}`
  try {
    await writeFile(made, after, { flag: 'wx', mode: 0o600, flush: true })
    await chown(made, uid, gid)
    await chmod(made, mode & 0o7777)
    await loadConfig(made).catch((error: unknown) => {
      throw new RefusedError(`the new config would be wrong: ${errorText(error).replaceAll(made, file)}`)
    })
    if ((await readFile(file, 'utf8')) !== before) {
      throw new RefusedError(`${file} was changed by somebody else meanwhile: run the command again`)
    }
    await rename(made, file)
  } finally {
    await rm(made, { force: true })
  }
}

/** Of a key that was just made, when what it was made for failed. */
export async function removeKey(path: string): Promise<void> {
  await rm(path, { force: true })
  await rm(`${path}.pub`, { force: true })
}
