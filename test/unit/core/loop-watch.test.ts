/** LoopWatch by a clock that is moved by hand, and once for real: a turn that blocks is seen, a loop at rest is not late. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LoopWatch } from '../../../lib/core/loop-watch.ts'

interface Rig {
  readonly watch: LoopWatch
  readonly long: { lateMs: number; busyMs: number }[]
  /** Time passes, of which this thread computed a part, and the timer fires. */
  turn(ms: number, cpuMs: number): void
}

/** Each look is due 20 ms after the one before. */
function rig(): Rig {
  let now = 0
  let cpu = 0
  const long: { lateMs: number; busyMs: number }[] = []
  const watch = new LoopWatch({ clock: () => now, cpu: () => cpu, onLong: (delay) => long.push(delay) })
  watch.look()
  return {
    watch,
    long,
    turn: (ms, cpuMs) => {
      now += ms
      cpu += cpuMs
      watch.look()
    },
  }
}

/** The histograms keep three digits. */
function near(found: number, expected: number, what?: string): void {
  assert.ok(Math.abs(found - expected) <= expected / 500, `${found}, expected ${expected} ${what ?? ''}`)
}

test('a delay is what comes beyond the 20 ms; what others took is not our work', () => {
  const { watch, long, turn } = rig()
  for (let i = 0; i < 200; i++) turn(21, 5)
  turn(120, 110)
  turn(220, 3)
  const { maxMs, busyMaxMs, p99Ms } = watch.report()
  near(maxMs, 200)
  near(busyMaxMs, 100)
  assert.ok(p99Ms <= 100, String(p99Ms))
  assert.deepEqual(long, [{ lateMs: 100, busyMs: 100 }])
})

test('the last minute forgets, the whole does not', () => {
  const { watch, turn } = rig()
  turn(500, 480)
  near(watch.report().lastMinute.maxMs, 480)
  for (let at = 0; at < 55_000; at += 25) turn(25, 1)
  near(watch.report().lastMinute.maxMs, 480, 'not yet a minute ago')
  for (let at = 0; at < 10_000; at += 25) turn(25, 1)
  near(watch.report().lastMinute.maxMs, 5)
  near(watch.report().lastMinute.busyMaxMs, 1)
  near(watch.report().maxMs, 480)
})

test('after a long rest the last minute is empty, not old', () => {
  const { watch, turn } = rig()
  turn(300, 290)
  turn(1_000_000, 0)
  const { lastMinute, busyMaxMs } = watch.report()
  near(lastMinute.busyMaxMs, 0)
  near(busyMaxMs, 280)
})

test('for real: a turn of 120 ms is seen as our own work', async () => {
  const watch = new LoopWatch()
  watch.start()
  await sleep(100)
  // By its own time: another process may have the processor for some of it.
  const computed = (): number => {
    const { user, system } = process.threadCpuUsage()
    return (user + system) / 1000
  }
  const end = computed() + 120
  while (computed() < end);
  await sleep(50)
  watch.stop()
  const { maxMs, busyMaxMs } = watch.report()
  assert.ok(maxMs >= 95, `late by ${maxMs} ms`)
  assert.ok(busyMaxMs >= 95 && busyMaxMs <= maxMs, `busy for ${busyMaxMs} ms of ${maxMs}`)
})
