/**
 * Where a sparse image holds data, so that its holes need not be read: reading them costs time and fills the page
 * cache with zeroes. Node has no SEEK_HOLE; `qemu-img map`, which is on every host with libvirt, has. It gets our
 * open file, told to take it as raw, without locking. Whatever goes wrong, the answer is "all of it": this is an
 * optimisation, and holes read as zeroes.
 */
import { spawn } from 'node:child_process'
import { IMAGE_MAP_BYTES_MAX, IMAGE_MAP_DEADLINE_MS } from '../core/limits.ts'
import { alignDown, alignUp, BLOCK_BYTES, MIB } from '../core/units.ts'

export interface DataExtent {
  readonly offset: number
  readonly end: number
}

/** An open image file. */
export interface MappedFile {
  readonly fd: number
  readonly size: number
  /** What it takes on its file system. */
  readonly allocatedBytes: number
}

/** Below this there is little to gain. */
const HOLE_BYTES_MIN = 64 * MIB
/** Shorter holes are read: a read costs more than they do. */
const GAP_BYTES_MIN = MIB

/** The parts of the image that may hold data: block-aligned, in order, with holes of 1 MiB and more between them. */
export async function dataExtents(
  source: MappedFile,
  signal?: AbortSignal,
  deadlineMs: number = IMAGE_MAP_DEADLINE_MS,
): Promise<DataExtent[]> {
  const { size } = source
  const all = size > 0 ? [{ offset: 0, end: size }] : []
  if (size - source.allocatedBytes < HOLE_BYTES_MIN) return all
  const output = await runQemuImgMap(source.fd, deadlineMs, signal)
  return (output === undefined ? undefined : parseMap(output, size)) ?? all
}

/** Exported for its test. Undefined if `output` is not a map that covers `size` bytes without gaps. */
export function parseMap(output: string, size: number): DataExtent[] | undefined {
  let entries: unknown
  try {
    entries = JSON.parse(output)
  } catch {
    return undefined
  }
  if (!Array.isArray(entries)) return undefined
  const map = new MapBuilder(size)
  for (const entry of entries as { start?: unknown; length?: unknown; zero?: unknown }[]) {
    const { start, length, zero } = entry ?? {}
    if (start !== map.covered || typeof length !== 'number' || !Number.isSafeInteger(length) || length < 1)
      return undefined
    map.add(length, zero === true)
  }
  // qemu-img counts in sectors of 512 bytes.
  return map.covered >= size && map.covered < size + 512 ? map.extents : undefined
}

/** Puts a map together from neighbouring parts: whole blocks, and short holes closed. */
export class MapBuilder {
  readonly #size: number
  readonly extents: { offset: number; end: number }[] = []
  /** How far the parts reach. */
  covered = 0

  constructor(size: number) {
    this.#size = size
  }

  /** The next part, which reads as zero, or not. */
  add(length: number, zero: boolean): void {
    const start = this.covered
    this.covered += length
    if (zero) return
    const offset = alignDown(start, BLOCK_BYTES)
    const end = Math.min(this.#size, alignUp(this.covered, BLOCK_BYTES))
    const last = this.extents.at(-1)
    if (last !== undefined && offset - last.end < GAP_BYTES_MIN) last.end = end
    else if (offset < end) this.extents.push({ offset, end })
  }
}

function runQemuImgMap(
  fd: number,
  deadlineMs: number,
  signal: AbortSignal | undefined,
): Promise<string | undefined> {
  const options = 'driver=raw,file.driver=file,file.locking=off,file.filename=/dev/fd/3'
  return new Promise((resolve) => {
    const child = spawn('qemu-img', ['map', '--output=json', '--image-opts', options], {
      stdio: ['ignore', 'pipe', 'ignore', fd],
      timeout: deadlineMs,
      killSignal: 'SIGKILL',
      ...(signal === undefined ? {} : { signal }),
    })
    const parts: Buffer[] = []
    let bytes = 0
    // The fourth stdio entry hides from the types that the second is a pipe.
    child.stdout?.on('data', (part: Buffer) => {
      bytes += part.length
      if (bytes > IMAGE_MAP_BYTES_MAX) child.kill('SIGKILL')
      else parts.push(part)
    })
    child.on('error', () => resolve(undefined))
    child.on('close', (code) => resolve(code === 0 ? Buffer.concat(parts).toString('utf8') : undefined))
  })
}
