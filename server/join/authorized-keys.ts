/**
 * The lines of swam's login in the text of its authorized_keys: one for each peer, restricted, with our forced command.
 * Lines of others stay as they are, byte for byte. Pure: the caller reads and writes.
 */
import { RefusedError } from '../../lib/core/errors.ts'

/** Where the package puts it. sshd hands the line to the login's shell, so nothing in it may need quoting. */
export const SWAM_PEER_PATH: string = '/usr/lib/swam/bin/swam-peer'

export interface KeyLine {
  /** From 0. */
  readonly line: number
  readonly options: string
  /** `TYPE BASE64`. */
  readonly key: string
  /** The name in our forced command; undefined when it is another one, or none. */
  readonly peer: string | undefined
}

export interface WantedKey {
  readonly peer: string
  readonly socket: string
  /** `TYPE BASE64`. */
  readonly key: string
}

export interface KeyPlan {
  readonly state: 'same' | 'new' | 'replaced'
  /** What stands there instead, when it is replaced. */
  readonly differs: readonly string[]
  readonly text: string
}

export function keyOptions(wanted: { readonly peer: string; readonly socket: string }): string {
  if (!/^[A-Za-z0-9/._-]+$/.test(wanted.socket)) {
    throw new RefusedError(
      `${wanted.socket}: a runDir with other characters than letters, digits and "/._-" cannot stand in authorized_keys`,
    )
  }
  return `restrict,command="${SWAM_PEER_PATH} --peer ${wanted.peer} --socket ${wanted.socket}"`
}

/**
 * Every line that sshd would take a key from, whatever else it says: a zero ends a line for it, white space in BASE64 is
 * passed over, and `rsa-sha2-256` is a name of ssh-rsa.
 */
export function keyLines(text: string): KeyLine[] {
  const found: KeyLine[] = []
  text.split('\n').forEach((raw, line) => {
    const words = raw.split('\0', 1)[0]!.replace(/^[ \t]+/, '')
    if (words.startsWith('#')) return
    const bare = KEY.exec(words)
    const end = bare === null ? endOfOptions(words) : 0
    const key = bare ?? KEY.exec(words.slice(end).replace(/^[ \t]+/, ''))
    if (key === null) return
    const options = words.slice(0, end)
    const command = /(?:^|,)command="((?:\\"|[^"])*)"/i.exec(options)?.[1] ?? ''
    const peer = /^\S*\/swam-peer --peer ([A-Za-z0-9._-]{1,63}) --socket \S+$/.exec(command)?.[1]
    found.push({ line, options, key: `${key[1]} ${key[2]!.replaceAll(/\s/g, '')}`, peer })
  })
  return found
}

const KEY =
  /^((?:ssh-|ecdsa-|sk-|rsa-sha2-|webauthn-)[a-z0-9@.-]+)[ \t]+([A-Za-z0-9+/\r\v\f]+={0,2}[\r\v\f]*)(?:[ \t]|$)/

/** At the first blank outside of quotes. */
function endOfOptions(words: string): number {
  let quoted = false
  let at = 0
  for (; at < words.length; at++) {
    if (words[at] === '\\' && words[at + 1] === '"') at++
    else if (words[at] === '"') quoted = !quoted
    else if (!quoted && (words[at] === ' ' || words[at] === '\t')) break
  }
  return Math.min(at, words.length)
}

/** Of `TYPE BASE64`: a key has several names for its type, and more than one text. */
function isSameKey(one: string, other: string): boolean {
  const [left, right] = [one, other].map((key) => Buffer.from(key.split(' ')[1] ?? '', 'base64'))
  return left!.equals(right!)
}

/** A key opens one name only, and a name has one key: sshd takes the first line that fits. */
export function planKey(text: string, wanted: WantedKey): KeyPlan {
  const options = keyOptions(wanted)
  const wantedLine = `${options} ${wanted.key} ${wanted.peer}`
  const related = keyLines(text).filter(({ peer, key }) => peer === wanted.peer || isSameKey(key, wanted.key))
  if (related.length === 0) {
    const closed = text === '' || text.endsWith('\n') ? text : `${text}\n`
    return { state: 'new', differs: [], text: `${closed}${wantedLine}\n` }
  }
  const same = related.filter((one) => one.options === options && one.key === wanted.key)
  if (same.length === 1 && related.length === 1) return { state: 'same', differs: [], text }
  const differs = related
    .filter((one) => one !== same[0])
    .map((one) => `authorized_keys, line ${one.line + 1}: ${differenceOf(one, wanted, options)}`)
  const drop = new Set(related.slice(1).map(({ line }) => line))
  const lines = text.split('\n').map((line, at) => (at === related[0]!.line ? wantedLine : line))
  return { state: 'replaced', differs, text: lines.filter((_, at) => !drop.has(at)).join('\n') }
}

export function withoutPeerKey(text: string, name: string): { text: string; removed: number } {
  const drop = new Set(
    keyLines(text)
      .filter(({ peer }) => peer === name)
      .map(({ line }) => line),
  )
  const lines = text.split('\n').filter((_, at) => !drop.has(at))
  return { text: lines.join('\n'), removed: drop.size }
}

function differenceOf(found: KeyLine, wanted: WantedKey, options: string): string {
  if (!isSameKey(found.key, wanted.key)) return `another key for ${wanted.peer}`
  if (found.peer !== undefined && found.peer !== wanted.peer)
    return `the same key under the name ${found.peer}`
  if (found.options === options)
    return found.key === wanted.key ? 'the same key twice' : 'the same key in another form'
  return `the same key with ${found.options === '' ? 'no restriction' : JSON.stringify(found.options.slice(0, 200))}`
}
