/**
 * The lab's Debian images: base.raw, guest.raw (a clone of the base that lived on), kernel and initrd, built once into
 * a cache that is keyed by a digest of the recipe. The building itself is recipe.sh, in namespaces of its own, so that
 * an interrupted build leaves no mount, no loop device and no half image under the final name.
 * The mirror is the machine's own: whatever its apt sources say. How much of the guest the base lacks is counted here,
 * by code that shares nothing with SWAM.
 */
import { spawn } from 'node:child_process'
import { createHash } from 'node:crypto'
import { existsSync } from 'node:fs'
import { mkdir, open, readdir, readFile, stat, writeFile } from 'node:fs/promises'
import { basename, dirname, join } from 'node:path'

const RELEASE = 'bookworm'
const BLOCK = 4096

export interface ImageShare {
  /** Non-zero 4 KiB blocks of the guest's disk. */
  readonly guestBlocks: number
  /** Those of them whose content is nowhere in the base. */
  readonly missingBlocks: number
  readonly baseBlocks: number
  readonly missingShare: number
}

export interface DebianImages extends ImageShare {
  readonly directory: string
  readonly base: string
  readonly guest: string
  readonly kernel: string
  readonly initrd: string
}

export async function debianImages(cache = '/var/tmp/swam-lab-cache'): Promise<DebianImages> {
  const directory = join(cache, `debian-${await recipeDigest()}`)
  if (!existsSync(directory)) {
    const recipe = join(import.meta.dirname, 'recipe.sh')
    await buildDirectory(directory, recipe, [await debianMirror(RELEASE, await ownRelease()), RELEASE])
  }
  const images = {
    directory,
    base: join(directory, 'base.raw'),
    guest: join(directory, 'guest.raw'),
    kernel: join(directory, 'vmlinuz'),
    initrd: join(directory, 'initrd.img'),
  }
  for (const path of [images.base, images.guest, images.kernel, images.initrd]) await stat(path)
  const file = join(directory, 'share.json')
  if (!existsSync(file)) await writeFile(file, JSON.stringify(await compareImages(images.base, images.guest)))
  return { ...images, ...(JSON.parse(await readFile(file, 'utf8')) as ImageShare) }
}

/** Counts the blocks of `guest` that `base` has nowhere: hash everything, look everything up. */
export async function compareImages(base: string, guest: string): Promise<ImageShare> {
  const known = new Set<string>()
  let baseBlocks = 0
  for await (const digest of blockDigests(base)) {
    baseBlocks += 1
    known.add(digest)
  }
  let guestBlocks = 0
  let missingBlocks = 0
  for await (const digest of blockDigests(guest)) {
    guestBlocks += 1
    if (!known.has(digest)) missingBlocks += 1
  }
  return { guestBlocks, missingBlocks, baseBlocks, missingShare: missingBlocks / guestBlocks }
}

async function* blockDigests(path: string): AsyncGenerator<string> {
  const zero = Buffer.alloc(BLOCK)
  const buffer = Buffer.alloc(1 << 20)
  await using file = await open(path)
  for (let offset = 0; ; ) {
    const { bytesRead } = await file.read(buffer, 0, buffer.length, offset)
    if (bytesRead === 0) return
    for (let at = 0; at + BLOCK <= bytesRead; at += BLOCK) {
      const block = buffer.subarray(at, at + BLOCK)
      if (!block.equals(zero)) yield createHash('sha256').update(block).digest('base64')
    }
    offset += bytesRead
  }
}

async function recipeDigest(): Promise<string> {
  const names = (await readdir(import.meta.dirname)).filter((name) => /\.(sh|pl|py|service)$/.test(name))
  return await digestOfFiles(
    RELEASE,
    names.toSorted().map((name) => join(import.meta.dirname, name)),
  )
}

/** 16 hex digits that change when a file's content or the settings do. */
export async function digestOfFiles(settings: string, paths: readonly string[]): Promise<string> {
  const hash = createHash('sha256').update(settings)
  for (const path of paths) hash.update(basename(path)).update(await readFile(path))
  return hash.digest('hex').slice(0, 16)
}

