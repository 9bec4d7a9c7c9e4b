/**
 * The images of this host, each with its format: what libvirt's XML of a guest says of its disks and what they stand on, then what
 * root's config calls a qcow2, else raw. Where one guest has it as raw it is raw: the bytes are that guest's to write, and may look
 * like anything. Nothing is probed, and libvirt's own probing (storage volumes) is not asked.
 * Guests are asked for in the background; a list takes what was known last.
 */
import { realpath } from 'node:fs/promises'
import { dirname } from 'node:path'
import { type ImageFile, listImages } from '../lib/catalog/image-files.ts'
import type { Log } from '../lib/core/log.ts'
import type { ImageFormatEntry } from '../lib/host/domain-xml.ts'

export interface ImageListOptions {
  /** Directories of images. */
  readonly images: readonly string[]
  /** Files, or directories in which `*.qcow2` are such. */
  readonly qcow2: readonly string[]
  /** What the guests of this host, running or not, have as disks. */
  readonly formats: () => Promise<readonly ImageFormatEntry[]>
  readonly log: Log
}

export class ImageList {
  readonly #options: ImageListOptions
  #raw: ReadonlySet<string> = new Set()
  #qcow2: ReadonlySet<string> = new Set()

  constructor(options: ImageListOptions) {
    this.#options = options
  }

  /** Asks libvirt anew; what it does not tell stays as it was. Never rejects. */
  async ask(): Promise<void> {
    try {
      const raw = new Set<string>()
      const qcow2 = new Set<string>()
      for (const { path, format } of await this.#options.formats()) {
        const real = await realpath(path).catch(() => path)
        if (format === 'qcow2') qcow2.add(real)
        else raw.add(real)
      }
      this.#raw = raw
      this.#qcow2 = qcow2
    } catch (error) {
      this.#options.log.debug({ error }, 'the formats of images are not known from libvirt')
    }
  }

  /** Whether a guest of this host had it as raw, when libvirt was asked last: then it is raw for everybody. @param path without links */
  isRaw(path: string): boolean {
    return this.#raw.has(path)
  }

  async list(): Promise<ImageFile[]> {
    const named = new Set<string>()
    for (const path of this.#options.qcow2) named.add(await realpath(path).catch(() => path))
    const files = await listImages(this.#options.images)
    return files.map((file) => {
      const { path } = file
      const said = named.has(path) || (path.endsWith('.qcow2') && named.has(dirname(path)))
      const isQcow2 = !this.#raw.has(path) && (this.#qcow2.has(path) || said)
      return isQcow2 ? { ...file, format: 'qcow2' } : file
    })
  }
}
