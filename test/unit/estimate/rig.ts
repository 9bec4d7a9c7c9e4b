/**
 * Two hosts as folders: at the near one a guest "runs" with these disks, at the far one lie other images. Real maps, a real stock,
 * the real handlers over a bundle in memory; only libvirt's answers are the test's.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { basename, dirname, join, resolve } from 'node:path'
import type { TestContext } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { createLog } from '../../../lib/core/log.ts'
import { MIB } from '../../../lib/core/units.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { Rpc } from '../../../lib/peer/rpc.ts'
import { EstimateAnswers, type EstimateAnswersOptions } from '../../../server/estimate/answers.ts'
import { type EstimatePeer, type EstimateReport, Estimates } from '../../../server/estimate/estimate.ts'
import { ImageList } from '../../../server/image-list.ts'
import { LinkTests } from '../../../server/link-test.ts'
import { answerPeer } from '../../../server/peers.ts'

export const UUID = '33333333-3333-4333-8333-333333333333'
const OTHER_UUID = '44444444-4444-4444-8444-444444444444'
const log = createLog({ level: 'silent' })
export const GUEST_MEMORY_KIB = 262_144

export interface Hosts {
  readonly near: string
  readonly far: string
  readonly nearState: string
  readonly farState: string
  readonly stock: ImageStock
  readonly answers: EstimateAnswers
  /** Calls of the peer so far. */
  readonly calls: { readonly method: string; readonly params: object }[]
  readonly peer: EstimatePeer
  /** One more control bundle of a peer. */
  dial(name: string): Promise<Rpc>
  estimate(guest?: string, signal?: AbortSignal): Promise<EstimateReport>
}

export interface HostsOptions {
  /** `<disk …>` elements. */
  readonly disks: (hosts: { readonly near: string; readonly far: string }) => string
  /** The same of another guest, which does not run. */
  readonly others?: (hosts: { readonly near: string; readonly far: string }) => string
  /** Directories of images beside `near`, and the same at the far host: what lies here has its place there. */
  readonly nearMore?: readonly string[]
  readonly farMore?: readonly string[]
  /** What is called a qcow2 at the far host: names in `far`, or paths. */
  readonly farQcow2?: readonly string[]
  readonly share?: Config['share']
  readonly wanMbit?: number
  readonly linkBytes?: number
  readonly estimateMs?: number
  readonly answers?: Partial<EstimateAnswersOptions>
}

export function diskXml(target: string, path: string, more = "<driver type='raw'/>"): string {
  return `<disk type='file' device='disk'>${more}<source file='${path}'/><target dev='${target}'/></disk>`
}

export async function hosts(context: TestContext, options: HostsOptions): Promise<Hosts> {
  const folder = mkdtempSync(join(tmpdir(), 'swam-estimate-'))
  const [near, far, nearState, farState] = ['near', 'far', 'near-state', 'far-state'].map((name) => {
    mkdirSync(join(folder, name))
    return join(folder, name)
  }) as [string, string, string, string]
  const farLink = join(folder, 'far-link')
  symlinkSync(far, farLink)
  const { nearMore = [], farMore = [] } = options
  const farImages = new ImageList({
    images: [farLink, ...farMore],
    qcow2: (options.farQcow2 ?? []).map((path) => resolve(far, path)),
    formats: async () => [],
    log,
  })
  const stock = new ImageStock({
    directories: [far],
    indexBytesMax: 32 * MIB,
    blockIndexBytesMax: 32 * MIB,
    imagesMax: 64,
    catalog: join(farState, 'catalog'),
  })
  const answers = new EstimateAnswers({
    config: { images: [farLink, ...farMore], share: options.share ?? 'images' },
    stock,
    images: () => farImages.list(),
    receiving: () => new Set(),
    onProblem: (error) => context.diagnostic(String(error)),
    scanWaitMs: 60_000,
    ...options.answers,
  })
  const ends: (() => unknown)[] = []
  const calls: Hosts['calls'] = []
  const limits = { bytesMax: options.linkBytes ?? 65_536, waitMs: 5_000 }
  const tests = { near: new LinkTests(limits), far: new LinkTests(limits) }
  const joined = async (name: string) => {
    const pair = await bundlePair({ kind: 'control', channels: 1 })
    Object.assign(pair.far, { peer: name })
    answerPeer(pair.far, answers.handlers(pair.far), tests.far)
    const rpc = new Rpc(pair.near, {
      other: (type, payload) => tests.near.frame(pair.near, type, payload),
    })
    ends.push(() => Promise.all([pair.near.close(), pair.far.close()]))
    return { rpc, bundle: pair.near }
  }
  const nears = [near, ...nearMore]
  const toFar = (path: string): string => {
    const index = nears.indexOf(dirname(path))
    const there = [farLink, ...farMore][index]
    return there === undefined ? path : join(there, basename(path))
  }
  const { rpc, bundle } = await joined('near')
  const peer: EstimatePeer = {
    name: 'fra1',
    ask: async (method, params, timeoutMs) => {
      calls.push({ method, params })
      // A guest's disks have the same paths at both hosts; here both are one machine.
      if ('targets' in params) params = { targets: (params.targets as string[]).map(toFar) }
      return await rpc.call(method, params, { timeoutMs: Math.max(timeoutMs, 60_000) })
    },
    test: () => tests.near.run(bundle, rpc, '0.1.0'),
  }
  const domain = (name: string, uuid: string, disks: string): string =>
    `<domain><name>${name}</name><uuid>${uuid}</uuid><devices>${disks}</devices></domain>`
  const xml = domain('web', UUID, options.disks({ near, far }))
  const other = domain('other', OTHER_UUID, options.others?.({ near, far }) ?? '')
  const libvirt = new Libvirt({
    run: async (argv) => {
      const words = argv.join(' ')
      if (words.includes('domuuid')) {
        if (!/--domain=(web|7)$/.test(words)) throw new Error(`unexpected ${words}`)
        return `${UUID}\n`
      }
      if (words.includes('domstate')) return 'running\n'
      if (words.includes('dominfo'))
        return `Max memory:     ${GUEST_MEMORY_KIB} KiB\nUsed memory:    ${GUEST_MEMORY_KIB} KiB\n`
      if (words.includes('list --all')) return `${UUID}\n${OTHER_UUID}\n`
      if (words.includes(OTHER_UUID)) return other
      if (words.includes('domblkinfo')) return 'Capacity:       1048576\n'
      return xml
    },
  })
  context.after(async () => {
    for (const end of ends) await end()
    await stock.close()
    rmSync(folder, { recursive: true, force: true })
  })
  const estimates = new Estimates({
    config: {
      images: nears,
      stateDir: nearState,
      limits: {
        wanMbit: options.wanMbit ?? 0,
        windowMiB: 64,
        indexMiB: 32,
        scanMiBps: 0,
        salvageGiB: 0,
        salvageDays: 7,
        catalogGiB: 32,
        catalogDays: 400,
      },
    },
    libvirt,
    images: new ImageList({ images: nears, qcow2: [], formats: () => libvirt.imageFormats(), log }),
    estimateMs: options.estimateMs ?? 120_000,
  })
  return {
    near,
    far,
    nearState,
    farState,
    stock,
    answers,
    calls,
    peer,
    dial: async (name) => (await joined(name)).rpc,
    estimate: (guest = 'web', signal = new AbortController().signal) => estimates.run(guest, peer, signal),
  }
}
