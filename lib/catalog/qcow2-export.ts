/**
 * A qcow2 image as an extent source: QEMU's own qemu-nbd exports the chain read-only on a socket in a private folder, and our NBD
 * client reads it. The process dies with its connection and with us (`readingCommand`). The folder goes as soon as the
 * connection stands. Images in use by a QEMU may be read (force-share), but what is then seen of them is neither new nor
 * whole: the caller is told if a file changed.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtemp, rm } from 'node:fs/promises'
import { connect, type Socket } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import type { BlockDevice } from '../block/device.ts'
import { readBytes } from '../block/read-bytes.ts'
import { errorText, LostError, RefusedError } from '../core/errors.ts'
import {
  COMMAND_STDERR_BYTES_MAX,
  EXPORT_ASK_MS,
  EXPORT_END_MS,
  EXPORT_START_MS,
  NBD_RANGE_BYTES_MAX,
} from '../core/limits.ts'
import { quietEnvironment } from '../host/command.ts'
import { readingCommand } from '../host/qemu-tools.ts'
import { negotiateNbd } from '../nbd/client.ts'
import {
  type BackingChain,
  type ChainFile,
  type ChainRules,
  type FileBeneath,
  jsonName,
  openChain,
} from './backing-chain.ts'
import { type DataExtent, MapBuilder } from './data-extents.ts'
import type { ExtentSource } from './extent-source.ts'
import type { ImageIdentity } from './image-files.ts'
import { sharedParts } from './shared-parts.ts'

/** qemu-nbd while it runs, and the first words of its standard error. */
class Exporter {
  readonly #child: ChildProcess
  readonly gone: Promise<void>
  ended = false
  #stderr = ''

  constructor(argv: readonly string[], descriptors: readonly number[]) {
    const child = spawn(argv[0]!, argv.slice(1), {
      stdio: ['ignore', 'ignore', 'pipe', ...descriptors],
      env: quietEnvironment(),
    })
    this.#child = child
    child.stderr!.on('data', (piece: Buffer) => {
      this.#stderr += piece.toString('utf8', 0, COMMAND_STDERR_BYTES_MAX - this.#stderr.length)
    })
    this.gone = new Promise((resolve) => {
      const end = (text: string): void => {
        this.#stderr ||= text
        this.ended = true
        resolve()
      }
      child.once('error', (error) => end(error.message))
      child.once('close', (code, signal) => end(`it ended with ${code ?? signal}`))
    })
  }

  /** Its reason, in one line, without the long name that we gave it. */
  get reason(): string {
    const reason = /.*':\s*(.+)/s.exec(this.#stderr)?.[1] ?? this.#stderr
    return reason.trim().replaceAll(/\s+/g, ' ')
  }

  async end(): Promise<void> {
    if (!this.ended) this.#child.kill('SIGKILL')
    await this.gone
  }
}

export interface Qcow2ExportOptions {
  readonly signal?: AbortSignal
  /** Hears of an export that ends before it is closed: what reads it then finds nothing, and must not be believed. */
  readonly onLost: (error: Error) => void
  /** From the start of QEMU's process to its socket, and from there to its greeting. */
  readonly startMs?: number
  /** How long its end is waited for, for the reason, when its connection broke. */
  readonly endMs?: number
}

export class Qcow2Export implements ExtentSource {
  readonly path: string
  readonly #device: BlockDevice
  readonly #chain: BackingChain
  readonly #exporter: Exporter
  readonly #endMs: number
  #closed: Promise<void> | undefined

  /** Rejects as `openChain` does, or with a RefusedError if QEMU cannot export the image. */
  static async open<Name extends ChainFile>(
    name: Name,
    rules: ChainRules<Name>,
    options: Qcow2ExportOptions,
  ): Promise<Qcow2Export> {
    const chain = await openChain(name, rules, options.signal)
    try {
      const { exporter, device } = await exportChain(name.path, chain, options)
      const source = new Qcow2Export(name.path, chain, exporter, device, options.endMs ?? EXPORT_END_MS)
      void exporter.gone.then(() => {
        if (source.#closed === undefined) {
          options.onLost(new RefusedError(`${name.path}: its export by qemu-nbd ended: ${exporter.reason}`))
        }
      })
      return source
    } catch (error) {
      for (const file of chain.files) await file.close()
      throw error
    }
  }

  private constructor(
    path: string,
    chain: BackingChain,
    exporter: Exporter,
    device: BlockDevice,
    endMs: number,
  ) {
    this.path = path
    this.#chain = chain
    this.#exporter = exporter
    this.#device = device
    this.#endMs = endMs
  }

  get size(): number {
    return this.#device.size
  }

  /** Of its own file, not of what it stands on, which must not change at all. */
  get identity(): ImageIdentity {
    return this.#chain.files[0]!.identity
  }

  /** What its files take on their file systems. */
  get allocatedBytes(): number {
    return this.#chain.files.reduce((sum, { allocatedBytes }) => sum + allocatedBytes, 0)
  }

