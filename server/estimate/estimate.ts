/**
 * `swam estimate`: what a running guest's disks would cost on the link to a peer, from both sides' catalogs. It finds the disks, asks
 * the peer (answers.ts there), and measures the link. Nothing is migrated, written or locked; a guest that writes meanwhile
 * makes it less exact.
 *
 * It deliberately is no `swam analyze`: that one sends every byte through the engine. This one costs seconds.
 */
import { join } from 'node:path'
import type { Config } from '../../config/schema.ts'
import { ProtocolError, RefusedError, SwamError, TimeoutError } from '../../lib/core/errors.ts'
import {
  CHUNK_BLOCKS_MAX,
  ESTIMATE_BLOCKS_MAX,
  ESTIMATE_CALL_MS,
  ESTIMATE_CHUNKS_MAX,
  ESTIMATE_MS,
  ESTIMATE_SAMPLE_BYTES_MAX,
  ESTIMATE_SAMPLE_CHUNKS_MAX,
  GUEST_DISKS_MAX,
} from '../../lib/core/limits.ts'
import { isGuestName, isUuid } from '../../lib/host/domain-xml.ts'
import type { Libvirt, RunningDomain } from '../../lib/host/libvirt.ts'
import type { ImageList } from '../image-list.ts'
import type { LinkTestReport } from '../link-test.ts'
import { Params } from '../params.ts'
import { type BySource, emptyBySource, SOURCE_NAMES } from '../report.ts'
import {
  type AskPeer,
  type DiskContext,
  type DiskToEstimate,
  estimateDisk,
  type HeldImage,
  isKnownOtherwise,
} from './disk.ts'
import { type FoundDisk, findDisks } from './found-disks.ts'
import { UnreadableDisk } from './live-image.ts'
import { Thinning } from './spread.ts'

/** Sizes in bytes. */
export interface DiskEstimate {
  readonly target: string
  /** As libvirt has it; null: the disk has no file. */
  readonly path: string | null
  /** libvirt's word. */
  readonly format: string
  /** Of the disk. */
  readonly size: number
  readonly dataBytes: number
  readonly wireBytes: number
  readonly bySource: BySource
  /** When the map of the disk was made, in milliseconds since 1970; null: it was scanned for this, or not estimated. */
  readonly mapAt: number | null
  /** Why it is not estimated, and counts nowhere. */
  readonly reason: string | null
  /** Why it is less exact than others are. */
  readonly note: string | null
}

/** What `--json` prints. Sizes in bytes. */
export interface EstimateReport {
  readonly version: 1
  readonly guest: string
  readonly uuid: string
  readonly peer: string
  readonly disks: readonly DiskEstimate[]
  readonly dataBytes: number
  readonly wireBytes: number
  /** What goes through one SSH channel, below `limits.wanMbit`. */
  readonly linkMbit: number
  readonly rttMs: number
  /** On the link, for the disks. */
  readonly seconds: number
  /** Images of the far side that were not known yet. */
  readonly imagesScanning: number
  /** The far side says nothing of its images: `share = "none"` there. */
  readonly peerSilent: boolean
  /** The guest's memory, which comes on top; null: libvirt does not say. */
  readonly ramBytes: number | null
}

export interface EstimatePeer {
  readonly name: string
  readonly ask: AskPeer
  readonly test: () => Promise<LinkTestReport>
}

export interface EstimatesOptions {
  readonly config: Pick<Config, 'images' | 'stateDir' | 'limits'>
  readonly libvirt: Pick<Libvirt, 'runningDomain' | 'uuidOf' | 'memoryBytes'>
  readonly images: Pick<ImageList, 'ask' | 'list' | 'isRaw'>
  readonly estimateMs?: number
}

/** Round trips until the last answer: opening, hints, literals, a flush. */
const ROUND_TRIPS = 10

export class Estimates {
  readonly #options: EstimatesOptions
  #busy = false

  constructor(options: EstimatesOptions) {
    this.#options = options
  }

