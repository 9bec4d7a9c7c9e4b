/**
 * One side of a join: what has to be laid down here so that the other host is a peer (our key, its line in
 * authorized_keys, its table in swam.toml), what of that is there already, and the way back. Both sides run this same code,
 * each about the other. Nothing is changed before `apply`.
 */
import { checkConfigText, findingText, loadConfig, readConfigText } from '../../config/load.ts'
import type { Config, PeerConfig } from '../../config/schema.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import type { UserEntry } from '../../lib/host/users.ts'
import { type KeyPlan, planKey } from './authorized-keys.ts'
import { withPeer, withPeerReplaced } from './config-text.ts'
import type { HostFacts } from './facts.ts'
import {
  type JoinHost,
  keyPathFor,
  makeKey,
  publicKeyAt,
  readAuthorizedKeys,
  removeKey,
  replaceAuthorizedKeys,
  replaceConfig,
} from './this-host.ts'

export interface JoiningOptions {
  readonly configPath: string
  /** What the other host is called here. */
  readonly name: string
  readonly theirs: HostFacts
  /** Where it is reached from here. */
  readonly addresses: readonly string[]
  readonly host: JoinHost
}

export class Joining {
  readonly #options: JoiningOptions
  readonly #owner: UserEntry
  readonly #peer: PeerConfig
  readonly #keyMissing: boolean
  readonly #keys: { readonly before: string; readonly plan: KeyPlan | undefined }
  readonly #config: { readonly before: string; readonly after: string; readonly differs: readonly string[] }
  readonly #undo: { readonly what: string; readonly run: () => Promise<void> }[] = []

  private constructor(
    options: JoiningOptions,
    owner: UserEntry,
    peer: PeerConfig,
    keyMissing: boolean,
    keys: { before: string; plan: KeyPlan | undefined },
    config: { before: string; after: string; differs: readonly string[] },
  ) {
    this.#options = options
    this.#owner = owner
    this.#peer = peer
    this.#keyMissing = keyMissing
    this.#keys = keys
    this.#config = config
  }

  static async plan(options: JoiningOptions): Promise<Joining> {
    const { configPath, name, theirs, addresses, host } = options
    // Before it is parsed: the file is replaced only if it still is this text, and so is what was parsed.
    const text = await readConfigText(configPath)
    const config = await loadConfig(configPath)
    const owner = await host.login()
    const keyPath = keyPathFor(configPath)
    const peer: PeerConfig = {
      name,
      addresses,
      site: theirs.site,
      ssh: { user: theirs.user, port: theirs.sshPort, key: keyPath, hostKey: theirs.hostKey },
    }
    const before = await readAuthorizedKeys(owner)
    const socket = `${config.runDir}/peer.sock`
    const plan =
      theirs.publicKey === null ? undefined : planKey(before, { peer: name, socket, key: theirs.publicKey })
    return new Joining(
      options,
      owner,
      peer,
      (await publicKeyAt(keyPath)) === null,
      { before, plan },
      planConfig(text, config, peer, theirs, configPath),
    )
  }

