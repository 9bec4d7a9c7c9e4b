/**
 * What is left of a migration that failed, when libvirt takes away the image that it had made: a hard link to it in a folder of its
 * directory of images, made by root's hook (server/cli/salvage-files.ts). Here is what such a link is called, which folder may
 * be believed, and what has to go. Pure but for one stat; nothing here changes anything.
 */
import { lstat } from 'node:fs/promises'
import { basename, dirname } from 'node:path'
import { SALVAGE_IMAGES_MAX, SALVAGE_SETTLE_MS, SALVAGE_TARGET_CHARACTERS_MAX } from '../core/limits.ts'
import { isUuid } from '../host/domain-xml.ts'
import type { ImageFormat } from './image-files.ts'

/** In a directory of images. */
export const SALVAGE_FOLDER: string = '.swam-salvage'
/** Before the name of a link that is being made, and of one that another has replaced: both go at the next sweep. */
export const SALVAGE_MAKING: string = '.new-'
export const SALVAGE_REPLACED: string = '.old-'

export interface SalvagedDisk {
  readonly uuid: string
  /** `vda`. */
  readonly target: string
  readonly format: ImageFormat
}

/** Where less of a file system is free, salvage gives way: the next attempt needs the room. */
const FREE_PERCENT_MIN = 10
const TARGET = /^[A-Za-z0-9][A-Za-z0-9_-]*$/
const NAME = /^([0-9a-f-]{36})-([A-Za-z0-9][A-Za-z0-9_-]*)\.(raw|qcow2)$/

/** Undefined: no name can be made of it. */
export function salvageName({ uuid, target, format }: SalvagedDisk): string | undefined {
  if (!isUuid(uuid) || !TARGET.test(target) || target.length > SALVAGE_TARGET_CHARACTERS_MAX) return undefined
  return `${uuid}-${target}.${format}`
}

export function parseSalvageName(name: string): SalvagedDisk | undefined {
  const [, uuid = '', target = '', format] = NAME.exec(name) ?? []
  if (format !== 'raw' && format !== 'qcow2') return undefined
  const disk: SalvagedDisk = { uuid, target, format }
  return salvageName(disk) === name ? disk : undefined
}

/** Whether an image is what this disk was when a migration of it failed. */
export function isSalvageOf(path: string, uuid: string, target: string): boolean {
  const disk = basename(dirname(path)) === SALVAGE_FOLDER ? parseSalvageName(basename(path)) : undefined
  return disk?.uuid === uuid && disk.target === target
}

/** Whether root alone can have put anything there: nobody else could even have made it so. */
export async function isSalvageFolder(path: string): Promise<boolean> {
  const found = await lstat(path).catch(() => undefined)
  return found !== undefined && isOwnFolder(found, 0)
}

export interface FolderStat {
  isDirectory(): boolean
  readonly uid: number
  readonly mode: number
}

/** @param owner who made it */
export function isOwnFolder(found: FolderStat, owner: number): boolean {
  return found.isDirectory() && found.uid === owner && (found.mode & 0o077) === 0
}

/** One link of one folder. */
export interface SalvageLink {
  readonly name: string
  /** What it takes on the disk. */
  readonly bytes: number
  /** The image has another name too: it is still in its place. */
  readonly inPlace: boolean
  /** Since it was linked, or its other name was taken away. */
  readonly ageMs: number
}

export interface SalvageRoom {
  readonly ageMsMax: number
  /** Of all links of the host. */
  readonly bytesMax: number
  /** Of the file system. */
  readonly freeBytes: number
  readonly fileSystemBytes: number
}

/**
 * Which links of a folder have to go. The oldest go first; what lies in place takes no room. @param before bytes and number of links of
 * other folders, which stay
 */
export function salvageToRemove<Link extends SalvageLink>(
  links: readonly Link[],
  room: SalvageRoom,
  before: { readonly bytes: number; readonly count: number } = { bytes: 0, count: 0 },
): readonly Link[] {
  const { ageMsMax, bytesMax, fileSystemBytes } = room
  let { freeBytes } = room
  let { bytes, count } = before
  const gone = new Set<Link>()
  for (const link of links) {
    if (link.ageMs > ageMsMax || (link.inPlace && link.ageMs > SALVAGE_SETTLE_MS)) gone.add(link)
  }
  for (const link of gone) if (!link.inPlace) freeBytes += link.bytes
  const left = links.filter((link) => !gone.has(link)).sort((one, other) => one.ageMs - other.ageMs)
  count += left.length
  for (const link of left) if (!link.inPlace) bytes += link.bytes
  for (const link of left.reverse()) {
    const takesRoom =
      !link.inPlace && (bytes > bytesMax || freeBytes * 100 < fileSystemBytes * FREE_PERCENT_MIN)
    if (!takesRoom && count <= SALVAGE_IMAGES_MAX) continue
    gone.add(link)
    count--
    if (link.inPlace) continue
    bytes -= link.bytes
    freeBytes += link.bytes
  }
  return links.filter((link) => gone.has(link))
}
