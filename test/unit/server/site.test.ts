/** How long libvirt is asked what became of a guest, with a libvirt that does not decide. */
import assert from 'node:assert/strict'
import { mkdtemp, rm } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type TestContext, test } from 'node:test'
import type { Config } from '../../../config/schema.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  BEGUN_GUESTS_MAX,
  DIRECT_START_MS,
  DIRECT_WATCH_MS,
  HISTORY_SETTLE_MS,
  OUTCOME_ASK_MS,
  OUTCOME_ASKS_MAX,
  OUTCOME_MS,
  OUTCOME_PAUSED_ASKS_MAX,
} from '../../../lib/core/limits.ts'
import { createLog } from '../../../lib/core/log.ts'
import { CommandError } from '../../../lib/host/command.ts'
import { Libvirt } from '../../../lib/host/libvirt.ts'
import { History } from '../../../server/history.ts'
import { MigrationRecord } from '../../../server/migration/record.ts'
import { Site } from '../../../server/site.ts'

const UUID = '33333333-3333-4333-8333-333333333333'
const absent = (argv: readonly string[]): never => {
  throw new CommandError(argv, 1, `error: failed to get domain '${UUID}'`)
}

/** What virsh says: of the guest's state, and of its job. */
interface Said {
  state: (argv: readonly string[]) => string
  job: (argv: readonly string[]) => string
  /** Why it is paused. */
  reason?: string
}

async function start(context: TestContext, said: Said) {
  const directory = await mkdtemp(join(tmpdir(), 'swam-site-'))
  const log = createLog({ level: 'info', stream: { write: () => undefined } })
  const clock = new ManualClock(1_000_000)
  const site = new Site({} as Config, log, new History(directory), clock)
  let asked = 0
  Object.assign(site, {
    libvirt: new Libvirt({
      run: async (argv) => {
        if (!argv.includes('domstate')) return said.job(argv)
        if (argv.includes('--reason')) return `${said.state(argv).trim()} (${said.reason ?? 'user'})\n`
        asked++
        return said.state(argv)
      },
    }),
  })
  context.after(() => rm(directory, { recursive: true, force: true }))
  /** Moves the clock in steps until the answer is there, and says after how long. */
  const answered = async <T>(answer: Promise<T>, stepMs: number): Promise<{ value: T; ms: number }> => {
    let over = false
    void answer.finally(() => (over = true))
    const from = clock.nowMs()
    for (let step = 0; step < 2000; step++) {
      for (let turn = 0; turn < 5; turn++) await new Promise((resolve) => setImmediate(resolve))
      if (over) return { value: await answer, ms: clock.nowMs() - from }
      clock.advance(stepMs)
    }
    throw new Error('it is asked for ever')
  }
  return { site, clock, answered, asked: () => asked }
}

for (const { name, state } of [
  { name: 'a guest that stays paused at the source', state: () => 'paused\n' },
  {
    name: 'a libvirt that gives no answer',
    state: (argv: readonly string[]): never => {
      throw new CommandError(argv, 1, 'error: failed to connect to the hypervisor')
    },
  },
]) {
  test(`libvirt is asked so many times: ${name}`, async (context) => {
    const { site, answered, asked } = await start(context, { state, job: absent })
    const { value, ms } = await answered(site.outcome(UUID, 'out', 0), OUTCOME_ASK_MS)
    assert.equal(value, 'unknown')
    assert.equal(asked(), OUTCOME_ASKS_MAX)
    assert.equal(ms, OUTCOME_ASKS_MAX * OUTCOME_ASK_MS)
  })
}

test('a libvirt that takes long to answer is asked for so long, and no longer', async (context) => {
  const { site, clock, answered, asked } = await start(context, {
    state: () => {
      clock.advance(4000)
      return 'paused\n'
    },
    job: absent,
  })
  const { value, ms } = await answered(site.outcome(UUID, 'out', 0), OUTCOME_ASK_MS)
  assert.equal(value, 'unknown')
  assert.equal(asked(), 3)
  assert.ok(ms < OUTCOME_MS + 4000)
})

