/**
 * MB/s of non-zero data through the engine on one real image: the sender where the far side knows nothing, has everything in
 * place, has everything elsewhere; and the receiver, to which what the first of these sent is said again. Beside them, in the same
 * run and in turns, SHA-256 of 64 KiB buffers on one thread, and casync, borg and restic on the same image into empty stores.
 * Data lies in memory, so no disk is measured on our side, nor a link; what the bench keeps of what comes lies in memory that was
 * taken before. What was sent is verified each time, when the clock stands.
 * Both ends keep the map of a proof, as by default (verify = "map"), in files of the scratch folder.
 */
import { mkdir, rm } from 'node:fs/promises'
import { join } from 'node:path'
import { monitorEventLoopDelay, performance } from 'node:perf_hooks'
import { ALL_FEATURES, type BlockDevice } from '../../lib/block/device.ts'
import { Describer, describeWithLeaves } from '../../lib/chunk/describer.ts'
import { sha256 } from '../../lib/chunk/digest.ts'
import { SlabPool } from '../../lib/chunk/slab.ts'
import { ByteBudget } from '../../lib/core/byte-budget.ts'
import {
  MIGRATION_DRAIN_MS,
  PROOF_ASSEMBLED_BYTES_MAX,
  UNDETERMINED_BYTES_MAX,
} from '../../lib/core/limits.ts'
import { loopTurn } from '../../lib/core/loop-turn.ts'
import { LoopWatch } from '../../lib/core/loop-watch.ts'
import { KIB, MIB } from '../../lib/core/units.ts'
import { DiskAccount } from '../../lib/engine/account.ts'
import { LeafSlots } from '../../lib/engine/leaf-assembly.ts'
import { DiskLink } from '../../lib/engine/link.ts'
import { DiskReceiver } from '../../lib/engine/receiver.ts'
import { ReceiverProof } from '../../lib/engine/receiver-proof.ts'
import { DiskSender } from '../../lib/engine/sender.ts'
import { SenderProof } from '../../lib/engine/sender-proof.ts'
import { LeafFile } from '../../lib/proof/leaf-file.ts'
import { LeafMap } from '../../lib/proof/leaf-map.ts'
import type { DiskMessage } from '../../lib/wire/disk.ts'
import { commitOfTree } from '../demo/report.ts'
import { BACKUP_TOOLS, backupToolVersions } from './backup-tools.ts'
import { FarEnd, type Knowledge } from './far-end.ts'
import { MemoryImage } from './memory-image.ts'
import { NearEnd } from './near-end.ts'
import { imagePairs } from './pairs.ts'
import { inScratch } from './scratch.ts'

const ROUNDS = 3
const SIDES = ['unknown', 'inPlace', 'elsewhere'] as const satisfies readonly Knowledge[]
const TOOLS = ['casync', 'borg', 'restic'] as const
const FIGURES = ['unknown', 'inPlace', 'elsewhere', 'receiver', 'sha256', 'casync', 'borg', 'restic'] as const
type Figure = (typeof FIGURES)[number]

export type Pipeline = Record<Figure, number> & {
  readonly version: 1
  readonly name: 'pipeline'
  readonly commit: string
  readonly startedAt: string
  readonly dataBytes: number
  readonly tools: Readonly<Record<string, string>>
  /** The event loop's longest delay in each run of ours, ms. */
  readonly loopDelayMs: Readonly<Record<string, readonly number[]>>
  /** The same as far as this thread was computing in it: two processors are shared with the threads that pack and digest. */
  readonly loopBusyMs: Readonly<Record<string, readonly number[]>>
  readonly samples: Readonly<Record<Figure, readonly number[]>>
}

