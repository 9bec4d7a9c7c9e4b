/**
 * Disks of this host's guests that lie in no directory of `images`: nothing reads them for a later migration, and where one is missing
 * SWAM makes none. Judged by libvirt's XML and by names, with what links point to; nothing is opened, no format is looked at.
 * What libvirt does not copy (CDs, floppies, read-only and shareable disks) and what has no path here (network) does not count.
 */
import { readFile, realpath, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { isBelowDev, lieIn, listImages } from '../../lib/catalog/image-files.ts'
import {
  DOCTOR_DISKS_NAMED_MAX,
  DOCTOR_TEXT_CHARACTERS_MAX,
  IMAGE_DIRECTORIES_MAX,
} from '../../lib/core/limits.ts'
import type { Domain, DomainDisk } from '../../lib/host/domain-xml.ts'
import { Libvirt } from '../../lib/host/libvirt.ts'
import { type Finding, quoted } from './finding.ts'
import { isRootsAlone } from './images.ts'
import type { Place } from './place.ts'
import { shownVolumes } from './volumes.ts'

const WHY =
  'it saves no bytes of later migrations to this host, and where an image is missing there none is made'
const RESTART = 'systemctl restart swamd'
const RELOAD_UNIT = 'systemctl daemon-reload'
/** The unit has its own. */
const UNSEEN = /^\/(var\/)?tmp(\/|$)/
/** Words that mean themselves within quotes of a shell, in what sed puts in, and in TOML. */
const PLAIN = /^[A-Za-z0-9_.,:/@%+= -]+$/

interface Outside {
  readonly guest: string
  readonly target: string
  /** As the XML has it. */
  readonly source: string
  /** Of a device the same; of a file without links. */
  readonly path: string
  readonly isDevice: boolean
  /** To be named in `images`; none: that would not help, or must not be. */
  readonly directory: string | undefined
}

export async function checkGuests(place: Place, libvirt: Libvirt = new Libvirt()): Promise<Finding[]> {
  const { config } = place
  if (config === undefined) return []
  const outside = await disksOutside(await libvirt.domains(), config.images)
  const [files, volumes] = [false, true].map((isDevice) =>
    outside.filter((disk) => disk.isDevice === isDevice),
  )
  const findings: Finding[] = []
  for (const [id, disks] of [
    ['images-outside', files!],
    ['images-volume', volumes!],
  ] as const) {
    const nameable = disks.filter(({ directory }) => directory !== undefined)
    if (nameable.length > 0) {
      const directories = [...new Set(nameable.map(({ directory }) => directory!))]
      const added = await directoriesAdded(place, directories, config.images)
      const shown = disks === volumes ? await shownVolumes(nameable.map(({ path }) => path)) : undefined
      const words = shown === undefined ? [added] : [shown, added, RELOAD_UNIT]
      findings.push(
        finding(id, nameable, added === undefined ? editor(place) : [...words, RESTART].join(' && ')),
      )
    }
    const others = disks.filter(({ directory }) => directory === undefined)
    for (const disk of others.slice(0, DOCTOR_DISKS_NAMED_MAX)) {
      findings.push(finding(id, [disk], disk.isDevice ? namesOf(disk) : moved(disk, config.images)))
    }
    // A report has room for so many findings, and these are mended one by one.
    const rest = others.slice(DOCTOR_DISKS_NAMED_MAX)
    if (rest.length > 0) findings.push(finding(id, rest, 'swam doctor'))
  }
  return findings
}

function finding(id: string, disks: readonly Outside[], mend: string): Finding {
  const named = disks
    .slice(0, DOCTOR_DISKS_NAMED_MAX)
    .map(({ guest, target, path }) => `${target} of ${guest} (${path})`)
  const more = disks.length > named.length ? ` and ${disks.length - named.length} more` : ''
  const verb = disks.length === 1 ? 'lies' : 'lie'
  const what = `${named.join(', ')}${more} ${verb} in no directory of images`
  return { id, level: 'warning', what, why: WHY, mend }
}

async function disksOutside(domains: readonly Domain[], images: readonly string[]): Promise<Outside[]> {
  const resolved = (path: string): Promise<string> => realpath(path).catch(() => path)
  const allowed = new Set(await Promise.all(images.map(resolved)))
  const volumes = new Set((await listImages(images.filter(isBelowDev))).map(({ path }) => path))
  const outside: Outside[] = []
  for (const { name: guest, disks } of domains) {
    for (const disk of disks) {
      const { source, target, readOnly, shareable } = disk
      if (source === undefined || readOnly || shareable) continue
      const real = await resolved(source)
      const isDevice = await isBlockDevice(real, disk)
      const directory = dirname(isDevice ? source : real)
      const inside = isDevice
        ? // Its name alone counts for one that is not there now, and where images-owner says what is wrong.
          volumes.has(real) || (isBelowDev(directory) && allowed.has(await resolved(directory)))
        : await lieIn(images, [source]).catch(() => false)
      if (inside) continue
      const helps = isDevice
        ? isBelowDev(directory)
        : directory !== '/' && !UNSEEN.test(directory) && (await isRootsAlone(directory))
      const path = isDevice ? source : real
      outside.push({ guest, target, source, path, isDevice, directory: helps ? directory : undefined })
    }
  }
  return outside
}

async function isBlockDevice(path: string, { type }: DomainDisk): Promise<boolean> {
  const found = await stat(path).catch(() => undefined)
  return found?.isBlockDevice() ?? type === 'block'
}

/** Adds to the list and leaves the rest of the file; undefined: not with words of which neither a shell nor sed makes anything else. */
async function directoriesAdded(
  { configPath }: Place,
  directories: readonly string[],
  images: readonly string[],
): Promise<string | undefined> {
  if (![...directories, ...images].every((directory) => PLAIN.test(directory))) return undefined
  if (images.length + directories.length > IMAGE_DIRECTORIES_MAX) return undefined
  const file = quoted(configPath)
  const key = '^[[:space:]]*images[[:space:]]*='
  const isThere = /^\s*images\s*=\s*\[/m.test(await readFile(configPath, 'utf8'))
  // Another finding may add to the same list, and make it: so it is looked for again.
  const made = isThere
    ? ''
    : `{ grep -q '${key}' ${file} || sed -i '1i images = ${JSON.stringify(images)}' ${file}; } && `
  const added = directories.map((directory) => `${JSON.stringify(directory)}, `).join('')
  const mend = `${made}sed -i 's|${key}[[:space:]]*\\[|&${added}|' ${file}`
  // What is longer would be cut where a far doctor reports it.
  return mend.length > DOCTOR_TEXT_CHARACTERS_MAX / 2 ? undefined : mend
}

function editor({ configPath }: Place): string {
  return `editor ${quoted(configPath)} && ${RESTART}`
}

/** Its directory is not root's alone, or one that swamd does not see: to be named it must lie elsewhere. */
function moved({ guest, source, path }: Outside, images: readonly string[]): string {
  const directory = images.find((one) => !isBelowDev(one))
  const off = `virsh domstate --domain ${quoted(guest)} | grep -qx 'shut off'`
  const to = directory === undefined ? undefined : join(directory, basename(path))
  if (to === undefined || ![source, to].every((word) => PLAIN.test(word)))
    return `${off} && virsh edit --domain ${quoted(guest)}`
  const xml = `virsh dumpxml --inactive --security-info --domain ${quoted(guest)}`
  // mv -n says nothing when it moves nothing, and the guest would get another one's image.
  const move = `test ! -e ${quoted(to)} && mv -n ${quoted(path)} ${quoted(to)}`
  return `${off} && ${move} && ${xml} | sed "s|'${source}'|'${to}'|" | virsh define /dev/stdin`
}

/** The directories below /dev that name it: one of them in `images` and in the guest's XML. */
function namesOf({ path }: Outside): string {
  return `find /dev -xdev -mindepth 2 -type l -exec test {} -ef ${quoted(path)} \\; -print`
}
