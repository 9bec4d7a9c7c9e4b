/**
 * Which disks of a guest can be estimated, from where, and why the others cannot. What may be read is what the catalog may: after all
 * links a file directly in one of `images`, or a block device that one of them below /dev names. A format is what the guest's XML
 * says, never what the bytes look like; and what any guest of this host has as raw is no qcow2, whoever says so.
 */
import { lstat, realpath } from 'node:fs/promises'
import { isBelowDev, lieIn, resolvedDirectories } from '../../lib/catalog/image-files.ts'
import type { ImageRef } from '../../lib/catalog/open-image.ts'
import type { RunningDisk } from '../../lib/host/libvirt.ts'
import type { ImageList } from '../image-list.ts'

export interface FoundDisk {
  readonly disk: RunningDisk
  readonly image: ImageRef | undefined
  /** `null`: there is an image. */
  readonly reason: string | null
}

/** @param directories `images` of the config */
export async function findDisks(
  disks: readonly RunningDisk[],
  directories: readonly string[],
  images: Pick<ImageList, 'ask' | 'list' | 'isRaw'>,
): Promise<FoundDisk[]> {
  // A call for each guest of the host: only a qcow2 needs it.
  if (disks.some(({ format }) => format === 'qcow2')) await images.ask()
  const listed = new Set((await images.list()).map(({ path }) => path))
  const real = [...(await resolvedDirectories(directories))]
  return await Promise.all(
    disks.map(async (disk) => {
      const { type, source, format } = disk
      const no = (reason: string): FoundDisk => ({ disk, image: undefined, reason })
      if (disk.readOnly || disk.shareable)
        return no(`${disk.readOnly ? 'read-only' : 'shareable'}: libvirt does not copy it`)
      if ((type !== 'file' && type !== 'block') || source === undefined)
        return no(`of type ${type}: only files and block devices are looked at`)
      if (disk.encrypted) return no('encrypted: what is in it cannot be told without its key')
      if (format !== 'raw' && format !== 'qcow2') return no(`${format}: only raw and qcow2 are read`)
      const path = await realpath(source).catch(() => source)
      const lies = listed.has(path) || (format === 'qcow2' && (await liesAsFile(path, directories)))
      if (!lies) return no(nowhere(disk, directories))
      if (format === 'qcow2' && images.isRaw(path))
        return no('a guest of this host has it as raw, so it is not read as a qcow2')
      return { disk, image: { path, format, directories: real }, reason: null }
    }),
  )
}

/** A qcow2 that holds a large disk may be smaller than what is listed as an image: the top of a chain is, at first. */
async function liesAsFile(path: string, directories: readonly string[]): Promise<boolean> {
  const files = directories.filter((directory) => !isBelowDev(directory))
  if (!(await lieIn(files, [path]).catch(() => false))) return false
  return (await lstat(path).catch(() => undefined))?.isFile() === true
}

function nowhere({ type, format }: RunningDisk, directories: readonly string[]): string {
  const where = `one of images (${directories.join(', ')})`
  if (type === 'block') return `no volume that a directory of root's below /dev names which is ${where}`
  const least = format === 'raw' ? ' of 1 MiB or more' : ''
  return `no file${least} directly in ${where}`
}
