/**
 * `swam verify`: holds the images of a guest that is switched off against the records of its last migration. A guest that runs, or
 * an image that somebody has open for writing, is refused: what is read while it changes says nothing. Asked before and after.
 */
import { realpath, stat } from 'node:fs/promises'
import { openImage } from '../../lib/catalog/open-image.ts'
import { RefusedError, SwamError } from '../../lib/core/errors.ts'
import { writersOf } from '../../lib/host/open-files.ts'
import { type LeafHead, LeafRecord } from '../../lib/proof/leaf-file.ts'
import { problem } from '../analyze/images.ts'
import { type Comparison, compareWithRecord } from './compare.ts'
import type { GuestRecords } from './records.ts'

export interface VerifiedDisk extends Comparison {
  readonly target: string
  readonly image: string
  readonly format: string
  readonly size: number
  readonly peer: string
  readonly direction: 'in' | 'out'
  /** The cut-over. */
  readonly at: number
  readonly root: string
  /** When the image was last written to; null: a block device does not tell. */
  readonly modifiedAt: number | null
}

export interface VerifyReport {
  readonly version: 1
  readonly guest: string
  readonly uuid: string
  /** No piece that was judged differs. */
  readonly equal: boolean
  readonly disks: readonly VerifiedDisk[]
}

/** It is not judged: the guest is at work, or its image is. */
export class InUseError extends SwamError {
  constructor(message: string) {
    super('SWAM_IN_USE', message)
  }
}

export interface VerifyOptions {
  /** Asks the daemon. */
  readonly ask: () => Promise<GuestRecords>
  /** Instead of where libvirt had it, by target. */
  readonly images?: ReadonlyMap<string, string>
  readonly signal?: AbortSignal
}

/** @throws InUseError, RefusedError */
export async function verify(options: VerifyOptions): Promise<VerifyReport> {
  const found = await options.ask()
  refuseRunning(found)
  const { guest, uuid, directories, records } = found
  for (const target of options.images?.keys() ?? [])
    if (!records.some(({ head }) => head.target === target))
      throw new RefusedError(`${guest}: no disk ${target} was proved here`)
  const disks: VerifiedDisk[] = []
  for (const { path, head } of records) disks.push(await verifyDisk(path, head, directories, options))
  refuseRunning(await options.ask())
  return { version: 1, guest, uuid, equal: disks.every((disk) => disk.differentLeaves === 0), disks }
}

function refuseRunning({ guest, state }: GuestRecords): void {
  if (state === null) return
  throw new InUseError(
    `${guest} is ${state} at this host: its disks change, and are not judged; switch it off first, or ask at the other host`,
  )
}

async function verifyDisk(
  path: string,
  head: LeafHead,
  directories: readonly string[],
  options: VerifyOptions,
): Promise<VerifiedDisk> {
  const { target, peer, direction, at, root, size } = head
  const said = options.images?.get(target)
  const named = said ?? head.image
  if (named === null)
    throw new RefusedError(
      `${target}: libvirt named no file of it: say where its image lies (--image ${target}=PATH)`,
    )
  const format = head.format === 'qcow2' ? 'qcow2' : 'raw'
  if (head.format !== format)
    throw new RefusedError(`${target}: ${named}: cannot be read: its format is ${head.format}`)
  const image = await realpath(named).catch((error: unknown) => {
    throw problem(named, error)
  })
  await refuseWritten(target, image)
  const record = await LeafRecord.open(path)
  try {
    const lost = new AbortController()
    const signal = options.signal === undefined ? lost.signal : AbortSignal.any([options.signal, lost.signal])
    const source = await openImage(
      { path: image, format, directories },
      { signal, onLost: (error) => lost.abort(error) },
    ).catch((error: unknown) => {
      throw error instanceof SwamError ? error : problem(image, error)
    })
    try {
      const stats = await stat(image)
      const comparison = await compareWithRecord(source, record, path, signal)
      await refuseWritten(target, image)
      if (await source.isStale())
        throw new InUseError(
          `${target}: ${image} was written to while it was read: nothing can be said of it`,
        )
      const modifiedAt = stats.isFile() ? Math.round(stats.mtimeMs) : null
      return { target, image, format, size, peer, direction, at, root, modifiedAt, ...comparison }
    } finally {
      await source.close()
    }
  } finally {
    await record.close()
  }
}

async function refuseWritten(target: string, image: string): Promise<void> {
  const [writer] = await writersOf(image)
  if (writer === undefined) return
  throw new InUseError(
    `${target}: ${image} is open for writing (process ${writer.pid}, ${writer.name}): it may change, and is not judged`,
  )
}
