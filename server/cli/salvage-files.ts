/**
 * Root's part of what is left of failed migrations (lib/catalog/salvage.ts): links an image that libvirt may take away, and removes
 * links that have had their time. Key idea: all of it happens in one folder below a directory that root's config names, which root
 * made and nobody else may even look into; it is opened once, without following a link, looked at, and entered through /proc. So no
 * name in it can be anybody else's trap, and what is called otherwise, or is no regular file, is never touched.
 * No image is ever opened or written here: a link is a name.
 */
import { type BigIntStats, constants } from 'node:fs'
import {
  type FileHandle,
  link,
  lstat,
  mkdir,
  open,
  readdir,
  realpath,
  rename,
  rmdir,
  statfs,
  unlink,
} from 'node:fs/promises'
import { basename, join } from 'node:path'
import type { Config } from '../../config/schema.ts'
import type { HookDomain } from '../../hooks/decision.ts'
import { IMAGE_BYTES_MIN, isBelowDev } from '../../lib/catalog/image-files.ts'
import {
  isOwnFolder,
  parseSalvageName,
  SALVAGE_FOLDER,
  SALVAGE_MAKING,
  SALVAGE_REPLACED,
  type SalvagedDisk,
  type SalvageLink,
  salvageName,
  salvageToRemove,
} from '../../lib/catalog/salvage.ts'
import { errorText, RefusedError } from '../../lib/core/errors.ts'
import { GIB } from '../../lib/core/units.ts'
import { runningUuids } from '../../lib/host/qemu-pid.ts'
import { insideOf, openAllowed } from './allowed-directory.ts'

/** What `stat` counts a file's blocks in. */
const STAT_BLOCK_BYTES = 512
const MS_OF_A_DAY = 86_400_000

type SalvageConfig = Pick<Config, 'images' | 'limits' | 'runDir'>

/**
 * Links the images of the guest that stand in `missing` (the daemon's word: they were not here before it came) and in its XML. Gives
 * the paths; of what cannot be linked nothing is left, and nothing is said.
 */
export async function keepImages(
  domain: HookDomain,
  missing: ReadonlySet<string>,
  config: SalvageConfig,
): Promise<string[]> {
  const kept: string[] = []
  if (config.limits.salvageGiB === 0) return kept
  for (const { type, source, target, format, readOnly, shareable } of domain.disks) {
    if (type !== 'file' || source === undefined || readOnly || shareable || !missing.has(source)) continue
    const disk: SalvagedDisk = { uuid: domain.uuid, target, format: format === 'qcow2' ? 'qcow2' : 'raw' }
    if (await keepImage(source, disk, config.images).catch(() => false)) kept.push(source)
  }
  return kept
}

/** True when a link to it lies there now. Of two images of one disk the one that holds more stays. @throws RefusedError */
export async function keepImage(
  path: string,
  disk: SalvagedDisk,
  images: readonly string[],
): Promise<boolean> {
  const name = salvageName(disk)
  if (name === undefined) throw new RefusedError(`${path}: disk ${disk.target} gives no name of a file`)
  const { handle, root } = await openAllowed(path, images)
  try {
    const place = `${insideOf(handle)}/${basename(path)}`
    const found = await lstat(place, { bigint: true })
    if (!found.isFile() || found.size < BigInt(IMAGE_BYTES_MIN) || found.blocks === 0n) return false
    const folder = await openFolder(root, { make: true })
    try {
      return await linkInto(insideOf(folder!), name, place, found)
    } finally {
      await folder!.close()
    }
  } finally {
    await handle.close()
  }
}

async function linkInto(folder: string, name: string, place: string, found: BigIntStats): Promise<boolean> {
  const old = await lstat(`${folder}/${name}`, { bigint: true }).catch(() => undefined)
  if (old !== undefined) {
    if (!old.isFile()) throw new RefusedError(`${SALVAGE_FOLDER}/${name}: not a regular file`)
    if (isSame(old, found)) return true
    if (old.blocks > found.blocks) return false
  }
  const making = `${folder}/${SALVAGE_MAKING}${name}`
  await unlink(making).catch(() => undefined)
  await link(place, making)
  try {
    // link(2) follows no link, but what has the name may be another file by now.
    const linked = await lstat(making, { bigint: true })
    if (!linked.isFile() || !isSame(linked, found))
      throw new RefusedError(`${place}: something else was put in the place of the image`)
    // libvirt waits, and to give back the blocks of a large file takes seconds: the sweep does it.
    if (old !== undefined) await rename(`${folder}/${name}`, `${folder}/${SALVAGE_REPLACED}${name}`)
    await rename(making, `${folder}/${name}`)
  } catch (error) {
    await unlink(making).catch(() => undefined)
    throw error
  }
  return true
}

function isSame(one: BigIntStats, other: BigIntStats): boolean {
  return one.dev === other.dev && one.ino === other.ino
}

/** Held open; undefined: there is none. @throws RefusedError when it is not root's own */
async function openFolder(
  root: string,
  { make }: { readonly make: boolean },
): Promise<FileHandle | undefined> {
  const path = join(root, SALVAGE_FOLDER)
  // Whoever made it, it is looked at below.
  if (make) await mkdir(path, { mode: 0o700 }).catch(() => undefined)
  const flags = constants.O_RDONLY | constants.O_DIRECTORY | constants.O_NOFOLLOW
  const folder = await open(path, flags).catch((error: unknown) => {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT' && !make) return undefined
    throw new RefusedError(`${path}: ${errorText(error)}`, { cause: error })
  })
  if (folder === undefined || isOwnFolder(await folder.stat(), process.geteuid?.() ?? 0)) return folder
  await folder.close()
  throw new RefusedError(`${path}: somebody else's, or open to others than root: it is left alone`)
}

