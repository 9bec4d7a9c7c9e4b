/**
 * Who has a file open for writing: every process's descriptors, as the kernel shows them in /proc. What this process may not look
 * into (another user's) it does not see: root sees all of its own pid namespace, where libvirt's guests are.
 */
import { readdir, readFile, stat } from 'node:fs/promises'

export interface FileWriter {
  readonly pid: number
  /** Of its program, as the kernel has it. */
  readonly name: string
}

/** Of the file or block device at `path`, through whatever name it was opened. */
export async function writersOf(path: string, proc = '/proc'): Promise<FileWriter[]> {
  const wanted = keyOf(await stat(path))
  const writers: FileWriter[] = []
  for (const pid of await readdir(proc)) {
    if (!/^\d+$/.test(pid)) continue
    if (!(await writes(`${proc}/${pid}`, wanted))) continue
    const name = await readFile(`${proc}/${pid}/comm`, 'utf8').catch(() => '')
    writers.push({ pid: Number(pid), name: name.trim() })
  }
  return writers
}

async function writes(process: string, wanted: string): Promise<boolean> {
  // It may end meanwhile, or be another user's.
  for (const fd of await readdir(`${process}/fd`).catch(() => [])) {
    const stats = await stat(`${process}/fd/${fd}`).catch(() => undefined)
    if (stats === undefined || keyOf(stats) !== wanted) continue
    const info = await readFile(`${process}/fdinfo/${fd}`, 'utf8').catch(() => '')
    const flags = Number.parseInt(/^flags:\s*([0-7]+)/m.exec(info)?.[1] ?? '0', 8)
    if ((flags & 3) !== 0) return true
  }
  return false
}

function keyOf(stats: { dev: number; ino: number; rdev: number; isBlockDevice(): boolean }): string {
  return stats.isBlockDevice() ? `block ${stats.rdev}` : `${stats.dev} ${stats.ino}`
}
