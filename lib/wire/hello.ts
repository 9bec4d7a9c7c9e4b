/**
 * The hello: the first frame of each channel, in both directions. It says who speaks, which version, and which
 * channel of which bundle this is. Pure codec.
 *
 * "SWAM", u16 version, then JSON. Magic and version never move, so that any two releases can at least name their
 * versions to each other. Features are names; both ends use the intersection. A hello that cannot be accepted is
 * answered with a REFUSE frame (JSON) that says why. Whether the peer is allowed to speak at all is sshd's matter.
 */
import { ProtocolError, RefusedError } from '../core/errors.ts'
import {
  CHANNELS_MAX,
  HELLO_BYTES_MAX,
  HELLO_FEATURES_MAX,
  HELLO_NAME_CHARACTERS_MAX,
  HELLO_WINDOW_BYTES_MAX,
  HELLO_WINDOW_BYTES_MIN,
} from '../core/limits.ts'

export const PROTOCOL_VERSION: number = 1
/** Both ends keep what is not acknowledged, and a bundle whose link broke may go on over new channels. */
export const FEATURE_RESUME: string = 'resume'
/** The first stream that each end opens on a bundle, a guest's memory, has a wide window. */
export const FEATURE_WIDE_STREAM: string = 'wide-stream'

const MAGIC = Buffer.from('SWAM', 'latin1')
const PREFIX_BYTES = 6

export const BUNDLE_KINDS = ['control', 'disk', 'ram'] as const
export type BundleKind = (typeof BUNDLE_KINDS)[number]

export interface Hello {
  readonly version: number
  /** 16 bytes in hex. */
  readonly bundle: string
  readonly kind: BundleKind
  readonly channel: number
  readonly channels: number
  /** What the speaker calls itself; sshd's forced command, not this, says who it is. */
  readonly name: string
  /** A uuid, or empty for a bundle that belongs to no migration. */
  readonly migration: string
  readonly features: readonly string[]
  /** Bytes of frames that the speaker is willing to hold before it delivers them. */
  readonly windowBytes: number
  /** Drawn anew by each start of a daemon: tells a daemon that lost everything from one whose link broke. Empty: not told. */
  readonly instance: string
  /** Present when these channels take the place of a bundle's lost ones. */
  readonly resume?: HelloResume
}

export interface HelloResume {
  /** Counts the dialer's tries, so that channels of two tries are never mixed. The answer repeats it. */
  readonly attempt: number
  /** Bytes of sequenced frames, headers included, that the speaker has delivered in order: what follows is sent again. */
  readonly deliveredBytes: number
}

export function encodeHello(hello: Hello): Buffer {
  const { version, ...fields } = hello
  const json = Buffer.from(JSON.stringify(fields), 'utf8')
  if (PREFIX_BYTES + json.length > HELLO_BYTES_MAX) {
    throw new RangeError(`hello: ${json.length} bytes, at most ${HELLO_BYTES_MAX} fit`)
  }
  const prefix = Buffer.alloc(PREFIX_BYTES)
  MAGIC.copy(prefix)
  prefix.writeUInt16BE(version, 4)
  return Buffer.concat([prefix, json])
}

