/**
 * Numbers of the protocol turned into the names of the specification, for logs and error messages. A number without a
 * name is shown as a number, so that a message never hides what was received.
 */
import * as nbd from './constants.ts'

type Names = ReadonlyMap<number, string>

function table(prefix: string, without: RegExp = /^$/): Names {
  const names = new Map<number, string>()
  for (const [name, value] of Object.entries(nbd)) {
    if (name.startsWith(prefix) && !without.test(name) && typeof value === 'number') names.set(value, name)
  }
  return names
}

const OPTIONS: Names = table('NBD_OPT_')
const OPTION_REPLIES: Names = table('NBD_REP_', /_FLAG_/)
const INFOS: Names = table('NBD_INFO_')
const COMMANDS: Names = table('NBD_CMD_', /_FLAG_/)
const COMMAND_FLAGS: Names = table('NBD_CMD_FLAG_')
const CHUNKS: Names = table('NBD_REPLY_TYPE_', /_FLAG_/)
const TRANSMISSION_FLAGS: Names = table('NBD_FLAG_', /NBD_FLAG_(C_|FIXED_NEWSTYLE|NO_ZEROES)/)
const ERRORS: Names = table('NBD_E', /_(BYTES|MAX)|EXTENDED|EXPORT|ERROR/)

export function optionName(option: number): string {
  return OPTIONS.get(option) ?? `option ${option}`
}

export function optionReplyName(reply: number): string {
  return OPTION_REPLIES.get(reply) ?? `option reply 0x${reply.toString(16)}`
}

export function infoName(info: number): string {
  return INFOS.get(info) ?? `info ${info}`
}

export function commandName(command: number): string {
  return COMMANDS.get(command) ?? `command ${command}`
}

export function chunkName(type: number): string {
  return CHUNKS.get(type) ?? `chunk type 0x${type.toString(16)}`
}

/** What the C library says of them: the words in which QEMU and libvirt tell the administrator. */
const ERROR_TEXTS: Names = new Map([
  [nbd.NBD_EPERM, 'Operation not permitted'],
  [nbd.NBD_EIO, 'Input/output error'],
  [nbd.NBD_ENOMEM, 'Cannot allocate memory'],
  [nbd.NBD_EINVAL, 'Invalid argument'],
  [nbd.NBD_ENOSPC, 'No space left on device'],
  [nbd.NBD_EOVERFLOW, 'Value too large for defined data type'],
  [nbd.NBD_ENOTSUP, 'Operation not supported'],
  [nbd.NBD_ESHUTDOWN, 'Cannot send after transport endpoint shutdown'],
])

/** `ENOSPC (No space left on device)`. */
export function errnoText(errno: number): string {
  const text = ERROR_TEXTS.get(errno)
  return text === undefined ? errnoName(errno) : `${errnoName(errno)} (${text})`
}

/** EIO, ENOSPC, ...: without the prefix, as people know them. */
export function errnoName(errno: number): string {
  return ERRORS.get(errno)?.slice('NBD_'.length) ?? `error ${errno}`
}

export function commandFlagNames(flags: number): string {
  return flagNames(COMMAND_FLAGS, flags)
}

export function transmissionFlagNames(flags: number): string {
  return flagNames(TRANSMISSION_FLAGS, flags)
}

function flagNames(names: Names, flags: number): string {
  const found: string[] = []
  for (let bit = 1; bit <= flags; bit *= 2) {
    if ((flags & bit) !== 0) found.push(names.get(bit) ?? `0x${bit.toString(16)}`)
  }
  return found.length === 0 ? 'none' : found.join('|')
}
