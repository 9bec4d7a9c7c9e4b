/**
 * The far side of `swam estimate`: which chunks and blocks of a disk lie here, where, as far as the index knows, they would be
 * used at a migration. It answers nothing that a migration would not show, about no image outside of `images` and, of these,
 * of those that `share` names; it opens no path that the peer says, follows none but names that lie in `images`, and reads no image.
 *
 * What the guest's disks would be written to is a source at a migration, whatever it is: a raw file, a qcow2 or a volume. The
 * migration reads it through QEMU, so it is in place there although the stock may have no room for it; here it comes first.
 *
 * What a peer asks is bounded in size, in number, and in time; a new estimate of a peer ends its old one.
 */
import { readdir, realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Config } from '../../config/schema.ts'
import { isBelowDev, listImages } from '../../lib/catalog/image-files.ts'
import type { ListImages, StockImage } from '../../lib/catalog/stock.ts'
import { ProtocolError, RefusedError } from '../../lib/core/errors.ts'
import {
  ESTIMATE_BLOCKS_MAX,
  ESTIMATE_CHUNKS_MAX,
  ESTIMATE_MS,
  ESTIMATE_SCAN_ASK_MS,
  ESTIMATE_SCAN_WAIT_MS,
  ESTIMATE_STARTS_MAX,
  ESTIMATE_STARTS_MS,
  ESTIMATES_MAX,
  GUEST_DISKS_MAX,
  PATH_BYTES_MAX,
  RPC_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { HINT_BYTES } from '../../lib/core/units.ts'
import { blockBits, setBlock } from '../../lib/engine/chunk-blocks.ts'
import type { Bundle } from '../../lib/peer/bundle.ts'
import { Params } from '../params.ts'
import {
  type AskedChunk,
  CHUNK_ELSEWHERE,
  CHUNK_IN_PLACE,
  CHUNK_LACKING,
  decodeBlocks,
  decodeChunks,
} from './batch.ts'

/** Of ImageStock, what an estimate uses. */
export interface EstimateStock {
  readonly scanning: number
  readonly blockCount: number
  /** Those that are open. */
  readonly images: readonly (Pick<StockImage, 'path' | 'format' | 'size'> & {
    readonly source: Pick<StockImage['source'], 'allocatedBytes'>
  })[]
  image(number: number): { readonly path: string } | undefined
  lookup(key: Buffer): readonly { readonly image: number; readonly offset: number; readonly length: number }[]
  lookupBlock(
    hints: Buffer,
    hintOffset: number,
  ): readonly { readonly image: number; readonly offset: number }[]
  refresh(list: ListImages, busy: ReadonlySet<string>, first: readonly string[]): Promise<void>
  rest(unused: () => boolean): Promise<void>
}

export interface EstimateAnswersOptions {
  readonly config: Pick<Config, 'images' | 'share'>
  readonly stock: EstimateStock
  /** Those of this host, as they are now. */
  readonly images: ListImages
  /** Images that are being received. */
  readonly receiving: () => ReadonlySet<string>
  /** An estimate cannot close its images, or its maps cannot be listed. */
  readonly onProblem: (error: unknown) => void
  readonly scanWaitMs?: number
  readonly estimateMs?: number
}

/** One estimate of one peer. */
interface Session {
  readonly bundle: Bundle
  /** Where each disk would lie here, without links; its place in the list is its number. */
  readonly targets: readonly string[]
  readonly shared: Shared
  readonly timer: NodeJS.Timeout
  chunks: number
  blocks: number
}

/** What `share` names, without links; undefined: all. */
type Shared =
  | {
      readonly directories: ReadonlySet<string>
      /** A volume's place is not the directory that names it. */
      readonly belowDev: ReadonlySet<string>
    }
  | undefined

type Handler = (params: unknown) => Promise<object>

export class EstimateAnswers {
  readonly #options: EstimateAnswersOptions
  /** By the name of the peer. */
  readonly #sessions = new Map<string, Session | 'begins'>()
  readonly #starts = new Map<string, readonly number[]>()

  constructor(options: EstimateAnswersOptions) {
    this.#options = options
  }

  /** Whether images are needed. */
  get busy(): boolean {
    return this.#sessions.size > 0
  }

  /** What a peer may ask on a control bundle that it dialed. */
  handlers(bundle: Bundle): Readonly<Record<string, Handler>> {
    void bundle.closed.then(() => this.#end(bundle))
    return {
      estimate: (params) => this.#begin(bundle, new Params('estimate', params)),
      estimateChunks: async (params) => this.#chunks(bundle, new Params('estimateChunks', params)),
      estimateBlocks: async (params) => this.#blocks(bundle, new Params('estimateBlocks', params)),
      estimateEnd: async () => {
        this.#end(bundle)
        return {}
      },
    }
  }

  async #begin(bundle: Bundle, params: Params): Promise<object> {
    const paths = params.list('targets', GUEST_DISKS_MAX).map((path) => {
      if (typeof path !== 'string' || !path.startsWith('/') || Buffer.byteLength(path) > PATH_BYTES_MAX)
        throw new ProtocolError('estimate: targets: expected absolute paths')
      return path
    })
    this.#admit(bundle.peer)
    this.#sessions.set(bundle.peer, 'begins')
    try {
      const { stock, images, receiving } = this.#options
      const shares = this.#options.config.share !== 'none'
      const targets = await this.#placesOf(paths)
      const shared = await this.#shared()
      if (shares) {
        const first = targets.filter((path) => isShared({ shared }, path))
        await stock.refresh(images, receiving(), first)
        await this.#known(bundle)
      }
      if (bundle.ended) throw new RefusedError('estimate: nobody waits for it')
      const session: Session = {
        bundle,
        targets,
        shared,
        timer: setTimeout(() => this.#end(bundle), this.#options.estimateMs ?? ESTIMATE_MS),
        chunks: 0,
        blocks: 0,
      }
      session.timer.unref()
      this.#sessions.set(bundle.peer, session)
      return {
        scanning: shares ? stock.scanning : 0,
        shares,
        blocks: shares && stock.blockCount > 0,
        ...this.#lying(session),
      }
    } catch (error) {
      this.#sessions.delete(bundle.peer)
      this.#rest()
      throw error
    }
  }

  /** @throws RefusedError */
  #admit(peer: string): void {
    const own = this.#sessions.get(peer)
    if (own === 'begins') throw new RefusedError('an estimate of yours begins already')
    if (own === undefined && this.#sessions.size >= ESTIMATES_MAX)
      throw new RefusedError(`${this.#sessions.size} estimates are under way: try again in some seconds`)
    const since = performance.now() - ESTIMATE_STARTS_MS
    const starts = (this.#starts.get(peer) ?? []).filter((at) => at > since)
    if (starts.length >= ESTIMATE_STARTS_MAX)
      throw new RefusedError(`${starts.length} estimates in a minute: wait a minute`)
    this.#starts.set(peer, [...starts, performance.now()])
    // Who begins anew has given up what it had: a daemon makes one at a time.
    clearTimeout(own?.timer)
  }

  /** What lies at the disks' places: whether there is an image; as what it is known, and how much of it is no hole. */
  #lying(session: Session): object {
    const found = session.targets.map((target) =>
      this.#options.stock.images.find(({ path }) => path === target && isShared(session, path)),
    )
    return {
      held: found.map((image) => image !== undefined),
      images: found.map((image) =>
        image === undefined
          ? null
          : { format: image.format, bytes: Math.min(image.size, image.source.allocatedBytes) },
      ),
    }
  }

  /**
   * An image is known by its place without links. Those of the directories of the config are followed, and of names that lie in them: a
   * volume's is a link. No others are.
   */
  async #placesOf(paths: readonly string[]): Promise<string[]> {
    const names = new Map<string, { readonly real: string; readonly names: ReadonlySet<string> }>()
    for (const directory of this.#options.config.images) {
      const real = await realpath(directory).catch(() => directory)
      const spelled = [resolve(directory), real].filter((one) => paths.some((path) => dirname(path) === one))
      if (spelled.length === 0) continue
      const found = { real, names: new Set(await readdir(real).catch(() => [])) }
      for (const one of spelled) names.set(one, found)
    }
    return await Promise.all(
      paths.map(async (path) => {
        const directory = names.get(dirname(path))
        if (directory === undefined) return path
        const place = join(directory.real, basename(path))
        return directory.names.has(basename(path)) ? await realpath(place).catch(() => place) : place
      }),
    )
  }

  async #shared(): Promise<Shared> {
    const { share } = this.#options.config
    if (share === 'images') return undefined
    if (share === 'none') return { directories: new Set(), belowDev: new Set() }
    const real = await Promise.all(share.map((path) => realpath(path).catch(() => path)))
    const belowDev = await listImages(real.filter(isBelowDev))
    return { directories: new Set(real), belowDev: new Set(belowDev.map(({ path }) => path)) }
  }

  /** Maps are read in no time; what has none is scanned for minutes. */
  async #known(bundle: Bundle): Promise<void> {
    const until = performance.now() + (this.#options.scanWaitMs ?? ESTIMATE_SCAN_WAIT_MS)
    while (this.#options.stock.scanning > 0 && performance.now() < until && !bundle.ended)
      await new Promise((resolve) => setTimeout(resolve, ESTIMATE_SCAN_ASK_MS))
  }

  #sessionOf(bundle: Bundle): Session {
    const session = this.#sessions.get(bundle.peer)
    if (session === undefined || session === 'begins' || session.bundle !== bundle)
      throw new RefusedError('no estimate is under way')
    return session
  }

  #target(session: Session, params: Params): string {
    const disk = params.optionalInteger('disk', 0, session.targets.length - 1)
    if (disk === undefined) throw new ProtocolError('estimate: disk: expected a number')
    return session.targets[disk]!
  }

  #chunks(bundle: Bundle, params: Params): object {
    const session = this.#sessionOf(bundle)
    const target = this.#target(session, params)
    const chunks = decodeChunks(params.text('chunks', RPC_BYTES_MAX))
    session.chunks += chunks.length
    if (session.chunks > ESTIMATE_CHUNKS_MAX)
      throw new RefusedError(`estimate: more than ${ESTIMATE_CHUNKS_MAX} chunks`)
    const states = Buffer.alloc(chunks.length)
    for (const [index, chunk] of chunks.entries()) states[index] = this.#stateOf(session, target, chunk)
    return { states: states.toString('base64') }
  }

  #stateOf(
    session: Session,
    target: string,
    { key, offset, length }: AskedChunk & { readonly key: Buffer },
  ): number {
    const { stock } = this.#options
    let state = CHUNK_LACKING
    for (const place of stock.lookup(key)) {
      const image = stock.image(place.image)
      if (place.length !== length || image === undefined || !isShared(session, image.path)) continue
      if (image.path === target && place.offset === offset) return CHUNK_IN_PLACE
      state = CHUNK_ELSEWHERE
    }
    return state
  }

  #blocks(bundle: Bundle, params: Params): object {
    const session = this.#sessionOf(bundle)
    this.#target(session, params)
    const runs = decodeBlocks(params.text('blocks', RPC_BYTES_MAX))
    const count = runs.reduce((sum, { hints }) => sum + hints.length / HINT_BYTES, 0)
    session.blocks += count
    if (session.blocks > ESTIMATE_BLOCKS_MAX)
      throw new RefusedError(`estimate: more than ${ESTIMATE_BLOCKS_MAX} blocks`)
    const known = blockBits(count)
    let index = 0
    for (const { hints } of runs) {
      for (let at = 0; at < hints.length; at += HINT_BYTES, index++)
        if (this.#knows(session, hints, at)) setBlock(known, index)
    }
    return { known: known.toString('base64') }
  }

  #knows(session: Session, hints: Buffer, hintOffset: number): boolean {
    const { stock } = this.#options
    return stock.lookupBlock(hints, hintOffset).some((place) => {
      const image = stock.image(place.image)
      return image !== undefined && isShared(session, image.path)
    })
  }

  #end(bundle: Bundle): void {
    const session = this.#sessions.get(bundle.peer)
    if (session === undefined || session === 'begins' || session.bundle !== bundle) return
    clearTimeout(session.timer)
    this.#sessions.delete(bundle.peer)
    this.#rest()
  }

  #rest(): void {
    const { stock, receiving, onProblem } = this.#options
    void stock.rest(() => !this.busy && receiving().size === 0).catch(onProblem)
  }
}

function isShared({ shared }: Pick<Session, 'shared'>, path: string): boolean {
  if (shared === undefined) return true
  return isBelowDev(path) ? shared.belowDev.has(path) : shared.directories.has(dirname(path))
}
