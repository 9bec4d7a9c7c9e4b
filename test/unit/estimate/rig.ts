/**
 * Two hosts as folders: at the near one a guest "runs" with these disks, at the far one lie other images. Real maps, a real stock,
 * the real handlers over a bundle in memory; only libvirt's answers are the test's.
 */
import { mkdirSync, mkdtempSync, rmSync, symlinkSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { TestContext } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import { listImages } from '../../../lib/catalog/image-files.ts'
import { ImageStock } from '../../../lib/catalog/stock.ts'
import { MIB } from '../../../lib/core/units.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import { bundlePair } from '../../../lib/peer/memory.ts'
import { Rpc } from '../../../lib/peer/rpc.ts'
import { EstimateAnswers, type EstimateAnswersOptions } from '../../../server/estimate/answers.ts'
import { type EstimatePeer, type EstimateReport, Estimates } from '../../../server/estimate/estimate.ts'
import { LinkTests } from '../../../server/link-test.ts'
import { answerPeer } from '../../../server/peers.ts'

export const UUID = '33333333-3333-4333-8333-333333333333'
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
  const stock = new ImageStock({
    indexBytesMax: 32 * MIB,
    blockIndexBytesMax: 32 * MIB,
    imagesMax: 64,
    catalog: join(farState, 'catalog'),
  })
  const answers = new EstimateAnswers({
    config: { images: [farLink], share: options.share ?? 'images' },
    stock,
    images: () => listImages([farLink]),
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
  const toFar = (path: string): string => path.replace(near, farLink)
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
  const xml = `<domain><name>web</name><uuid>${UUID}</uuid><devices>${options.disks({ near, far })}</devices></domain>`
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
      images: [near],
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
