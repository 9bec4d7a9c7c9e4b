/**
 * Catches the connections of migrations: an nftables table of our own, with maps from (peer's address . port) to
 * (loopback address . port) in the output hook, for connections of libvirtd and QEMU only. Elements expire unless they
 * are armed again, so that a dead daemon catches nothing after REDIRECT_TTL_MS; established connections keep their
 * translation. IPv4 goes to 127.77.0.1, IPv6 to [::1]: addresses that nobody outside can reach.
 *
 * nft 1.0.6 does not renew the timeout of an element that exists (an `add` of it changes nothing), and a `delete` of one
 * that has just expired fails the whole transaction. So each element is added as it was, deleted, and added as it shall
 * be, in one transaction; that works whether it is there or not.
 * It decides nothing: who arms what and when is the owner's business, and so is the refreshing.
 */
import { isIPv4, isIPv6, SocketAddress } from 'node:net'
import { type Clock, systemClock } from '../core/clock.ts'
import { ConfigError, errorText, ProtocolError, RefusedError, TimeoutError } from '../core/errors.ts'
import {
  COMMAND_OUTPUT_BYTES_MAX,
  NFT_DEADLINE_MS,
  REDIRECT_ELEMENTS_MAX,
  REDIRECT_TTL_MS,
} from '../core/limits.ts'
import { type RunCommand, runCommand } from './command.ts'

/** Where redirected connections arrive. */
export const REDIRECT_LISTEN_ADDRESS_4: string = '127.77.0.1'
export const REDIRECT_LISTEN_ADDRESS_6: string = '::1'

export interface RedirectEntry {
  /** The peer's address, as libvirt would connect to it. */
  readonly address: string
  /** The port at the peer. */
  readonly port: number
  /** The port of our listener; outside of the migration range, or libvirt could not bind there. */
  readonly listenPort: number
}

export interface RedirectOptions {
  /** Whose connections are caught: libvirtd's (0) and QEMU's. */
  readonly uids: readonly number[]
  /** The daemon's own uid, whose connections are never caught. */
  readonly ownUid: number
  /** For a daemon that runs with a caught uid (a lab): its own connections come from these source ports. */
  readonly exemptSourcePorts?: readonly [low: number, high: number]
  readonly table?: string
  /** The nft program and what goes before it (`ip netns exec NAME nft`). */
  readonly nft?: readonly string[]
  readonly run?: RunCommand
  readonly clock?: Clock
}

export type Repair =
  | { readonly kind: 'table'; readonly detail: string }
  | { readonly kind: 'element'; readonly detail: string }

interface Wanted {
  readonly family: 4 | 6
  readonly address: string
  readonly port: number
  readonly listenPort: number
  readonly untilMs: number
}

export class Redirect {
  readonly #options: RedirectOptions
  readonly #table: string
  readonly #nft: readonly string[]
  readonly #run: RunCommand
  readonly #clock: Clock
  /** By key; an entry stays until it is disarmed or would have expired. */
  readonly #wanted: Map<string, Wanted> = new Map()
  readonly #repairs: Repair[] = []
  #queue: Promise<unknown> = Promise.resolve()
  #started = false

  constructor(options: RedirectOptions) {
    this.#options = options
    this.#table = options.table ?? 'swam'
    this.#nft = options.nft ?? ['nft']
    this.#run = options.run ?? runCommand
    this.#clock = options.clock ?? systemClock
    if (!/^[a-z][a-z0-9_]{0,30}$/.test(this.#table)) throw new ConfigError(`nft table name: ${this.#table}`)
    for (const uid of [...options.uids, options.ownUid]) checkInteger('uid', uid, 0, 0xffff_fffe)
    if (options.uids.length === 0) throw new ConfigError('redirect: expected at least one uid to catch')
    if (options.uids.includes(options.ownUid) && options.exemptSourcePorts === undefined) {
      throw new ConfigError(
        `redirect: swamd runs as uid ${options.ownUid}, whose connections it shall catch; run it as a user of its own`,
      )
    }
  }

  /** Makes the table anew, empty. Throws when nft refuses (no CAP_NET_ADMIN, no nft). */
  start(): Promise<void> {
    return this.#exclusive(async () => {
      this.#wanted.clear()
      await this.#apply(this.#tableText())
      this.#started = true
    })
  }

