/** The directories of images and the state: there, root's, and with room. */
import { stat, statfs } from 'node:fs/promises'
import { dirname } from 'node:path'
import type { Config } from '../../config/schema.ts'
import { isBelowDev } from '../../lib/catalog/image-files.ts'
import { MapFolder } from '../../lib/catalog/map-folder.ts'
import { DOCTOR_FREE_BYTES_MIN } from '../../lib/core/limits.ts'
import { bytesText } from '../cli/format.ts'
import { type Finding, quoted } from './finding.ts'
import type { Place } from './place.ts'

export async function checkImages(place: Place): Promise<Finding[]> {
  const { config } = place
  if (config === undefined) return []
  const findings: Finding[] = []
  const judged = new Set<string>()
  for (const directory of config.images) {
    const found = await stat(directory).catch(() => undefined)
    if (found === undefined || !found.isDirectory()) {
      findings.push({
        id: 'images-missing',
        level: 'warning',
        what: `${directory}, in images, is no directory`,
        why: 'nothing there can save bytes, and guests whose disks lie there are not made room for',
        mend: `install -d -m 711 ${quoted(directory)}`,
      })
      continue
    }
    for (let path = directory; !judged.has(path); path = dirname(path)) {
      judged.add(path)
      findings.push(...(await ownerFindings(path, directory)))
    }
    // Devices take no room there.
    if (!isBelowDev(directory))
      findings.push(...(await spaceFindings('space-images', directory, 'a guest that comes finds no room')))
  }
  findings.push(...(await awayFindings(config)))
  findings.push(
    ...(await spaceFindings(
      'space-state',
      config.stateDir,
      'the history is not written, and what images hold is not kept',
    )),
  )
  return findings
}

/** A mount point without its file system is a directory like any other; maps say that images lay there on another one. */
async function awayFindings(config: Config): Promise<Finding[]> {
  const away = await new MapFolder(config).away()
  return away.map(({ directory, images }) => ({
    id: 'images-away',
    level: 'warning',
    what: `${directory}: ${images} image(s) that swamd knew there are on a file system that is not mounted there now`,
    why: 'nothing of them is found, and the disks of guests that come are made on the file system that is there now',
    mend: 'mount -a',
  }))
}

/** Whether root alone chooses what lies there: of it and its parents. */
export async function isRootsAlone(directory: string): Promise<boolean> {
  for (let path = directory; ; path = dirname(path)) {
    const found = await stat(path).catch(() => undefined)
    if (found === undefined || !isRoots(found)) return false
    if (path === dirname(path)) return true
  }
}

function isRoots({ uid, mode }: { readonly uid: number; readonly mode: number }): boolean {
  const sticky = (mode & 0o1000) !== 0
  return uid === 0 && ((mode & 0o022) === 0 || sticky)
}

/** Whoever may rename such a directory chooses what is read as an image. */
async function ownerFindings(path: string, directory: string): Promise<Finding[]> {
  const { uid, mode } = await stat(path)
  if (isRoots({ uid, mode })) return []
  return [
    {
      id: 'images-owner',
      level: 'warning',
      what: `${path}: owner ${uid}, mode ${(mode & 0o7777).toString(8)}: others than root can put something in the place of ${directory}`,
      why: 'swamd reads with more rights than they have, and the hook, being root, makes images there',
      mend: `chown root ${quoted(path)} && chmod go-w ${quoted(path)}`,
    },
  ]
}

async function spaceFindings(id: string, path: string, then: string): Promise<Finding[]> {
  const found = await statfs(path).catch(() => undefined)
  const free = found === undefined ? Number.POSITIVE_INFINITY : found.bavail * found.bsize
  if (free >= DOCTOR_FREE_BYTES_MIN) return []
  return [
    {
      id,
      level: 'warning',
      what: `${path}: ${bytesText(free)} free`,
      why: then,
      mend: `du -xh --max-depth=1 ${quoted(path)} | sort -h`,
    },
  ]
}
