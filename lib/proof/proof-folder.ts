/**
 * Maps and records of a host's proofs (stateDir/proof): the map of a disk under way is a `.part`, and becomes the record of that
 * disk when the guest has gone on elsewhere, in place of the one before. Records are kept within an age, a number and a size;
 * what a daemon that was killed left under way is nothing.
 */
import { mkdir, readdir, rename, rm, stat } from 'node:fs/promises'
import { join } from 'node:path'
import { RefusedError } from '../core/errors.ts'
import { PROOF_RECORD_AGE_MS, PROOF_RECORDS_BYTES_MAX, PROOF_RECORDS_MAX } from '../core/limits.ts'
import { headOf, LeafFile, type LeafHead } from './leaf-file.ts'
import { LeafMap } from './leaf-map.ts'

const PART = '.part'
const RECORD = '.leaves'
const SECTOR_BYTES = 512

export interface FoundRecord {
  readonly path: string
  readonly head: LeafHead
}

export interface ProofFolderOptions {
  readonly path: string
  readonly wallMs?: () => number
  /** What of the limits; tests have less. */
  readonly recordsMax?: number
  readonly recordsBytesMax?: number
}

export class ProofFolder {
  readonly #options: ProofFolderOptions
  readonly #path: string
  #next = 0
  /** Records that are being made. */
  readonly #keeping = new Set<Promise<void>>()

  constructor(options: ProofFolderOptions) {
    this.#options = options
    this.#path = options.path
  }

  /** At the start: nobody goes on with what is under way. */
  async start(): Promise<void> {
    await mkdir(this.#path, { recursive: true, mode: 0o700 })
    for (const name of await this.#names(PART)) await rm(join(this.#path, name), { force: true })
    await this.prune()
  }

  /** A map of a disk of which nothing is known yet. */
  async begin(size: number): Promise<LeafMap> {
    await mkdir(this.#path, { recursive: true, mode: 0o700 })
    return new LeafMap(await LeafFile.create(join(this.#path, `${process.pid}-${this.#next++}${PART}`), size))
  }

  /** It becomes the record of that disk; the map is closed. */
  async keep(map: LeafMap, head: Omit<LeafHead, 'fileRoot'>): Promise<void> {
    const kept = this.#keep(map, head)
    this.#keeping.add(kept)
    await kept.finally(() => this.#keeping.delete(kept))
  }

  async #keep(map: LeafMap, head: Omit<LeafHead, 'fileRoot'>): Promise<void> {
    const path = join(this.#path, `${nameOf(head.uuid)}-${nameOf(head.target)}${RECORD}`)
    await map.seal(head)
    await rename(map.path, path)
    await this.prune()
  }

  /** What is being made is there. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#keeping)
  }

  async drop(map: LeafMap): Promise<void> {
    await map.close().catch(() => undefined)
    await rm(map.path, { force: true })
  }

  /** Those of a guest, by its name or uuid; what is torn is none. The newest first. */
  async find(guest: string): Promise<FoundRecord[]> {
    await this.settled()
    const found: FoundRecord[] = []
    for (const name of (await this.#names(RECORD)).slice(0, PROOF_RECORDS_MAX)) {
      const path = join(this.#path, name)
      const head = await headOf(path).catch(() => undefined)
      if (head !== undefined && (head.uuid === guest || head.guest === guest)) found.push({ path, head })
    }
    return found.sort((a, b) => b.head.at - a.head.at)
  }

  /** Takes away what is too old, and the oldest of what is too much. */
  async prune(): Promise<void> {
    const { wallMs = Date.now, recordsMax, recordsBytesMax } = this.#options
    const records: { path: string; bytes: number; atMs: number }[] = []
    for (const name of await this.#names(RECORD)) {
      const path = join(this.#path, name)
      const stats = await stat(path).catch(() => undefined)
      if (stats !== undefined) records.push({ path, bytes: stats.blocks * SECTOR_BYTES, atMs: stats.mtimeMs })
    }
    records.sort((a, b) => b.atMs - a.atMs)
    let bytes = 0
    for (const [at, record] of records.entries()) {
      bytes += record.bytes
      const kept =
        at < (recordsMax ?? PROOF_RECORDS_MAX) &&
        bytes <= (recordsBytesMax ?? PROOF_RECORDS_BYTES_MAX) &&
        wallMs() - record.atMs <= PROOF_RECORD_AGE_MS
      if (!kept) await rm(record.path, { force: true })
    }
  }

  async #names(suffix: string): Promise<string[]> {
    const names = await readdir(this.#path).catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return []
      throw error
    })
    return names.filter((name) => name.endsWith(suffix)).sort()
  }
}

/** libvirt's names of disks are such, and so are uuids; nothing else becomes a file's name. */
function nameOf(text: string): string {
  if (!/^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$/.test(text))
    throw new RefusedError(`proof: ${JSON.stringify(text.slice(0, 100))} is no name for a record`)
  return text
}
