/**
 * Peers in the text of swam.toml: a `[[peers]]` table is added at the end, replaced where it stands, or taken away, and
 * every other byte stays. What stands between the tables is nobody's; comments inside of a peer's table go with it.
 * Pure: the caller checks the new text and writes it.
 */
import { type AST, parseTOML } from 'toml-eslint-parser'
import type { PeerConfig } from '../../config/schema.ts'
import { RefusedError } from '../../lib/core/errors.ts'

export function withPeer(text: string, peer: PeerConfig): string {
  const end = newlineOf(text)
  const closed = text === '' || text.endsWith('\n') ? text : text + end
  return `${closed}${closed === '' ? '' : end}${peerTable(peer, end)}${end}`
}

/** `index`: which of the `[[peers]]` tables. */
export function withPeerReplaced(text: string, index: number, peer: PeerConfig): string {
  const pieces = piecesOf(text, index)
  const [first] = pieces
  // Back to front, so that the offsets in front stay right.
  let result = text
  for (const { start, end } of pieces.slice(1).reverse()) result = withoutLines(result, start, end)
  return result.slice(0, first!.start) + peerTable(peer, newlineOf(text)) + result.slice(first!.end)
}

export function withoutPeer(text: string, index: number): string {
  let result = text
  for (const { start, end } of piecesOf(text, index).reverse()) result = withoutLines(result, start, end)
  return result
}

function peerTable(peer: PeerConfig, end: string): string {
  const { ssh } = peer
  const pairs = [`user = ${quoted(ssh.user)}`, `port = ${ssh.port}`, `key = ${quoted(ssh.key)}`]
  return [
    '[[peers]]',
    `name = ${quoted(peer.name)}`,
    `addresses = [${peer.addresses.map(quoted).join(', ')}]`,
    ...(peer.site === '' ? [] : [`site = ${quoted(peer.site)}`]),
    `ssh = { ${[...pairs, `hostKey = ${quoted(ssh.hostKey)}`].join(', ')} }`,
  ].join(end)
}

/** A basic string of TOML: what JSON writes is one. */
function quoted(text: string): string {
  return JSON.stringify(text)
}

function newlineOf(text: string): string {
  return /\r\n/.test(text.slice(0, 4096)) ? '\r\n' : '\n'
}

/** The table and the tables below it (`[peers.ssh]`), each from its head to the end of its last value. */
function piecesOf(text: string, index: number): { start: number; end: number }[] {
  let top: AST.TOMLTopLevelTable
  // A byte order mark is no part of the text for this parser.
  const skipped = text.startsWith('\ufeff') ? 1 : 0
  try {
    top = parseTOML(text.slice(skipped), { tomlVersion: '1.1.0' }).body[0]
  } catch (error) {
    throw new RefusedError('the config is no valid TOML: see swam config check', { cause: error })
  }
  const pieces = top.body
    .filter((node) => node.type === 'TOMLTable')
    .filter(({ resolvedKey: [key, at] }) => key === 'peers' && at === index)
    .map(({ range: [start, end] }) => ({ start: start + skipped, end: end + skipped }))
  if (pieces.length === 0) {
    throw new RefusedError('the peers in the config are not written as [[peers]] tables: change it by hand')
  }
  return pieces
}

/** With the rest of the last line, and the empty line before, which stood there for this table. */
function withoutLines(text: string, start: number, end: number): string {
  const newline = text.indexOf('\n', end)
  const from = /(?:^|\n)(\r?\n)$/.exec(text.slice(0, start))?.[1]?.length ?? 0
  return text.slice(0, start - from) + (newline < 0 ? '' : text.slice(newline + 1))
}
