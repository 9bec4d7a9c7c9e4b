/**
 * What each side of `swam peer add` tells the other of itself, and the check of it: what the far side sends goes into a
 * config and a key file here, so each part is held to what may stand there. Pure.
 */
import { isIP } from 'node:net'
import { type Group, isLeaf, PEER_SCHEMA } from '../../config/schema.ts'
import { errorText, ProtocolError } from '../../lib/core/errors.ts'
import {
  JOIN_ADDRESSES_MAX,
  JOIN_LINE_CHARACTERS_MAX,
  JOIN_LINES_MAX,
  JOIN_NAMES_MAX,
} from '../../lib/core/limits.ts'
import { isHostName } from '../../lib/host/qemu-conf.ts'
import { publicKeyText } from '../../lib/host/sshd.ts'

export interface HostFacts {
  readonly release: string
  readonly site: string
  /** The login that the other side's key opens. */
  readonly user: string
  readonly sshPort: number
  readonly hostKey: string
  /** Null while there is none: it is made when the change is done. */
  readonly publicKey: string | null
  /** What it is called: host name, full name, migration_host. */
  readonly names: readonly string[]
  /** Of its interfaces. */
  readonly addresses: readonly string[]
}

type Fields = Readonly<Record<string, unknown>>

export function fieldsOf(value: unknown, what: string): Fields {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError(`${what}: expected a JSON object`)
  }
  return value as Fields
}

export function factsOf(value: unknown, what: string): HostFacts {
  const fields = fieldsOf(value, what)
  const { publicKey } = fields
  return {
    release: textOf(fields['release'], `${what}: release`, /^[A-Za-z0-9.+~-]{1,64}$/),
    site: checked(PEER_SCHEMA, 'site', fields['site'], what) as string,
    user: checked(PEER_SCHEMA['ssh'] as Group, 'user', fields['user'], what) as string,
    sshPort: checked(PEER_SCHEMA['ssh'] as Group, 'port', fields['sshPort'], what) as number,
    hostKey: keyOf(fields['hostKey'], `${what}: hostKey`),
    publicKey: publicKey === null ? null : keyOf(publicKey, `${what}: publicKey`),
    names: listOf(
      fields['names'],
      JOIN_NAMES_MAX,
      `${what}: names`,
      (name) => isHostName(name) || isIP(name) > 0,
    ),
    addresses: listOf(
      fields['addresses'],
      JOIN_ADDRESSES_MAX,
      `${what}: addresses`,
      (address) => isIP(address) !== 0 && !address.includes('%'),
    ),
  }
}

/** Lines for the administrator's terminal. */
export function linesOf(value: unknown, what: string): string[] {
  return listOf(value ?? [], JOIN_LINES_MAX, what, (line) => line.length <= JOIN_LINE_CHARACTERS_MAX)
}

export function peerName(value: unknown, what: string): string {
  return checked(PEER_SCHEMA, 'name', value, what) as string
}

function checked(schema: Group, key: string, value: unknown, what: string): unknown {
  const leaf = schema[key]
  if (leaf === undefined || !isLeaf(leaf)) throw new ProtocolError(`${what}: ${key} is no key`)
  try {
    leaf.format(value)
  } catch (error) {
    throw new ProtocolError(`${what}: ${key}: ${errorText(error)}, found ${shown(value)}`)
  }
  return value
}

function keyOf(value: unknown, what: string): string {
  const line = checked(PEER_SCHEMA['ssh'] as Group, 'hostKey', value, what) as string
  return publicKeyText(line)
}

function textOf(value: unknown, what: string, form: RegExp): string {
  if (typeof value !== 'string' || !form.test(value)) {
    throw new ProtocolError(`${what}: not as expected, found ${shown(value)}`)
  }
  return value
}

function listOf(value: unknown, most: number, what: string, accepts: (text: string) => boolean): string[] {
  if (
    !Array.isArray(value) ||
    value.length > most ||
    !value.every((item) => typeof item === 'string' && accepts(item))
  ) {
    throw new ProtocolError(`${what}: expected a list of at most ${most}, found ${shown(value)}`)
  }
  return value as string[]
}

function shown(value: unknown): string {
  return (JSON.stringify(value) ?? 'nothing').slice(0, 80)
}
