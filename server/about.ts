/**
 * What two daemons tell each other for the doctor: release and clock, under which name libvirt there is reached, and what
 * the other one's name resolves to. A peer may have one name looked up at a time.
 */
import { isIP } from 'node:net'
import type { PeerConfig } from '../config/schema.ts'
import { errorText, RefusedError } from '../lib/core/errors.ts'
import {
  ABOUT_NAME_CHARACTERS_MAX,
  ABOUT_RELEASE_CHARACTERS_MAX,
  JOIN_ADDRESSES_MAX,
  PEER_ADDRESSES_MAX,
} from '../lib/core/limits.ts'
import { addressesOf, ownAddresses } from '../lib/host/names.ts'
import { readQemuConf } from '../lib/host/qemu-conf.ts'
import { Params } from './params.ts'
import { release } from './release.ts'
import type { Site } from './site.ts'

/** What a peer says of itself, and of us. */
export interface About {
  readonly release: string
  readonly wallMs: number
  /** What its libvirt tells a source to connect to. */
  readonly name: string
  /** Of its interfaces. */
  readonly addresses: readonly string[]
  /** What our name resolves to there. */
  readonly resolved: readonly string[]
  /** What its config has for us. */
  readonly configured: readonly string[]
}

export class Abouts {
  readonly #site: Site
  #looking = false

  constructor(site: Site) {
    this.#site = site
  }

  /** The name that this host's libvirt tells others; empty when it does not say. */
  async ownName(): Promise<string> {
    const { migrationHost } = await readQemuConf().catch(() => ({ migrationHost: undefined }))
    return migrationHost ?? (await this.#site.libvirt.hostName().catch(() => ''))
  }

  async answer(params: unknown, peer: PeerConfig): Promise<About> {
    const name = new Params('about', params).text('name', ABOUT_NAME_CHARACTERS_MAX)
    if (this.#looking) throw new RefusedError('about: a name is looked up already')
    this.#looking = true
    try {
      return {
        release: release(),
        wallMs: Date.now(),
        name: await this.ownName(),
        addresses: ownAddresses().slice(0, JOIN_ADDRESSES_MAX),
        resolved: (await addressesOf(name, this.#site.commands.run)).slice(0, PEER_ADDRESSES_MAX),
        configured: peer.addresses,
      }
    } finally {
      this.#looking = false
    }
  }
}

/** A peer's answer, checked. */
export function aboutOf(value: unknown): About {
  const given = new Params('about', value)
  const addresses = (key: string, most: number): string[] =>
    given.list(key, most).map((item) => {
      if (typeof item !== 'string' || isIP(item) === 0)
        throw new RefusedError(`about: ${key}: expected addresses`)
      return item
    })
  return {
    release: given.text('release', ABOUT_RELEASE_CHARACTERS_MAX),
    wallMs: given.optionalInteger('wallMs', 0, Number.MAX_SAFE_INTEGER) ?? 0,
    name: given.text('name', ABOUT_NAME_CHARACTERS_MAX),
    addresses: addresses('addresses', JOIN_ADDRESSES_MAX),
    resolved: addresses('resolved', PEER_ADDRESSES_MAX),
    configured: addresses('configured', PEER_ADDRESSES_MAX),
  }
}

/** For `swam doctor`: a peer that is not up, or too old to say, has its reason in `error`. */
export interface PeerAbout {
  readonly name: string
  readonly about: About | null
  readonly clockMs: number | null
  readonly error: string | null
}

export function failedAbout(name: string, error: unknown): PeerAbout {
  return { name, about: null, clockMs: null, error: errorText(error) }
}
