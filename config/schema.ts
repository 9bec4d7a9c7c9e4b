/**
 * Every key of swam.toml: what it means, what it may be, what it is when it is left out. convict holds the schema;
 * each leaf's format also says in words what it expects, so that a finding can. Peers have a schema of their own,
 * because convict's strict mode does not look inside arrays of tables.
 * Nothing here reads a file; config/load.ts does. config/swam.example.toml is written from this (config/example.ts).
 */
import { isIP } from 'node:net'
import { isAbsolute, normalize } from 'node:path'
import {
  CATALOG_DAYS_MAX,
  FLUSH_DEADLINE_MS,
  FLUSH_DEADLINE_MS_MAX,
  HOOK_DEADLINE_MS_MAX,
  IMAGE_DIRECTORIES_MAX,
  MIGRATION_PORTS_MAX,
  PATH_BYTES_MAX,
  PEER_ADDRESSES_MAX,
  PEERS_MAX,
  RESUME_CONFIG_MS_MAX,
  RESUME_MS,
  SALVAGE_DAYS_MAX,
} from '../lib/core/limits.ts'

/** pino's own; named here so that the hook, which must be quick, need not load pino. */
const LOG_LEVELS: readonly string[] = ['trace', 'debug', 'info', 'warn', 'error', 'silent']

export interface SshConfig {
  readonly user: string
  readonly port: number
  /** File of the private key. */
  readonly key: string
  /** The far host's public key, as in known_hosts: type and base64. */
  readonly hostKey: string
}

export interface PeerConfig {
  readonly name: string
  readonly addresses: readonly string[]
  readonly site: string
  readonly ssh: SshConfig
}

export interface Config {
  readonly site: string
  readonly stateDir: string
  readonly runDir: string
  readonly images: readonly string[]
  readonly qcow2: readonly string[]
  readonly redirect: 'nft' | 'off'
  readonly strict: boolean
  readonly migrationPorts: readonly [low: number, high: number]
  readonly ram: 'on' | 'off'
  readonly throttle: boolean
  readonly verify: 'map' | 'read' | 'off'
  readonly share: 'images' | 'none' | readonly string[]
  readonly logLevel: string
  readonly qemuUser: string
  readonly hookDeadlineMs: number
  readonly flushDeadlineMs: number
  readonly linkDeadlineMs: number
  readonly limits: {
    readonly wanMbit: number
    readonly windowMiB: number
    readonly indexMiB: number
    readonly scanMiBps: number
    readonly salvageGiB: number
    readonly salvageDays: number
    readonly catalogGiB: number
    readonly catalogDays: number
  }
  readonly status: { readonly listen: string }
  readonly peers: readonly PeerConfig[]
}

/** A leaf as convict takes it; `default: null` makes the key required. `example` stands in the example file. */
export interface Leaf {
  readonly doc: string
  readonly expected: string
  readonly default: unknown
  readonly example?: unknown
  /** Throws when the value is not as expected. Never coerces. */
  readonly format: (value: unknown) => void
}

export interface Group {
  readonly [key: string]: Leaf | Group
}

export function isLeaf(node: Leaf | Group): node is Leaf {
  return typeof node['format'] === 'function'
}

/** A leaf that must be given: `fallback` null; its example is then what the example file shows. */
function leaf(
  doc: string,
  expected: string,
  fallback: unknown,
  accepts: (value: unknown) => boolean,
  example?: unknown,
): Leaf {
  const format = (value: unknown): void => {
    if (!accepts(value)) throw new Error(`expected ${expected}`)
  }
  return { doc, expected, default: fallback, format, ...(example === undefined ? {} : { example }) }
}

function isText(value: unknown): value is string {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: control characters are what is looked for
  return typeof value === 'string' && value !== '' && !/[\u0000-\u001f\u007f]/.test(value)
}

function isPath(value: unknown): value is string {
  return (
    isText(value) &&
    isAbsolute(value) &&
    Buffer.byteLength(value) <= PATH_BYTES_MAX &&
    normalize(value).replace(/(?<=.)\/$/, '') === value.replace(/(?<=.)\/$/, '')
  )
}

function isDirectories(value: unknown): value is string[] {
  return (
    Array.isArray(value) &&
    value.length <= IMAGE_DIRECTORIES_MAX &&
    value.every((path) => isPath(path) && path !== '/')
  )
}

function isInteger(value: unknown, low: number, high: number): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= low && value <= high
}

function oneOf(...values: readonly string[]): { expected: string; accepts: (value: unknown) => boolean } {
  return {
    expected: values.map((value) => JSON.stringify(value)).join(' or '),
    accepts: (value) => typeof value === 'string' && values.includes(value),
  }
}

function choice(doc: string, fallback: string, ...values: readonly string[]): Leaf {
  const { expected, accepts } = oneOf(...values)
  return leaf(doc, expected, fallback, accepts)
}

