/**
 * The file of one disk's leaves: a head, 32 bytes for each leaf, and behind them the runs of leaves of which nothing is known.
 * While a migration is under way only the leaves are there; `seal` makes it a record. Sparse: where a disk is zeroes, so is its file.
 *
 *   0       "SWAMLEAF", u32 version, u32 length of the JSON, the JSON (LeafHead), zeroes; the last 32 bytes: SHA-256 of those before
 *   32 KiB  the digests
 *   then    u32 first, u32 end of each unknown run
 *
 * A record that is torn or was changed is noticed: the head by its digest, the runs by theirs, the digests by the root.
 */
import { constants } from 'node:fs'
import { type FileHandle, open } from 'node:fs/promises'
import { DIGEST_BYTES, sha256 } from '../chunk/digest.ts'
import { errorText, RefusedError } from '../core/errors.ts'
import { IMAGE_BYTES_MAX, PROOF_HEAD_BYTES, PROOF_RUNS_MAX } from '../core/limits.ts'
import { type LeafRun, LeafSet } from './leaf-set.ts'
import { leafCount } from './leaves.ts'

export const PAGE_BYTES: number = 4096
export const PAGE_LEAVES: number = PAGE_BYTES / DIGEST_BYTES

const MAGIC = Buffer.from('SWAMLEAF', 'latin1')
const VERSION = 1
const RUN_BYTES = 8
const PREFIX_BYTES = MAGIC.length + 8

/** What a record says of itself. Times are milliseconds since 1970. */
export interface LeafHead {
  readonly guest: string
  readonly uuid: string
  /** `vda`. */
  readonly target: string
  /** The image at this host, as libvirt had it; null where it did not say. */
  readonly image: string | null
  readonly format: string | null
  readonly peer: string
  /** Whether the guest left this host or came to it. */
  readonly direction: 'in' | 'out'
  /** The cut-over: when the last FLUSH was proved. */
  readonly at: number
  readonly size: number
  /** On which both ends agreed then; of the digests that are in the file. */
  readonly root: string
  readonly fileRoot: string
}

interface Sealed extends LeafHead {
  readonly runs: number
  readonly runsDigest: string
}

export class LeafFile {
  readonly #file: FileHandle
  readonly path: string
  readonly leaves: number

  private constructor(file: FileHandle, path: string, leaves: number) {
    this.#file = file
    this.path = path
    this.leaves = leaves
  }

  /** A new one, of nothing but holes. */
  static async create(path: string, size: number): Promise<LeafFile> {
    const flags = constants.O_RDWR | constants.O_CREAT | constants.O_EXCL | constants.O_NOFOLLOW
    const file = await open(path, flags, 0o600)
    const leaves = leafCount(size)
    try {
      await file.truncate(PROOF_HEAD_BYTES + leaves * DIGEST_BYTES)
      return new LeafFile(file, path, leaves)
    } catch (error) {
      await file.close()
      throw error
    }
  }

