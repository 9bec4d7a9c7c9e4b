/**
 * An image of this host as the catalog reads it: a raw file by itself, a qcow2 through QEMU's own export. What a qcow2 stands on must
 * lie directly in one of `directories`, and its header must say what that is: nothing is probed, because a guest can write a
 * qcow2 header into its raw disk. Who says that an image is a qcow2 is libvirt or the config, never its bytes.
 */
import { dirname } from 'node:path'
import { RefusedError } from '../core/errors.ts'
import type { ChainFile, ChainRules, FileBeneath } from './backing-chain.ts'
import type { DataExtent } from './data-extents.ts'
import type { ExtentSource } from './extent-source.ts'
import { type ImageIdentity, ImageSource } from './image-files.ts'
import { Qcow2Export } from './qcow2-export.ts'

export interface OpenImage extends ExtentSource {
  /** Of its own file. */
  readonly identity: ImageIdentity
  readonly allocatedBytes: number
  /** Of a qcow2: the files that it stands on, the nearest first. */
  readonly beneath?: readonly FileBeneath[]
  /** The parts that read as number `index` of them does at the same place: in order, apart; none, where that cannot be known. */
  sharedWith?(index: number, signal?: AbortSignal): Promise<DataExtent[]>
}

export interface ImageRef extends ChainFile {
  /** Without symbolic links. */
  readonly directories: readonly string[]
}

/** Rejects as ImageSource.open and Qcow2Export.open do. `onLost` hears of an export that ends by itself. */
export async function openImage(
  image: ImageRef,
  options: { readonly signal?: AbortSignal; readonly onLost: (error: Error) => void },
): Promise<OpenImage> {
  if (image.format === 'raw') return await ImageSource.open(image.path)
  return await Qcow2Export.open(image, rules(image.directories), options)
}

function rules(directories: readonly string[]): ChainRules<ChainFile> {
  return {
    open: ({ path }) => ImageSource.open(path),
    backing: async ({ path }, wanted, format) => {
      if (!directories.includes(dirname(wanted)))
        throw new RefusedError(`${path}: it stands on ${wanted}, which lies in no directory of images`)
      if (format !== 'raw' && format !== 'qcow2') {
        const found = format === undefined ? 'none' : JSON.stringify(format)
        throw new RefusedError(`${path}: expected raw or qcow2 as the format of ${wanted}, found ${found}`)
      }
      return { path: wanted, format }
    },
  }
}
