/**
 * Who may come in at the listeners of a migration: connections of libvirtd and QEMU that the redirect brought, and nobody
 * else. A listener on loopback can be reached by every local user; what tells them apart is the kernel's own table,
 * in which a redirected connection stands under the far port that it wanted, with the user who opened it.
 *
 * All that came since the last look share one reading of the table, so that somebody who floods a listener costs one
 * reading at a time, and what waits is bounded. Refusals are counted and said once in a while, not one by one.
 */
import type { Socket } from 'node:net'
import { DOOR_REFUSAL_LOG_MS, DOOR_WAITING_MAX } from '../../lib/core/limits.ts'
import type { Log } from '../../lib/core/log.ts'
import { type SocketName, socketOwners } from '../../lib/host/procnet.ts'

export interface DoorOptions {
  /** Whose connections are taken. */
  readonly uids: readonly number[]
  readonly peerAddresses: readonly string[]
  readonly log: Log
}

interface Waiting {
  readonly names: readonly SocketName[]
  readonly answer: (allowed: boolean) => void
}

export class Door {
  readonly #options: DoorOptions
  #waiting: Waiting[] = []
  #looking = 0
  #refused = 0
  #saidAt = Number.NEGATIVE_INFINITY

  constructor(options: DoorOptions) {
    this.#options = options
  }

  /** Connections that are not judged yet. */
  get waiting(): number {
    return this.#waiting.length + this.#looking
  }

  /** Answers come in the order of the calls. Never rejects: what cannot be looked up is refused. */
  async admit(port: number, socket: Socket): Promise<boolean> {
    const localAddress = (socket.remoteAddress ?? '').replace(/^::ffff:/, '')
    const localPort = socket.remotePort ?? 0
    const names = this.#options.peerAddresses
      .filter((remoteAddress) => localAddress.includes(':') === remoteAddress.includes(':'))
      .map((remoteAddress) => ({ localAddress, localPort, remoteAddress, remotePort: port }))
    let allowed = false
    if (localPort !== 0 && names.length > 0 && this.waiting < DOOR_WAITING_MAX) {
      allowed = await new Promise((answer) => {
        this.#waiting.push({ names, answer })
        void this.#look()
      })
    }
    if (!allowed) this.#refuse(port, localAddress)
    return allowed
  }

  async #look(): Promise<void> {
    if (this.#looking > 0) return
    while (this.#waiting.length > 0) {
      const batch = this.#waiting
      this.#waiting = []
      this.#looking = batch.length
      const owners = await socketOwners(batch.flatMap(({ names }) => names)).catch(() => [])
      this.#looking = 0
      let at = 0
      for (const { names, answer } of batch) {
        const found = owners.slice(at, at + names.length)
        at += names.length
        answer(found.some((owner) => owner !== undefined && this.#options.uids.includes(owner)))
      }
    }
  }

  #refuse(port: number, address: string): void {
    this.#refused++
    const now = performance.now()
    if (now - this.#saidAt < DOOR_REFUSAL_LOG_MS) return
    this.#options.log.warn(
      { port, address, refused: this.#refused },
      'refused connections: not from libvirtd or QEMU',
    )
    this.#saidAt = now
    this.#refused = 0
  }
}