/**
 * Makes a directory that is not there yet, by `recipe DIRECTORY.part ARG…` in mount and pid namespaces of its own, and
 * under its final name only when the recipe is done. The recipe finds apt's settings of this machine in APT_CONF and CA_BUNDLE.
 * Rejects when the recipe fails; its stderr is passed on.
 */
export async function buildDirectory(
  directory: string,
  recipe: string,
  args: readonly string[],
): Promise<void> {
  const cache = dirname(directory)
  await mkdir(cache, { recursive: true })
  const settings = await run('apt-config', ['dump'])
  const aptConf = join(cache, 'apt.conf')
  await writeFile(
    aptConf,
    `${settings
      .split('\n')
      .filter((line) => /^Acquire::(https?|Check-|Retries)/.test(line) && !line.includes('""'))
      .join('\n')}\n`,
  )
  const proxy = /^Acquire::http::Proxy "([^"]+)"/m.exec(settings)?.[1]
  // Whoever holds the lock builds; whoever waited for it finds the work done. If this process is killed, so is all below it.
  const script = `
    set -eu
    directory=$1 recipe=$2
    shift 2
    [ ! -d "$directory" ] || exit 0
    rm -rf "\${directory%-*}"-*.part
    mkdir "$directory.part"
    setpriv --pdeathsig KILL \\
      unshare --mount --propagation private --pid --fork --kill-child --mount-proc "$recipe" "$directory.part" "$@"
    mv "$directory.part" "$directory"`
  const locked = ['--pdeathsig', 'KILL', 'flock', '--no-fork', join(cache, 'lock')]
  await run('setpriv', [...locked, 'sh', '-c', script, 'build', directory, recipe, ...args], {
    APT_CONF: aptConf,
    CA_BUNDLE: '/etc/ssl/certs/ca-certificates.crt',
    ...(proxy !== undefined && process.env['http_proxy'] === undefined ? { http_proxy: proxy } : {}),
  })
}

/**
 * The first Debian archive in the machine's apt sources for one of the suites, deb822 or one-line: apt itself reads them.
 * Throws when there is none, also after an update.
 */
export async function debianMirror(...suites: readonly string[]): Promise<string> {
  for (const update of [false, true]) {
    if (update) await run('apt-get', ['update', '-q'])
    const format = '$(RELEASE) $(COMPONENT) $(REPO_URI)'
    const targets = await run('apt-get', ['indextargets', '--format', format, 'Created-By: Packages'])
    for (const wanted of suites) {
      for (const line of targets.split('\n')) {
        const [suite, component, uri] = line.split(' ')
        if (suite === wanted && component === 'main' && uri !== undefined) return uri
      }
    }
  }
  throw new Error(`apt sources: expected an entry for Debian ${suites.join(' or ')} main, found none`)
}

/** The code name of this machine's own release. */
async function ownRelease(): Promise<string> {
  return /^VERSION_CODENAME=(.*)$/m.exec(await readFile('/etc/os-release', 'utf8'))?.[1] ?? RELEASE
}

function run(command: string, args: readonly string[], env: Record<string, string> = {}): Promise<string> {
  return new Promise((resolve, reject) => {
    const child = spawn(command, args, {
      env: { ...process.env, ...env },
      stdio: ['ignore', 'pipe', 'inherit'],
    })
    const parts: Buffer[] = []
    child.stdout.on('data', (part: Buffer) => parts.push(part))
    child.on('error', reject)
    child.on('close', (code, signal) => {
      if (code === 0) resolve(Buffer.concat(parts).toString())
      else reject(new Error(`${command} ${args[0] ?? ''}: expected exit 0, got ${code ?? signal}`))
    })
  })
}

if (import.meta.main) {
  const started = Date.now()
  const images = await debianImages()
  const percent = (images.missingShare * 100).toFixed(1)
  console.log(`${images.directory} (${((Date.now() - started) / 1000).toFixed(0)} s)`)
  console.log(
    `guest: ${images.guestBlocks} non-zero 4 KiB blocks (${(images.guestBlocks * BLOCK) / 1e6} MB), ` +
      `base: ${images.baseBlocks}; ${images.missingBlocks} of the guest's (${percent}%) are not in the base`,
  )
}
