/**
 * The test of a link with a peer that lies: what it asks as one who dialed, what it answers as one who was dialed, and data
 * frames of any length and number. What is reported as verified has arrived as it was sent, and nothing stays busy.
 */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { LostError, SwamError } from '../../../lib/core/errors.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import type { Rpc } from '../../../lib/peer/rpc.ts'
import { LINK_TEST_DATA, LinkTests } from '../../../server/link-test.ts'
import { below, pick, type Random } from '../mutate.ts'
import type { FuzzTarget } from '../target.ts'

const BYTES_MAX = 4096
const WAIT_MS = 20

function sha256(pieces: readonly Buffer[]): string {
  const hash = createHash('sha256')
  for (const piece of pieces) hash.update(piece)
  return hash.digest('hex')
}

/** A line of the input: `data LENGTH [TYPE]`, or JSON. */
function steps(input: Buffer): { json?: Buffer; type: number; length: number }[] {
  return input
    .toString('latin1')
    .split('\n')
    .slice(0, 24)
    .map((line) => {
      const [, length, type] = /^data (\d{1,5})(?: (\d{1,3}))?$/.exec(line) ?? []
      if (length === undefined) return { json: Buffer.from(line, 'latin1'), type: 0, length: 0 }
      return { type: Number(type ?? LINK_TEST_DATA), length: Number(length) }
    })
}

function parsed(bytes: Buffer): unknown {
  try {
    return JSON.parse(bytes.toString('utf8'))
  } catch {
    return bytes.toString('utf8')
  }
}

class Far {
  readonly sent: Buffer[] = []
  readonly bundle: Bundle
  constructor(room: number) {
    let left = room
    this.bundle = {
      peer: 'far',
      send: async (type: number, pieces: readonly Buffer[]) => {
        assert.equal(type, LINK_TEST_DATA)
        if (left-- <= 0) throw new LostError('the link is lost')
        this.sent.push(...pieces.map((piece) => Buffer.from(piece)))
      },
    } as unknown as Bundle
  }
}

/** Swallows what a peer may bring about; anything else is ours. */
async function settled<Result>(work: Promise<Result>): Promise<Result | undefined> {
  try {
    return await work
  } catch (error) {
    if (!(error instanceof SwamError)) throw error
    return undefined
  }
}

/** The peer dialed us: each JSON line calls a method, data lines are frames. */
async function asked(input: Buffer): Promise<void> {
  const tests = new LinkTests({ bytesMax: BYTES_MAX, waitMs: WAIT_MS })
  const far = new Far(8)
  const handlers = tests.handlers(far.bundle)
  const arrived: Buffer[] = []
  const open: Promise<unknown>[] = []
  for (const step of steps(input)) {
    if (step.json === undefined) {
      const payload = Buffer.alloc(Math.min(step.length, 8192), step.length)
      try {
        tests.frame(far.bundle, step.type, payload)
        arrived.push(payload)
      } catch (error) {
        if (!(error instanceof SwamError)) throw error
        // The bundle ends.
        break
      }
      assert.ok(arrived.reduce((sum, { length }) => sum + length, 0) <= BYTES_MAX * 24)
      continue
    }
    const { method, params } = (parsed(step.json) ?? {}) as { method?: unknown; params?: unknown }
    const handler =
      typeof method === 'string' && Object.hasOwn(handlers, method) ? handlers[method] : undefined
    if (handler === undefined) continue
    if (method === 'testTake') arrived.length = 0
    const before = far.sent.length
    const answering = settled(handler(params))
    if (method === 'testTaken') {
      const bytes = (params as { bytes?: unknown } | null)?.bytes
      open.push(
        answering.then((answer) => {
          const { sha256: digest } = (answer ?? {}) as { sha256?: string }
          if (digest === undefined) return
          assert.match(digest, /^[0-9a-f]{64}$/)
          assert.ok(typeof bytes === 'number' && bytes <= BYTES_MAX)
        }),
      )
      continue
    }
    const answer = (await answering) as { bytes?: number; sha256?: string } | undefined
    if (method !== 'testGive' || answer === undefined) continue
    const given = far.sent.slice(before)
    assert.equal(
      given.reduce((sum, { length }) => sum + length, 0),
      answer.bytes,
    )
    assert.equal(sha256(given), answer.sha256)
    assert.ok(answer.bytes! <= BYTES_MAX)
  }
  await Promise.all(open)
}