  /** PAGE_LEAVES digests; of the last page what there is, and zeroes. */
  async readPage(page: number): Promise<Buffer> {
    const bytes = Buffer.alloc(PAGE_BYTES)
    await readWhole(
      this.#file,
      bytes.subarray(0, this.#pageBytes(page)),
      PROOF_HEAD_BYTES + page * PAGE_BYTES,
    )
    return bytes
  }

  async writePage(page: number, bytes: Uint8Array): Promise<void> {
    await writeWhole(
      this.#file,
      bytes.subarray(0, this.#pageBytes(page)),
      PROOF_HEAD_BYTES + page * PAGE_BYTES,
    )
  }

  #pageBytes(page: number): number {
    return Math.min(PAGE_BYTES, this.leaves * DIGEST_BYTES - page * PAGE_BYTES)
  }

  /** All pages are written: says what it is, and that it is whole. */
  async seal(head: LeafHead, unknown: readonly LeafRun[]): Promise<void> {
    const runs = Buffer.alloc(unknown.length * RUN_BYTES)
    for (const [at, { first, end }] of unknown.entries()) {
      runs.writeUInt32BE(first, at * RUN_BYTES)
      runs.writeUInt32BE(end, at * RUN_BYTES + 4)
    }
    await writeWhole(this.#file, runs, PROOF_HEAD_BYTES + this.leaves * DIGEST_BYTES)
    await this.#file.datasync()
    const sealed: Sealed = { ...head, runs: unknown.length, runsDigest: sha256(runs).toString('hex') }
    await writeWhole(this.#file, headBytes(sealed), 0)
    await this.#file.datasync()
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

function headBytes(sealed: Sealed): Buffer {
  const json = Buffer.from(JSON.stringify(sealed), 'utf8')
  const bytes = Buffer.alloc(PROOF_HEAD_BYTES)
  if (PREFIX_BYTES + json.length > bytes.length - DIGEST_BYTES)
    throw new RangeError(`proof: a head of ${json.length} bytes`)
  MAGIC.copy(bytes)
  bytes.writeUInt32BE(VERSION, MAGIC.length)
  bytes.writeUInt32BE(json.length, MAGIC.length + 4)
  json.copy(bytes, PREFIX_BYTES)
  sha256(bytes.subarray(0, -DIGEST_BYTES)).copy(bytes, bytes.length - DIGEST_BYTES)
  return bytes
}

/** @throws RefusedError what is wrong with it */
export function parseHead(
  path: string,
  bytes: Buffer,
): LeafHead & { readonly runs: number; readonly runsDigest: string } {
  const bad = (what: string): RefusedError => new RefusedError(`${path}: no whole record of a proof: ${what}`)
  if (bytes.length !== PROOF_HEAD_BYTES || !bytes.subarray(0, MAGIC.length).equals(MAGIC))
    throw bad('expected it to begin with SWAMLEAF and a head')
  const version = bytes.readUInt32BE(MAGIC.length)
  if (version !== VERSION) throw bad(`it is of version ${version}, expected ${VERSION}`)
  if (!sha256(bytes.subarray(0, -DIGEST_BYTES)).equals(bytes.subarray(-DIGEST_BYTES)))
    throw bad('its head does not fit its digest')
  const length = bytes.readUInt32BE(MAGIC.length + 4)
  if (length > bytes.length - DIGEST_BYTES - PREFIX_BYTES) throw bad(`a head of ${length} bytes`)
  let head: unknown
  try {
    head = JSON.parse(bytes.toString('utf8', PREFIX_BYTES, PREFIX_BYTES + length))
  } catch (error) {
    throw bad(errorText(error))
  }
  if (!isSealed(head)) throw bad('its head says something else than a head does')
  return head
}

const TEXT = (value: unknown): boolean => typeof value === 'string'
const TEXT_OR_NULL = (value: unknown): boolean => value === null || TEXT(value)
const HEX = (value: unknown): boolean => typeof value === 'string' && /^[0-9a-f]{64}$/.test(value)
const count =
  (max: number) =>
  (value: unknown): boolean =>
    Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) <= max
const HEAD: Readonly<Record<keyof Sealed, (value: unknown) => boolean>> = {
  guest: TEXT,
  uuid: TEXT,
  target: TEXT,
  image: TEXT_OR_NULL,
  format: TEXT_OR_NULL,
  peer: TEXT,
  direction: (value) => value === 'in' || value === 'out',
  at: count(Number.MAX_SAFE_INTEGER),
  size: count(IMAGE_BYTES_MAX),
  root: HEX,
  fileRoot: HEX,
  runs: count(PROOF_RUNS_MAX),
  runsDigest: HEX,
}

function isSealed(value: unknown): value is Sealed {
  if (typeof value !== 'object' || value === null) return false
  return Object.entries(HEAD).every(([key, check]) => check((value as Record<string, unknown>)[key]))
}

/** A record, open for reading. Whoever reads all of its pages holds the sum against `head.fileRoot`. */
export class LeafRecord {
  readonly head: LeafHead
  readonly leaves: number
  /** Leaves of which it knows nothing. */
  readonly unknown: LeafSet
  readonly #file: FileHandle
  readonly #path: string

  private constructor(path: string, file: FileHandle, head: LeafHead, unknown: LeafSet) {
    this.#path = path
    this.#file = file
    this.head = head
    this.leaves = leafCount(head.size)
    this.unknown = unknown
  }

  /** @throws RefusedError where it is not whole */
  static async open(path: string): Promise<LeafRecord> {
    const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    try {
      const { runs, runsDigest, ...head } = await readHead(path, file)
      const leaves = leafCount(head.size)
      const runsAt = PROOF_HEAD_BYTES + leaves * DIGEST_BYTES
      const { size } = await file.stat()
      if (size !== runsAt + runs * RUN_BYTES)
        throw new RefusedError(
          `${path}: no whole record of a proof: ${size} bytes, expected ${runsAt + runs * RUN_BYTES}`,
        )
      const bytes = Buffer.alloc(runs * RUN_BYTES)
      await readWhole(file, bytes, runsAt)
      if (sha256(bytes).toString('hex') !== runsDigest)
        throw new RefusedError(`${path}: no whole record of a proof: its runs do not fit their digest`)
      return new LeafRecord(path, file, head, runsOf(path, bytes, leaves))
    } catch (error) {
      await file.close()
      throw error
    }
  }

  async readPage(page: number): Promise<Buffer> {
    const length = Math.min(PAGE_BYTES, this.leaves * DIGEST_BYTES - page * PAGE_BYTES)
    const bytes = Buffer.alloc(PAGE_BYTES)
    await readWhole(this.#file, bytes.subarray(0, length), PROOF_HEAD_BYTES + page * PAGE_BYTES).catch(
      (error: unknown) => {
        throw new RefusedError(`${this.#path}: ${errorText(error)}`, { cause: error })
      },
    )
    return bytes
  }

  async close(): Promise<void> {
    await this.#file.close()
  }
}

/** What a record says of itself, without its digests. @throws RefusedError */
export async function headOf(path: string): Promise<LeafHead> {
  const file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
  try {
    const { runs: _, runsDigest: __, ...head } = await readHead(path, file)
    return head
  } finally {
    await file.close()
  }
}

async function readHead(path: string, file: FileHandle): Promise<Sealed> {
  const stats = await file.stat()
  if (!stats.isFile() || stats.size < PROOF_HEAD_BYTES)
    throw new RefusedError(`${path}: no whole record of a proof: ${stats.size} bytes`)
  const bytes = Buffer.alloc(PROOF_HEAD_BYTES)
  await readWhole(file, bytes, 0)
  return parseHead(path, bytes)
}

function runsOf(path: string, bytes: Buffer, leaves: number): LeafSet {
  const set = new LeafSet()
  let before = 0
  for (let at = 0; at < bytes.length; at += RUN_BYTES) {
    const [first, end] = [bytes.readUInt32BE(at), bytes.readUInt32BE(at + 4)]
    if (first < before || first >= end || end > leaves)
      throw new RefusedError(`${path}: no whole record of a proof: a run from leaf ${first} to ${end}`)
    set.add(first, end)
    before = end
  }
  return set
}

async function readWhole(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; ) {
    const { bytesRead } = await file.read(bytes, at, bytes.length - at, position + at)
    if (bytesRead === 0) throw new RefusedError(`the file ends at ${position + at}`)
    at += bytesRead
  }
}

async function writeWhole(file: FileHandle, bytes: Uint8Array, position: number): Promise<void> {
  for (let at = 0; at < bytes.length; )
    at += (await file.write(bytes, at, bytes.length - at, position + at)).bytesWritten
}
