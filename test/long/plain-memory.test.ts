/**
 * Plain migrations of a guest that stores all the time: they hold the lab's emulator to every store (test/lab/qemu-dirty.c).
 * test/e2e/swam-basic.test.ts has the same through SWAM, and fails as well where it is missing.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Lab } from '../lab/lab.ts'

const MIB = 1 << 20

test('what a guest stores in its memory while it migrates is there when it has arrived', {
  timeout: 240_000,
}, async () => {
  await using lab = await Lab.up({ name: `plain-${process.pid}-memory`, rttMs: 2, mbit: 1000 })
  const guest = lab.tinyGuest({
    diskMiB: 16,
    randomMiB: 1,
    ramMiB: 128,
    hammerMiB: 32,
    write: { areaBytes: 8 * MIB },
  })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(3)
  for (let turn = 0; turn < 6; turn++) {
    const [from, to] = turn % 2 === 0 ? (['hosta', 'hostb'] as const) : (['hostb', 'hosta'] as const)
    const done = await lab.migrate(guest, from, to, { maxDowntimeMs: 1 })
    assert.ok(done.ok, done.stderr)
    assert.ok(Number(done.jobinfo['Iteration']) > 3, `rounds over the memory: ${done.jobinfo['Iteration']}`)
    await guest.waitProgress(15) // three seconds, in which it comes by each page again
  }
})
