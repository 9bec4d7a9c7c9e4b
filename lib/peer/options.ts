/** What a bundle is made of and what may be tuned of it: the types that its makers (ssh, accept, memory) share. */
import type { FrameClass } from '../wire/frame.ts'
import type { BundleKind } from '../wire/hello.ts'
import type { FrameChannel } from './channel.ts'
import type { RateLimit } from './rate-limit.ts'
import type { BundleWindow, WindowPool } from './windows.ts'

export interface BundleConnection {
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
}

/** What may be tuned; tests shorten the times. */
export interface BundleTuning {
  readonly pingIntervalMs?: number
  /** How long a PING may go unanswered, with nothing else heard, until the link counts as broken. */
  readonly silenceMs?: number
  /** How long a broken link may take to be resumed. */
  readonly resumeMs?: number
  readonly closeMs?: number
  /** What the bundles of a daemon share of memory; none: each has the most. */
  readonly windows?: WindowPool
  /** Shared by the bundles that are to stay below a rate together; none: no cap. */
  readonly rateLimit?: RateLimit
}

/** What carries a bundle for a while: one SSH connection and its channels. */
export interface BundleLink {
  readonly channels: readonly FrameChannel[]
  readonly connections: readonly BundleConnection[]
  /** Called once, after the channels were told to close. */
  readonly dispose?: () => void
  /** Rejects when the connection is lost, with a better reason than its channels know. */
  readonly failed?: Promise<never>
}

export interface ResumeRequest {
  readonly attempt: number
  /** Bytes of sequenced frames that were delivered here. */
  readonly deliveredBytes: number
  readonly signal: AbortSignal
}

/** A link in the place of a broken one. */
export interface ResumedLink extends BundleLink {
  /** Bytes of sequenced frames that the far end has delivered. */
  readonly peerDeliveredBytes: number
}

export interface BundleOptions extends BundleTuning, BundleLink {
  readonly id: string
  readonly kind: BundleKind
  readonly peer: string
  readonly migrationId: string
  readonly features: ReadonlySet<string>
  /** True at the end that made the connection. */
  readonly dialed: boolean
  /** What this end may hold, where that is shared. */
  readonly window?: BundleWindow
  /** What the far end is willing to hold undelivered. */
  readonly peerWindowBytes: number
  /** Which start of the far daemon this is, where it told. */
  readonly peerInstance?: string
  /** Makes a new link in the place of a broken one. Only at the end that dialed. RefusedError: give it up. */
  readonly reconnect?: (request: ResumeRequest) => Promise<ResumedLink>
}

export type FrameHandler = (type: number, payload: Buffer, cls: FrameClass) => void