  /**
   * Arms or refreshes what `list` gives when its turn comes: nft may have been busy for seconds. What is not armed again within
   * `ttlMs` expires.
   */
  arm(
    list: readonly RedirectEntry[] | (() => readonly RedirectEntry[]),
    ttlMs: number = REDIRECT_TTL_MS,
  ): Promise<void> {
    return this.#exclusive(async () => {
      this.#mustBeStarted()
      const entries = typeof list === 'function' ? list() : list
      checkInteger('ttlMs', ttlMs, 1_000, 60_000)
      const untilMs = this.#clock.nowMs() + ttlMs
      const next = entries.map((entry) => wantedOf(entry, untilMs))
      this.#forgetExpired()
      if (this.#wanted.size + next.length > REDIRECT_ELEMENTS_MAX) {
        throw new RefusedError(`redirect: expected at most ${REDIRECT_ELEMENTS_MAX} elements`)
      }
      if (next.length === 0) return
      const lines: string[] = []
      for (const wanted of next) {
        const before = this.#wanted.get(keyOf(wanted)) ?? wanted
        lines.push(
          this.#elementLine('add', before, ttlMs),
          this.#elementLine('delete', wanted, undefined),
          this.#elementLine('add', wanted, ttlMs),
        )
      }
      for (const wanted of next) this.#wanted.set(keyOf(wanted), wanted)
      try {
        await this.#apply(lines.join('\n'))
      } catch (error) {
        // Most likely the table is gone: make it and all that is wanted anew, and remember that for check().
        await this.#rebuild(`arming failed (${errorText(error)})`)
      }
    })
  }

  disarm(entries: readonly Pick<RedirectEntry, 'address' | 'port'>[]): Promise<void> {
    return this.#exclusive(async () => {
      this.#mustBeStarted()
      const gone: Wanted[] = []
      for (const entry of entries) {
        const wanted = wantedOf({ ...entry, listenPort: 1 }, 0)
        const known = this.#wanted.get(keyOf(wanted))
        if (known === undefined) continue
        this.#wanted.delete(keyOf(wanted))
        gone.push(known)
      }
      if (gone.length === 0) return
      const lines = gone.flatMap((wanted) => [
        this.#elementLine('add', wanted, 1_000),
        this.#elementLine('delete', wanted, undefined),
      ])
      try {
        await this.#apply(lines.join('\n'))
      } catch (error) {
        await this.#rebuild(`disarming failed (${errorText(error)})`)
      }
    })
  }

  /** Looks whether all is there as it should be, repairs it, and says what was repaired since the last call. */
  check(): Promise<readonly Repair[]> {
    return this.#exclusive(async () => {
      this.#mustBeStarted()
      this.#forgetExpired()
      const missing = await this.#missing()
      if (missing.length > 0) await this.#rebuild(undefined, missing)
      return this.#repairs.splice(0)
    })
  }

  /** The number of entries that are armed now. */
  get armed(): number {
    this.#forgetExpired()
    return this.#wanted.size
  }

  /** Removes the table. Idempotent; a table that is gone already is no failure. */
  close(): Promise<void> {
    return this.#exclusive(async () => {
      if (!this.#started) return
      this.#started = false
      this.#wanted.clear()
      await this.#apply(`add table inet ${this.#table}\ndelete table inet ${this.#table}`)
    })
  }

  /** One call of nft at a time, in the order of the calls. */
  #exclusive<T>(work: () => Promise<T>): Promise<T> {
    const result = this.#queue.then(work)
    this.#queue = result.catch(() => {})
    return result
  }

  #mustBeStarted(): void {
    if (!this.#started) throw new RefusedError('redirect: not started')
  }

  #forgetExpired(): void {
    const nowMs = this.#clock.nowMs()
    for (const [key, wanted] of this.#wanted) if (wanted.untilMs <= nowMs) this.#wanted.delete(key)
  }

  async #apply(text: string): Promise<void> {
    await this.#run([...this.#nft, '-f', '-'], {
      input: `${text}\n`,
      deadlineMs: NFT_DEADLINE_MS,
      outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
    })
  }

  /** The whole table, made anew in one transaction: whatever stood there before under that name is gone. */
  #tableText(): string {
    const { uids, ownUid, exemptSourcePorts } = this.#options
    const exempt =
      exemptSourcePorts === undefined
        ? `meta skuid ${ownUid} return`
        : `tcp sport ${exemptSourcePorts[0]}-${exemptSourcePorts[1]} return`
    const caught = `meta skuid { ${[...new Set(uids)].join(', ')} }`
    return [
      `add table inet ${this.#table}`,
      `delete table inet ${this.#table}`,
      `table inet ${this.#table} {`,
      '  map to4 {',
      `    type ipv4_addr . inet_service : ipv4_addr . inet_service; flags timeout; size ${REDIRECT_ELEMENTS_MAX};`,
      '  }',
      '  map to6 {',
      `    type ipv6_addr . inet_service : ipv6_addr . inet_service; flags timeout; size ${REDIRECT_ELEMENTS_MAX};`,
      '  }',
      '  chain output {',
      '    type nat hook output priority -100; policy accept;',
      `    ${exempt}`,
      `    ${caught} dnat ip to ip daddr . tcp dport map @to4`,
      `    ${caught} dnat ip6 to ip6 daddr . tcp dport map @to6`,
      '  }',
      '}',
    ].join('\n')
  }

  #elementLine(verb: 'add' | 'delete', wanted: Wanted, ttlMs: number | undefined): string {
    const key = `${wanted.address} . ${wanted.port}`
    if (ttlMs === undefined) return `${verb} element inet ${this.#table} to${wanted.family} { ${key} }`
    const listen = wanted.family === 4 ? REDIRECT_LISTEN_ADDRESS_4 : REDIRECT_LISTEN_ADDRESS_6
    const value = `${listen} . ${wanted.listenPort}`
    return `${verb} element inet ${this.#table} to${wanted.family} { ${key} timeout ${Math.ceil(ttlMs)}ms : ${value} }`
  }

  async #rebuild(reason: string | undefined, missing: readonly Repair[] = []): Promise<void> {
    const nowMs = this.#clock.nowMs()
    const lines = [this.#tableText()]
    for (const wanted of this.#wanted.values()) {
      if (wanted.untilMs > nowMs) lines.push(this.#elementLine('add', wanted, wanted.untilMs - nowMs))
    }
    await this.#apply(lines.join('\n'))
    const repairs = reason === undefined ? missing : [{ kind: 'table' as const, detail: reason }]
    // Bounded: a repair that nobody asks about is one of many of the same.
    if (this.#repairs.length < 100) this.#repairs.push(...repairs)
  }

  async #missing(): Promise<Repair[]> {
    let found: Listing
    try {
      const text = await this.#run([...this.#nft, '-j', 'list', 'table', 'inet', this.#table], {
        deadlineMs: NFT_DEADLINE_MS,
        outputBytesMax: COMMAND_OUTPUT_BYTES_MAX,
      })
      found = parseListing(text)
    } catch (error) {
      // A host that is too busy to answer: nobody took anything away, as far as one can tell.
      if (error instanceof TimeoutError) return []
      return [{ kind: 'table', detail: `the table inet ${this.#table} was gone (${errorText(error)})` }]
    }
    if (found.maps < 2 || found.chains < 1 || found.rules !== 3) {
      const detail = `the table inet ${this.#table} had ${found.maps} maps, ${found.chains} chains and ${found.rules} rules`
      return [{ kind: 'table', detail }]
    }
    const missing: Repair[] = []
    for (const wanted of this.#wanted.values()) {
      const listenPort = found.elements.get(keyOf(wanted))
      // One that is about to expire by itself may be gone already: nobody took it away.
      if (listenPort === wanted.listenPort || wanted.untilMs - this.#clock.nowMs() < 1_500) continue
      missing.push({
        kind: 'element',
        detail: `${wanted.address} port ${wanted.port} was not redirected any more`,
      })
    }
    return missing
  }
}

