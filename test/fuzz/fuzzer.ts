/**
 * The fuzzer: starts from a corpus, changes inputs, keeps those that run code which none did before. Guided by V8's own
 * block counters (coverage.ts), since no coverage-guided fuzzer of the npm registry runs here (docs/ARCHITECTURE.md).
 * The same seed gives the same inputs as long as the code under test does the same, so it is printed.
 */
import { memoryUsage } from 'node:process'
import { setFlagsFromString } from 'node:v8'
import { runInNewContext } from 'node:vm'
import type { Coverage } from './coverage.ts'
import { below, mutate, pick, type Random } from './mutate.ts'
import { Finding, type FuzzTarget } from './target.ts'
import type { Trace } from './trace.ts'
import { checkAllocations, watchAllocations } from './watch.ts'

/** Processor time of one input. Other processes do not count, so it may be tight; nothing here takes a tenth of it. */
const INPUT_CPU_MS_MAX = 2000
/** For what waits: other processes may hold it up. */
const INPUT_WAIT_MS_MAX = 20_000
const BATCH_INPUTS = 64
const BATCH_MS = 50
/** The corpus and the code under test take some 100 MiB. */
const MEMORY = { rss: 1536 * 1024 * 1024, live: 512 * 1024 * 1024 }
const COLLECTIONS = 4

setFlagsFromString('--expose-gc')
const collect = runInNewContext('gc') as () => void

export class TargetFuzzer {
  readonly target: FuzzTarget
  readonly #random: Random
  readonly #coverage: Coverage | undefined
  readonly #trace: Trace
  readonly #memory: { readonly rss: number; readonly live: number }
  readonly #inputs: Buffer[]
  /** Inputs that were kept because they ran something new. */
  readonly kept: Buffer[] = []
  executions = 0

  constructor(
    target: FuzzTarget,
    seeds: readonly Buffer[],
    parts: {
      readonly random: Random
      /** None: every input is replayed, nothing is kept. */
      readonly coverage: Coverage | undefined
      readonly trace: Trace
      /** When the process is larger than `rss` bytes, at most `live` of them may live. */
      readonly memory?: { readonly rss: number; readonly live: number }
    },
  ) {
    this.target = target
    this.#inputs = [...seeds]
    this.#random = parts.random
    this.#coverage = parts.coverage
    this.#trace = parts.trace
    this.#memory = parts.memory ?? MEMORY
  }

  /** Every seed as it is. @throws Finding */
  async replay(): Promise<void> {
    for (const input of this.#inputs) await this.#execute(input)
    if (this.#coverage !== undefined) this.#isNew(true)
  }

  /** Runs inputs for about so long. @throws Finding */
  async run(ms: number): Promise<void> {
    const until = performance.now() + ms
    while (performance.now() < until) {
      const batch: Buffer[] = []
      const batchUntil = performance.now() + BATCH_MS
      while (batch.length < BATCH_INPUTS && performance.now() < batchUntil) {
        const input = this.#next()
        batch.push(input)
        await this.#execute(input)
      }
      if (this.#isNew(false)) await this.#keep(batch)
    }
    await this.#checkMemory()
  }

  /**
   * On a busy machine V8's threads may be late in freeing what is garbage: the process is judged by what lives. What one
   * input may ask for is bounded by `allocationBytesMax`.
   */
  async #checkMemory(): Promise<void> {
    if (memoryUsage.rss() <= this.#memory.rss) return
    let live = 0
    for (let turn = 0; turn < COLLECTIONS; turn++) {
      collect()
      await new Promise((resolve) => setTimeout(resolve, 50))
      const { heapUsed, external } = memoryUsage()
      live = heapUsed + external
      if (live <= this.#memory.live) return
    }
    const input = this.#inputs.at(-1) ?? Buffer.alloc(0)
    throw new Finding(this.target.name, input, `${live} bytes live after a collection`)
  }

  #next(): Buffer {
    const { generate, dictionary = [], inputBytesMax } = this.target
    const random = this.#random
    if (generate !== undefined && below(random, 8) === 0) return generate(random).subarray(0, inputBytesMax)
    if (this.#inputs.length === 0) return Buffer.alloc(0)
    // Half of the time one of the latest: what was reached last is the way to what was not.
    const latest = below(random, 2) === 0 ? Math.max(0, this.#inputs.length - 16) : 0
    const input = this.#inputs[latest + below(random, this.#inputs.length - latest)]!
    return mutate(random, input, pick(random, this.#inputs), dictionary, inputBytesMax)
  }

  async #keep(batch: readonly Buffer[]): Promise<void> {
    for (const input of batch) {
      await this.#execute(input)
      if (!this.#isNew(true)) continue
      this.#inputs.push(input)
      this.kept.push(input)
    }
  }

  #isNew(keep: boolean): boolean {
    return this.#coverage?.isNew(this.#coverage.take(), keep) ?? false
  }

  async #execute(input: Buffer): Promise<void> {
    const { name, allocationBytesMax, cpuMsMax = INPUT_CPU_MS_MAX } = this.target
    this.executions++
    this.#trace.begin(name, input)
    // A target that changes its input must not change what is reported.
    const own = Buffer.from(input)
    const before = process.cpuUsage()
    watchAllocations(allocationBytesMax)
    try {
      const running = this.target.run(own)
      if (running !== undefined) await withDeadline(running)
      checkAllocations()
    } catch (error) {
      throw new Finding(name, input, error)
    }
    const { user, system } = process.cpuUsage(before)
    const cpuMs = (user + system) / 1000
    if (cpuMs > cpuMsMax) throw new Finding(name, input, `it took ${cpuMs} ms of processor time`)
  }
}

async function withDeadline(running: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined
  const late = new Promise<never>((_resolve, reject) => {
    timer = setTimeout(() => reject(new Error(`not done within ${INPUT_WAIT_MS_MAX} ms`)), INPUT_WAIT_MS_MAX)
  })
  try {
    await Promise.race([running, late])
  } finally {
    clearTimeout(timer)
  }
}