  /**
   * @param guest its name or uuid @param signal aborted when nobody waits any more
   * @throws SwamError with SWAM_NOT_FOUND for a guest that does not run; RefusedError, TimeoutError, what the peer's calls throw
   */
  async run(guest: string, peer: EstimatePeer, signal: AbortSignal): Promise<EstimateReport> {
    if (this.#busy) throw new RefusedError('another estimate is under way: try again when it is done')
    this.#busy = true
    const ended = new AbortController()
    const deadlineMs = this.#options.estimateMs ?? ESTIMATE_MS
    const timer = setTimeout(
      () => ended.abort(new TimeoutError(`estimate: not done in ${deadlineMs / 1000} s`)),
      deadlineMs,
    )
    const gone = (): void => ended.abort(new RefusedError('estimate: nobody waits for it'))
    signal.addEventListener('abort', gone, { once: true })
    if (signal.aborted) gone()
    try {
      return await this.#run(guest, peer, ended.signal)
    } finally {
      clearTimeout(timer)
      signal.removeEventListener('abort', gone)
      this.#busy = false
    }
  }

  async #run(guest: string, peer: EstimatePeer, signal: AbortSignal): Promise<EstimateReport> {
    const domain = await this.#domain(guest, signal)
    const ramBytes = (await this.#options.libvirt.memoryBytes(domain.uuid).catch(() => undefined)) ?? null
    const { config, images } = this.#options
    const found = await findDisks(domain.disks, config.images, images)
    signal.throwIfAborted()
    const link = this.#link(await peer.test())
    const usable = found.filter(({ image }) => image !== undefined)
    const targets = domain.disks.flatMap(({ source }) => (source === undefined ? [] : [source]))
    // Those that are estimated come first, and have the numbers.
    const own = usable.map(({ disk }) => disk.source!)
    const others = targets.filter((target) => !own.includes(target))
    const disks: DiskEstimate[] = []
    let begun: Begun
    try {
      begun = begunOf(await peer.ask('estimate', { targets: [...own, ...others] }, ESTIMATE_CALL_MS))
      const context: DiskContext = {
        ask: peer.ask,
        catalog: join(config.stateDir, 'catalog'),
        thinning: new Thinning(ESTIMATE_CHUNKS_MAX),
        sample: sampleOf(usable.length),
        blocksThere: begun.blocks,
        signal,
      }
      for (const one of found) {
        const number = usable.indexOf(one)
        const { image, reason } = one
        if (image === undefined) disks.push(notEstimated(one, reason!))
        else disks.push(await estimated(one, { number, image, there: begun.held[number] }, context))
      }
    } finally {
      // What is not ended there ends by itself.
      void peer.ask('estimateEnd', {}, ESTIMATE_CALL_MS).catch(() => undefined)
    }
    const sum = (pick: (disk: DiskEstimate) => number): number =>
      disks.reduce((total, disk) => total + pick(disk), 0)
    const wireBytes = sum((disk) => disk.wireBytes)
    const seconds = (wireBytes * 8) / (link.mbit * 1e6) + (ROUND_TRIPS * link.rttMs) / 1000
    return {
      version: 1,
      guest: domain.name,
      uuid: domain.uuid,
      peer: peer.name,
      disks,
      dataBytes: sum((disk) => disk.dataBytes),
      wireBytes,
      linkMbit: rounded(link.mbit),
      rttMs: link.rttMs,
      seconds: rounded(seconds),
      imagesScanning: begun.scanning,
      peerSilent: !begun.shares,
      ramBytes,
    }
  }

  async #domain(guest: string, signal: AbortSignal): Promise<RunningDomain> {
    const { libvirt } = this.#options
    const absent = (): SwamError =>
      new SwamError('SWAM_NOT_FOUND', `no guest ${JSON.stringify(guest)} runs here: see virsh list`)
    if (!isUuid(guest) && !isGuestName(guest)) throw absent()
    const uuid = isUuid(guest) ? guest : await libvirt.uuidOf(guest)
    const domain = uuid === undefined ? undefined : await libvirt.runningDomain(uuid, signal)
    // To virsh a number is a name, too.
    if (domain === undefined || (domain.name !== guest && domain.uuid !== guest)) throw absent()
    return domain
  }

