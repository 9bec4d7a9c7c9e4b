/** How long an outgoing migration waits for what never comes: for its far side, for connections, for a verdict. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { ManualClock } from '../../../lib/core/clock.ts'
import {
  MIGRATION_ANNOUNCED_MS,
  MIGRATION_IDLE_MS,
  MIGRATION_LINGER_MS,
  OUTCOME_HEARD_MS,
  REFUSAL_HEARD_MS,
} from '../../../lib/core/limits.ts'
import { FEATURE_RESUME } from '../../../lib/wire/hello.ts'
import { ME, start, until } from './outgoing-rig.ts'

/** What follows from a moved clock has happened: sockets of this process take some turns. */
const settled = (): Promise<void> => sleep(50)

test('one that is announced and never armed ends', async (context) => {
  const clock = new ManualClock()
  const { migration, ended } = await start(context, [ME], { clock })
  clock.advance(MIGRATION_ANNOUNCED_MS - 1)
  await settled()
  assert.equal(ended(), false)
  clock.advance(1)
  await until('the end', ended)
  assert.match(migration.record.error ?? '', /announced it and never armed it/)
})

test('one that is armed and to which nothing connects ends, once libvirt does not work on it', async (context) => {
  const clock = new ManualClock()
  let works = true
  const { migration, port, ended } = await start(context, [ME], { clock, migrating: async () => works })
  await migration.arm([port])
  clock.advance(MIGRATION_ANNOUNCED_MS)
  await settled()
  assert.equal(ended(), false, 'libvirt works on it: disks that go past us take hours')
  works = false
  clock.advance(MIGRATION_IDLE_MS - 1)
  await settled()
  assert.equal(ended(), false)
  clock.advance(1)
  await until('the end', ended)
  assert.match(migration.record.error ?? '', /no connection came within a minute/)
})

test('after its last connection it waits a moment for another one, and ends', async (context) => {
  const clock = new ManualClock()
  const { migration, port, client, ended } = await start(context, [ME], { clock })
  await migration.arm([port])
  for (let turn = 0; turn < 2; turn++) {
    const one = await client()
    await until('the echo', () => one.got() === 'hello')
    // Nothing ends while it is connected.
    clock.advance(2 * MIGRATION_IDLE_MS)
    one.socket.destroy()
    await settled()
    clock.advance(MIGRATION_LINGER_MS - 1)
    await settled()
    assert.equal(migration.entries.length, 1, 'it goes on')
  }
  await until('it to catch nothing more', () => {
    clock.advance(100)
    return migration.entries.length === 0
  })
  migration.stop('it did not arrive')
  await until('the end', ended)
})

for (const { outcome, ms, what } of [
  { outcome: 'gone', ms: OUTCOME_HEARD_MS, what: 'a guest that is gone' },
  { outcome: 'here', ms: REFUSAL_HEARD_MS, what: 'a guest that stayed' },
] as const) {
  for (const said of [true, false]) {
    test(`${what}: the far side ${said ? 'says why' : 'never says why'}`, async (context) => {
      const clock = new ManualClock()
      let asked = false
      const { migration, port, client, ended } = await start(context, [ME], {
        clock,
        outcome: async () => {
          asked = true
          return outcome
        },
      })
      await migration.arm([port])
      const one = await client()
      await until('the echo', () => one.got() === 'hello')
      one.socket.destroy()
      await until('it to catch nothing more', () => {
        clock.advance(MIGRATION_LINGER_MS)
        return migration.entries.length === 0
      })
      await until('libvirt to be asked', () => asked)
      await settled()
      if (said) migration.arrived()
      else {
        clock.advance(ms - 1)
        await settled()
        assert.equal(ended(), false)
        clock.advance(1)
      }
      await until('the end', ended)
      assert.equal(migration.record.phase, outcome === 'gone' ? 'done' : 'failed')
    })
  }
}

for (const { what, more, message } of [
  {
    what: 'its far daemon is gone',
    more: { farLives: async () => 'no' as const },
    message: /the swamd of far is gone/,
  },
  {
    what: 'its guest is paused to switch over',
    more: { paused: async () => true, limits: { windowBytes: 1 << 20, drainMs: 1000, flushDeadlineMs: 600 } },
    message: /the guest has been paused for \d+ ms of a broken link/,
  },
]) {
  test(`a link that stays broken is given up long before its time when ${what}`, async (context) => {
    const { migration, port, client, ram, ended } = await start(context, [ME], more, {
      features: [FEATURE_RESUME],
    })
    await migration.arm([port])
    const one = await client()
    await until('the echo', () => one.got() === 'hello')
    const started = performance.now()
    ram.setDown(true)
    ram.cut()
    await until('the end', ended)
    assert.match(migration.record.error ?? '', message)
    assert.ok(performance.now() - started < 5000)
  })
}
