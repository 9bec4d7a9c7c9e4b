/** The fuzzer finds faults that are planted: behind a magic word, in time, in memory, in what is thrown. */
import assert from 'node:assert/strict'
import { after, test } from 'node:test'
import { Coverage } from '../../fuzz/coverage.ts'
import { TargetFuzzer } from '../../fuzz/fuzzer.ts'
import { Finding, type FuzzTarget } from '../../fuzz/target.ts'
import { Trace } from '../../fuzz/trace.ts'
import { random } from '../../random.ts'

const coverage = new Coverage((url) => url === import.meta.url)
after(() => coverage.close())

function fuzzer(
  run: FuzzTarget['run'],
  seed: Buffer,
  more: Partial<FuzzTarget> = {},
  memory?: { rss: number; live: number },
): TargetFuzzer {
  const target = { name: 'planted', inputBytesMax: 64, allocationBytesMax: 4096, run, ...more }
  const parts = { random: random(1), coverage, trace: new Trace(undefined), ...(memory && { memory }) }
  return new TargetFuzzer(target, [seed], parts)
}

/** Four comparisons one behind the other: by chance alone that takes 2^32 inputs. */
function magic(input: Buffer): void {
  if (input[0] !== 0x53) return
  if (input[1] !== 0x57) return
  if (input[2] !== 0x41) return
  if (input[3] !== 0x4d) return
  throw new Error('reached')
}

test('what runs new code is kept, and leads behind a magic word', async () => {
  const found = fuzzer(magic, Buffer.from('abcd'))
  await assert.rejects(found.run(30_000), (error: unknown) => {
    assert.ok(error instanceof Finding)
    assert.equal(error.input.toString('latin1', 0, 4), 'SWAM')
    return true
  })
  assert.ok(found.kept.length >= 3, `${found.kept.length} inputs were kept`)
})

test('a length that is believed before it is checked', async () => {
  const run = (input: Buffer): void => {
    if (input.length < 4) return
    try {
      Buffer.allocUnsafe(input.readUInt32BE(0))
    } catch {
      // A decoder may hide it.
    }
  }
  await assert.rejects(
    fuzzer(run, Buffer.from([0, 0, 0, 9])).run(30_000),
    /Buffer\.allocUnsafe of \d+ bytes, the target's ceiling is 4096/,
  )
})

test('an input that costs too much time', async () => {
  const run = (input: Buffer): void => {
    const before = process.cpuUsage()
    while (input.length > 10 && process.cpuUsage(before).user < 150_000);
  }
  const more = { cpuMsMax: 100 }
  await assert.rejects(fuzzer(run, Buffer.alloc(10), more).run(30_000), /ms of processor time/)
})

test('a promise that rejects', async () => {
  const run = async (input: Buffer): Promise<void> => {
    if (input.length > 10) throw new TypeError('planted')
  }
  await assert.rejects(fuzzer(run, Buffer.alloc(10)).run(30_000), /TypeError: planted/)
})

test('what grows and lives is found; garbage that was not collected yet is not', async () => {
  const mib = 1 << 20
  const memory = { rss: 1, live: 256 * mib }
  const kept: Buffer[] = []
  const waste = (): Buffer => Buffer.alloc(mib, 1)
  const more = { allocationBytesMax: mib }
  const seed = Buffer.alloc(10)
  for (let turn = 0; turn < 4; turn++) await fuzzer(() => void waste(), seed, more, memory).run(100)
  const leak = (): void => {
    kept.push(waste())
    if (kept.length > 1024) throw new Error('it was not noticed')
  }
  const leaking = fuzzer(leak, seed, more, memory)
  await assert.rejects(async () => {
    for (;;) await leaking.run(20)
  }, /\d+ bytes live after a collection/)
  kept.length = 0
})
