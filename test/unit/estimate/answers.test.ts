/** A peer that asks for an estimate and lies, or asks without end: each ceiling once, and what it may not learn. */
import assert from 'node:assert/strict'
import { existsSync, symlinkSync } from 'node:fs'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import {
  CHUNK_BLOCKS_MAX,
  CHUNK_BYTES_MAX,
  ESTIMATE_BLOCKS_MAX,
  ESTIMATE_CALL_BLOCKS_MAX,
  ESTIMATE_CALL_CHUNKS_MAX,
  ESTIMATE_CHUNKS_MAX,
  ESTIMATE_STARTS_MAX,
  ESTIMATE_STARTS_MS,
  ESTIMATES_MAX,
  GUEST_DISKS_MAX,
  IMAGE_BYTES_MAX,
  PATH_BYTES_MAX,
} from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import { EstimateAnswers, type EstimateStock } from '../../../server/estimate/answers.ts'
import {
  type AskedBlocks,
  type AskedChunk,
  decodeBits,
  decodeBlocks,
  decodeChunks,
  decodeStates,
  encodeBlocks,
  encodeChunks,
} from '../../../server/estimate/batch.ts'
import { image } from '../analyze/rig.ts'
import { randomBytes } from '../chunk/samples.ts'
import { diskXml, hosts } from './rig.ts'

const KEY = Buffer.from('0123456789abcdef', 'hex')
const OTHER = Buffer.from('fedcba9876543210', 'hex')
const TARGETS = ['/images/web.raw', '/images/web-data.raw']
const IMAGES = [...TARGETS, '/images/other.raw', '/private/own.raw', '/images/top.qcow2']

interface Asked {
  readonly states: (chunks: readonly AskedChunk[], disk?: number) => Promise<number[]>
  readonly bits: (runs: readonly AskedBlocks[], disk?: number) => Promise<number>
  readonly call: (method: string, params: unknown) => Promise<unknown>
  readonly close: () => void
}

/** Every chunk with KEY lies at these places; so does every block. */
function far(
  places: readonly { readonly image: number; readonly offset: number; readonly length?: number }[] = [],
  config: Partial<Pick<Config, 'images' | 'share'>> = {},
  more: { scanning?: () => number; estimateMs?: number } = {},
) {
  const said: string[] = []
  const found = (key: Buffer, at = 0) =>
    key.subarray(at, at + 8).equals(KEY) ? places.map((place) => ({ length: 64 * KIB, ...place })) : []
  const stock: EstimateStock = {
    get scanning() {
      return more.scanning?.() ?? 0
    },
    blockCount: 7,
    images: IMAGES.map((path) => ({
      path,
      format: path.endsWith('.qcow2') ? 'qcow2' : 'raw',
      size: MIB,
      source: { allocatedBytes: path === TARGETS[0] ? 64 * KIB : 2 * MIB },
    })),
    image: (number) => ({ path: IMAGES[number]! }),
    lookup: found,
    lookupBlock: found,
    refresh: async (list, busy, first) =>
      void said.push(`refresh ${(await list()).map(({ path }) => path)} ${[...busy]} ${first}`),
    rest: async (unused) => void said.push(`rest ${unused()}`),
  }
  const answers = new EstimateAnswers({
    config: { images: ['/images'], share: 'images', ...config },
    stock,
    images: async () => [{ path: '/images', identity: { dev: 0n, ino: 0n, size: 0, mtimeNs: 0n } }],
    receiving: () => new Set(['/images/coming.raw']),
    onProblem: (error) => said.push(String(error)),
    scanWaitMs: 30,
    ...more,
  })
  const dial = (peer = 'ams1'): Asked => {
    const { promise: closed, resolve } = Promise.withResolvers<Error | undefined>()
    const bundle = { peer, closed, ended: false }
    const handlers = answers.handlers(bundle as unknown as Bundle)
    const call = async (method: string, params: unknown): Promise<unknown> => await handlers[method]!(params)
    const text = (answer: unknown, key: string): string => (answer as Record<string, string>)[key]!
    return {
      call,
      states: async (chunks, disk = 0) => [
        ...decodeStates(
          text(await call('estimateChunks', { disk, chunks: encodeChunks(chunks) }), 'states'),
          chunks.length,
        ),
      ],
      bits: async (runs, disk = 0) => {
        const count = runs.reduce((sum, { hints }) => sum + hints.length / 8, 0)
        const bits = text(await call('estimateBlocks', { disk, blocks: encodeBlocks(runs) }), 'known')
        return [...decodeBits(bits, count)].reduce(
          (sum, byte) => sum + byte.toString(2).replaceAll('0', '').length,
          0,
        )
      },
      close: () => {
        bundle.ended = true
        resolve(undefined)
      },
    }
  }
  return { answers, dial, said }
}

