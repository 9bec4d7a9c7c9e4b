/** The part of the unit's settings that shows swamd block devices, which it does not see otherwise (docs/operations.md, Volumes). */
import { readFile, stat } from 'node:fs/promises'
import { dirname } from 'node:path'

const DROP_IN = '/etc/systemd/system/swamd.service.d/volumes.conf'
/** Of volumes that are not there now, too: LVM's. */
const DEFAULT_KIND = 'device-mapper'

/** A command that lets swamd read, and no more, what these paths are. */
export async function shownVolumes(paths: readonly string[]): Promise<string> {
  const kinds = kindsOf(await readFile('/proc/devices', 'utf8').catch(() => ''))
  const wanted = new Set<string>()
  for (const path of paths) {
    const found = await stat(path).catch(() => undefined)
    wanted.add((found?.isBlockDevice() === true ? kinds.get(majorOf(found.rdev)) : undefined) ?? DEFAULT_KIND)
  }
  const lines = [...wanted].sort().map((kind) => `DeviceAllow=block-${kind} r\\n`)
  return `install -d ${dirname(DROP_IN)} && printf '[Service]\\nPrivateDevices=no\\n${lines.join('')}' >${DROP_IN}`
}

/** Drivers of block devices by their number, of /proc/devices, whose names systemd takes. Pure. */
export function kindsOf(text: string): Map<number, string> {
  const [, blocks = ''] = text.split(/^Block devices:$/m)
  const kinds = [...blocks.matchAll(/^ *(\d{1,4}) ([A-Za-z0-9_-]{1,32})$/gm)]
  return new Map(kinds.map(([, number, name]) => [Number(number), name!]))
}

/** As the kernel packs the two numbers of a device into one. */
function majorOf(rdev: number): number {
  return (rdev >>> 8) & 0xfff
}
