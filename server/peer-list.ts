/**
 * The peers of a running daemon, and how they change: after `swam peer add` or `remove` the config is read anew, and of it
 * the peers only. A peer with a migration under way stays as it is until that is over.
 */
import { isDeepStrictEqual } from 'node:util'
import type { PeerConfig } from '../config/schema.ts'
import type { Peer } from './peers.ts'

export interface PeerChanges {
  readonly added: readonly string[]
  readonly changed: readonly string[]
  readonly removed: readonly string[]
  /** Changed or removed as soon as their migrations are over. */
  readonly busy: readonly string[]
}

export interface PeerListOptions {
  readonly make: (config: PeerConfig) => Peer
  /** Whether a migration with that peer is under way. */
  readonly busy: (name: string) => boolean
  /** The peer is none any more, or another one: what it dialed is ended. */
  readonly dropped: (name: string) => void
}

export class PeerList {
  readonly #options: PeerListOptions
  /** One array for the daemon's life: others hold it. */
  readonly #peers: Peer[]
  #wanted: readonly PeerConfig[]
  #waiting = false

  constructor(configs: readonly PeerConfig[], options: PeerListOptions) {
    this.#options = options
    this.#wanted = configs
    this.#peers = configs.map(options.make)
  }

  get peers(): readonly Peer[] {
    return this.#peers
  }

  get configs(): readonly PeerConfig[] {
    return this.#peers.map(({ config }) => config)
  }

  change(configs: readonly PeerConfig[]): PeerChanges {
    this.#wanted = configs
    return this.#apply()
  }

  /** Called now and then: takes up what had to wait. */
  settle(): PeerChanges | undefined {
    return this.#waiting ? this.#apply() : undefined
  }

  #apply(): PeerChanges {
    const changes = {
      added: [] as string[],
      changed: [] as string[],
      removed: [] as string[],
      busy: [] as string[],
    }
    for (const peer of [...this.#peers]) {
      const { name } = peer.config
      const wanted = this.#wanted.find((one) => one.name === name)
      if (wanted !== undefined && isDeepStrictEqual(wanted, peer.config)) continue
      if (this.#options.busy(name)) {
        changes.busy.push(name)
        continue
      }
      const place = this.#peers.indexOf(peer)
      if (wanted === undefined) {
        this.#peers.splice(place, 1)
        changes.removed.push(name)
      } else {
        this.#peers[place] = this.#start(wanted)
        changes.changed.push(name)
      }
      this.#options.dropped(name)
      void peer.close()
    }
    for (const config of this.#wanted) {
      if (this.#peers.some((peer) => peer.config.name === config.name)) continue
      this.#peers.push(this.#start(config))
      changes.added.push(config.name)
    }
    this.#waiting = changes.busy.length > 0
    return changes
  }

  #start(config: PeerConfig): Peer {
    const peer = this.#options.make(config)
    peer.start()
    return peer
  }
}