const chunk = (offset: number, length = 64 * KIB, key: Uint8Array = KEY): AskedChunk => ({
  key,
  offset,
  length,
})

test('a chunk is in place, elsewhere in an image that lies here, be it one that would be written to, or lacking', async () => {
  const here = far([
    { image: 0, offset: MIB },
    { image: 1, offset: 3 * MIB },
  ]).dial()
  await here.call('estimate', { targets: TARGETS })
  assert.deepEqual(await here.states([chunk(MIB), chunk(2 * MIB), chunk(MIB, 32 * KIB)]), [2, 1, 0])
  assert.deepEqual(await here.states([chunk(MIB), chunk(3 * MIB), chunk(0, 64 * KIB, OTHER)], 1), [1, 2, 0])
  assert.deepEqual(
    await here.bits([
      { offset: MIB, hints: KEY },
      { offset: 2 * MIB, hints: KEY },
    ]),
    2,
  )
  assert.deepEqual(await here.bits([{ offset: 3 * MIB, hints: Buffer.concat([KEY, OTHER, KEY]) }], 1), 2)
  const there = far([{ image: 2, offset: 5 * MIB }]).dial()
  await there.call('estimate', { targets: TARGETS })
  assert.deepEqual(await there.states([chunk(0), chunk(0, 64 * KIB, OTHER)]), [1, 0])
  assert.deepEqual(await there.bits([{ offset: 0, hints: Buffer.concat([KEY, OTHER, Buffer.alloc(8)]) }]), 1)
})

test('it is told what lies at the places of the disks, and how much is not known yet; what is received is not scanned', {
  timeout: 20_000,
}, async () => {
  const host = far([], {}, { scanning: () => 3 })
  const asked = host.dial()
  const targets = ['/images/web.raw', '/images/none.raw', '/images/top.qcow2']
  const begun = await asked.call('estimate', { targets })
  assert.deepEqual(begun, {
    scanning: 3,
    shares: true,
    blocks: true,
    held: [true, false, true],
    images: [{ format: 'raw', bytes: 64 * KIB }, null, { format: 'qcow2', bytes: MIB }],
  })
  assert.deepEqual(host.said, [`refresh /images /images/coming.raw ${targets}`])
  assert.equal(host.answers.busy, true)
  await asked.call('estimateEnd', {})
  assert.equal(host.answers.busy, false)
  assert.deepEqual(host.said.slice(1), ['rest false'], 'a migration is under way')
})

test('scans are waited for a while', async () => {
  let turns = 0
  const host = far([], {}, { scanning: () => (turns++ < 2 ? 1 : 0) })
  assert.deepEqual(await host.dial().call('estimate', { targets: [] }), {
    scanning: 0,
    shares: true,
    blocks: true,
    held: [],
    images: [],
  })
})

test('share = "none" answers that nothing is known, and scans nothing', async () => {
  const host = far([{ image: 2, offset: MIB }], { share: 'none' })
  const asked = host.dial()
  const begun = await asked.call('estimate', { targets: TARGETS })
  assert.deepEqual(begun, {
    scanning: 0,
    shares: false,
    blocks: false,
    held: [false, false],
    images: [null, null],
  })
  assert.deepEqual(await asked.states([chunk(MIB)]), [0])
  assert.equal(await asked.bits([{ offset: MIB, hints: KEY }]), 0)
  assert.deepEqual(host.said, [])
})

test('of directories that share does not name nothing is told', async () => {
  const host = far([{ image: 3, offset: MIB }], { share: ['/images'] })
  const asked = host.dial()
  await asked.call('estimate', { targets: TARGETS })
  assert.deepEqual(await asked.states([chunk(MIB)]), [0])
  assert.equal(await asked.bits([{ offset: MIB, hints: KEY }]), 0)
  const other = far([{ image: 3, offset: MIB }], { share: ['/private'] })
  const sharing = other.dial()
  const begun = (await sharing.call('estimate', { targets: TARGETS })) as { held: boolean[] }
  assert.deepEqual(begun.held, [false, false])
  assert.deepEqual(await sharing.states([chunk(MIB)]), [1])
})

test('nothing is answered before an estimate begins, after it ended, on another bundle, or when its time is over', async () => {
  const host = far()
  const [asked, second] = [host.dial(), host.dial()]
  const nothing = /no estimate is under way/
  await assert.rejects(asked.states([chunk(0)]), nothing)
  await asked.call('estimate', { targets: TARGETS })
  await assert.rejects(second.states([chunk(0)]), nothing)
  await second.call('estimateEnd', {})
  await asked.states([chunk(0)])
  await asked.call('estimateEnd', {})
  await assert.rejects(asked.states([chunk(0)]), nothing)
  await assert.rejects(asked.bits([{ offset: 0, hints: KEY }]), nothing)
  await asked.call('estimate', { targets: TARGETS })
  asked.close()
  await new Promise((resolve) => setImmediate(resolve))
  assert.equal(host.answers.busy, false)
  const short = far([], {}, { estimateMs: 20 })
  const late = short.dial()
  await late.call('estimate', { targets: TARGETS })
  await new Promise((resolve) => setTimeout(resolve, 60))
  await assert.rejects(late.states([chunk(0)]), nothing)
  assert.equal(short.answers.busy, false)
})

