/**
 * What the folder of maps remembers beside them, also of an image whose map was taken away: where and when the image was there last, when
 * it was used or its map made last, and how large that map was. A text file, `seen`, a line an image:
 *
 *   name of the map (32 hex digits), device, inode, seen at, used at (ms since 1970), bytes of the map
 *
 * It is written beside its place and renamed. A line that is none is left out, and a file that is too large is none: what is not
 * known counts as seen for the first time, which keeps more, not less. Nothing else depends on it.
 */
import { constants } from 'node:fs'
import { mkdir, open, rename, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { CATALOG_LEDGER_BYTES_MAX, CATALOG_MAPS_MAX } from '../core/limits.ts'

export interface LedgerEntry {
  readonly dev: bigint
  readonly ino: bigint
  readonly seenAtMs: number
  readonly usedAtMs: number
  /** 0: it had none yet. */
  readonly mapBytes: number
}

const LINE = /^([0-9a-f]{32}) (\d{1,20}) (\d{1,20}) (\d{1,15}) (\d{1,15}) (\d{1,15})$/

export class MapLedger {
  readonly #directory: string
  readonly #entries = new Map<string, LedgerEntry>()
  #changed = false

  /** @param directory of the maps */
  constructor(directory: string) {
    this.#directory = directory
  }

  /** One that cannot be read is empty. */
  static async read(directory: string): Promise<MapLedger> {
    const ledger = new MapLedger(directory)
    for (const line of (await textOf(join(directory, 'seen'))).split('\n')) {
      const [, name, dev, ino, seenAt, usedAt, mapBytes] = LINE.exec(line) ?? []
      if (name === undefined || ledger.#entries.size >= CATALOG_MAPS_MAX) continue
      ledger.#entries.set(name, {
        dev: BigInt(dev!),
        ino: BigInt(ino!),
        seenAtMs: Number(seenAt),
        usedAtMs: Number(usedAt),
        mapBytes: Number(mapBytes),
      })
    }
    return ledger
  }

  get names(): readonly string[] {
    return [...this.#entries.keys()]
  }

  get(name: string): LedgerEntry | undefined {
    return this.#entries.get(name)
  }

  /** The same of an image with this inode: what is said of another file that lay there before says nothing of it. */
  of(name: string, ino: bigint | undefined): LedgerEntry | undefined {
    const said = this.#entries.get(name)
    return said?.ino === ino ? said : undefined
  }

  set(name: string, entry: LedgerEntry): void {
    const before = this.#entries.get(name)
    const same =
      before?.dev === entry.dev &&
      before.ino === entry.ino &&
      before.seenAtMs === entry.seenAtMs &&
      before.usedAtMs === entry.usedAtMs &&
      before.mapBytes === entry.mapBytes
    if (same) return
    this.#entries.set(name, entry)
    this.#changed = true
  }

  delete(name: string): void {
    if (this.#entries.delete(name)) this.#changed = true
  }

  /** If there is anything new. Those that were seen longest ago are too many first. */
  async save(): Promise<void> {
    if (!this.#changed) return
    const over = this.#entries.size - CATALOG_MAPS_MAX
    const all = [...this.#entries].sort(([, one], [, other]) => one.seenAtMs - other.seenAtMs)
    for (const [name] of all.slice(0, Math.max(0, over))) this.#entries.delete(name)
    const lines = [...this.#entries].map(
      ([name, { dev, ino, seenAtMs, usedAtMs, mapBytes }]) =>
        `${name} ${dev} ${ino} ${seenAtMs} ${usedAtMs} ${mapBytes}\n`,
    )
    await mkdir(this.#directory, { recursive: true, mode: 0o700 })
    const beside = join(this.#directory, 'seen.new')
    await rm(beside, { force: true })
    const file = await open(beside, 'wx', 0o600)
    try {
      await file.writeFile(lines.join(''))
    } finally {
      await file.close()
    }
    await rename(beside, join(this.#directory, 'seen'))
    this.#changed = false
  }
}

async function textOf(path: string): Promise<string> {
  let file: Awaited<ReturnType<typeof open>> | undefined
  try {
    file = await open(path, constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK)
    const bytes = Buffer.alloc(CATALOG_LEDGER_BYTES_MAX + 1)
    let filled = 0
    for (;;) {
      const { bytesRead } = await file.read(bytes, filled, bytes.length - filled, null)
      if (bytesRead === 0) break
      filled += bytesRead
    }
    return filled > CATALOG_LEDGER_BYTES_MAX ? '' : bytes.toString('latin1', 0, filled)
  } catch {
    return ''
  } finally {
    await file?.close()
  }
}