interface Listing {
  readonly maps: number
  readonly chains: number
  readonly rules: number
  /** Key to listening port. */
  readonly elements: ReadonlyMap<string, number>
}

/** What `nft -j list table` prints, as far as it matters here. Exported for its test. */
export function parseListing(text: string): Listing {
  let items: unknown
  try {
    items = (JSON.parse(text) as { nftables?: unknown } | null)?.nftables
  } catch (error) {
    throw new ProtocolError(`nft -j: not JSON: ${errorText(error)}`, { cause: error })
  }
  if (!Array.isArray(items)) throw new ProtocolError('nft -j: expected {"nftables": [...]}')
  let maps = 0
  let chains = 0
  let rules = 0
  const elements = new Map<string, number>()
  for (const item of items as (Record<string, unknown> | null)[]) {
    if (item?.['chain'] !== undefined) chains += 1
    if (item?.['rule'] !== undefined) rules += 1
    const map = item?.['map'] as { elem?: unknown } | null | undefined
    if (map === undefined) continue
    maps += 1
    for (const element of Array.isArray(map?.elem) ? map.elem : []) {
      if (!Array.isArray(element)) continue
      const [address, port] = concatOf(element[0])
      const [, listenPort] = concatOf(element[1])
      if (typeof address === 'string' && typeof port === 'number' && typeof listenPort === 'number') {
        elements.set(`${address} ${port}`, listenPort)
      }
    }
  }
  return { maps, chains, rules, elements }
}