test('one estimate a peer, a few in all, so many in a minute', async (context) => {
  const host = far()
  const first = host.dial('a')
  await first.call('estimate', { targets: [] })
  const again = host.dial('a')
  const begins = again.call('estimate', { targets: [] })
  await assert.rejects(host.dial('a').call('estimate', { targets: [] }), /of yours begins already/)
  await begins
  await assert.rejects(first.states([]), /no estimate is under way/, 'who begins anew ends what it had')
  for (let peer = 1; peer < ESTIMATES_MAX; peer++)
    await host.dial(`p${peer}`).call('estimate', { targets: [] })
  await assert.rejects(host.dial('b').call('estimate', { targets: [] }), /4 estimates are under way/)
  for (let start = 2; start < ESTIMATE_STARTS_MAX; start++) {
    await first.call('estimateEnd', {})
    await first.call('estimate', { targets: [] })
  }
  await first.call('estimateEnd', {})
  await assert.rejects(first.call('estimate', { targets: [] }), /wait a minute/)
  await again.call('estimateEnd', {})
  await host.dial('b').call('estimate', { targets: [] })
  const now = performance.now()
  context.mock.method(performance, 'now', () => now + ESTIMATE_STARTS_MS + 1)
  await first.call('estimateEnd', {})
  await assert.rejects(first.call('estimate', { targets: [] }), /4 estimates/)
})

test('one that cannot begin leaves nothing busy', async () => {
  const host = far([], {}, {})
  const asked = host.dial()
  for (const targets of [
    undefined,
    'x',
    [7],
    ['relative/web.raw'],
    [`/${'x'.repeat(PATH_BYTES_MAX)}`],
    Array.from({ length: GUEST_DISKS_MAX + 1 }, () => '/a'),
  ]) {
    await assert.rejects(asked.call('estimate', { targets }), /targets/)
    assert.equal(host.answers.busy, false)
  }
  await assert.rejects(asked.call('estimate', null), /expected an object/)
  asked.close()
  await assert.rejects(asked.call('estimate', { targets: [] }), /nobody waits/)
  assert.equal(host.answers.busy, false)
})

test('a batch has its ceilings', async () => {
  const asked = far().dial()
  await asked.call('estimate', { targets: TARGETS })
  const chunks = (count: number) => Array.from({ length: count }, () => chunk(0))
  assert.equal((await asked.states(chunks(ESTIMATE_CALL_CHUNKS_MAX))).length, ESTIMATE_CALL_CHUNKS_MAX)
  await assert.rejects(
    asked.states(chunks(ESTIMATE_CALL_CHUNKS_MAX + 1)),
    /chunks: expected base64 of at most/,
  )
  const run = (blocks: number, offset = 0): AskedBlocks => ({ offset, hints: Buffer.alloc(8 * blocks, 1) })
  const runs = (count: number) => Array.from({ length: count }, () => run(1))
  await asked.bits(runs(ESTIMATE_CALL_BLOCKS_MAX))
  await assert.rejects(asked.bits(runs(ESTIMATE_CALL_BLOCKS_MAX + 1)), /blocks: expected base64 of at most/)
  const long = Array.from({ length: 1 + ESTIMATE_CALL_BLOCKS_MAX / 64 }, () => run(64))
  await assert.rejects(asked.bits(long), /8256 in all/)
  for (const disk of [-1, TARGETS.length, 0.5, '0', null, undefined])
    for (const method of ['estimateChunks', 'estimateBlocks'])
      await assert.rejects(asked.call(method, { disk, chunks: '', blocks: '' }), /disk/)
  for (const wrong of [undefined, 7, 'ä', 'AAA*', 'AAAA'.repeat(90_000)]) {
    await assert.rejects(asked.call('estimateChunks', { disk: 0, chunks: wrong }), /chunks/)
    await assert.rejects(asked.call('estimateBlocks', { disk: 0, blocks: wrong }), /blocks/)
  }
})

