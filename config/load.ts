/**
 * From the text of swam.toml to a Config. Everything that is wrong is found in one go; each Finding names the key (with
 * its index inside [[peers]]), the line, what was expected and what was found. smol-toml gives the values,
 * toml-eslint-parser the lines, convict (strict) the defaults and the last word.
 * It does not look at the machine: whether directories and key files exist is not the text's business.
 */
import { open } from 'node:fs/promises'
import convict from 'convict'
import { parse, TomlError } from 'smol-toml'
import { ConfigError, errorText } from '../lib/core/errors.ts'
import { CONFIG_TEXT_BYTES_MAX, SOCKET_PATH_BYTES_MAX } from '../lib/core/limits.ts'
import { type KeyPath, keyPathText, Lines } from './lines.ts'
import { CONFIG_SCHEMA, type Config, type Group, isLeaf, PEER_SCHEMA, type PeerConfig } from './schema.ts'

export const DEFAULT_CONFIG_PATH: string = '/etc/swam/swam.toml'

const STATUS_SOCKET_NAME = 'status.sock'

export interface Finding {
  /** For example `peers[0].ssh.port`; empty when the file as a whole is meant. */
  readonly key: string
  /** From 1. */
  readonly line: number
  readonly expected: string
  readonly found: string
  /** The file, as it was given. */
  readonly path: string
}

/** The config cannot be used; `findings` says why, one by one. */
export class ConfigFindingsError extends ConfigError {
  readonly findings: readonly Finding[]
  constructor(findings: readonly Finding[]) {
    super(findings.map(findingText).join('\n'))
    this.findings = findings
  }
}

/** `FILE:LINE: key: expected …, found …`. */
export function findingText(finding: Finding): string {
  const key = finding.key === '' ? '' : `${finding.key}: `
  return `${finding.path}:${finding.line}: ${key}expected ${finding.expected}, found ${finding.found}`
}

/** Throws ConfigFindingsError for what the file says, ConfigError when it cannot be read. */
export async function loadConfig(path: string): Promise<Config> {
  const text = await readConfigText(path)
  const { config, findings } = examine(text, path)
  if (config === undefined) throw new ConfigFindingsError(findings)
  return config
}

export function checkConfigText(text: string, path: string): Finding[] {
  return examine(text, path).findings
}

/** Reads at most the ceiling, so that a wrong path (a disk image, /dev/zero) does no harm. */
export async function readConfigText(path: string): Promise<string> {
  let file: Awaited<ReturnType<typeof open>> | undefined
  try {
    file = await open(path, 'r')
    const buffer = Buffer.allocUnsafe(CONFIG_TEXT_BYTES_MAX + 1)
    let used = 0
    while (used < buffer.length) {
      const { bytesRead } = await file.read(buffer, used, buffer.length - used, null)
      if (bytesRead === 0) break
      used += bytesRead
    }
    if (used > CONFIG_TEXT_BYTES_MAX) {
      throw new ConfigError(`${path}: expected at most ${CONFIG_TEXT_BYTES_MAX} bytes of TOML, found more`)
    }
    return new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(buffer.subarray(0, used))
  } catch (error) {
    if (error instanceof ConfigError) throw error
    const missing = (error as NodeJS.ErrnoException).code === 'ENOENT'
    const why = missing
      ? 'there is none: install the package swam, or name another one (--config)'
      : errorText(error)
    throw new ConfigError(`${path}: cannot read the config: ${why}`, { cause: error })
  } finally {
    await file?.close()
  }
}

type Table = Readonly<Record<string, unknown>>

function isTable(value: unknown): value is Table {
  return typeof value === 'object' && value !== null && !Array.isArray(value) && !(value instanceof Date)
}

function examine(text: string, path: string): { config: Config | undefined; findings: Finding[] } {
  let root: Table
  try {
    root = parse(text, { maxDepth: 16 })
  } catch (error) {
    const line = error instanceof TomlError ? error.line : 1
    const what = errorText(error)
      .split('\n')[0]!
      .replace(/^Invalid TOML document: /, '')
    return {
      config: undefined,
      findings: [{ key: '', line, expected: 'valid TOML', found: `an error: ${what}`, path }],
    }
  }
  const lines = new Lines(text)
  const findings: Finding[] = []
  const report: Report = (key, expected, found) =>
    findings.push({ key: keyPathText(key), line: lines.of(key), expected, found, path })

  checkTable(CONFIG_SCHEMA, root, [], report)
  const peerTables = Array.isArray(root['peers']) ? (root['peers'] as unknown[]) : []
  peerTables.forEach((peer, index) => {
    if (isTable(peer)) checkTable(PEER_SCHEMA, peer, ['peers', index], report)
    else report(['peers', index], 'a table', foundText(peer))
  })
  if (findings.length === 0) checkRelations(root, peerTables as Table[], report)
  if (findings.length > 0) return { config: undefined, findings: findings.sort((a, b) => a.line - b.line) }

  const peers = peerTables.map((peer) => withDefaults(PEER_SCHEMA, peer as Table) as unknown as PeerConfig)
  const config = { ...withDefaults(CONFIG_SCHEMA, { ...root, peers: [] }), peers } as unknown as Config
  const status = root['status']
  // Two daemons with two runDirs must not share a socket that neither of them named.
  const listen =
    isTable(status) && status['listen'] !== undefined
      ? config.status.listen
      : `unix:${config.runDir}/${STATUS_SOCKET_NAME}`
  return { config: deepFreeze({ ...config, status: { ...config.status, listen } }), findings }
}

