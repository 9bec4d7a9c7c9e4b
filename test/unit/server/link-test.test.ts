/** The bounds of a test of the link, in time and in words, against an end that lies or is silent; `peer-list.test.ts` has the rest. */
import assert from 'node:assert/strict'
import { createHash } from 'node:crypto'
import { type TestContext, test } from 'node:test'
import { LostError } from '../../../lib/core/errors.ts'
import { LINK_TEST_MS, LINK_TEST_SEND_MS, LINK_TEST_STEPS_MS } from '../../../lib/core/limits.ts'
import type { Bundle } from '../../../lib/peer/bundle.ts'
import type { Rpc } from '../../../lib/peer/rpc.ts'
import { LINK_TEST_DATA, LinkTests } from '../../../server/link-test.ts'

const SMALL = { bytesMax: 1000, waitMs: 30 }

function bundle(peer = 'far', send: () => Promise<void> = async () => undefined) {
  const sent: Buffer[] = []
  const made = {
    peer,
    send: async (_type: number, pieces: Buffer[]) => {
      sent.push(...pieces)
      await send()
    },
  } as unknown as Bundle
  return { bundle: made, sent }
}

/** A clock that the test turns. Whole milliseconds: sums of fractions may fall short of what they should be. */
function clock(context: TestContext): { now: number } {
  const state = { now: Math.round(performance.now()) }
  context.mock.method(performance, 'now', () => state.now)
  return state
}

function sha256(bytes: readonly Buffer[]): string {
  return createHash('sha256').update(Buffer.concat(bytes)).digest('hex')
}

/** A far end that answers by the table; testGive first lets `data` arrive. */
function lying(tests: LinkTests, to: Bundle, answers: Record<string, unknown>, data: readonly Buffer[] = []) {
  const timeouts: unknown[] = []
  const rpc = {
    call: async (method: string, _params: unknown, options?: { timeoutMs?: number }) => {
      if (method !== 'testTake') timeouts.push(options?.timeoutMs)
      if (method === 'testGive') for (const one of data) tests.frame(to, LINK_TEST_DATA, one)
      const answer = answers[method]
      return typeof answer === 'function' ? (answer as () => unknown)() : (answer ?? {})
    },
  } as unknown as Rpc
  return { rpc, timeouts }
}

test('what was announced and does not come is waited for within a bound', async () => {
  const tests = new LinkTests(SMALL)
  const far = bundle()
  const handlers = tests.handlers(far.bundle)
  await assert.rejects(handlers['testTaken']!({ bytes: 1 }), /no test of the link is under way/)
  await handlers['testTake']!({ bytes: 10 })
  tests.frame(far.bundle, LINK_TEST_DATA, Buffer.alloc(4))
  await assert.rejects(handlers['testTaken']!({ bytes: 10 }), /4 of 10 bytes arrived/)
  // And the next one may begin.
  await handlers['testTake']!({ bytes: 10 })
})

test('a slow link is sent to for a few seconds only, and each call has its deadline', async (context) => {
  const time = clock(context)
  const tests = new LinkTests()
  const far = bundle('far', async () => {
    time.now += LINK_TEST_SEND_MS / 4
  })
  const given = (await tests.handlers(far.bundle)['testGive']!({ bytes: 64 << 20 })) as { bytes: number }
  assert.equal(far.sent.length, 4)
  assert.equal(given.bytes, Buffer.concat(far.sent).length)
  const { rpc, timeouts } = lying(tests, far.bundle, {
    testTaken: { sha256: '' },
    testGive: { sha256: '', bytes: 0 },
  })
  await tests.run(far.bundle, rpc, '')
  assert.deepEqual(new Set(timeouts), new Set([LINK_TEST_MS]))
})