  /** What stands here with other values under that name. */
  get differs(): string[] {
    return [...(this.#keys.plan?.differs ?? []), ...this.#config.differs]
  }

  /** Empty: it is all there. */
  get would(): string[] {
    const { name } = this.#options
    const lines: string[] = []
    if (this.#keyMissing) lines.push(`make the key ${this.#peer.ssh.key} (owner swam, mode 0600)`)
    if (this.#keys.plan?.state !== 'same') {
      lines.push(`${this.#keys.plan?.state === 'replaced' ? 'replace' : 'add'} ${this.#lineText()}`)
    }
    if (this.#config.after !== this.#config.before) lines.push(this.#tableText(name, 'add', 'replace'))
    return lines
  }

  /** Gives what was done, line by line. What fails in the middle is undone, and the error says what could not be. */
  async apply(): Promise<string[]> {
    const done: string[] = []
    const { configPath } = this.#options
    const { plan, before } = this.#keys
    if (plan === undefined) throw new RefusedError('the other side did not tell its public key')
    const step = async (what: string, run: () => Promise<void>, back: () => Promise<void>): Promise<void> => {
      await run()
      this.#undo.push({ what, run: back })
      done.push(what)
    }
    try {
      if (this.#keyMissing) {
        const path = this.#peer.ssh.key
        const run = async (): Promise<void> => void (await makeKey(path, this.#owner))
        await step(`made the key ${path}`, run, () => removeKey(path))
      }
      if (plan.state !== 'same') {
        await step(
          `${plan.state === 'new' ? 'added' : 'replaced'} ${this.#lineText()}`,
          () => replaceAuthorizedKeys(this.#owner, before, plan.text),
          () => replaceAuthorizedKeys(this.#owner, plan.text, before),
        )
      }
      const { before: old, after } = this.#config
      if (after !== old) {
        await step(
          this.#tableText(this.#options.name, 'added', 'replaced'),
          () => replaceConfig(configPath, old, after),
          () => replaceConfig(configPath, after, old),
        )
      }
      return done
    } catch (error) {
      const left = await this.undo()
      throw new RefusedError(
        [errorText(error), ...left.filter((line) => line.startsWith('not '))].join('; '),
        {
          cause: error,
        },
      )
    }
  }

  /** Takes back what `apply` did, last things first; says line by line what it did. */
  async undo(): Promise<string[]> {
    const lines: string[] = []
    for (const { what, run } of this.#undo.splice(0).reverse()) {
      try {
        await run()
        lines.push(`undone: ${what}`)
      } catch (error) {
        lines.push(`not undone: ${what}: ${errorText(error)}`)
      }
    }
    return lines
  }

  #lineText(): string {
    return `the key of ${this.#options.name} in ${this.#owner.home}/.ssh/authorized_keys (restricted to swam-peer)`
  }

  #tableText(name: string, added: string, replaced: string): string {
    const { addresses, site, ssh } = this.#peer
    const verb = this.#config.differs.length > 0 ? replaced : added
    return `${verb} peer ${name} in ${this.#options.configPath}: ${addresses.join(', ')} port ${ssh.port}, site ${site}`
  }
}

function planConfig(
  text: string,
  config: Config,
  peer: PeerConfig,
  theirs: HostFacts,
  configPath: string,
): { before: string; after: string; differs: readonly string[] } {
  for (const other of config.peers) {
    const shared = other.addresses.filter((address) => peer.addresses.includes(address))
    if (other.name !== peer.name && shared.length > 0) {
      throw new RefusedError(
        `${shared.join(', ')} is an address of peer ${other.name}: take that one away first (swam peer remove ${other.name})`,
      )
    }
  }
  const index = config.peers.findIndex(({ name }) => name === peer.name)
  const present = config.peers[index]
  const differs = present === undefined ? [] : differencesOf(present, peer, theirs)
  let after = text
  if (present === undefined) after = withPeer(text, peer)
  else if (differs.length > 0) after = withPeerReplaced(text, index, peer)
  const findings = checkConfigText(after, configPath)
  if (findings.length > 0) {
    throw new RefusedError(
      `the peer cannot be added to ${configPath} as text, write it by hand as a [[peers]] table: ${findingText(findings[0]!)}`,
    )
  }
  return { before: text, after, differs: differs.map((line) => `${configPath}: ${line}`) }
}

/** More addresses of that host than its names resolve to may well stand there: somebody wrote them. */
function differencesOf(found: PeerConfig, wanted: PeerConfig, theirs: HostFacts): string[] {
  const differs: string[] = []
  const compare = (what: string, left: string, right: string): void => {
    if (left !== right) differs.push(`${what} is ${left || '""'}, would be ${right || '""'}`)
  }
  const fits =
    wanted.addresses.every((address) => found.addresses.includes(address)) &&
    found.addresses.every(
      (address) => wanted.addresses.includes(address) || theirs.addresses.includes(address),
    )
  if (!fits) compare('addresses', found.addresses.join(', '), wanted.addresses.join(', '))
  compare('site', found.site, wanted.site)
  compare('ssh.user', found.ssh.user, wanted.ssh.user)
  compare('ssh.port', String(found.ssh.port), String(wanted.ssh.port))
  compare('ssh.key', found.ssh.key, wanted.ssh.key)
  const bare = (key: string): string => key.split(' ').slice(0, 2).join(' ')
  compare('ssh.hostKey', bare(found.ssh.hostKey), bare(wanted.ssh.hostKey))
  return differs
}