function integer(doc: string, fallback: number, low: number, high: number): Leaf {
  return leaf(doc, `a whole number from ${low} to ${high}`, fallback, (value) => isInteger(value, low, high))
}

const NAME_EXPECTED = 'a name of letters, digits, ".", "_" and "-" (at most 63, the first a letter or digit)'

function isName(value: unknown): boolean {
  return typeof value === 'string' && /^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$/.test(value)
}

function isUser(value: unknown): boolean {
  return typeof value === 'string' && /^[a-z_][a-z0-9_-]{0,31}$/.test(value)
}

const HOST_KEY_TYPES: readonly string[] = [
  'ssh-ed25519',
  'ecdsa-sha2-nistp256',
  'ecdsa-sha2-nistp384',
  'ecdsa-sha2-nistp521',
  'ssh-rsa',
]

/** "TYPE BASE64 [comment]", where the bytes repeat the type: catches a cut line and a pasted fingerprint. */
function isHostKey(value: unknown): boolean {
  if (!isText(value) || value.length > 4096) return false
  const [type, base64] = value.split(' ')
  if (type === undefined || base64 === undefined || !HOST_KEY_TYPES.includes(type)) return false
  if (!/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) return false
  const bytes = Buffer.from(base64, 'base64')
  if (bytes.length < 4 + type.length + 4 || bytes.readUInt32BE(0) !== type.length) return false
  return bytes.toString('latin1', 4, 4 + type.length) === type
}

/** Nothing of SWAM may listen beyond loopback and local sockets. */
function isStatusListen(value: unknown): boolean {
  if (value === 'off') return true
  if (!isText(value)) return false
  if (value.startsWith('unix:')) return isPath(value.slice(5))
  const match = /^(?:127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\]):(\d{1,5})$/.exec(value)
  if (match === null) return false
  const host = value.slice(0, value.lastIndexOf(':')).replace(/[[\]]/g, '')
  return isIP(host) !== 0 && isInteger(Number(match[1]), 1, 65535)
}

function isPortRange(value: unknown): boolean {
  if (!Array.isArray(value) || value.length !== 2) return false
  const [low, high] = value
  return isInteger(low, 1024, 65535) && isInteger(high, low, 65535) && high - low < MIGRATION_PORTS_MAX
}

function isAddress(value: unknown): boolean {
  return typeof value === 'string' && isIP(value) !== 0 && !value.includes('%')
}

const DIRECTORIES_EXPECTED = 'a list of absolute paths of directories (not "/")'