/** We dialed: JSON lines are its answers, in turn; data lines before an answer are frames that come before it. */
async function answered(input: Buffer): Promise<void> {
  const tests = new LinkTests({ bytesMax: BYTES_MAX, waitMs: WAIT_MS })
  const far = new Far(64)
  const left = steps(input)
  let came: Buffer[] = []
  let failed: Error | undefined
  let claimed: unknown
  const rpc = {
    call: async (method: string) => {
      if (method === 'testGive') came = []
      // A peer without end of words is a peer without a link.
      for (let step = left.shift(); step !== undefined; step = left.shift()) {
        if (step.json !== undefined) {
          const answer = parsed(step.json)
          if (answer === 'right') {
            const pieces = method === 'testTaken' ? far.sent : came
            return { bytes: pieces.reduce((sum, { length }) => sum + length, 0), sha256: sha256(pieces) }
          }
          if (method === 'testTaken') claimed = (answer as { sha256?: unknown } | null)?.sha256
          return answer
        }
        const payload = Buffer.alloc(Math.min(step.length, 8192), step.length)
        try {
          tests.frame(far.bundle, step.type, payload)
          if (method === 'testGive') came.push(payload)
        } catch (error) {
          if (!(error instanceof SwamError)) throw error
          failed = error
          throw new LostError('the bundle ended', { cause: error })
        }
      }
      throw new LostError('the link is lost')
    },
  } as unknown as Rpc
  const report = await settled(tests.run(far.bundle, rpc, '0.1.0'))
  if (report !== undefined) {
    assert.equal(failed, undefined)
    const bytes = came.reduce((sum, { length }) => sum + length, 0)
    assert.ok(report.in.bytes <= bytes && bytes <= BYTES_MAX, 'what is said to have come came')
    assert.equal(report.in.sha256, sha256(came))
    assert.equal(report.out.sha256, sha256(far.sent))
    if (claimed !== undefined) assert.equal(report.out.verified, claimed === sha256(far.sent))
    for (const { bytes: size, elapsedMs, sha256: digest } of [report.out, report.in]) {
      assert.ok(size >= 0 && size <= BYTES_MAX && elapsedMs > 0 && Number.isFinite(elapsedMs))
      assert.match(digest, /^[0-9a-f]{64}$/)
    }
    assert.ok(Number.isFinite(report.rttMs) && Number.isSafeInteger(report.clockMs))
  }
  // Whatever came of it, the next one may begin.
  const next = { call: async () => Promise.reject(new LostError('lost')) } as unknown as Rpc
  await assert.rejects(tests.run(far.bundle, next, ''), LostError)
}

const WORDS = [
  ...['{"method":"testTake","params":{"bytes":10}}', '{"method":"testTaken","params":{"bytes":10}}', 'right'],
  ...[
    '{"method":"testGive","params":{"bytes":4096}}',
    '{"method":"ping","params":null}',
    '{"wallMs":1}',
    '{}',
  ],
  ...[
    'data 10',
    'data 4096',
    'data 0',
    'data 10 65',
    '"bytes":',
    '"sha256":"',
    'null',
    '4097',
    '-1',
    '1e999',
    '\n',
  ],
]

export const linkTest: FuzzTarget = {
  name: 'link-test',
  inputBytesMax: 2048,
  allocationBytesMax: 65_536,
  dictionary: WORDS.map((word) => Buffer.from(word)),
  generate: (random: Random) => {
    if (below(random, 2) === 0) {
      const lines = Array.from({ length: 1 + below(random, 8) }, () => pick(random, WORDS))
      return Buffer.from(`${lines.join('\n')}\n`)
    }
    const pings = Array.from({ length: 5 }, () => `{"wallMs":${below(random, 2 ** 31)}}`)
    const data = Array.from({ length: below(random, 4) }, () => `data ${below(random, 1200)}`)
    const last = pick(random, ['right', 'right', '{"bytes":10,"sha256":"x"}', '{"bytes":0,"sha256":""}'])
    return Buffer.from([...pings, '{}', pick(random, ['right', '{"sha256":"y"}']), ...data, last].join('\n'))
  },
  async run(input) {
    await asked(input)
    await answered(input)
  },
}
