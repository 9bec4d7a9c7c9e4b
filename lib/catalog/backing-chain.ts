/**
 * The files that make up one qcow2 image, each opened once, and what QEMU is told of them: every driver, every file (by our
 * open descriptor, so that no name leads elsewhere meanwhile) and the end of the chain. Nothing that a header names is
 * opened: `qemu-img info` is run on one file at a time, with no backing file and with an empty node in the place of a data file.
 * What the header names is then judged by whoever asked (ChainRules): by what the user has named, or by where it lies. We parse no qcow2.
 */
import { realpath } from 'node:fs/promises'
import { dirname, resolve } from 'node:path'
import { errorText, RefusedError } from '../core/errors.ts'
import {
  CHAIN_FILES_MAX,
  QEMU_CHECK_DEADLINE_MS,
  QEMU_IMG_DEADLINE_MS,
  QEMU_INFO_BYTES_MAX,
} from '../core/limits.ts'
import { CommandError, FIRST_DESCRIPTOR, runCommand } from '../host/command.ts'
import { readingCommand } from '../host/qemu-tools.ts'
import { checkImage, type ImageFormat, type ImageIdentity, type ImageSource } from './image-files.ts'

/** A file of a chain, and what it is. */
export interface ChainFile {
  readonly path: string
  readonly format: ImageFormat
}

/** A file of an open chain that is not its first, as it was when it was opened. */
export interface FileBeneath extends ChainFile {
  readonly identity: ImageIdentity
}

/** Who asked for an image says what may be opened for it. */
export interface ChainRules<Name extends ChainFile> {
  /** Its tables are held against its file: what lies beyond the end of one that was cut would be read as zeroes. */
  readonly thorough?: boolean
  /** Opens the file itself, whatever it holds. */
  open(file: Name): Promise<ImageSource>
  /**
   * What the file stands on. Rejects with a RefusedError if that may not be read.
   * @param wanted its path by the header, without links @param format by the header; undefined: it says none
   */
  backing(file: Name, wanted: string, format: string | undefined): Promise<Name>
}

/** A node of QEMU's block layer, as its `json:` names take it. */
export type BlockNode = { readonly [key: string]: string | number | boolean | null | BlockNode }

export interface BackingChain {
  readonly node: BlockNode
  /** Open; whoever has the chain closes them. The first is the image itself. */
  readonly files: readonly ImageSource[]
  /** Of each file. */
  readonly formats: readonly ImageFormat[]
}

/** Of what `qemu-img info` says, what is looked at. */
interface Qcow2Info {
  readonly encrypted: boolean
  readonly corrupt: boolean
  /** Its refcounts are old: a QEMU has it open, or was killed. */
  readonly dirty: boolean
  readonly dataFile: string | undefined
  readonly backing: string | undefined
  readonly backingFormat: string | undefined
}

/**
 * Opens the image and what it stands on. Rejects as the rules do, or with a RefusedError that says what is the matter
 * with a file of the chain. Nothing stays open then.
 */
export async function openChain<Name extends ChainFile>(
  top: Name,
  rules: ChainRules<Name>,
  signal?: AbortSignal,
): Promise<BackingChain> {
  const files: ImageSource[] = []
  const nodes: BlockNode[] = []
  const formats: ImageFormat[] = []
  try {
    let next: Name | undefined = top
    while (next !== undefined) {
      if (files.length >= CHAIN_FILES_MAX) {
        throw new RefusedError(`${top.path}: expected at most ${CHAIN_FILES_MAX} files in its backing chain`)
      }
      const name: Name = next
      const file = await rules.open(name)
      files.push(file)
      formats.push(name.format)
      nodes.push({ driver: name.format, file: fileNode(file, nodes.length) })
      next = undefined
      if (name.format === 'qcow2') {
        checkImage(name.path, file)
        const info = await qcow2Info(name.path, file, signal)
        refuseUnreadable(name.path, info)
        if (rules.thorough === true && !info.dirty) await checkTables(name.path, file, signal)
        next = await backingOf(name, file, info, rules)
      }
    }
    return { node: joined(nodes), files, formats }
  } catch (error) {
    for (const file of files) await file.close()
    throw error
  }
}

/** Each node on the next one; the last has none, whatever its header says. */
function joined(nodes: readonly BlockNode[]): BlockNode {
  let below: BlockNode | null = null
  for (const node of nodes.toReversed()) below = node['driver'] === 'raw' ? node : { ...node, backing: below }
  return { ...below, 'read-only': true, 'force-share': true }
}

/** By the descriptor that the program gets: ours is beyond the reach of one that may do less than we. */
function fileNode(file: ImageSource, number: number): BlockNode {
  return {
    driver: file.isBlockDevice ? 'host_device' : 'file',
    filename: `/proc/self/fd/${FIRST_DESCRIPTOR + number}`,
    locking: 'off',
  }
}

/** The file by itself. */
function lone(file: ImageSource): BlockNode {
  return {
    driver: 'qcow2',
    file: fileNode(file, 0),
    backing: null,
    'read-only': true,
    'force-share': true,
  }
}