  /** What it stands on, the nearest first. */
  get beneath(): readonly FileBeneath[] {
    const { files, formats } = this.#chain
    return files
      .slice(1)
      .map(({ path, identity }, index) => ({ path, identity, format: formats[index + 1]! }))
  }

  /** What reads as that one of them does at the same place; none, where that cannot be known. */
  sharedWith(level: number, signal?: AbortSignal): Promise<DataExtent[]> {
    return sharedParts(this.#chain, level + 1, signal)
  }

  async extents(signal?: AbortSignal): Promise<DataExtent[]> {
    const map = new MapBuilder(this.size)
    for (let at = 0; at < this.size; ) {
      signal?.throwIfAborted()
      const length = Math.min(NBD_RANGE_BYTES_MAX, this.size - at)
      const status = await this.#ask(`map ${length} bytes at ${at}`, this.#device.blockStatus(at, length))
      for (const extent of status) {
        map.add(extent.length, extent.zero)
        at += extent.length
      }
    }
    return map.extents
  }

  async read(offset: number, length: number): Promise<Buffer> {
    return await this.#ask(`read ${length} bytes at ${offset}`, readBytes(this.#device, offset, length))
  }

  async readInto(target: Uint8Array, offset: number): Promise<number> {
    const length = Math.min(target.length, this.size - offset)
    if (length > 0) target.set(await this.read(offset, length))
    return Math.max(0, length)
  }

  /** Says what was asked of which image. That the process ended is a better reason than what its connection says of it. */
  async #ask<Answer>(what: string, answer: Promise<Answer>): Promise<Answer> {
    try {
      return await answer
    } catch (error) {
      if (error instanceof LostError) await Promise.race([this.#exporter.gone, sleep(this.#endMs)])
      const reason = this.#exporter.ended ? `qemu-nbd ended: ${this.#exporter.reason}` : errorText(error)
      throw new RefusedError(`${this.path}: ${what}: ${reason}`, { cause: error })
    }
  }

  async isStale(): Promise<boolean> {
    for (const file of this.#chain.files) if (await file.isStale()) return true
    return false
  }

  close(): Promise<void> {
    this.#closed ??= (async () => {
      await this.#device.close()
      await this.#exporter.end()
      for (const file of this.#chain.files) await file.close()
    })()
    return this.#closed
  }
}

async function exportChain(
  path: string,
  chain: BackingChain,
  { signal, startMs = EXPORT_START_MS }: Qcow2ExportOptions,
): Promise<{ exporter: Exporter; device: BlockDevice }> {
  const folder = await mkdtemp(join(tmpdir(), 'swam-export-'))
  const socket = join(folder, 'nbd')
  let exporter: Exporter | undefined
  try {
    exporter = new Exporter(
      exportCommand(socket, chain),
      chain.files.map(({ fd }) => fd),
    )
    const connection = await dial(path, socket, exporter, startMs, signal)
    return { exporter, device: await greeted(path, connection, startMs, signal) }
  } catch (error) {
    await exporter?.end()
    signal?.throwIfAborted()
    throw error instanceof RefusedError
      ? error
      : new RefusedError(`${path}: cannot be exported by qemu-nbd: ${errorText(error)}`, { cause: error })
  } finally {
    await rm(folder, { recursive: true, force: true })
  }
}

/** The socket stands before the image is open: a file that hangs is noticed here. */
async function greeted(
  path: string,
  connection: Socket,
  startMs: number,
  signal: AbortSignal | undefined,
): Promise<BlockDevice> {
  const late = new RefusedError(`${path}: qemu-nbd does not answer within ${startMs} ms`)
  const end = (): void => void connection.destroy(late)
  const timer = setTimeout(end, startMs)
  signal?.addEventListener('abort', end, { once: true })
  try {
    const negotiation = await negotiateNbd(connection)
    return await negotiation.go('')
  } finally {
    clearTimeout(timer)
    signal?.removeEventListener('abort', end)
  }
}

function exportCommand(socket: string, chain: BackingChain): string[] {
  const words = ['--read-only', '--shared=1', `--socket=${socket}`, jsonName(chain.node)]
  return readingCommand(['qemu-nbd', ...words])
}

async function dial(
  path: string,
  socketPath: string,
  exporter: Exporter,
  startMs: number,
  signal: AbortSignal | undefined,
): Promise<Socket> {
  const deadline = performance.now() + startMs
  for (;;) {
    signal?.throwIfAborted()
    if (exporter.ended)
      throw new RefusedError(`${path}: not readable as a qcow2: qemu-nbd: ${exporter.reason}`)
    if (performance.now() > deadline) {
      throw new RefusedError(`${path}: qemu-nbd has no socket after ${startMs} ms: ${exporter.reason}`)
    }
    const socket = connect(socketPath)
    try {
      await once(socket, 'connect')
      return socket
    } catch {
      socket.destroy()
      await sleep(EXPORT_ASK_MS)
    }
  }
}
