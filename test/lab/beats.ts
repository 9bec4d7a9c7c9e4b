/**
 * Heartbeats of a guest as the lab's own clock saw them, and the downtime that they show.
 * The samples are written by the process `beats` (beats.c) and only ever appended; this reads them.
 */
import { readFile } from 'node:fs/promises'

export interface Beat {
  readonly host: string
  /** The guest's counter: starts at 1 when it boots. */
  readonly n: number
  /** Arrival on the lab's clock (`monotonicMs`). */
  readonly atMs: number
  /** The same moment as wall clock. */
  readonly epochMs: number
}

export interface Gap {
  readonly ms: number
  readonly fromMs: number
  /** Counter before and after; a migration that loses no time of the guest has them adjacent. */
  readonly before: number
  readonly after: number
}

export async function readBeats(file: string): Promise<Beat[]> {
  let text: string
  try {
    text = await readFile(file, 'latin1')
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return []
    throw error
  }
  const beats: Beat[] = []
  for (const line of text.split('\n')) {
    const [host, n, mono, real] = line.split(' ')
    if (host === undefined || real === undefined) continue // the last line is still being written
    beats.push({ host, n: Number(n), atMs: Number(mono) / 1000, epochMs: Number(real) / 1000 })
  }
  beats.sort((x, y) => x.atMs - y.atMs)
  return beats.map((beat, at) => {
    // A migration may cut a line in two, each half at another host: its neighbours tell the number.
    const before = beats[at - 1]?.n
    const torn = before !== undefined && beat.n !== before + 1 && beats[at + 1]?.n === before + 2
    return torn ? { ...beat, n: before + 1 } : beat
  })
}

/** The longest silence that touches [fromMs, toMs]. A guest that never came back is silent until `toMs`. */
export function longestGap(beats: readonly Beat[], fromMs: number, toMs: number): Gap {
  let longest: Gap = { ms: 0, fromMs, before: 0, after: 0 }
  let last: Beat | undefined
  const consider = (start: number, end: number, before: number, after: number): void => {
    if (end < fromMs || start > toMs || end - start <= longest.ms) return
    longest = { ms: end - start, fromMs: start, before, after }
  }
  for (const beat of beats) {
    if (last) consider(last.atMs, beat.atMs, last.n, beat.n)
    last = beat
  }
  if (!last || last.atMs < toMs) consider(last?.atMs ?? fromMs, toMs, last?.n ?? 0, 0)
  return longest
}