export async function run(): Promise<Pipeline> {
  const startedAt = new Date().toISOString()
  const tools = await backupToolVersions()
  const { target } = (await imagePairs()).find(({ kind }) => kind === 'nothing')!
  const image = await MemoryImage.of(target.path)
  if (image.dataBytes !== target.dataBytes)
    throw new Error(
      `bench: ${image.dataBytes} bytes of data were read of ${target.path}, it has ${target.dataBytes}`,
    )
  const samples = Object.fromEntries(FIGURES.map((name) => [name, [] as number[]])) as Record<
    Figure,
    number[]
  >
  const empty = (): Record<string, number[]> =>
    Object.fromEntries([...SIDES, 'receiver'].map((name) => [name, [] as number[]]))
  const [loopDelayMs, loopBusyMs] = [empty(), empty()]
  const noteTurns = (name: string, { delayMs, busyMs }: { delayMs: number; busyMs: number }): void => {
    loopDelayMs[name]!.push(delayMs)
    loopBusyMs[name]!.push(busyMs)
  }
  const note = (name: Figure, elapsedMs: number): void => {
    const rate = Math.round(image.dataBytes / elapsedMs / 100) / 10
    samples[name].push(rate)
    process.stderr.write(`${name}: ${rate} MB/s\n`)
  }
  await inScratch(async (folder) => {
    for (let round = 0; round < ROUNDS; round++) {
      note('sha256', sha256Ms(image))
      for (const side of SIDES) {
        const { far, ...sent } = await send(image, side, join(folder, `${side}-${round}.map`))
        note(side, sent.elapsedMs)
        noteTurns(side, sent)
        await far.verify(image.size, (offset, length) => image.read(offset, length))
        if (side !== 'unknown') continue
        const received = await receive(image, far.messages, join(folder, `received-${round}.map`))
        note('receiver', received.elapsedMs)
        noteTurns('receiver', received)
      }
      for (const name of TOOLS) note(name, await storeMs(name, join(folder, `${name}-${round}`), target))
    }
  })
  const medians = Object.fromEntries(FIGURES.map((name) => [name, median(samples[name])])) as Record<
    Figure,
    number
  >
  const { dataBytes } = image
  const commit = commitOfTree()
  return {
    version: 1,
    name: 'pipeline',
    commit,
    startedAt,
    dataBytes,
    tools,
    ...medians,
    loopDelayMs,
    loopBusyMs,
    samples,
  }
}

export function table(result: Pipeline): string {
  const rows = FIGURES.map((name) => {
    const spread = result.samples[name].map((rate) => rate.toFixed(0)).join(' ')
    const turns = [result.loopDelayMs, result.loopBusyMs].map(
      (of) => of[name]?.map((ms) => ms.toFixed(0)).join(' ') ?? '',
    )
    const cells = [result[name].toFixed(1), (result[name] / result.sha256).toFixed(3), spread, ...turns]
    return [name.padEnd(12), ...cells.map((cell) => cell.padStart(20))].join('')
  })
  const head = ['MB/s', 'median', 'of sha256', 'samples', 'longest turn, ms', 'of it computing']
  return [
    `pipeline, ${result.startedAt}, commit ${result.commit}, ${(result.dataBytes / 1e6).toFixed(1)} MB of data`,
    head.map((cell, index) => (index === 0 ? cell.padEnd(12) : cell.padStart(20))).join(''),
    ...rows,
  ].join('\n')
}

function median(values: readonly number[]): number {
  return values.toSorted((a, b) => a - b)[values.length >> 1]!
}

function sha256Ms(image: MemoryImage): number {
  let bytes = 0
  let elapsedMs = 0
  for (const [, page] of image.pages) {
    const started = performance.now()
    for (let at = 0; at < page.length; at += 64 * KIB) sha256(page.subarray(at, at + 64 * KIB))
    elapsedMs += performance.now() - started
    bytes += page.length
  }
  // Pages have zero blocks in them, too.
  return (elapsedMs * image.dataBytes) / bytes
}

interface Turns {
  readonly elapsedMs: number
  readonly delayMs: number
  readonly busyMs: number
}

async function timed<T>(work: () => Promise<T>): Promise<Turns & { value: T }> {
  const delay = monitorEventLoopDelay({ resolution: 1 })
  const watch = new LoopWatch()
  delay.enable()
  watch.start()
  const started = performance.now()
  const value = await work()
  const elapsedMs = performance.now() - started
  delay.disable()
  watch.stop()
  return { elapsedMs, delayMs: delay.max / 1e6, busyMs: watch.report().busyMaxMs, value }
}

