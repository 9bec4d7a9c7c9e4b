/**
 * Kernel and initramfs of the tiny guest: Debian's cloud kernel (fetched with apt, unpacked, never installed) and one
 * static C program (guest/init.c) with the virtio modules it loads (ext4 is in the kernel itself; XFS only where a guest
 * asks for it, so that the others stay as small as they are). Cached by the program's source and the kernel's version. The cpio archive is written here: it is some thirty lines, and the same bytes every time.
 */
import { createHash } from 'node:crypto'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { basename } from 'node:path'
import { SwamError } from '../../lib/core/errors.ts'
import { CACHE_DIR, settle } from './release.ts'
import { run } from './run.ts'

/** What the guest needs; what these need themselves stands in each module (`depends=`). */
const MODULES = ['virtio_pci', 'virtio_blk']
const DIRECTORY = 0o040755
const PROGRAM = 0o100755

export interface GuestKernel {
  readonly kernel: string
  readonly initrd: string
}

function cpioEntry(name: string, mode: number, data: Buffer, inode: number): Buffer {
  const fields = [inode, mode, 0, 0, 1, 0, data.length, 0, 0, 0, 0, name.length + 1, 0]
  const header = `070701${fields.map((field) => field.toString(16).padStart(8, '0')).join('')}${name}\0`
  const padded = (bytes: Buffer): Buffer => Buffer.concat([bytes, Buffer.alloc((4 - (bytes.length % 4)) % 4)])
  return Buffer.concat([padded(Buffer.from(header, 'latin1')), padded(data)])
}

export function cpio(entries: readonly { name: string; mode: number; data?: Buffer }[]): Buffer {
  const parts = entries.map((entry, at) =>
    cpioEntry(entry.name, entry.mode, entry.data ?? Buffer.alloc(0), at + 1),
  )
  return Buffer.concat([...parts, cpioEntry('TRAILER!!!', 0, Buffer.alloc(0), 0)])
}

async function kernelPackage(): Promise<string> {
  for (const update of [false, true]) {
    if (update) await run('apt-get', ['update', '-q'], { timeoutMs: 300_000 })
    const { stdout } = await run('apt-cache', ['depends', 'linux-image-cloud-amd64'], { check: false })
    const name = /Depends: (linux-image-\S+)/.exec(stdout)?.[1]
    if (name !== undefined) return name
  }
  throw new SwamError('LAB_KERNEL', 'apt knows no linux-image-cloud-amd64')
}

async function unpackKernel(): Promise<string> {
  mkdirSync(CACHE_DIR, { recursive: true })
  const present = readdirSync(CACHE_DIR).find((name) => name.startsWith('kernel-'))
  if (present !== undefined) return `${CACHE_DIR}/${present}`
  const name = await kernelPackage()
  const target = `${CACHE_DIR}/kernel-${name}`
  const fresh = mkdtempSync(`${CACHE_DIR}/fetch-`)
  try {
    await run('apt-get', ['download', '-q', '-o', 'APT::Sandbox::User=root', name], {
      cwd: fresh,
      timeoutMs: 300_000,
    })
    const file = readdirSync(fresh).find((entry) => entry.endsWith('.deb'))
    if (file === undefined) throw new SwamError('LAB_KERNEL', `apt-get download ${name} left no package`)
    await run('dpkg', ['-x', file, 'tree'], { cwd: fresh })
    settle(`${fresh}/tree`, target)
  } finally {
    rmSync(fresh, { recursive: true, force: true })
  }
  return target
}

function only(directory: string, pattern: RegExp): string {
  const name = readdirSync(directory).find((entry) => pattern.test(entry))
  if (name === undefined) throw new SwamError('LAB_KERNEL', `nothing like ${pattern} in ${directory}`)
  return `${directory}/${name}`
}

/** @param extra further modules to load, such as `xfs` */
export async function guestKernel(extra: readonly string[] = []): Promise<GuestKernel> {
  const modules = [...MODULES, ...extra]
  const source = `${import.meta.dirname}/guest/init.c`
  const tree = await unpackKernel()
  const key = createHash('sha256')
    .update(readFileSync(source))
    .update(modules.join())
    .digest('hex')
    .slice(0, 16)
  const initrd = `${tree}/initrd-${key}`
  const usr = existsSync(`${tree}/lib/modules`) ? '' : '/usr' // from Debian 13 on
  const kernel = only(`${tree}/boot`, /^vmlinuz-/)
  if (existsSync(initrd)) return { kernel, initrd }
  const drivers = `${only(`${tree}${usr}/lib/modules`, /./)}/kernel`
  const fresh = mkdtempSync(`${CACHE_DIR}/initrd-`)
  try {
    await run('cc', ['-O2', '-Wall', '-Wextra', '-static', '-s', '-o', `${fresh}/init`, source])
    const entries: { name: string; mode: number; data?: Buffer }[] = [
      { name: 'dev', mode: DIRECTORY },
      { name: 'proc', mode: DIRECTORY },
      { name: 'modules', mode: DIRECTORY },
      { name: 'init', mode: PROGRAM, data: readFileSync(`${fresh}/init`) },
    ]
    const files = readdirSync(drivers, { recursive: true, encoding: 'utf8' })
    const names: string[] = []
    const add = async (module: string): Promise<void> => {
      const name = `${module}.ko`
      if (names.includes(name)) return
      const path = files.find((file) => file.endsWith(`/${name}`) || file.endsWith(`/${name}.xz`))
      if (path === undefined) throw new SwamError('LAB_KERNEL', `no module ${module} in ${drivers}`)
      copyFileSync(`${drivers}/${path}`, `${fresh}/${basename(path)}`)
      if (path.endsWith('.xz')) await run('xz', ['-d', `${fresh}/${name}.xz`])
      const data = readFileSync(`${fresh}/${name}`)
      const needs = /\0depends=([^\0]*)\0/.exec(data.toString('latin1'))?.[1] ?? ''
      for (const other of needs.split(',').filter((word) => word !== '')) await add(other)
      entries.push({ name: `modules/${name}`, mode: PROGRAM, data })
      names.push(name)
    }
    for (const module of modules) await add(module)
    entries.push({ name: 'modules/order', mode: 0o100644, data: Buffer.from(`${names.join('\n')}\n`) })
    writeFileSync(`${fresh}/initrd`, cpio(entries))
    renameSync(`${fresh}/initrd`, initrd)
  } finally {
    rmSync(fresh, { recursive: true, force: true })
  }
  return { kernel, initrd }
}