test('a test whose other end went away bars the next one for a while only; steps are counted for a minute, for each peer', async (context) => {
  const time = clock(context)
  const tests = new LinkTests(SMALL)
  const [far, other] = [bundle(), bundle('other')]
  const take = (which: Bundle): Promise<unknown> => tests.handlers(which)['testTake']!({ bytes: 1 })
  await take(far.bundle)
  await assert.rejects(take(other.bundle), /another test/)
  time.now += 2 * LINK_TEST_MS + 1
  await take(other.bundle)
  time.now += LINK_TEST_STEPS_MS + 1
  const give = (which: Bundle): Promise<unknown> => tests.handlers(which)['testGive']!({ bytes: 0 })
  for (let step = 0; step < 12; step++) await give(far.bundle)
  await assert.rejects(give(far.bundle), /wait a minute/)
  await give(other.bundle)
  time.now += LINK_TEST_STEPS_MS + 1
  await give(far.bundle)
})

test('answers: verified is what the digests of both ends say, and more than was asked for is refused', async () => {
  const data = [Buffer.alloc(7, 1), Buffer.alloc(9, 2)]
  const right = { bytes: 16, sha256: sha256(data) }
  const run = async (taken: (sent: readonly Buffer[]) => unknown, given: unknown) => {
    const tests = new LinkTests(SMALL)
    const far = bundle()
    const { rpc } = lying(tests, far.bundle, { testTaken: () => taken(far.sent), testGive: given }, data)
    return await tests.run(far.bundle, rpc, '0.1.0')
  }
  const honest = (sent: readonly Buffer[]): unknown => ({ sha256: sha256(sent) })
  const good = await run(honest, right)
  assert.deepEqual([good.out.verified, good.in.verified, good.in.bytes], [true, true, 16])
  const wrong = await run(() => ({ sha256: sha256(data) }), { ...right, sha256: 'x' })
  assert.deepEqual([wrong.out.verified, wrong.in.verified], [false, false])
  await assert.rejects(run(honest, { ...right, bytes: 1001 }), /testGive: bytes: /)
  await assert.rejects(run(honest, { ...right, bytes: 17 }), /16 of 17 bytes arrived/)
  await assert.rejects(run(honest, { ...right, sha256: 'x'.repeat(65) }), /sha256/)
  await assert.rejects(
    run(() => null, right),
    /expected an object/,
  )
  await assert.rejects(
    run(() => ({ sha256: 7 }), right),
    /sha256/,
  )
})

test('what arrived is told once, with all that was there, and nothing follows', async () => {
  const tests = new LinkTests(SMALL)
  const far = bundle()
  const { testTake, testTaken } = tests.handlers(far.bundle)
  await testTake!({ bytes: 10 })
  const data = [Buffer.alloc(4, 1), Buffer.alloc(4, 2)]
  assert.throws(
    () => tests.frame(far.bundle, LINK_TEST_DATA + 1, Buffer.alloc(1)),
    /frame type 67 is not expected/,
  )
  const told = testTaken!({ bytes: 8 })
  await assert.rejects(testTaken!({ bytes: 8 }), /told already/)
  for (const one of data) tests.frame(far.bundle, LINK_TEST_DATA, one)
  assert.equal(((await told) as { sha256: string }).sha256, sha256(data))
  await assert.rejects(testTaken!({ bytes: 8 }), /told already/)
  assert.throws(() => tests.frame(far.bundle, LINK_TEST_DATA, Buffer.alloc(1)), /more than it said/)
})

test('a peer whose own test is over does not end the one of another', async () => {
  const tests = new LinkTests(SMALL)
  const [far, other] = [bundle(), bundle('other')]
  const ours = tests.handlers(far.bundle)
  await ours['testTake']!({ bytes: 10 })
  await ours['testTaken']!({ bytes: 0 })
  await tests.handlers(other.bundle)['testTake']!({ bytes: 10 })
  await assert.rejects(ours['testTaken']!({ bytes: 0 }), /told already/)
  await assert.rejects(ours['testGive']!({ bytes: 10 }), /another test/)
})

test('a test that fails leaves nothing busy', async () => {
  const tests = new LinkTests(SMALL)
  const far = bundle('far', async () => {
    throw new LostError('the link is lost')
  })
  const { rpc } = lying(tests, far.bundle, {})
  for (let turn = 0; turn < 2; turn++)
    await assert.rejects(tests.run(far.bundle, rpc, ''), /the link is lost/)
  for (let turn = 0; turn < 2; turn++) {
    await assert.rejects(tests.handlers(far.bundle)['testGive']!({ bytes: 9 }), /the link is lost/)
  }
})
