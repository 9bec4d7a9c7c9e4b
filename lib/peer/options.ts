/** What a bundle is made of and what may be tuned of it: the types that its makers (ssh, accept, memory) share. */
import type { FrameClass } from '../wire/frame.ts'
import type { BundleKind } from '../wire/hello.ts'
import type { FrameChannel } from './channel.ts'
import type { RateLimit } from './rate-limit.ts'

export interface BundleConnection {
  readonly localAddress: string
  readonly localPort: number
  readonly remoteAddress: string
  readonly remotePort: number
}

/** What may be tuned; tests shorten the times. */
export interface BundleTuning {
  readonly pingIntervalMs?: number
  readonly silenceMs?: number
  readonly closeMs?: number
  /** Shared by the bundles that are to stay below a rate together; none: no cap. */
  readonly rateLimit?: RateLimit
}

export interface BundleOptions extends BundleTuning {
  readonly id: string
  readonly kind: BundleKind
  readonly peer: string
  readonly migrationId: string
  readonly features: ReadonlySet<string>
  /** True at the end that made the connection. */
  readonly dialed: boolean
  readonly channels: readonly FrameChannel[]
  readonly connections: readonly BundleConnection[]
  /** What the far end is willing to hold undelivered. */
  readonly peerWindowBytes: number
  /** Called once, after the channels were told to close. */
  readonly dispose?: () => void
}

export type FrameHandler = (type: number, payload: Buffer, cls: FrameClass) => void
