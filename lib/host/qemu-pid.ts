/**
 * The process of a guest's QEMU, found through the pid file that libvirt writes, and checked by the uuid on its command
 * line, because a pid may have been reused since. Needs root, as the hook has.
 * Seen with libvirt 9.0: the file name is the guest's name with XML's special characters escaped.
 */
import { open, readdir, readFile } from 'node:fs/promises'
import { ProtocolError, RefusedError } from '../core/errors.ts'
import { COMMAND_LINE_BYTES_MAX } from '../core/limits.ts'
import { isGuestName, isUuid } from './domain-xml.ts'

/** Throws RefusedError when the guest has no running QEMU. */
export async function qemuPid(
  name: string,
  uuid: string,
  pidDirectory = '/run/libvirt/qemu',
): Promise<number> {
  if (!isGuestName(name) || !isUuid(uuid))
    throw new RefusedError('qemu pid: expected a guest name and a uuid')
  const path = `${pidDirectory}/${escapeName(name)}.pid`
  let text: string
  try {
    text = await readFile(path, 'latin1')
  } catch (error) {
    throw new RefusedError(`${path}: no pid file: the guest does not run here`, { cause: error })
  }
  const pid = Number(/^(\d{1,10})\s*$/.exec(text)?.[1] ?? 0)
  if (pid < 2) throw new ProtocolError(`${path}: expected a pid`)
  if (!(await commandLine(pid)).includes(uuid)) {
    throw new RefusedError(`${path}: process ${pid} is not the QEMU of ${uuid}`)
  }
  return pid
}

/** The uuids of all guests that have a running QEMU. Never rejects: of what cannot be read nothing is said. */
export async function runningUuids(pidDirectory = '/run/libvirt/qemu'): Promise<ReadonlySet<string>> {
  const uuids = new Set<string>()
  for (const name of await readdir(pidDirectory).catch(() => [])) {
    if (!name.endsWith('.pid')) continue
    const text = await readFile(`${pidDirectory}/${name}`, 'latin1').catch(() => '')
    const pid = Number(/^(\d{1,10})\s*$/.exec(text)?.[1] ?? 0)
    if (pid < 2) continue
    const words: readonly string[] = await commandLine(pid).catch(() => [])
    const uuid = words[words.indexOf('-uuid') + 1] ?? ''
    if (isUuid(uuid)) uuids.add(uuid)
  }
  return uuids
}

function escapeName(name: string): string {
  return name
    .replaceAll('&', '&amp;')
    .replaceAll('<', '&lt;')
    .replaceAll('>', '&gt;')
    .replaceAll('"', '&quot;')
    .replaceAll("'", '&apos;')
}

async function commandLine(pid: number): Promise<readonly string[]> {
  let file: Awaited<ReturnType<typeof open>>
  try {
    file = await open(`/proc/${pid}/cmdline`, 'r')
  } catch {
    return []
  }
  try {
    const buffer = Buffer.alloc(COMMAND_LINE_BYTES_MAX)
    let used = 0
    while (used < buffer.length) {
      const { bytesRead } = await file.read(buffer, used, buffer.length - used, null)
      if (bytesRead === 0) break
      used += bytesRead
    }
    return buffer.toString('utf8', 0, used).split('\0')
  } finally {
    await file.close()
  }
}
