/**
 * Cuts a run of bytes into content-defined chunks by Rabin fingerprint (assembly/rabin.ts holds the loop and its
 * derivation, rabin-plain.ts a slow readable twin). The run is copied piece by piece into the WebAssembly memory, so a
 * run may be of any length and may lie on a SharedArrayBuffer. Every call begins with a fresh state: equal runs give
 * equal cuts. Where the cuts fall is part of the wire protocol; test/unit/chunk/rabin.test.ts holds a golden table.
 * It does not look for zeroes and computes no digests: chunker.ts does.
 */
import { readFileSync } from 'node:fs'
import { CHUNK_BYTES_MAX, CHUNK_BYTES_MIN } from '../core/limits.ts'

/** The average of the geometric part: a cut where the low 16 bits of the fingerprint are zero. */
export const CHUNK_MASK_BITS: number = 16
export const RABIN_WINDOW_BYTES: number = 48

interface RabinExports {
  readonly memory: { readonly buffer: ArrayBuffer }
  input(): number
  inputBytes(): number
  nextCut(start: number, length: number, minimum: number, maximum: number): number
}

/** `bytes` is a view of the cutter's own memory: it holds until the visitor returns. */
export type ChunkVisitor = (offset: number, length: number, bytes: Uint8Array) => void

/** The little of WebAssembly that is used here; its types come with the DOM only, which this project leaves out. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object
  readonly Instance: new (module: object, imports: object) => { readonly exports: unknown }
}

let compiled: object | undefined

function compiledModule(): object {
  compiled ??= new WebAssembly.Module(readFileSync(new URL('./rabin.wasm', import.meta.url)))
  return compiled
}

export class RabinCutter {
  readonly #nextCut: RabinExports['nextCut']
  readonly #inputAddress: number
  readonly #input: Uint8Array

  constructor() {
    const exports = new WebAssembly.Instance(compiledModule(), {}).exports as RabinExports
    this.#nextCut = exports.nextCut
    this.#inputAddress = exports.input()
    // The module never grows its memory, so this view holds for ever.
    this.#input = new Uint8Array(exports.memory.buffer, this.#inputAddress, exports.inputBytes())
  }

  /** Visits the chunks of `run` in order; they are contiguous and cover it. */
  cut(run: Uint8Array, visit: ChunkVisitor): void {
    const input = this.#input
    // The part of the run that lies in the WebAssembly memory.
    let loadedFrom = 0
    let loadedTo = 0
    let offset = 0
    while (offset < run.length) {
      if (loadedTo - offset < CHUNK_BYTES_MAX && loadedTo < run.length) {
        loadedFrom = offset
        loadedTo = Math.min(run.length, offset + input.length)
        input.set(run.subarray(loadedFrom, loadedTo))
      }
      const at = offset - loadedFrom
      const length = this.#nextCut(
        this.#inputAddress + at,
        loadedTo - offset,
        CHUNK_BYTES_MIN,
        CHUNK_BYTES_MAX,
      )
      visit(offset, length, input.subarray(at, at + length))
      offset += length
    }
  }

  /** The lengths of the chunks of `run`. */
  lengths(run: Uint8Array): number[] {
    const lengths: number[] = []
    this.cut(run, (_offset, length) => {
      lengths.push(length)
    })
    return lengths
  }
}