/** Throws ProtocolError for what is no hello, RefusedError for a hello of a version that does not fit. */
export function decodeHello(payload: Buffer, ownVersion: number = PROTOCOL_VERSION): Hello {
  if (payload.length > HELLO_BYTES_MAX) {
    throw new ProtocolError(`hello: ${payload.length} bytes, expected at most ${HELLO_BYTES_MAX}`)
  }
  if (payload.length < PREFIX_BYTES || !payload.subarray(0, 4).equals(MAGIC)) {
    throw new ProtocolError(
      `hello: expected the magic "SWAM", got ${JSON.stringify(payload.toString('latin1', 0, 4))}`,
    )
  }
  const version = payload.readUInt16BE(4)
  if (version !== ownVersion) {
    throw new RefusedError(
      `hello: the peer speaks protocol version ${version}, this swamd speaks version ${ownVersion}`,
    )
  }
  const fields = parseObject('hello', payload.subarray(PREFIX_BYTES))
  const kind = BUNDLE_KINDS.find((name) => name === fields['kind'])
  if (kind === undefined) {
    throw new ProtocolError(
      `hello: bundle kind ${show(fields['kind'])}, expected one of ${BUNDLE_KINDS.join(', ')}`,
    )
  }
  const channels = integer(fields, 'channels', 1, CHANNELS_MAX)
  return {
    version,
    bundle: matching(fields, 'bundle', /^[0-9a-f]{32}$/, '32 hex digits'),
    kind,
    channel: integer(fields, 'channel', 0, channels - 1),
    channels,
    name: matching(
      fields,
      'name',
      /^[^\p{C}]{1,255}$/u,
      `a name of 1 to ${HELLO_NAME_CHARACTERS_MAX} characters`,
    ),
    migration: matching(
      fields,
      'migration',
      /^([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})?$/,
      'a uuid or nothing',
    ),
    features: features(fields),
    windowBytes: integer(fields, 'windowBytes', HELLO_WINDOW_BYTES_MIN, HELLO_WINDOW_BYTES_MAX),
    instance:
      fields['instance'] === undefined
        ? ''
        : matching(fields, 'instance', /^([0-9a-f]{32})?$/, '32 hex digits or nothing'),
    ...(fields['resume'] === undefined ? {} : { resume: resume(fields['resume']) }),
  }
}

function resume(value: unknown): HelloResume {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError(`hello: resume is ${show(value)}, expected an object`)
  }
  const fields = value as Record<string, unknown>
  return {
    attempt: integer(fields, 'attempt', 1, Number.MAX_SAFE_INTEGER),
    deliveredBytes: integer(fields, 'deliveredBytes', 0, Number.MAX_SAFE_INTEGER),
  }
}

export function commonFeatures(own: readonly string[], theirs: readonly string[]): ReadonlySet<string> {
  return new Set(own.filter((name) => theirs.includes(name)))
}

export interface Refusal {
  readonly code: string
  readonly message: string
}

export function encodeRefusal(refusal: Refusal): Buffer {
  return Buffer.from(JSON.stringify({ code: refusal.code, message: refusal.message.slice(0, 1024) }), 'utf8')
}

export function decodeRefusal(payload: Buffer): Refusal {
  if (payload.length > HELLO_BYTES_MAX) {
    throw new ProtocolError(`refusal: ${payload.length} bytes, expected at most ${HELLO_BYTES_MAX}`)
  }
  const fields = parseObject('refusal', payload)
  return {
    code: matching(fields, 'code', /^[A-Z_]{1,64}$/, 'a code'),
    message: matching(fields, 'message', /^[^\p{C}]{0,1024}$/u, 'a line of text'),
  }
}

function parseObject(message: string, bytes: Buffer): Record<string, unknown> {
  let value: unknown
  try {
    value = JSON.parse(bytes.toString('utf8'))
  } catch (error) {
    throw new ProtocolError(`${message}: not JSON`, { cause: error })
  }
  if (typeof value !== 'object' || value === null || Array.isArray(value)) {
    throw new ProtocolError(`${message}: expected a JSON object, got ${show(value)}`)
  }
  return value as Record<string, unknown>
}

function integer(fields: Record<string, unknown>, name: string, min: number, max: number): number {
  const value = fields[name]
  if (typeof value !== 'number' || !Number.isInteger(value) || value < min || value > max) {
    throw new ProtocolError(`hello: ${name} is ${show(value)}, expected an integer from ${min} to ${max}`)
  }
  return value
}

function matching(fields: Record<string, unknown>, name: string, pattern: RegExp, expected: string): string {
  const value = fields[name]
  if (typeof value !== 'string' || !pattern.test(value)) {
    throw new ProtocolError(`hello: ${name} is ${show(value)}, expected ${expected}`)
  }
  return value
}

function features(fields: Record<string, unknown>): string[] {
  const value = fields['features']
  if (
    !Array.isArray(value) ||
    value.length > HELLO_FEATURES_MAX ||
    !value.every((name) => typeof name === 'string' && /^[a-z0-9-]{1,32}$/.test(name))
  ) {
    throw new ProtocolError(
      `hello: features is ${show(value)}, expected at most ${HELLO_FEATURES_MAX} short names`,
    )
  }
  return value as string[]
}

function show(value: unknown): string {
  return (JSON.stringify(value) ?? String(value)).slice(0, 100)
}