test('a guest that stays paused at the destination has arrived, though libvirt says that its job goes on', async (context) => {
  const { site, answered, asked } = await start(context, {
    state: () => 'paused\n',
    job: () => 'Job type: Unbounded\n',
  })
  const { value } = await answered(site.outcome(UUID, 'in', 0), OUTCOME_ASK_MS)
  assert.equal(value, 'here')
  assert.equal(asked(), OUTCOME_PAUSED_ASKS_MAX + 1)
})

test('a new QEMU that waits for the rest of a guest is not that guest, however long it is there', async (context) => {
  for (const reason of ['migrating', 'starting up']) {
    const { site, answered, asked } = await start(context, { state: () => 'paused\n', job: absent, reason })
    const { value } = await answered(site.outcome(UUID, 'in', 0), OUTCOME_ASK_MS)
    assert.equal(value, 'unknown')
    assert.equal(asked(), OUTCOME_ASKS_MAX)
  }
})

test('one that goes past SWAM is not waited for for ever: it never appears', async (context) => {
  const { site, clock, answered } = await start(context, { state: absent, job: absent })
  const { value, ms } = await answered(site.directOutcome('vm', UUID, 'in', clock.wallMs()), 1000)
  assert.equal(value, 'gone')
  assert.equal(ms, DIRECT_START_MS)
})

test('one that goes past SWAM is not watched for ever: its job never ends', async (context) => {
  const { site, clock, answered } = await start(context, {
    state: () => 'running\n',
    job: () => 'Job type: Unbounded\n',
  })
  const { value, ms } = await answered(site.directOutcome('vm', UUID, 'out', clock.wallMs()), 3_600_000)
  assert.equal(value, 'here')
  assert.equal(ms, DIRECT_WATCH_MS)
})

test('the history waits for a migration that is over and not written yet, and not for one that runs or never settles', async (context) => {
  const { site, answered } = await start(context, { state: absent, job: absent })
  const record = new MigrationRecord({ id: 'm', guest: 'vm', uuid: UUID, peer: 'fra1', direction: 'out' })
  site.begun(record)
  record.connected(1)
  assert.equal((await answered(site.settled(), 50)).ms, 0, 'it runs')
  record.connected(0)
  const { ms } = await answered(site.settled(), 50)
  assert.ok(ms >= HISTORY_SETTLE_MS && ms < HISTORY_SETTLE_MS + 200, `${ms} ms`)
  const waiting = answered(site.settled(), 1)
  record.finish('done')
  site.ended(record)
  const { ms: written } = await waiting
  assert.ok(written > 0 && written < HISTORY_SETTLE_MS, `${written} ms`)
  assert.equal((await site.history.lines()).length, 1)
  assert.equal((await answered(site.settled(), 50)).ms, 0, 'it is written')
})

test('how a migration ended is found out some seconds later, which are not its time', async () => {
  const record = new MigrationRecord({ id: 'm', guest: 'vm', uuid: UUID, peer: 'fra1', direction: 'in' })
  record.connected(1)
  record.connected(0)
  const over = record.report().startedAt + record.report().elapsedMs
  await new Promise((resolve) => setTimeout(resolve, 60))
  record.finish('done')
  const { startedAt, elapsedMs } = record.report()
  assert.ok(startedAt + elapsedMs <= over + 20, `${elapsedMs} ms`)
})

test('of so many guests it is remembered when they began, the oldest are forgotten', async (context) => {
  const { site, answered, asked } = await start(context, { state: () => 'running\n', job: absent })
  // All of them would be written to the disk again for each.
  Object.assign(site.history, { running: async () => undefined })
  const uuid = (number: number): string => `33333333-3333-4333-8333-${String(number).padStart(12, '0')}`
  const begin = (number: number): void =>
    site.begun(
      new MigrationRecord({
        id: `m${number}`,
        guest: 'vm',
        uuid: uuid(number),
        peer: 'fra1',
        direction: 'in',
      }),
    )
  const outcome = async (number: number): Promise<string> =>
    (await answered(site.outcome(uuid(number), 'out', 0), OUTCOME_ASK_MS)).value
  for (let number = 0; number < BEGUN_GUESTS_MAX; number++) begin(number)
  assert.equal(await outcome(0), 'gone', 'it came back')
  begin(BEGUN_GUESTS_MAX)
  assert.equal(await outcome(0), 'here', 'libvirt is believed again')
  assert.deepEqual([await outcome(1), await outcome(BEGUN_GUESTS_MAX), asked()], ['gone', 'gone', 1])
})
