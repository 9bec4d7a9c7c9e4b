/**
 * `swam peer test`: round trip and throughput both ways over the control bundle that is there anyway, with the digest of
 * what arrived compared at the end that received it. Bytes and time are bounded at both ends, and each daemon takes part
 * in one test at a time. The data are of class bulk, so calls go before them and `limits.wanMbit` holds.
 * One SSH channel: a migration of disks has four.
 */
import { createHash, type Hash, randomBytes } from 'node:crypto'
import { ProtocolError, RefusedError, TimeoutError } from '../lib/core/errors.ts'
import {
  LINK_TEST_BYTES_MAX,
  LINK_TEST_CALLS_MAX,
  LINK_TEST_FRAME_BYTES,
  LINK_TEST_MS,
  LINK_TEST_SEND_MS,
  LINK_TEST_STEPS_MAX,
  LINK_TEST_STEPS_MS,
} from '../lib/core/limits.ts'
import type { Bundle } from '../lib/peer/bundle.ts'
import type { Rpc } from '../lib/peer/rpc.ts'
import { FRAME_BULK } from '../lib/wire/frame.ts'
import { Params } from './params.ts'

export const LINK_TEST_DATA: number = 66

export interface LinkTestReport {
  readonly version: 1
  readonly peer: string
  readonly release: string
  readonly rttMs: number
  /** The far clock minus ours. */
  readonly clockMs: number
  readonly out: LinkTestWay
  readonly in: LinkTestWay
}

export interface LinkTestWay {
  readonly bytes: number
  readonly elapsedMs: number
  readonly sha256: string
  /** The digests of both ends are equal. */
  readonly verified: boolean
}

type Claim = symbol

/** What arrives of one test: counted, digested, and never more than was announced. */
class Sink {
  readonly #hash: Hash = createHash('sha256')
  readonly #bytesMax: number
  readonly #waitMs: number
  readonly #startedAt = performance.now()
  #lastAt = this.#startedAt
  #bytes = 0
  #asked = false
  #told = false
  #wanted = 0
  #wake: () => void = () => undefined
  /** Which test it belongs to. */
  readonly claim: Claim

  constructor(claim: Claim, bytesMax: number, waitMs: number) {
    this.claim = claim
    this.#bytesMax = bytesMax
    this.#waitMs = waitMs
  }

  take(payload: Buffer): void {
    this.#bytes += payload.length
    // An empty frame adds nothing, and is one more than was said all the same.
    if (this.#told || (this.#asked && this.#bytes > this.#wanted))
      throw new ProtocolError('a test of the link sent more than it said')
    if (this.#bytes > this.#bytesMax)
      throw new ProtocolError('a test of the link sent more than it announced')
    this.#hash.update(payload)
    this.#lastAt = performance.now()
    this.#wake()
  }

  /** When that many bytes are here; nothing may follow. Once. */
  async all(bytes: number): Promise<{ sha256: string; elapsedMs: number }> {
    if (this.#asked) throw new RefusedError('what arrived was told already')
    this.#asked = true
    this.#wanted = Math.max(bytes, this.#bytes)
    const late = performance.now() + this.#waitMs
    while (this.#bytes < bytes) {
      const left = late - performance.now()
      if (left <= 0) throw new TimeoutError(`a test of the link: ${this.#bytes} of ${bytes} bytes arrived`)
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, left)
        this.#wake = () => {
          clearTimeout(timer)
          resolve()
        }
      })
    }
    this.#told = true
    return { sha256: this.#hash.digest('hex'), elapsedMs: this.#lastAt - this.#startedAt }
  }
}

export interface LinkTestLimits {
  readonly bytesMax: number
  readonly waitMs: number
}

const LIMITS: LinkTestLimits = { bytesMax: LINK_TEST_BYTES_MAX, waitMs: LINK_TEST_MS }

/** Of a daemon: who tests now, and where data frames of each bundle go. */
export class LinkTests {
  readonly #bytesMax: number
  readonly #waitMs: number
  readonly #sinks = new WeakMap<Bundle, Sink>()
  /** When each peer asked for something. Only peers of the config get here. */
  readonly #steps = new Map<string, readonly number[]>()
  #busyUntil = 0
  #claimed: Claim | undefined

  /** `bytesMax`: of a test, each way. `waitMs`: for what was announced to arrive. */
  constructor({ bytesMax, waitMs }: LinkTestLimits = LIMITS) {
    this.#bytesMax = bytesMax
    this.#waitMs = waitMs
  }

  /** For the frames that are no calls. */
  frame(bundle: Bundle, type: number, payload: Buffer): void {
    const sink = type === LINK_TEST_DATA ? this.#sinks.get(bundle) : undefined
    if (sink === undefined) throw new ProtocolError(`frame type ${type} is not expected on a control bundle`)
    sink.take(payload)
  }

