/** LoopWatch by a clock that is moved by hand, and once for real: a turn that blocks is seen, a loop at rest is not late. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setTimeout as sleep } from 'node:timers/promises'
import { LoopWatch } from '../../../lib/core/loop-watch.ts'

interface Rig {
  readonly watch: LoopWatch
  readonly long: { lateMs: number; busyMs: number }[]
  /** The timer fires late, and the thread computed so long since it last did. */
  turn(lateMs: number, cpuMs: number): void
  /** In how many milliseconds it is due. */
  dueIn(): number
}

function rig(): Rig {
  let now = 0
  let cpu = 0
  const long: { lateMs: number; busyMs: number }[] = []
  const watch = new LoopWatch({ clock: () => now, cpu: () => cpu, onLong: (delay) => long.push(delay) })
  let dueIn = watch.look()
  return {
    watch,
    long,
    dueIn: () => dueIn,
    turn: (lateMs, cpuMs) => {
      now += dueIn + lateMs
      cpu += cpuMs
      dueIn = watch.look()
    },
  }
}

/** The histograms keep three digits. */
function near(found: number, expected: number, what?: string): void {
  assert.ok(Math.abs(found - expected) <= expected / 500, `${found}, expected ${expected} ${what ?? ''}`)
}

test('a delay is what comes beyond the time it is due; what others took is not our work', () => {
  const { watch, long, turn } = rig()
  for (let i = 0; i < 200; i++) turn(1, 5)
  turn(100, 103)
  turn(200, 3)
  const { maxMs, busyMaxMs, p99Ms } = watch.report()
  near(maxMs, 200)
  near(busyMaxMs, 100)
  assert.ok(p99Ms <= 100, String(p99Ms))
  assert.deepEqual(long, [{ lateMs: 100, busyMs: 100 }])
})

test('the last minute forgets, the whole does not', () => {
  const { watch, turn } = rig()
  turn(480, 480)
  near(watch.report().lastMinute.maxMs, 480)
  for (let at = 0; at < 55_000; at += 25) turn(5, 0.5)
  near(watch.report().lastMinute.maxMs, 480, 'not yet a minute ago')
  for (let at = 0; at < 10_000; at += 25) turn(5, 0.5)
  near(watch.report().lastMinute.maxMs, 5)
  near(watch.report().lastMinute.busyMaxMs, 0.5)
  near(watch.report().maxMs, 480)
})

test('after a long rest the last minute is empty, not old', () => {
  const { watch, turn } = rig()
  turn(280, 290)
  turn(1_000_000, 0)
  const { lastMinute, busyMaxMs } = watch.report()
  near(lastMinute.busyMaxMs, 0)
  near(busyMaxMs, 280)
})

test('while the thread works it looks more often, so that little of what came before counts as work of a delay', () => {
  const { watch, turn, dueIn } = rig()
  assert.equal(dueIn(), 20)
  turn(0, 15)
  assert.equal(dueIn(), 5)
  // Of 65 ms of work at most 5 are from before it was due.
  turn(60, 65)
  near(watch.report().busyMaxMs, 60)
  turn(0, 0.2)
  assert.equal(dueIn(), 20)
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
