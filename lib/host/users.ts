/**
 * Users of this host by name, through getent, so that they may come from a directory service too.
 */
import { COMMAND_OUTPUT_BYTES_MAX, USER_LOOKUP_DEADLINE_MS } from '../core/limits.ts'
import { CommandError, runCommand } from './command.ts'

export interface UserIds {
  readonly uid: number
  readonly gid: number
}

export interface UserEntry extends UserIds {
  readonly home: string
  readonly shell: string
}

/** Undefined: there is no such user. */
export async function userIds(name: string): Promise<UserIds | undefined> {
  const entry = await userEntry(name)
  return entry === undefined ? undefined : { uid: entry.uid, gid: entry.gid }
}

/** The same with home and login shell. */
export async function userEntry(name: string): Promise<UserEntry | undefined> {
  let text: string
  try {
    text = await runCommand(['getent', 'passwd', '--', name], {
      deadlineMs: USER_LOOKUP_DEADLINE_MS,
      outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
    })
  } catch (error) {
    if (error instanceof CommandError && error.exitCode === 2) return undefined
    throw error
  }
  const [found, , uid = '', gid = '', , home = '', shell = ''] = text.split('\n')[0]!.split(':')
  if (found !== name || !/^\d{1,10}$/.test(uid) || !/^\d{1,10}$/.test(gid)) return undefined
  return { uid: Number(uid), gid: Number(gid), home, shell }
}
