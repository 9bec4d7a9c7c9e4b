/**
 * The programs that SWAM's bytes are compared with: casync, borg (its own chunker, and blocks of 4 KiB) and restic. What each
 * would have to transfer is by how much its store grows when an image comes to others that are stored already. Stores
 * are made once for each list of images and copied when the list goes on. Counted is what holds content and how it is put
 * together; not counted are indexes that a program makes for itself and could make anew.
 */
import { mkdir, readdir, rm, stat } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'
import { performance } from 'node:perf_hooks'
import { packageVersion, requirePrograms, runProgram, sha256OfOutput } from './program.ts'

export interface StoredImage {
  readonly name: string
  readonly path: string
}

export const BACKUP_TOOL_NAMES = ['casync', 'borg', 'borg4k', 'restic'] as const
export type BackupToolName = (typeof BACKUP_TOOL_NAMES)[number]

export interface BackupTool {
  readonly name: BackupToolName
  /** Makes an empty store in the folder, which is there and empty. */
  init(folder: string): Promise<void>
  /** Stores an image under its name. */
  store(folder: string, image: StoredImage): Promise<void>
  /** Of all that is stored and would have to be transferred. */
  storedBytes(folder: string): Promise<number>
  /** SHA-256 of an image that comes out of the store. */
  restoredSha256(folder: string, image: StoredImage): Promise<string>
}

export interface BackupFigure {
  /** By how much the store grew. */
  readonly bytes: number
  /** Of the image as it came out of the store again. */
  readonly sha256: string
  readonly storeSeconds: number
  readonly restoreSeconds: number
}

const PROGRAMS = [
  ['casync', 'casync'],
  ['borg', 'borgbackup'],
  ['restic', 'restic'],
] as const

/** The Debian versions of the programs; throws, with what installs them, when some are missing. */
export async function backupToolVersions(): Promise<Readonly<Record<string, string>>> {
  requirePrograms(PROGRAMS)
  const versions: Record<string, string> = {}
  for (const [program, debianPackage] of PROGRAMS) versions[program] = await packageVersion(debianPackage)
  return versions
}

export const BACKUP_TOOLS: readonly BackupTool[] = [
  casync(),
  borg('borg', []),
  borg('borg4k', ['--chunker-params', 'fixed,4096']),
  restic(),
]

interface Store {
  readonly folder: string
  /** By how much it grew with its last image. */
  readonly grownBytes: number
  readonly seconds: number
}

/** The stores of one tool, below a folder that is there. */
export class BackupStores {
  readonly #tool: BackupTool
  readonly #folder: string
  readonly #made = new Map<string, Promise<Store>>()

  constructor(tool: BackupTool, folder: string) {
    this.#tool = tool
    this.#folder = folder
  }

  /** What storing `target` costs where `have` is stored. Rejects when a program fails. */
  async measure(have: readonly StoredImage[], target: StoredImage): Promise<BackupFigure> {
    const { folder, grownBytes, seconds } = await this.#with([...have, target])
    const started = performance.now()
    const sha256 = await this.#tool.restoredSha256(folder, target)
    return { bytes: grownBytes, sha256, storeSeconds: seconds, restoreSeconds: secondsSince(started) }
  }

  #with(images: readonly StoredImage[]): Promise<Store> {
    const name = images.map((image) => image.name).join('+')
    const made = this.#made.get(name) ?? this.#make(images, join(this.#folder, name === '' ? 'empty' : name))
    this.#made.set(name, made)
    return made
  }

  async #make(images: readonly StoredImage[], folder: string): Promise<Store> {
    const image = images.at(-1)
    if (image === undefined) {
      await mkdir(folder)
      await this.#tool.init(folder)
      return { folder, grownBytes: 0, seconds: 0 }
    }
    const before = await this.#with(images.slice(0, -1))
    await runProgram('cp', ['-a', '--reflink=auto', before.folder, folder])
    const bytesBefore = await this.#tool.storedBytes(folder)
    const started = performance.now()
    await this.#tool.store(folder, image)
    const seconds = secondsSince(started)
    return { folder, grownBytes: (await this.#tool.storedBytes(folder)) - bytesBefore, seconds }
  }
}

