/**
 * Where the receiver looks for a chunk before it asks for it: each place is a ChunkSource, a router asks them in
 * order. A source gives bytes, never trust: `find` must hand every candidate to `verify` (SHA-256 against the
 * sender's digest) and returns only what passed (I3). Not finding is no error; a source that cannot be read is
 * "not found", since the literal always remains.
 */
import type { BlockDevice } from '../block/device.ts'
import { readBytes } from '../block/read-bytes.ts'
import { RefusedError } from '../core/errors.ts'
import type { SourceName } from '../wire/disk.ts'

export interface ChunkQuery {
  readonly digest: Buffer
  readonly offset: number
  readonly length: number
  readonly verify: (bytes: Buffer) => boolean
}

export interface ChunkSource {
  readonly name: SourceName
  find(query: ChunkQuery): Promise<Buffer | undefined>
}

export class SourceRouter {
  readonly #sources: readonly ChunkSource[]

  constructor(sources: readonly ChunkSource[]) {
    this.#sources = sources
  }

  async find(query: ChunkQuery): Promise<{ data: Buffer; source: SourceName } | undefined> {
    for (const source of this.#sources) {
      const data = await source.find(query).catch(() => undefined)
      if (data !== undefined) return { data, source: source.name }
    }
    return undefined
  }
}

/** A plain mirror never reads its target: what a bad disk does not tell is unknown here, and can still be written. */
export async function unlessRefused<T>(reading: Promise<T>): Promise<T | undefined> {
  try {
    return await reading
  } catch (error) {
    if (error instanceof RefusedError) return undefined
    throw error
  }
}

/** What this session has delivered to this disk: digest → place. Bounded; the oldest places are forgotten first. */
export class SessionSource implements ChunkSource {
  readonly name = 'session'
  readonly #device: BlockDevice
  readonly #places = new Map<string, number>()
  readonly #entriesMax: number

  constructor(device: BlockDevice, entriesMax: number) {
    this.#device = device
    this.#entriesMax = entriesMax
  }

  delivered(digest: Buffer, offset: number): void {
    // 16 of 32 bytes: what is found is verified anyway.
    const key = digest.toString('latin1', 0, 16)
    if (this.#places.size >= this.#entriesMax && !this.#places.has(key)) {
      for (const oldest of this.#places.keys()) {
        this.#places.delete(oldest)
        break
      }
    }
    this.#places.set(key, offset)
  }

  has(digest: Buffer): boolean {
    return this.#places.has(digest.toString('latin1', 0, 16))
  }

  async find(query: ChunkQuery): Promise<Buffer | undefined> {
    const offset = this.#places.get(query.digest.toString('latin1', 0, 16))
    if (offset === undefined || offset + query.length > this.#device.size) return undefined
    const bytes = await readBytes(this.#device, offset, query.length)
    return query.verify(bytes) ? bytes : undefined
  }
}