  /** What a peer may ask on a bundle that it dialed. */
  handlers(bundle: Bundle): Readonly<Record<string, (params: unknown) => Promise<unknown>>> {
    return {
      ping: async () => ({ wallMs: Date.now() }),
      testTake: async (params) => {
        const { bytes } = this.#boundsOf('testTake', params)
        const claim = this.#claimFor(bundle.peer)
        this.#sinks.set(bundle, new Sink(claim, bytes, this.#waitMs))
        return {}
      },
      testTaken: async (params) => {
        const { bytes } = this.#boundsOf('testTaken', params)
        const sink = this.#sinks.get(bundle)
        if (sink === undefined) throw new RefusedError('no test of the link is under way')
        try {
          return await sink.all(bytes)
        } finally {
          this.#release(sink.claim)
        }
      },
      testGive: async (params) => {
        const { bytes } = this.#boundsOf('testGive', params)
        const claim = this.#claimFor(bundle.peer)
        try {
          return await give(bundle, bytes)
        } finally {
          this.#release(claim)
        }
      },
    }
  }

  /** Tests the link to a peer over the bundle that this host dialed. */
  async run(bundle: Bundle, rpc: Rpc, release: string): Promise<LinkTestReport> {
    const claim = this.#claim()
    try {
      const { rttMs, clockMs } = await roundTrip(rpc)
      const bytes = this.#bytesMax
      await rpc.call('testTake', { bytes })
      const sent = await give(bundle, bytes)
      const taken = new Params('testTaken', await call(rpc, 'testTaken', { bytes: sent.bytes }))
      const sink = new Sink(claim, bytes, this.#waitMs)
      this.#sinks.set(bundle, sink)
      const given = new Params('testGive', await call(rpc, 'testGive', { bytes }))
      const back = given.optionalInteger('bytes', 0, bytes) ?? 0
      const arrived = await sink.all(back)
      const way = (size: number, elapsedMs: number, sha256: string, other: string): LinkTestWay => ({
        bytes: size,
        elapsedMs: Math.max(0.1, Math.round((elapsedMs - rttMs) * 10) / 10),
        sha256,
        verified: sha256 === other,
      })
      return {
        version: 1,
        peer: bundle.peer,
        release,
        rttMs,
        clockMs,
        out: way(sent.bytes, sent.elapsedMs + rttMs, sent.sha256, taken.text('sha256', 64)),
        in: way(back, arrived.elapsedMs, arrived.sha256, given.text('sha256', 64)),
      }
    } finally {
      this.#release(claim)
    }
  }

  #claimFor(peer: string): Claim {
    const since = performance.now() - LINK_TEST_STEPS_MS
    const steps = (this.#steps.get(peer) ?? []).filter((at) => at > since)
    if (steps.length >= LINK_TEST_STEPS_MAX) {
      throw new RefusedError(`${steps.length} steps of tests in a minute: wait a minute`)
    }
    const claim = this.#claim()
    this.#steps.set(peer, [...steps, performance.now()])
    return claim
  }

  #boundsOf(method: string, params: unknown): { bytes: number } {
    const bytes = new Params(method, params).optionalInteger('bytes', 0, this.#bytesMax)
    if (bytes === undefined) throw new ProtocolError(`${method}: bytes: expected a number`)
    return { bytes }
  }

  /** A test whose other end went away blocks the next one for a while only. */
  #claim(): Claim {
    if (performance.now() < this.#busyUntil) {
      throw new RefusedError('another test of a link is under way: try again in some seconds')
    }
    this.#busyUntil = performance.now() + 2 * LINK_TEST_MS
    this.#claimed = Symbol('test of a link')
    return this.#claimed
  }

  /** Only what was claimed, and not what another one has claimed since. */
  #release(claim: Claim): void {
    if (claim === this.#claimed) this.#busyUntil = 0
  }
}

/** The shortest of some calls, and the far clock as that one saw it. */
export async function roundTrip(rpc: Rpc): Promise<{ rttMs: number; clockMs: number }> {
  let best = { rttMs: Number.POSITIVE_INFINITY, clockMs: 0 }
  for (let turn = 0; turn < LINK_TEST_CALLS_MAX; turn++) {
    const before = performance.now()
    const answer = new Params('ping', await call(rpc, 'ping', {}))
    const rttMs = Math.round((performance.now() - before) * 10) / 10
    const far = answer.optionalInteger('wallMs', 0, Number.MAX_SAFE_INTEGER) ?? 0
    if (rttMs < best.rttMs) best = { rttMs, clockMs: Math.round(far + rttMs / 2 - Date.now()) }
  }
  return best
}

async function call(rpc: Rpc, method: string, params: object): Promise<unknown> {
  return await rpc.call(method, params, { timeoutMs: LINK_TEST_MS })
}

async function give(
  bundle: Bundle,
  bytes: number,
): Promise<{ bytes: number; sha256: string; elapsedMs: number }> {
  const hash = createHash('sha256')
  const startedAt = performance.now()
  let sent = 0
  while (sent < bytes && performance.now() - startedAt < LINK_TEST_SEND_MS) {
    const piece = randomBytes(Math.min(LINK_TEST_FRAME_BYTES, bytes - sent))
    hash.update(piece)
    sent += piece.length
    await bundle.send(LINK_TEST_DATA, [piece], FRAME_BULK)
  }
  return { bytes: sent, sha256: hash.digest('hex'), elapsedMs: performance.now() - startedAt }
}
