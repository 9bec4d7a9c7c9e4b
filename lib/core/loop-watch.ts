/**
 * LoopWatch: how late this process's event loop runs. A timer that is due every 20 ms, and every 5 ms while the thread works, tells
 * how late it was called; the processor time of the thread since its last call tells how much of that was our own work and how much was
 * a machine that gave the processor to others. Kept since the start, and for the last minute in six pieces of ten seconds.
 *
 * Both figures are near by the time between two calls: a turn that began before the timer was due is seen without that part, and what
 * was computed in shorter turns before it was due counts as work of the delay. It never names the cause: `onLong` is told at once.
 */
import { createHistogram, type RecordableHistogram } from 'node:perf_hooks'

const REST_INTERVAL_MS = 20
const WORK_INTERVAL_MS = 5
/** Who computed less since the last look is at rest. */
const WORK_MS = 1
const PIECE_MS = 10_000
const PIECES = 6

/** Milliseconds. */
export interface LoopFigures {
  /** The longest delay, and the one that 99 of 100 looks did not exceed. */
  readonly maxMs: number
  readonly p99Ms: number
  /** The longest delay as far as this thread was computing in it: what other processes took is not in it. */
  readonly busyMaxMs: number
}

export interface LoopReport extends LoopFigures {
  readonly lastMinute: LoopFigures
}

export interface LoopWatchOptions {
  /** Milliseconds, monotonic. */
  readonly clock?: () => number
  /** Processor time of this thread, in milliseconds. */
  readonly cpu?: () => number
  readonly onLong?: (delay: { readonly lateMs: number; readonly busyMs: number }) => void
  /** What counts as long, of our own work. */
  readonly longMs?: number
}

/** Delays in whole microseconds: a histogram counts from 1. */
class Piece {
  readonly late: RecordableHistogram = createHistogram()
  readonly busy: RecordableHistogram = createHistogram()

  record(lateMs: number, busyMs: number): void {
    this.late.record(Math.max(1, Math.round(lateMs * 1000)))
    this.busy.record(Math.max(1, Math.round(busyMs * 1000)))
  }

  add(other: Piece): void {
    this.late.add(other.late)
    this.busy.add(other.busy)
  }

  figures(): LoopFigures {
    return {
      maxMs: milliseconds(this.late.max),
      p99Ms: milliseconds(this.late.percentile(99)),
      busyMaxMs: milliseconds(this.busy.max),
    }
  }
}

export class LoopWatch {
  readonly #clock: () => number
  readonly #cpu: () => number
  readonly #options: LoopWatchOptions
  readonly #all = new Piece()
  /** The newest last. */
  #pieces: Piece[] = [new Piece()]
  #pieceUntil: number
  #dueAt: number
  #cpuAt: number
  #timer: NodeJS.Timeout | undefined

  constructor(options: LoopWatchOptions = {}) {
    this.#options = options
    this.#clock = options.clock ?? (() => performance.now())
    this.#cpu = options.cpu ?? threadMs
    this.#pieceUntil = this.#clock() + PIECE_MS
    this.#dueAt = this.#clock()
    this.#cpuAt = this.#cpu()
  }

  /** Its timer does not keep the process alive. */
  start(): void {
    this.#cpuAt = this.#cpu()
    this.#dueAt = this.#clock() + REST_INTERVAL_MS
    this.#lookIn(REST_INTERVAL_MS)
  }

  #lookIn(intervalMs: number): void {
    this.#timer = setTimeout(() => this.#lookIn(this.look()), intervalMs)
    this.#timer.unref()
  }

  stop(): void {
    clearTimeout(this.#timer)
    this.#timer = undefined
  }

  /** Called when it is due, or later. @returns in how many milliseconds it is due again */
  look(): number {
    const now = this.#clock()
    const cpu = this.#cpu()
    const lateMs = Math.max(0, now - this.#dueAt)
    const computedMs = cpu - this.#cpuAt
    const busyMs = Math.min(lateMs, computedMs)
    const intervalMs = computedMs < WORK_MS ? REST_INTERVAL_MS : WORK_INTERVAL_MS
    this.#dueAt = now + intervalMs
    this.#cpuAt = cpu
    this.#turnPieces(now)
    this.#all.record(lateMs, busyMs)
    this.#pieces.at(-1)!.record(lateMs, busyMs)
    if (busyMs >= (this.#options.longMs ?? 50)) this.#options.onLong?.({ lateMs, busyMs })
    return intervalMs
  }

  #turnPieces(now: number): void {
    if (now < this.#pieceUntil) return
    const passed = Math.min(PIECES, 1 + Math.floor((now - this.#pieceUntil) / PIECE_MS))
    for (let i = 0; i < passed; i++) this.#pieces.push(new Piece())
    this.#pieces = this.#pieces.slice(-PIECES)
    this.#pieceUntil = now + PIECE_MS - ((now - this.#pieceUntil) % PIECE_MS)
  }

  report(): LoopReport {
    this.#turnPieces(this.#clock())
    const minute = new Piece()
    for (const piece of this.#pieces) minute.add(piece)
    return { ...this.#all.figures(), lastMinute: minute.figures() }
  }
}

function threadMs(): number {
  const { user, system } = process.threadCpuUsage()
  return (user + system) / 1000
}

/** An empty histogram has neither a percentile nor a maximum. */
function milliseconds(microseconds: number): number {
  return microseconds <= 1 ? 0 : Math.round(microseconds / 100) / 10
}
