/** LoopTurn: a turn is over after its time, the next one is fresh, and what waits goes on in order, a step a turn. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { LOOP_TURN_MS } from '../../../lib/core/limits.ts'
import { LoopTurn } from '../../../lib/core/loop-turn.ts'

test('a turn is over after its time, and the next one begins anew', async () => {
  let now = 1000
  const one = new LoopTurn(() => now)
  assert.equal(one.over, false)
  now += LOOP_TURN_MS - 1
  assert.equal(one.over, false)
  now += 1
  assert.equal(one.over, true)
  await turn()
  // It begins when somebody asks, not when the last one ended.
  now += 100
  assert.equal(one.over, false)
  now += LOOP_TURN_MS
  assert.equal(one.over, true)
})

test('steps go on in the order in which they came, one a turn, also those that wait again', async () => {
  const one = new LoopTurn()
  const done: string[] = []
  let turns = 0
  let counting = true
  const count = (): void => {
    turns++
    if (counting) setImmediate(count)
  }
  setImmediate(count)
  one.later(() => {
    done.push(`a in ${turns}`)
    one.later(() => done.push(`a again in ${turns}`))
  })
  one.later(() => done.push(`b in ${turns}`))
  one.later(() => done.push(`c in ${turns}`))
  while (done.length < 4) await turn()
  counting = false
  assert.deepEqual(done, ['a in 1', 'b in 2', 'c in 3', 'a again in 4'])
})