async function qcow2Info(
  path: string,
  file: ImageSource,
  signal: AbortSignal | undefined,
): Promise<Qcow2Info> {
  const node = lone(file)
  const empty: BlockNode = { driver: 'null-co', size: 0 }
  try {
    return parseInfo(await runInfo({ ...node, 'data-file': empty }, file, signal))
  } catch (error) {
    if (!(error instanceof CommandError))
      throw new RefusedError(`${path}: ${errorText(error)}`, { cause: error })
    // A QEMU that minds: it says so only of an image that has none.
    if (!error.stderr.includes("'data-file' can only be set")) throw unreadable(path, error)
  }
  try {
    return parseInfo(await runInfo(node, file, signal))
  } catch (error) {
    throw error instanceof CommandError ? unreadable(path, error) : error
  }
}

async function runInfo(node: BlockNode, file: ImageSource, signal: AbortSignal | undefined): Promise<string> {
  return await runCommand(readingCommand(['qemu-img', 'info', '--output=json', jsonName(node)]), {
    descriptors: [file.fd],
    deadlineMs: QEMU_IMG_DEADLINE_MS,
    outputBytesMax: QEMU_INFO_BYTES_MAX,
    ...(signal === undefined ? {} : { signal }),
  })
}

export function jsonName(node: BlockNode): string {
  return `json:${JSON.stringify(node)}`
}

/** QEMU's reason, without the long name that we gave it. */
function unreadable(path: string, error: CommandError): RefusedError {
  const reason = /.*':\s*(.+)/s.exec(error.stderr)?.[1] ?? error.stderr
  return new RefusedError(`${path}: not readable as a qcow2: ${reason.trim().replaceAll(/\s+/g, ' ')}`)
}

function parseInfo(output: string): Qcow2Info {
  const info = objectOf(JSON.parse(output))
  const data = objectOf(objectOf(info['format-specific'])['data'])
  const text = (value: unknown): string | undefined => (typeof value === 'string' ? value : undefined)
  return {
    encrypted: info['encrypted'] === true || data['encrypt'] !== undefined,
    corrupt: data['corrupt'] === true,
    dirty: info['dirty-flag'] === true,
    dataFile: text(data['data-file']),
    backing: text(info['backing-filename']),
    backingFormat: text(info['backing-filename-format']),
  }
}

function objectOf(value: unknown): Record<string, unknown> {
  return typeof value === 'object' && value !== null ? (value as Record<string, unknown>) : {}
}

/** @throws RefusedError for a file that holds something else than it says, by `qemu-img check`, which reads its tables only */
async function checkTables(path: string, image: ImageSource, signal: AbortSignal | undefined): Promise<void> {
  const check = ['qemu-img', 'check', '--output=json', jsonName(lone(image))]
  let found: Record<string, unknown>
  try {
    const output = await runCommand(readingCommand(check), {
      descriptors: [image.fd],
      deadlineMs: QEMU_CHECK_DEADLINE_MS,
      outputBytesMax: QEMU_INFO_BYTES_MAX,
      exitCodes: CHECK_EXIT_CODES,
      ...(signal === undefined ? {} : { signal }),
    })
    found = objectOf(JSON.parse(output))
  } catch (error) {
    signal?.throwIfAborted()
    throw error instanceof CommandError
      ? unreadable(path, error)
      : new RefusedError(`${path}: ${errorText(error)}`, { cause: error })
  }
  const [corruptions, failures] = [found['corruptions'] ?? 0, found['check-errors'] ?? 0]
  if (corruptions === 0 && failures === 0) return
  if (await image.isStale())
    throw new RefusedError(`${path}: it was written to while it was read: nothing can be said of it`)
  throw new RefusedError(
    `${path}: it is corrupt: ${corruptions} entries of its tables do not fit its file: qemu-img check says more`,
  )
}

/** Nothing found; corruptions; clusters that nobody uses, which do no harm. */
const CHECK_EXIT_CODES: readonly number[] = [0, 2, 3]

/** @throws RefusedError */
function refuseUnreadable(path: string, info: Qcow2Info): void {
  if (info.encrypted)
    throw new RefusedError(`${path}: it is encrypted: what is in it cannot be told without its key`)
  if (info.corrupt) throw new RefusedError(`${path}: it is marked as corrupt: qemu-img check says more`)
  if (info.dataFile !== undefined) {
    throw new RefusedError(`${path}: its data lie in another file (${info.dataFile}): that is not supported`)
  }
}

/** What the image stands on; undefined: nothing. Rejects with a RefusedError if it cannot be used. */
async function backingOf<Name extends ChainFile>(
  name: Name,
  file: ImageSource,
  info: Qcow2Info,
  rules: ChainRules<Name>,
): Promise<Name | undefined> {
  if (info.backing === undefined) return undefined
  const wanted = resolve(dirname(file.path), info.backing)
  const real = await realpath(wanted).catch(() => wanted)
  return await rules.backing(name, real, info.backingFormat)
}