type Report = (key: KeyPath, expected: string, found: string) => void

function checkTable(schema: Group, table: Table, at: KeyPath, report: Report): void {
  for (const [key, value] of Object.entries(table)) {
    const path = [...at, key]
    const node = Object.hasOwn(schema, key) ? schema[key] : undefined
    if (node === undefined) {
      const nearest = nearestOf(key, Object.keys(schema))
      const expected =
        nearest === undefined ? 'a key that exists' : `a key that exists (did you mean "${nearest}"?)`
      report(path, expected, `unknown key ${JSON.stringify(key.slice(0, 64))}`)
    } else if (isLeaf(node)) {
      if (!accepts(node.format, value)) report(path, node.expected, foundText(value))
    } else if (isTable(value)) {
      checkTable(node, value, path, report)
    } else {
      report(path, 'a table', foundText(value))
    }
  }
  for (const [key, node] of Object.entries(schema)) {
    if (Object.hasOwn(table, key)) continue
    if (!isLeaf(node)) checkTable(node, {}, [...at, key], report)
    else if (node.default === null) report([...at, key], node.expected, 'nothing: the key is required')
  }
}

/** What no single key shows. Runs only when every key by itself is right. */
function checkRelations(root: Table, peers: readonly Table[], report: Report): void {
  const runDir = root['runDir']
  // peer.sock, control.sock, hook.sock, status.sock: the longest name of ours.
  if (typeof runDir === 'string' && Buffer.byteLength(`${runDir}/control.sock`) > SOCKET_PATH_BYTES_MAX) {
    report(
      ['runDir'],
      `a path of at most ${SOCKET_PATH_BYTES_MAX - 13} bytes (it holds sockets)`,
      foundText(runDir),
    )
  }
  const status = root['status']
  const listen = isTable(status) ? status['listen'] : undefined
  if (typeof listen === 'string' && Buffer.byteLength(listen) > SOCKET_PATH_BYTES_MAX + 5) {
    report(['status', 'listen'], `a socket path of at most ${SOCKET_PATH_BYTES_MAX} bytes`, foundText(listen))
  }
  const names = new Map<string, number>()
  const addresses = new Map<string, number>()
  peers.forEach((peer, index) => {
    const name = peer['name'] as string
    const before = names.get(name)
    if (before === undefined) names.set(name, index)
    else report(['peers', index, 'name'], 'a name of its own', `${foundText(name)} as in peers[${before}]`)
    const own = peer['addresses'] as string[]
    own.forEach((address, position) => {
      const canonical = new URL(address.includes(':') ? `http://[${address}]` : `http://${address}`).hostname
      const taken = addresses.get(canonical)
      if (taken === undefined) addresses.set(canonical, index)
      else {
        const found = `${foundText(address)} as in peers[${taken}]`
        report(['peers', index, 'addresses', position], 'an address that no other entry has', found)
      }
    })
  })
}

function accepts(format: (value: unknown) => void, value: unknown): boolean {
  try {
    format(value)
    return true
  } catch {
    return false
  }
}

function foundText(value: unknown): string {
  if (value === undefined) return 'nothing'
  if (isTable(value)) return 'a table'
  const text = typeof value === 'number' ? String(value) : (JSON.stringify(value) ?? String(value))
  return text.length > 80 ? `${text.slice(0, 77)}...` : text
}

function withDefaults(schema: Group, values: Table): Record<string, unknown> {
  // convict copies with prototypes; the parser's tables have none, so they are made plain first.
  const plain = structuredClone({ ...values })
  const holder = convict<Record<string, unknown>>(schema as never)
  holder.load(plain as never)
  holder.validate({ allowed: 'strict' })
  return holder.getProperties() as Record<string, unknown>
}

function deepFreeze<T>(value: T): T {
  if (typeof value === 'object' && value !== null && !Object.isFrozen(value)) {
    Object.freeze(value)
    for (const inner of Object.values(value)) deepFreeze(inner)
  }
  return value
}

/** The nearest key by edit distance, when it is near enough to be meant. */
export function nearestOf(word: string, candidates: readonly string[]): string | undefined {
  if (word.length > 64) return undefined
  let best: string | undefined
  let bestDistance = Math.max(2, Math.floor(word.length / 3)) + 1
  for (const candidate of candidates) {
    const distance = editDistance(word.toLowerCase(), candidate.toLowerCase())
    if (distance < bestDistance) {
      best = candidate
      bestDistance = distance
    }
  }
  return best
}

function editDistance(left: string, right: string): number {
  let previous = Array.from({ length: right.length + 1 }, (_, index) => index)
  for (let row = 1; row <= left.length; row += 1) {
    const current = [row]
    for (let column = 1; column <= right.length; column += 1) {
      const same = left[row - 1] === right[column - 1] ? 0 : 1
      current.push(Math.min(previous[column]! + 1, current[column - 1]! + 1, previous[column - 1]! + same))
    }
    previous = current
  }
  return previous[right.length]!
}