  #link({ out, rttMs }: LinkTestReport): { readonly mbit: number; readonly rttMs: number } {
    const { wanMbit } = this.#options.config.limits
    const mbit = (out.bytes * 8) / out.elapsedMs / 1000
    if (!(mbit > 0)) throw new RefusedError('the test of the link gave no rate')
    return { mbit: wanMbit > 0 ? Math.min(mbit, wanMbit) : mbit, rttMs }
  }
}

/** Of each disk: what may be asked about all of them has a bound, and so has the time that it takes. */
function sampleOf(disks: number): { readonly chunks: number; readonly bytes: number } {
  const chunks = Math.floor(ESTIMATE_BLOCKS_MAX / CHUNK_BLOCKS_MAX / disks)
  return {
    chunks: Math.min(ESTIMATE_SAMPLE_CHUNKS_MAX, chunks),
    bytes: ESTIMATE_SAMPLE_BYTES_MAX / Math.ceil(disks / 8),
  }
}

/** @throws what the peer's calls throw, the signal's reason */
async function estimated(
  found: FoundDisk,
  disk: DiskToEstimate,
  context: DiskContext,
): Promise<DiskEstimate> {
  try {
    const figures = await estimateDisk(disk, context)
    const { size, dataBytes, wireBytes, mapAt } = figures
    const bySource = emptyBySource()
    for (const name of SOURCE_NAMES) if (name in figures) bySource[name] = figure(figures, name)
    // An old map may be of a disk that was longer.
    bySource.zero = Math.max(0, size - dataBytes)
    const { format } = disk.image
    const known = `the far side knows what lies there as ${disk.there?.format}, not as ${format}`
    const note = isKnownOtherwise(disk)
      ? `${known}: what is in place counts as found elsewhere, or as sent`
      : null
    return { ...shown(found), size, dataBytes, wireBytes, bySource, mapAt, reason: null, note }
  } catch (error) {
    if (!(error instanceof UnreadableDisk)) throw error
    return notEstimated(found, error.message)
  }
}

function shown({ disk }: FoundDisk): Pick<DiskEstimate, 'target' | 'path' | 'format'> {
  return { target: disk.target, path: disk.source ?? null, format: disk.format }
}

function notEstimated(found: FoundDisk, reason: string): DiskEstimate {
  return {
    ...shown(found),
    size: found.disk.capacity ?? 0,
    dataBytes: 0,
    wireBytes: 0,
    bySource: emptyBySource(),
    mapAt: null,
    reason,
    note: null,
  }
}

interface Begun {
  readonly scanning: number
  readonly shares: boolean
  readonly blocks: boolean
  /** By the number of the disk. */
  readonly held: readonly (HeldImage | undefined)[]
}

function begunOf(answer: unknown): Begun {
  const given = new Params('estimate', answer)
  const held = given.list('held', GUEST_DISKS_MAX)
  const images = given.has('images') ? given.list('images', GUEST_DISKS_MAX) : []
  return {
    scanning: given.optionalInteger('scanning', 0, Number.MAX_SAFE_INTEGER) ?? 0,
    shares: given.flag('shares'),
    blocks: given.flag('blocks'),
    held: held.map((is, number) => (is === true ? heldOf(images[number]) : undefined)),
  }
}

/** @param image what is said of it; by a daemon of before nothing is @throws ProtocolError */
function heldOf(image: unknown): HeldImage {
  if (image === undefined || image === null) return { format: undefined, bytes: Number.MAX_SAFE_INTEGER }
  const given = new Params('estimate: images', image)
  const format = given.text('format', 16)
  if (format !== 'raw' && format !== 'qcow2')
    throw new ProtocolError('estimate: images: format: expected raw or qcow2')
  return { format, bytes: given.optionalInteger('bytes', 0, Number.MAX_SAFE_INTEGER) ?? 0 }
}

function figure(from: object, name: string): number {
  return (from as Readonly<Record<string, number>>)[name] ?? 0
}

function rounded(value: number): number {
  return Number(value.toPrecision(4))
}
