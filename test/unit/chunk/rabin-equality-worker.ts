/**
 * One thread of rabin-equality.test.ts: takes the names of runs, cuts each with both programs, and with ours once
 * more after one byte was put in front.
 */
import { parentPort, workerData } from 'node:worker_threads'
import { RabinCutter } from '../../../lib/chunk/rabin.ts'
import { MIB } from '../../../lib/core/units.ts'
import { referenceChunkLengths } from './rabin-reference.ts'
import { patchyBytes, programBytes, randomBytes, repeatedBytes, textBytes, treeBytes } from './samples.ts'

const RUN_BYTES = 64 * MIB

export const RUNS: Readonly<Record<string, () => Buffer>> = {
  'random 1': () => randomBytes(RUN_BYTES, 1),
  'text 1': () => textBytes(RUN_BYTES, 2),
  'program, first part': () => programBytes(RUN_BYTES, 0),
  'zero stretches 1': () => patchyBytes(RUN_BYTES, 3),
  'repeated, period 4096': () => repeatedBytes(RUN_BYTES, 4096, 4),
  'all zero': () => Buffer.alloc(RUN_BYTES),
  'files of a tree': () => treeBytes(RUN_BYTES),
  'random 2': () => randomBytes(RUN_BYTES, 5),
  'text 2': () => textBytes(RUN_BYTES, 6),
  'program, end': () => programBytes(RUN_BYTES - 12_345, 50 * MIB),
  'zero stretches 2': () => patchyBytes(RUN_BYTES, 7),
  'repeated, period 100003': () => repeatedBytes(RUN_BYTES, 100_003, 8),
  'repeated, period 3': () => repeatedBytes(RUN_BYTES, 3, 9),
  'random 3, odd length': () => randomBytes(RUN_BYTES - 1, 10),
  'text with zero stretches': () => {
    const bytes = textBytes(RUN_BYTES, 11)
    for (let at = MIB; at < bytes.length; at += 5 * MIB + 777)
      bytes.fill(0, at, Math.min(at + 3 * MIB, bytes.length))
    return bytes
  },
  'random between repetitions': () => {
    const bytes = repeatedBytes(RUN_BYTES, 70_000, 12)
    for (let at = 0; at < bytes.length; at += 3 * MIB) randomBytes(MIB, at).copy(bytes, at)
    return bytes
  },
}

export interface EqualityResult {
  readonly name: string
  readonly own: number[]
  readonly reference: number[]
  /** Share of the cuts that are found at the same content after one byte was put in front. */
  readonly survived: number
}

function cutPlaces(lengths: readonly number[], shift: number): Set<number> {
  const places = new Set<number>()
  let at = 0
  for (const length of lengths) {
    at += length
    places.add(at - shift)
  }
  return places
}

if (parentPort !== null) {
  const cutter = new RabinCutter()
  for (const name of workerData as string[]) {
    const bytes = RUNS[name]!()
    const own = cutter.lengths(bytes)
    const shifted = Buffer.concat([Buffer.from([0xa5]), bytes])
    const places = cutPlaces(own, 0)
    const shiftedPlaces = cutPlaces(cutter.lengths(shifted), 1)
    const survived = [...places].filter((place) => shiftedPlaces.has(place)).length / places.size
    const result: EqualityResult = { name, own, reference: await referenceChunkLengths(bytes), survived }
    parentPort.postMessage(result)
  }
}