function secondsSince(started: number): number {
  return Math.round((performance.now() - started) / 100) / 10
}

/** Its own compression (zstd) and chunks (64 KiB on average). The lists of chunks (`.caibx`) are left out, in casync's favour. */
function casync(): BackupTool {
  const storeOf = (folder: string): string => join(folder, 'store.castr')
  const indexOf = (folder: string, image: StoredImage): string => join(folder, `${image.name}.caibx`)
  return {
    name: 'casync',
    init: async (folder) => await mkdir(storeOf(folder)),
    store: async (folder, image) => {
      await runProgram('casync', ['make', `--store=${storeOf(folder)}`, indexOf(folder, image), image.path])
    },
    storedBytes: async (folder) => await bytesBelow(storeOf(folder)),
    restoredSha256: async (folder, image) => {
      const restored = join(folder, 'restored.raw')
      const store = `--store=${storeOf(folder)}`
      await runProgram('casync', ['extract', store, indexOf(folder, image), restored])
      const sha256 = await sha256OfOutput('cat', [restored])
      await rm(restored)
      return sha256
    },
  }
}

/** Of the repository only `data/` counts: segments with chunks, lists of chunks and the manifest. */
function borg(name: BackupToolName, chunker: readonly string[]): BackupTool {
  const repositoryOf = (folder: string): string => join(folder, 'repository')
  const archiveOf = (folder: string, image: StoredImage): string => `${repositoryOf(folder)}::${image.name}`
  // A store that was copied is a repository that moved, to borg.
  const options = (folder: string) => ({
    env: {
      BORG_BASE_DIR: join(folder, 'home'),
      BORG_RELOCATED_REPO_ACCESS_IS_OK: 'yes',
      BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK: 'yes',
    },
  })
  return {
    name,
    init: async (folder) => {
      await mkdir(join(folder, 'home'))
      await runProgram('borg', ['init', '--encryption', 'none', repositoryOf(folder)], options(folder))
    },
    store: async (folder, image) => {
      const words = ['create', '--compression', 'zstd,3', ...chunker, archiveOf(folder, image), image.path]
      await runProgram('borg', words, options(folder))
    },
    storedBytes: async (folder) => await bytesBelow(join(repositoryOf(folder), 'data')),
    restoredSha256: async (folder, image) =>
      await sha256OfOutput('borg', ['extract', '--stdout', archiveOf(folder, image)], options(folder)),
  }
}

/** Compression `auto`, as its repositories of version 2 have it. Of the repository all but locks and keys counts. */
function restic(): BackupTool {
  const options = (folder: string) => ({
    env: {
      RESTIC_REPOSITORY: join(folder, 'repository'),
      RESTIC_CACHE_DIR: join(folder, 'cache'),
      RESTIC_PASSWORD: 'bench',
      RESTIC_COMPRESSION: 'auto',
    },
  })
  return {
    name: 'restic',
    init: async (folder) => {
      await runProgram('restic', ['init', '--repository-version', '2'], options(folder))
    },
    // It takes a path relative to where it runs as one below `/` of its snapshot.
    store: async (folder, image) => {
      const words = ['backup', '--quiet', '--tag', image.name, basename(image.path)]
      await runProgram('restic', words, { ...options(folder), cwd: dirname(image.path) })
    },
    storedBytes: async (folder) => {
      let bytes = 0
      for (const part of ['data', 'index', 'snapshots'])
        bytes += await bytesBelow(join(folder, 'repository', part))
      return bytes
    },
    restoredSha256: async (folder, image) => {
      const words = ['dump', '--tag', image.name, 'latest', `/${basename(image.path)}`]
      return await sha256OfOutput('restic', words, options(folder))
    },
  }
}

/** Sum of the sizes of all files below a folder; of folders nothing. */
async function bytesBelow(folder: string): Promise<number> {
  let bytes = 0
  for (const entry of await readdir(folder, { recursive: true, withFileTypes: true })) {
    if (entry.isFile()) bytes += (await stat(join(entry.parentPath, entry.name))).size
  }
  return bytes
}
