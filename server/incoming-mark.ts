/**
 * The mark of a guest that comes in (runDir/incoming/GUEST): swamd writes it, and the hook script asks only whether it is there. It says
 * which files were missing when the guest was announced and were not made by the hook: if they are there later, libvirt made them.
 * It outlives a swamd that is killed. Root reads it, and swamd's user wrote it: a stranger's word, which only narrows what the
 * hook's own XML names.
 */
import { constants } from 'node:fs'
import { open, writeFile } from 'node:fs/promises'
import { join } from 'node:path'
import { RefusedError } from '../lib/core/errors.ts'
import { GUEST_DISKS_MAX, MARK_BYTES_MAX } from '../lib/core/limits.ts'

/** Guests of that name have such a mark. @throws RefusedError for a name that is none */
export function markPath(runDir: string, guest: string): string {
  if (guest.includes('/') || guest.startsWith('.'))
    throw new RefusedError(`guest name ${JSON.stringify(guest)}`)
  return join(runDir, 'incoming', guest)
}

export async function writeMark(path: string, id: string, missing: Iterable<string>): Promise<void> {
  const text = (paths: readonly string[]): string => `${JSON.stringify({ id, missing: paths })}\n`
  const whole = text([...missing])
  await writeFile(path, Buffer.byteLength(whole) > MARK_BYTES_MAX ? text([]) : whole)
}

/** Of a mark that cannot be read, or is none of ours, nothing is known. Never rejects. */
export async function readMark(path: string): Promise<ReadonlySet<string>> {
  const nothing = new Set<string>()
  // A FIFO or a link in the way would hold up libvirt, or show root something else.
  const flags = constants.O_RDONLY | constants.O_NOFOLLOW | constants.O_NONBLOCK
  const handle = await open(path, flags).catch(() => undefined)
  if (handle === undefined) return nothing
  try {
    const found = await handle.stat()
    if (!found.isFile() || found.size > MARK_BYTES_MAX) return nothing
    const buffer = Buffer.alloc(found.size)
    const { bytesRead } = await handle.read(buffer, 0, buffer.length, 0)
    const mark = JSON.parse(buffer.toString('utf8', 0, bytesRead)) as { readonly missing?: unknown } | null
    const missing = mark?.missing
    if (!Array.isArray(missing) || missing.length > GUEST_DISKS_MAX) return nothing
    return new Set(missing.filter((each): each is string => typeof each === 'string'))
  } catch {
    return nothing
  } finally {
    await handle.close()
  }
}