export const CONFIG_SCHEMA: Group = {
  site: leaf(
    'The site (data center) of this host. Hosts of one site may serve each other.',
    NAME_EXPECTED,
    null,
    isName,
    'ams',
  ),
  stateDir: leaf(
    'Where the catalog and the history lie.',
    'the absolute path of a directory',
    '/var/lib/swam',
    isPath,
  ),
  runDir: leaf(
    'Where the sockets lie: control.sock, hook.sock and peer.sock.',
    'the absolute path of a directory',
    '/run/swam',
    isPath,
  ),
  images: leaf(
    'Directories of disk images; of one below /dev, its block devices. Nothing outside them is read, indexed or created.',
    DIRECTORIES_EXPECTED,
    ['/var/lib/libvirt/images'],
    isDirectories,
  ),
  qcow2: leaf(
    'Files of qcow2 templates in images that no guest here has as a disk, or directories in which all *.qcow2 are such.',
    DIRECTORIES_EXPECTED.replace('of directories', 'of files or directories'),
    [],
    isDirectories,
  ),
  redirect: choice(
    'How connections of a migration are caught: "nft" keeps a table of its own in nftables; "off" catches nothing.',
    'nft',
    'nft',
    'off',
  ),
  strict: leaf(
    'true: refuse a migration that cannot be accelerated, with the reason. false: let it go direct.',
    'true or false',
    false,
    (value) => typeof value === 'boolean',
  ),
  migrationPorts: leaf(
    "First and last TCP port that libvirt uses for migrations: migration_port_min and _max of libvirt's qemu.conf.",
    `two ports from 1024 to 65535, the lower one first, at most ${MIGRATION_PORTS_MAX} ports`,
    [49152, 49215],
    isPortRange,
  ),
  ram: choice(
    'A guest\'s memory passes through SWAM byte for byte. "on": compressed on the way where the link is slow. "off": as it is.',
    'on',
    'on',
    'off',
  ),
  throttle: leaf(
    'true: once a disk is copied its writes are acknowledged as fast as they arrive. Slows guests of --copy-storage-synchronous-writes.',
    'true or false',
    false,
    (value) => typeof value === 'boolean',
  ),
  verify: choice(
    'Both ends compare every 64 KiB before a guest goes on. "map": as it was written. "read": also as it is read back. "off": not.',
    'map',
    'map',
    'read',
    'off',
  ),
  share: leaf(
    'Which images a peer is told of by swam estimate, and later what neighbours may fetch: "images", "none", or directories.',
    `"images", "none" or ${DIRECTORIES_EXPECTED}`,
    'images',
    (value) => value === 'images' || value === 'none' || isDirectories(value),
  ),
  logLevel: choice('How much is logged.', 'info', ...LOG_LEVELS),
  qemuUser: leaf(
    'The user that QEMU runs as: its connections are caught, and it owns images that the hook creates.',
    'the name of a user',
    'libvirt-qemu',
    isUser,
  ),
  hookDeadlineMs: integer(
    'How long the hook may hold up the start of a migration, in milliseconds.',
    20_000,
    1_000,
    HOOK_DEADLINE_MS_MAX,
  ),
  flushDeadlineMs: integer(
    "How long a write or flush of QEMU, and with it the guest's monitor, may wait on a broken link before it fails, in ms.",
    FLUSH_DEADLINE_MS,
    100,
    FLUSH_DEADLINE_MS_MAX,
  ),
  linkDeadlineMs: integer(
    'How long a broken link to a peer may take to come back before a migration over it fails, in milliseconds. 0: not at all.',
    RESUME_MS,
    0,
    RESUME_CONFIG_MS_MAX,
  ),
  limits: {
    wanMbit: integer(
      'What this host may send to peers in Mbit/s, all migrations together; 0: no cap.',
      0,
      0,
      1_000_000,
    ),
    windowMiB: integer(
      'Writes of a guest that are acknowledged but not applied yet, in MiB.',
      256,
      1,
      65_536,
    ),
    indexMiB: integer(
      'Memory for the index of the blocks that this host holds, in MiB; that of its chunks takes half as much.',
      256,
      1,
      1_048_576,
    ),
    scanMiBps: integer(
      'How much of the images is read in a second for the catalog in the background, in MiB; 0: only when a migration comes.',
      64,
      0,
      65_536,
    ),
    salvageGiB: integer(
      'Images of failed migrations that libvirt took away and that are kept for the next attempt, in GiB; 0: none is.',
      256,
      0,
      1_048_576,
    ),
    salvageDays: integer('How long they are kept, in days.', 7, 1, SALVAGE_DAYS_MAX),
    catalogGiB: integer(
      'What is known of the images here, on disk, in GiB: 32 are some 14 TiB of data. 0: nothing is kept.',
      32,
      0,
      1_048_576,
    ),
    catalogDays: integer(
      'How long that is kept of an image that nobody changed or used, or that is not there, in days.',
      400,
      1,
      CATALOG_DAYS_MAX,
    ),
  },
  status: {
    listen: leaf(
      'Where status page and metrics are served: a unix socket (default: runDir), loopback, or "off". Not acted on yet.',
      '"unix:/PATH", "127.0.0.1:PORT", "[::1]:PORT" or "off"',
      'unix:/run/swam/status.sock',
      isStatusListen,
    ),
  },
  peers: leaf(
    'The hosts that migrations go to and come from.',
    `tables [[peers]] (at most ${PEERS_MAX})`,
    [],
    (value) => Array.isArray(value) && value.length <= PEERS_MAX,
  ),
}

export const PEER_SCHEMA: Group = {
  name: leaf('What the peer is called in status and history.', NAME_EXPECTED, null, isName, 'fra1'),
  addresses: leaf(
    'Every address under which libvirt reaches the peer, IPv4 and IPv6. The first one is used for SSH.',
    `a list of 1 to ${PEER_ADDRESSES_MAX} IP addresses`,
    null,
    (value) =>
      Array.isArray(value) &&
      value.length >= 1 &&
      value.length <= PEER_ADDRESSES_MAX &&
      value.every(isAddress),
    ['192.0.2.7', '2001:db8::7'],
  ),
  site: leaf(
    'The site of the peer. Left out or empty: a site of its own.',
    `${NAME_EXPECTED}, or ""`,
    '',
    (value) => value === '' || isName(value),
    'fra',
  ),
  ssh: {
    user: leaf('The login at the peer whose key joins its swamd.', 'the name of a user', 'swam', isUser),
    port: integer("The port of the peer's sshd.", 22, 1, 65_535),
    key: leaf(
      'File of the private key.',
      'the absolute path of a file',
      '/etc/swam/id_ed25519',
      (value) => isPath(value) && !value.endsWith('/'),
    ),
    hostKey: leaf(
      "The public key of the peer's sshd, as ssh-keyscan prints it, without the name.",
      `a public key ("TYPE BASE64" with TYPE one of ${HOST_KEY_TYPES.join(', ')})`,
      null,
      isHostKey,
      'ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFHo0R9OGeVKl4pwxTbyTCX9jYO2d3mHqDJsCRUXyfsE',
    ),
  },
}
