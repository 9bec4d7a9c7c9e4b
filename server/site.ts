/**
 * What both sides of a host share: the config, the log, libvirt, and the end of a migration. Where the guest is after a
 * migration is asked of libvirt, since no hook tells it on every path.
 */
import type { Config, PeerConfig } from '../config/schema.ts'
import { type Clock, systemClock } from '../lib/core/clock.ts'
import {
  BEGUN_GUESTS_MAX,
  DIRECT_ASK_MS,
  DIRECT_START_MS,
  DIRECT_WATCH_MS,
  HISTORY_SETTLE_ASK_MS,
  HISTORY_SETTLE_MS,
  OUTCOME_ASK_MS,
  OUTCOME_ASKS_MAX,
  OUTCOME_MS,
  OUTCOME_PAUSED_ASKS_MAX,
} from '../lib/core/limits.ts'
import type { Log } from '../lib/core/log.ts'
import { CommandThread } from '../lib/host/command-thread.ts'
import { Libvirt } from '../lib/host/libvirt.ts'
import { TcpMeter } from '../lib/host/tcp-info.ts'
import type { History } from './history.ts'
import { LinkTests } from './link-test.ts'
import type { MigrationRecord } from './migration/record.ts'

export class Site {
  readonly config: Config
  /** Those of the config, until it was read anew. */
  peers: readonly PeerConfig[]
  readonly log: Log
  readonly linkTests: LinkTests = new LinkTests()
  /** Programs of the host that run again and again: not on the thread that carries data. */
  readonly commands: CommandThread = new CommandThread()
  readonly #tcp = new TcpMeter(this.commands.run)
  readonly libvirt: Libvirt = new Libvirt({ run: this.commands.run })
  readonly history: History
  readonly #begun = new Map<string, number>()
  readonly #running = new Set<MigrationRecord>()
  /** Not in the history yet. */
  readonly #unwritten = new Set<MigrationRecord>()

  readonly clock: Clock

  constructor(config: Config, log: Log, history: History, clock: Clock = systemClock) {
    this.config = config
    this.peers = config.peers
    this.log = log
    this.history = history
    this.clock = clock
  }

  #rest(ms: number): Promise<void> {
    return new Promise((resolve) => void this.clock.after(ms, resolve))
  }

  /** A migration is over: say so, and remember it. */
  ended(record: MigrationRecord): void {
    const report = record.report()
    const { id, guest, peer, direction, phase, accelerated, wireBytes, error } = report
    this.log.info({ id, guest, peer, direction, phase, accelerated, wireBytes, error }, 'a migration ended')
    this.#running.delete(record)
    void this.history
      .append(report)
      .finally(() => this.#unwritten.delete(record))
      .then(() => this.saveRunning())
      .catch((failure: unknown) => this.log.error({ error: failure }, 'the history is not written'))
  }

  /** Whoever asks for the history when virsh is done means that migration too: what is over is written first, within limits. */
  async settled(): Promise<void> {
    const until = this.clock.nowMs() + HISTORY_SETTLE_MS
    const settling = (): boolean => [...this.#unwritten].some((record) => record.settling || record.ended)
    while (settling() && this.clock.nowMs() < until) await this.#rest(HISTORY_SETTLE_ASK_MS)
  }

  /** Remembers how far the migrations are, for the history that a killed daemon does not write any more. */
  async saveRunning(): Promise<void> {
    await this.history.running([...this.#running].map((record) => record.report()))
  }

  /** A migration begins: what libvirt shows of the guest from now on may be this one's. */
  begun(record: MigrationRecord): void {
    record.countTcp = (names) => this.#tcp.count(names)
    this.#running.add(record)
    this.#unwritten.add(record)
    void this.saveRunning().catch((error: unknown) =>
      this.log.error({ error }, 'the history cannot be written'),
    )
    this.#begun.set(`${record.direction} ${record.uuid}`, record.startedAt)
    if (this.#begun.size > BEGUN_GUESTS_MAX) {
      for (const oldest of this.#begun.keys()) {
        this.#begun.delete(oldest)
        break
      }
    }
  }

  /**
   * Asks libvirt until it has decided: a paused guest is on its way, for some seconds. A migration the other way that
   * began since says it too, because a peer saw the guest run: and what libvirt shows then is that one's.
   * @param since when the migration began that is asked about, milliseconds since 1970
   */
  async outcome(uuid: string, direction: 'in' | 'out', since: number): Promise<'here' | 'gone' | 'unknown'> {
    const other = direction === 'out' ? 'in' : 'out'
    const until = this.clock.nowMs() + OUTCOME_MS
    for (let attempt = 0; attempt < OUTCOME_ASKS_MAX && this.clock.nowMs() < until; attempt++) {
      if ((this.#begun.get(`${other} ${uuid}`) ?? 0) > since) return direction === 'out' ? 'gone' : 'here'
      const state = await this.libvirt.state(uuid).catch((error: unknown) => {
        this.log.debug({ error, uuid }, 'libvirt did not say where the guest is: asked again')
        return 'unknown'
      })
      if (state === undefined) return 'gone'
      if (state === 'running') return 'here'
      // `--suspend` leaves it paused at the destination: arrived, once libvirt's job is over. A new QEMU that waits for a source
      // that will never send the rest is paused, too, until libvirt notices.
      if (state === 'paused' && direction === 'in' && !(await this.#incomplete(uuid))) {
        if (attempt >= OUTCOME_PAUSED_ASKS_MAX || !(await this.migrating(uuid))) return 'here'
      }
      await this.#rest(OUTCOME_ASK_MS)
    }
    return 'unknown'
  }

  async #incomplete(uuid: string): Promise<boolean> {
    const reason = await this.libvirt.pauseReason(uuid).catch(() => undefined)
    return reason === 'migrating' || reason === 'starting up'
  }

  /** Whether libvirt works on a migration of that guest (name or uuid); true also when it does not say. */
  async migrating(guest: string): Promise<boolean> {
    try {
      const job = await this.libvirt.jobInfo(guest)
      return job !== undefined && job.type !== 'None'
    } catch {
      // At the destination of a migration under way libvirt refuses to say.
      return true
    }
  }

  /** The outcome of a migration that goes past SWAM: however long it takes, it is over when libvirt's job is. */
  async directOutcome(
    guest: string,
    uuid: string,
    direction: 'in' | 'out',
    since: number,
  ): Promise<'here' | 'gone' | 'unknown'> {
    // At the destination the guest is there only once libvirt has started its QEMU.
    const awaited = async (): Promise<boolean> =>
      direction === 'in' && (await this.libvirt.state(uuid).catch(() => 'unknown')) === undefined
    while (this.clock.wallMs() - since < DIRECT_START_MS && (await awaited())) {
      await this.#rest(DIRECT_ASK_MS)
    }
    while (this.clock.wallMs() - since < DIRECT_WATCH_MS && (await this.migrating(guest))) {
      await this.#rest(DIRECT_ASK_MS)
    }
    return await this.outcome(uuid, direction, since)
  }
}
