/**
 * The daemon's part of `swam verify`: which records of a guest there are, and whether it is at work here. The images are read by
 * the command itself, as root: the daemon may read what root's config names, and not every image that libvirt knows.
 */
import { realpath } from 'node:fs/promises'
import { RefusedError, SwamError } from '../../lib/core/errors.ts'
import type { Libvirt } from '../../lib/host/libvirt.ts'
import type { LeafHead } from '../../lib/proof/leaf-file.ts'
import type { ProofFolder } from '../../lib/proof/proof-folder.ts'

export interface GuestRecords {
  readonly version: 1
  readonly guest: string
  readonly uuid: string
  /** In libvirt's words, `running` or `paused`; null while it is switched off, or not known here. */
  readonly state: string | null
  /** Where what a qcow2 stands on may lie, without links. */
  readonly directories: readonly string[]
  readonly records: readonly { readonly path: string; readonly head: LeafHead }[]
}

export async function recordsOf(
  guest: string,
  options: {
    readonly folder: ProofFolder
    readonly libvirt: Pick<Libvirt, 'state'>
    readonly images: readonly string[]
  },
): Promise<GuestRecords> {
  const records = await options.folder.find(guest)
  const [newest] = records
  if (newest === undefined)
    throw new SwamError(
      'SWAM_NOT_FOUND',
      `no proof of a guest ${guest} at this host: swam history ${guest} says whether its disks were proved`,
    )
  const uuids = [...new Set(records.map(({ head }) => head.uuid))]
  if (uuids.length > 1)
    throw new RefusedError(`${uuids.length} guests were called ${guest} here: say which: ${uuids.join(', ')}`)
  const state = await options.libvirt.state(newest.head.uuid)
  const directories = await Promise.all(options.images.map((path) => realpath(path).catch(() => path)))
  const { guest: name, uuid } = newest.head
  return { version: 1, guest: name, uuid, state: state ?? null, directories, records }
}