/** `{"concat": [...]}`, with or without the `elem`/`val` that holds a timeout. */
function concatOf(value: unknown): readonly unknown[] {
  const outer = value as { elem?: { val?: unknown }; concat?: unknown } | null | undefined
  const inner = (outer?.elem?.val ?? outer) as { concat?: unknown } | null | undefined
  return Array.isArray(inner?.concat) ? inner.concat : []
}

function keyOf(wanted: Pick<Wanted, 'address' | 'port'>): string {
  return `${wanted.address} ${wanted.port}`
}

function wantedOf(entry: RedirectEntry, untilMs: number): Wanted {
  checkInteger('port', entry.port, 1, 65535)
  checkInteger('listenPort', entry.listenPort, 1, 65535)
  const { family, address } = canonicalAddress(entry.address)
  return { family, address, port: entry.port, listenPort: entry.listenPort, untilMs }
}

/** As the kernel prints it; IPv4 inside IPv6 becomes IPv4, because that is what goes over the wire. */
function canonicalAddress(text: string): { family: 4 | 6; address: string } {
  if (isIPv4(text)) return { family: 4, address: text }
  if (!isIPv6(text) || text.includes('%'))
    throw new RefusedError(`redirect: expected an IP address, found ${text}`)
  const address = new SocketAddress({ address: text, family: 'ipv6' }).address
  const mapped = /^::ffff:(\d+\.\d+\.\d+\.\d+)$/i.exec(address)
  return mapped === null ? { family: 6, address } : { family: 4, address: mapped[1]! }
}

function checkInteger(what: string, value: number, low: number, high: number): void {
  if (!Number.isInteger(value) || value < low || value > high) {
    throw new RefusedError(`redirect: expected ${what} from ${low} to ${high}, found ${value}`)
  }
}
