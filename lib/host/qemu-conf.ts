/**
 * The few settings of libvirt's qemu.conf that matter here: which ports migrations use, and under which name this host
 * is told to others. The file's form is `key = value` lines; what is left out has libvirt's own default. Pure but for
 * one read.
 */
import { readFile } from 'node:fs/promises'
import { isIP } from 'node:net'
import { CONFIG_TEXT_BYTES_MAX } from '../core/limits.ts'

export const QEMU_CONF: string = '/etc/libvirt/qemu.conf'

export interface QemuConf {
  readonly migrationPortMin: number
  readonly migrationPortMax: number
  /** A name or an address; undefined: libvirt takes the host's own name. */
  readonly migrationHost: string | undefined
  readonly user: string | undefined
}

export function parseQemuConf(text: string): QemuConf {
  const values = new Map<string, string>()
  for (const line of text.slice(0, CONFIG_TEXT_BYTES_MAX).split('\n')) {
    const match =
      /^\s*(migration_port_min|migration_port_max|migration_host|user)\s*=\s*(?:"([^"]*)"|'([^']*)'|(\d{1,10}))/.exec(
        line,
      )
    if (match !== null) values.set(match[1]!, match[2] ?? match[3] ?? match[4] ?? '')
  }
  const port = (key: string, fallback: number): number => {
    const value = Number(values.get(key) ?? fallback)
    return Number.isInteger(value) && value > 0 && value < 65_536 ? value : fallback
  }
  const host = values.get('migration_host')?.replace(/^\[(.*)\]$/, '$1')
  return {
    migrationPortMin: port('migration_port_min', 49_152),
    migrationPortMax: port('migration_port_max', 49_215),
    migrationHost: host !== undefined && (isHostName(host) || isIP(host) !== 0) ? host : undefined,
    user: values.get('user') || undefined,
  }
}

/** A file that is not there has the defaults. */
export async function readQemuConf(path: string = QEMU_CONF): Promise<QemuConf> {
  return parseQemuConf(
    await readFile(path, 'utf8').catch((error: NodeJS.ErrnoException) => {
      if (error.code === 'ENOENT') return ''
      throw error
    }),
  )
}

export function isHostName(name: string): boolean {
  return /^[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_])?\.?$/.test(name)
}
