/** The far end of one disk's session that says what it likes: a channel without a bundle, messages in and out. */
import { LostError } from '../../../lib/core/errors.ts'
import type { FrameChannel } from '../../../lib/engine/link.ts'
import {
  type DiskMessage,
  type DiskMessageBody,
  decodeDiskMessage,
  ENGINE_FEATURES,
  encodeDiskMessage,
} from '../../../lib/wire/disk.ts'
import { FEATURE_PROOF } from '../../../lib/wire/disk-proof.ts'

export const EPOCH = 7

export abstract class Liar {
  readonly channel: FrameChannel
  readonly #closed = Promise.withResolvers<Error | undefined>()

  /** @param proves FEATURE_PROOF is agreed on, too */
  constructor(proves = false) {
    this.channel = {
      onFrame: undefined,
      features: new Set([...ENGINE_FEATURES, ...(proves ? [FEATURE_PROOF] : [])]),
      rateBytesPerSecond: 1e8,
      roundTripMs: 0,
      silentMs: 0,
      closed: this.#closed.promise,
      close: async (reason) => this.#closed.resolve(reason),
      send: async (type, payload) => this.heard(decodeDiskMessage(type, Buffer.concat(payload))),
    }
  }

  /** What the other end says. */
  protected abstract heard(message: DiskMessage): void

  say(message: DiskMessageBody & { readonly epoch?: number }): void {
    const { type, payload } = encodeDiskMessage({ disk: 0, epoch: EPOCH, ...message } as DiskMessage)
    this.sayBytes(type, Buffer.concat(payload))
  }

  sayBytes(type: number, payload: Buffer): void {
    this.channel.onFrame?.(type, Buffer.from(payload), 0)
  }

  cut(): void {
    this.#closed.resolve(new LostError('cut'))
  }
}