export interface FoundLink extends SalvageLink, SalvagedDisk {
  /** Where it lies. */
  readonly path: string
}

interface Folder {
  readonly handle: FileHandle
  readonly links: readonly FoundLink[]
  /** Of hooks that were cut short, and what was replaced. */
  readonly unwanted: readonly string[]
}

/** Everything that is kept, in all directories of the config; `problem` hears of folders that are not ours. */
export async function listSalvage(
  config: SalvageConfig,
  problem: (text: string) => void = () => undefined,
): Promise<FoundLink[]> {
  const found: FoundLink[] = []
  for (const root of await rootsOf(config.images)) {
    const folder = await openLinks(root, problem)
    if (folder === undefined) continue
    found.push(...folder.links)
    await folder.handle.close()
  }
  return found
}

/** Takes away what has had its time, or of which the guest has arrived; or what `which` says. Gives what went. */
export async function sweepSalvage(
  config: SalvageConfig,
  options: {
    readonly which?: (link: FoundLink) => boolean
    /** Guests that have a QEMU here. */
    readonly running?: () => Promise<ReadonlySet<string>>
    readonly problem?: (text: string) => void
  } = {},
): Promise<FoundLink[]> {
  const gone: FoundLink[] = []
  const before = { bytes: 0, count: 0 }
  for (const root of await rootsOf(config.images)) {
    const folder = await openLinks(root, options.problem)
    if (folder === undefined) continue
    const { handle, links, unwanted } = folder
    try {
      const old =
        options.which === undefined
          ? await toRemove(handle, links, config, { before, running: options.running ?? runningUuids })
          : links.filter(options.which)
      for (const name of unwanted) await unlink(`${insideOf(handle)}/${name}`).catch(() => undefined)
      for (const one of old) {
        await unlink(`${insideOf(handle)}/${one.name}`)
        gone.push(one)
      }
      for (const one of links) {
        if (old.includes(one)) continue
        before.count++
        if (!one.inPlace) before.bytes += one.bytes
      }
    } finally {
      await handle.close()
    }
    // Only when it is empty.
    await rmdir(join(root, SALVAGE_FOLDER)).catch(() => undefined)
  }
  return gone
}

async function toRemove(
  handle: FileHandle,
  links: readonly FoundLink[],
  { limits, runDir }: SalvageConfig,
  options: {
    readonly before: { readonly bytes: number; readonly count: number }
    readonly running: () => Promise<ReadonlySet<string>>
  },
): Promise<readonly FoundLink[]> {
  const { bavail, blocks, bsize } = await statfs(insideOf(handle))
  const room = {
    ageMsMax: limits.salvageDays * MS_OF_A_DAY,
    bytesMax: limits.salvageGiB * GIB,
    freeBytes: bavail * bsize,
    fileSystemBytes: blocks * bsize,
  }
  // Of a guest that is coming in just now it may be the best source; one that runs here and is not has arrived.
  const coming = links.length === 0 || (await readdir(join(runDir, 'incoming')).catch(() => [])).length > 0
  const arrived = coming ? new Set<string>() : await options.running()
  const needed = links.filter(({ uuid }) => !arrived.has(uuid))
  return [...links.filter((link) => !needed.includes(link)), ...salvageToRemove(needed, room, options.before)]
}

async function rootsOf(images: readonly string[]): Promise<Set<string>> {
  const roots = new Set<string>()
  for (const path of images) {
    const root = await realpath(path).catch(() => undefined)
    if (root !== undefined && !isBelowDev(`${root}/`)) roots.add(root)
  }
  return roots
}

async function openLinks(root: string, problem?: (text: string) => void): Promise<Folder | undefined> {
  const handle = await openFolder(root, { make: false }).catch((error: unknown) => {
    problem?.(errorText(error))
    return undefined
  })
  if (handle === undefined) return undefined
  const inside = insideOf(handle)
  const links: FoundLink[] = []
  const unwanted: string[] = []
  for (const name of await readdir(inside)) {
    const prefix = [SALVAGE_MAKING, SALVAGE_REPLACED].find((each) => name.startsWith(each))
    const disk = parseSalvageName(name.slice(prefix?.length ?? 0))
    const found = await lstat(`${inside}/${name}`).catch(() => undefined)
    if (disk === undefined || found?.isFile() !== true) {
      problem?.(`${join(root, SALVAGE_FOLDER, name)}: not made by SWAM: it is left alone`)
      continue
    }
    if (prefix !== undefined) unwanted.push(name)
    else
      links.push({
        ...disk,
        name,
        path: join(root, SALVAGE_FOLDER, name),
        bytes: found.blocks * STAT_BLOCK_BYTES,
        inPlace: found.nlink > 1,
        // Linking and the loss of another name change the inode, and writing does too.
        ageMs: Math.max(0, Date.now() - found.ctimeMs),
      })
  }
  return { handle, links, unwanted }
}