test('so many chunks and blocks in all', async () => {
  const asked = far().dial()
  await asked.call('estimate', { targets: TARGETS })
  const chunks = encodeChunks(Array.from({ length: ESTIMATE_CALL_CHUNKS_MAX }, () => chunk(0)))
  for (let sent = 0; sent < ESTIMATE_CHUNKS_MAX; sent += ESTIMATE_CALL_CHUNKS_MAX)
    await asked.call('estimateChunks', { disk: 0, chunks })
  await assert.rejects(asked.states([chunk(0)]), /more than 1048576 chunks/)
  const hints = Buffer.alloc(8 * 64, 1)
  const blocks = encodeBlocks(
    Array.from({ length: ESTIMATE_CALL_BLOCKS_MAX / 64 }, () => ({ offset: 0, hints })),
  )
  for (let sent = 0; sent < ESTIMATE_BLOCKS_MAX; sent += ESTIMATE_CALL_BLOCKS_MAX)
    await asked.call('estimateBlocks', { disk: 0, blocks })
  await assert.rejects(asked.bits([{ offset: 0, hints: KEY }]), /more than 4194304 blocks/)
})

test('a batch says what it says, and nothing that cannot be', () => {
  const chunks = [chunk(0, 1), chunk(IMAGE_BYTES_MAX - CHUNK_BYTES_MAX, CHUNK_BYTES_MAX, OTHER)]
  assert.deepEqual(
    decodeChunks(encodeChunks(chunks)).map(({ key, offset, length }) => ({
      key: Buffer.from(key),
      offset,
      length,
    })),
    chunks,
  )
  const runs = [
    { offset: 4096, hints: KEY },
    { offset: 0, hints: Buffer.alloc(8 * CHUNK_BLOCKS_MAX, 7) },
  ]
  assert.deepEqual(
    decodeBlocks(encodeBlocks(runs)).map(({ offset, hints }) => ({ offset, hints: Buffer.from(hints) })),
    runs,
  )
  assert.deepEqual([decodeChunks(''), decodeBlocks('')], [[], []])
  for (const wrong of [chunk(0, 0), chunk(0, CHUNK_BYTES_MAX + 1), chunk(IMAGE_BYTES_MAX, 1)])
    assert.throws(() => decodeChunks(encodeChunks([wrong])), /are no chunk/)
  assert.throws(() => decodeChunks(Buffer.alloc(16).toString('base64')), /no whole entries/)
  const head = (offset: number, count: number): Buffer => {
    const bytes = Buffer.alloc(7)
    bytes.writeUInt8(count, bytes.writeUIntBE(offset, 0, 6))
    return bytes
  }
  for (const [bytes, message] of [
    [Buffer.alloc(6), /cut off/],
    [head(0, 0), /a run of 0/],
    [Buffer.concat([head(0, 2), KEY]), /a run of 2/],
    [Buffer.concat([head(0, 66), Buffer.alloc(66 * 8)]), /a run of 66/],
    [Buffer.concat([head(1, 1), KEY]), /no blocks at 1/],
    [Buffer.concat([head(IMAGE_BYTES_MAX, 1), KEY]), /no blocks at/],
  ] as const)
    assert.throws(() => decodeBlocks(bytes.toString('base64')), message)
  const text = (...bytes: number[]): string => Buffer.from(bytes).toString('base64')
  assert.deepEqual([...decodeStates(text(0, 1, 2), 3)], [0, 1, 2])
  for (const states of [text(0, 1), text(0, 1, 2, 0), text(0, 1, 3), '****'])
    assert.throws(() => decodeStates(states, 3), /states/)
  assert.equal(decodeBits(text(0xff, 1), 9).length, 2)
  for (const bits of [text(1), text(1, 2, 3)]) assert.throws(() => decodeBits(bits, 9), /known/)
})

test('with a real stock: what a peer names is not opened, and images are closed again', async (context: TestContext) => {
  const rig = await hosts(context, { disks: ({ near }) => diskXml('vda', join(near, 'web.raw')) })
  await image(join(rig.far, 'a.raw'), 2 * MIB, [[0, randomBytes(MIB, 1)]])
  const outside = await image(join(rig.farState, 'secret.raw'), 2 * MIB, [[0, randomBytes(MIB, 2)]])
  const rpc = await rig.dial('ams1')
  symlinkSync(join(rig.far, 'a.raw'), join(rig.far, 'link'))
  symlinkSync(outside, join(rig.far, 'astray'))
  const names = ['a.raw', 'link', 'astray', 'none', '..'].map((name) => `${rig.far}/${name}`)
  const begun = await rpc.call('estimate', { targets: [outside, ...names] })
  const { held } = begun as { held: boolean[] }
  assert.deepEqual(held, [false, true, true, false, false, false])
  assert.deepEqual(
    rig.stock.images.map(({ path }) => path),
    [join(rig.far, 'a.raw')],
  )
  await rpc.call('estimateEnd', {})
  for (let turn = 0; turn < 100 && rig.stock.images.length > 0; turn++)
    await new Promise((resolve) => setTimeout(resolve, 10))
  assert.deepEqual(rig.stock.images, [])
  assert.ok(existsSync(outside))
})
