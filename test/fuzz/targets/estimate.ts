/**
 * The far side of `swam estimate` with a peer that lies: lines of `METHOD {params}`, before, within and after an estimate, and the
 * answers to our own batches. What is answered is of the form and length that was asked for, and what was read of a batch is what
 * was written.
 */
import assert from 'node:assert/strict'
import { SwamError } from '../../../lib/core/errors.ts'
import { CHUNK_BLOCKS_MAX, CHUNK_BYTES_MAX, IMAGE_BYTES_MAX } from '../../../lib/core/limits.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import { EstimateAnswers } from '../../../server/estimate/answers.ts'
import {
  decodeBits,
  decodeBlocks,
  decodeChunks,
  decodeStates,
  encodeBlocks,
  encodeChunks,
} from '../../../server/estimate/batch.ts'
import { below, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'

const PATH = '/images/a.raw'
const METHODS = ['estimate', 'estimateChunks', 'estimateBlocks', 'estimateEnd']

function answers(): EstimateAnswers {
  const found = (key: Buffer, at = 0) =>
    (key[at] ?? 0) % 2 === 0 ? [{ image: 0, offset: 0, length: 65_536 }] : []
  return new EstimateAnswers({
    config: { images: ['/images'], share: 'images' },
    stock: {
      scanning: 0,
      blockCount: 1,
      images: [{ path: PATH, format: 'raw', size: 65_536, source: { allocatedBytes: 65_536 } }],
      image: (number) => (number === 0 ? { path: PATH } : undefined),
      lookup: found,
      lookupBlock: found,
      refresh: async () => undefined,
      rest: async () => undefined,
    },
    images: async () => [],
    receiving: () => new Set(),
    onProblem: (error) => {
      throw error
    },
    scanWaitMs: 0,
  })
}

async function allowed<Result>(work: () => Result | Promise<Result>): Promise<Result | undefined> {
  try {
    return await work()
  } catch (error) {
    if (!(error instanceof SwamError)) throw error
    return undefined
  }
}

function parsed(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return text
  }
}

async function asked(input: Buffer): Promise<void> {
  const far = answers()
  const { promise: closed, resolve } = Promise.withResolvers<undefined>()
  const handlers = far.handlers({ peer: 'ams1', closed, ended: false } as unknown as Bundle)
  for (const line of input.toString('utf8').split('\n').slice(0, 16)) {
    const [, method = '', text = ''] = /^(\w+) (.*)$/.exec(line) ?? []
    if (!METHODS.includes(method)) continue
    const params = parsed(text)
    const answer = (await allowed(() => handlers[method]!(params))) as Record<string, unknown> | undefined
    if (answer === undefined) continue
    const given = params as Record<string, string>
    if (method === 'estimateChunks')
      decodeStates(String(answer['states']), decodeChunks(given['chunks']!).length)
    if (method === 'estimateBlocks') {
      const count = decodeBlocks(given['blocks']!).reduce((sum, { hints }) => sum + hints.length / 8, 0)
      decodeBits(String(answer['known']), count)
    }
  }
  resolve(undefined)
  await closed
  await new Promise((done) => setImmediate(done))
  assert.equal(far.busy, false, 'nothing stays when the peer is gone')
}

async function decoded(input: Buffer): Promise<void> {
  for (const text of [input.toString('latin1'), input.toString('base64')]) {
    const chunks = await allowed(() => decodeChunks(text))
    for (const { key, offset, length } of chunks ?? [])
      assert.ok(
        key.length === 8 && length >= 1 && length <= CHUNK_BYTES_MAX && offset + length <= IMAGE_BYTES_MAX,
      )
    if (chunks !== undefined) assert.deepEqual(decodeChunks(encodeChunks(chunks)), chunks)
    const runs = await allowed(() => decodeBlocks(text))
    for (const { hints } of runs ?? [])
      assert.ok(hints.length >= 8 && hints.length <= 8 * CHUNK_BLOCKS_MAX && hints.length % 8 === 0)
    if (runs !== undefined) assert.deepEqual(decodeBlocks(encodeBlocks(runs)), runs)
    const states = await allowed(() => decodeStates(text, 3))
    assert.ok(states === undefined || (states.length === 3 && states.every((state) => state <= 2)))
    assert.equal((await allowed(() => decodeBits(text, 9)))?.length ?? 2, 2)
  }
}

const KEY = Buffer.from('0011223344556677', 'hex')
const CHUNKS: string = encodeChunks([{ key: KEY, offset: 0, length: 65_536 }])
const BLOCKS: string = encodeBlocks([{ offset: 4096, hints: Buffer.concat([KEY, KEY]) }])

export const ESTIMATE_LINES: readonly string[] = [
  `estimate {"targets":["${PATH}","/images/b.raw"]}`,
  `estimateChunks {"disk":0,"chunks":"${CHUNKS}"}`,
  `estimateChunks {"disk":1,"chunks":"${CHUNKS}"}`,
  `estimateBlocks {"disk":0,"blocks":"${BLOCKS}"}`,
  'estimateEnd {}',
]

export const estimate: FuzzTarget = {
  name: 'estimate',
  inputBytesMax: 8192,
  allocationBytesMax: 65_536,
  dictionary: [
    ...ESTIMATE_LINES,
    '"targets":',
    '"disk":',
    '"chunks":"',
    '"blocks":"',
    'null',
    '\n',
    '==',
  ].map((word) => Buffer.from(word)),
  generate: (random: Random) => {
    if (below(random, 3) === 0) {
      const some = Array.from({ length: 1 + below(random, 4) }, () => ({
        key: KEY,
        offset: below(random, 2 ** 31),
        length: 1 + below(random, 300_000),
      }))
      return Buffer.from(encodeChunks(some), 'base64')
    }
    const first = below(random, 4) === 0 ? [] : [ESTIMATE_LINES[0]!]
    const more = Array.from({ length: 1 + below(random, 6) }, () => pick(random, ESTIMATE_LINES))
    return Buffer.from([...first, ...more].join('\n'))
  },
  async run(input) {
    await asked(input)
    await decoded(input)
  },
}
