/** The manual clock fires in order and can be cancelled; the log writes one JSON object a line, with errors in full. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ManualClock, systemClock } from '../../../lib/core/clock.ts'
import { createLog, silentLog } from '../../../lib/core/log.ts'

test('the manual clock', () => {
  const clock = new ManualClock(1_000_000)
  const fired: string[] = []
  clock.after(30, () => fired.push(`c${clock.nowMs()}`))
  clock.after(10, () => {
    fired.push(`a${clock.nowMs()}`)
    clock.after(5, () => fired.push(`b${clock.nowMs()}`))
  })
  const cancel = clock.after(20, () => fired.push('never'))
  cancel()
  cancel()
  clock.advance(29)
  assert.deepEqual(fired, ['a10', 'b15'])
  clock.advance(1)
  assert.deepEqual(fired, ['a10', 'b15', 'c30'])
  assert.deepEqual([clock.nowMs(), clock.wallMs()], [30, 1_000_030])
})

test('the system clock moves on and its timers can be cancelled', async () => {
  const before = systemClock.nowMs()
  systemClock.after(1, () => assert.fail('was cancelled'))()
  // Its timers do not keep the process alive by themselves; this one does.
  const keepAlive = setInterval(() => {}, 1000)
  await new Promise<void>((resolve) => systemClock.after(5, resolve))
  clearInterval(keepAlive)
  assert.ok(systemClock.nowMs() > before)
  assert.ok(Math.abs(systemClock.wallMs() - Date.now()) < 10_000)
})

test('the log', () => {
  const lines: string[] = []
  const log = createLog({ level: 'info', stream: { write: (line) => void lines.push(line) } })
  log.debug({}, 'too quiet')
  log.child({ peer: 'fra1' }).warn({ bytes: 5 }, 'slow')
  log.error({ error: Object.assign(new Error('gone'), { code: 'SWAM_LOST' }) }, 'lost')
  silentLog.child({}).error({}, 'unheard')
  const objects = lines.map((line) => JSON.parse(line))
  assert.equal(objects.length, 2)
  const { time, ...first } = objects[0]
  assert.match(time, /^\d{4}-\d\d-\d\dT/)
  assert.deepEqual(first, { level: 'warn', peer: 'fra1', bytes: 5, msg: 'slow' })
  assert.deepEqual([objects[1].error.message, objects[1].error.code], ['gone', 'SWAM_LOST'])
})
