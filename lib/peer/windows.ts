/**
 * WindowPool: what all bundles of a daemon may hold of frames that came early, or that are kept until they are
 * acknowledged. Each bundle gets a window when it is made, tells it to its far end, and gives it back when it ends. The
 * first ones get all that a long link needs, later ones a part of what is left: many bundles share the link, too.
 */
import { BUNDLE_WINDOW_BYTES_MIN, IN_FLIGHT_BYTES_MAX } from '../core/limits.ts'
import type { BundleKind } from '../wire/hello.ts'

export interface BundleWindow {
  readonly bytes: number
  /** Idempotent. */
  release(): void
}

export class WindowPool {
  readonly bytesMax: number
  #used = 0

  constructor(options: { readonly bytesMax: number }) {
    this.bytesMax = options.bytesMax
  }

  get used(): number {
    return this.#used
  }

  /** Never refuses: the least window is small, and how many bundles there are is bounded elsewhere. */
  take(kind: BundleKind): BundleWindow {
    const part = Math.floor((this.bytesMax - this.#used) / 4)
    const bytes =
      kind === 'control'
        ? BUNDLE_WINDOW_BYTES_MIN
        : Math.max(BUNDLE_WINDOW_BYTES_MIN, Math.min(IN_FLIGHT_BYTES_MAX, part))
    this.#used += bytes
    let held = true
    return {
      bytes,
      release: () => {
        if (held) this.#used -= bytes
        held = false
      },
    }
  }
}
