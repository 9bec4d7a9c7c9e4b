/**
 * The far side of `swam estimate`: which chunks and blocks of a disk lie here, where, as far as the index knows, they would be
 * used at a migration. It answers nothing that a migration would not show, about no image outside of `images` and, of these,
 * of those that `share` names; it opens and resolves no path that the peer says, and reads no image.
 *
 * What a peer asks is bounded in size, in number, and in time; a new estimate of a peer ends its old one.
 */
import { realpath } from 'node:fs/promises'
import { basename, dirname, join, resolve } from 'node:path'
import type { Config } from '../../config/schema.ts'
import type { ListImages } from '../../lib/catalog/stock.ts'
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
  readonly images: readonly { readonly path: string; readonly size: number }[]
  image(number: number): { readonly path: string } | undefined
  lookup(key: Buffer): readonly { readonly image: number; readonly offset: number; readonly length: number }[]
  lookupBlock(
    hints: Buffer,
    hintOffset: number,
  ): readonly { readonly image: number; readonly offset: number }[]
  refresh(list: ListImages, busy: ReadonlySet<string>): Promise<void>
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
  /** Without links; undefined: all. */
  readonly shared: ReadonlySet<string> | undefined
  readonly timer: NodeJS.Timeout
  chunks: number
  blocks: number
}

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
      const { stock, config, images, receiving } = this.#options
      const targets = await this.#placesOf(paths)
      const shared = config.share === 'none' ? new Set<string>() : await this.#shared()
      if (config.share !== 'none') {
        await stock.refresh(images, receiving())
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
        scanning: config.share === 'none' ? 0 : stock.scanning,
        shares: config.share !== 'none',
        blocks: config.share !== 'none' && stock.blockCount > 0,
        held: targets.map((target) =>
          stock.images.some(({ path }) => path === target && isShared(session, path)),
        ),
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

  /** An image is known by its place without links: those of the directories of the config are followed, and no others. */
  async #placesOf(paths: readonly string[]): Promise<string[]> {
    const real = new Map<string, string>()
    for (const directory of this.#options.config.images)
      real.set(resolve(directory), await realpath(directory).catch(() => directory))
    return paths.map((path) => {
      const directory = real.get(dirname(path))
      return directory === undefined ? path : join(directory, basename(path))
    })
  }

  async #shared(): Promise<ReadonlySet<string> | undefined> {
    const { share } = this.#options.config
    if (typeof share === 'string') return undefined
    return new Set(await Promise.all(share.map((path) => realpath(path).catch(() => path))))
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
  return shared === undefined || shared.has(dirname(path))
}