/** As swamd has it: one worker that cuts, one for the proof's digests, 256 MiB on their way. */
async function send(image: MemoryImage, side: Knowledge, path: string): Promise<Turns & { far: FarEnd }> {
  await using describer = new Describer({ workers: 1 })
  await using digester = new Describer({ workers: 1 })
  const map = new LeafMap(await LeafFile.create(path, image.size))
  const far = new FarEnd(side, image.dataBytes)
  const sender = new DiskSender({
    link: new DiskLink(far),
    disk: 0,
    epoch: 1,
    size: image.size,
    blockSizes: { minimum: 1, preferred: 4096, maximum: 32 * MIB },
    account: new DiskAccount('', image.size),
    slabs: new SlabPool({ bytesMax: 256 * MIB }),
    describe: (bytes) => describer.describe(bytes),
    limits: { windowBytes: UNDETERMINED_BYTES_MAX, drainMs: MIGRATION_DRAIN_MS, flushDeadlineMs: 60_000 },
    bulkOnly: true,
    proof: new SenderProof({
      map,
      size: image.size,
      target: 'vda',
      read: false,
      describe: (bytes, leaves) => describeWithLeaves(describer, digester, bytes, leaves),
    }),
  })
  await sender.open(0, '')
  const { value: _, ...turns } = await timed(async () => {
    let at = 0
    for (const [offset, page] of image.pages) {
      // As requests of an NBD client are taken.
      if (loopTurn.over) await loopTurn.next()
      if (offset > at) await sender.writeZeroes(at, offset - at)
      await sender.write(offset, page)
      at = offset + page.length
    }
    if (at < image.size) await sender.writeZeroes(at, image.size - at)
    await sender.flush()
  })
  await sender.close()
  await map.close()
  return { ...turns, far }
}

/** Says to a receiver with an empty disk and no images what a sender said, and gives it each chunk that it wants. */
async function receive(image: MemoryImage, messages: readonly DiskMessage[], path: string): Promise<Turns> {
  await using digester = new Describer({ workers: 1 })
  const map = new LeafMap(await LeafFile.create(path, image.size))
  const arrived = MemoryImage.roomFor(image)
  const near = await NearEnd.of(messages, (offset, length) => image.read(offset, length))
  const proof = new ReceiverProof({
    device: deviceOf(arrived),
    map,
    target: 'vda',
    slots: new LeafSlots({ bytesMax: PROOF_ASSEMBLED_BYTES_MAX }),
    digest: (bytes) => digester.digestLeaves(bytes, { from: 0, to: bytes.length }),
    read: false,
  })
  const receiver = new DiskReceiver({
    link: new DiskLink(near),
    disk: 0,
    epoch: 1,
    device: proof.device,
    proof,
    account: new DiskAccount('', image.size),
    sources: [],
    memory: new ByteBudget({ bytesMax: 128 * MIB }),
    sessionEntriesMax: 1_000_000,
  })
  await receiver.scanTarget()
  const { value: _, ...turns } = await timed(async () => await near.say())
  if (!arrived.equals(image)) throw new Error('bench: what the receiver wrote is not the image')
  if (proof.cutOver?.proved !== map.leaves) throw new Error('bench: not all of it was proved')
  await map.close()
  return turns
}

function deviceOf(image: MemoryImage): BlockDevice {
  return {
    size: image.size,
    blockSizes: { minimum: 1, preferred: 4096, maximum: 32 * MIB },
    features: ALL_FEATURES,
    read: async (offset, length) => image.read(offset, length),
    write: async (offset, data) => image.write(offset, data),
    writeZeroes: async () => undefined,
    trim: async () => undefined,
    cache: async () => undefined,
    blockStatus: async (_, length) => [{ length, hole: true, zero: true }],
    flush: async () => undefined,
    close: async () => undefined,
  }
}

async function storeMs(
  name: (typeof TOOLS)[number],
  folder: string,
  image: { readonly name: string; readonly path: string },
): Promise<number> {
  const tool = BACKUP_TOOLS.find((one) => one.name === name)!
  await mkdir(folder)
  await tool.init(folder)
  const started = performance.now()
  await tool.store(folder, image)
  const elapsedMs = performance.now() - started
  await rm(folder, { recursive: true })
  return elapsedMs
}
