/** LoopTurn: a turn is over when it has computed for its time, the next one is fresh, and what waits goes on in order. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { setImmediate as turn } from 'node:timers/promises'
import { LOOP_TURN_MS } from '../../../lib/core/limits.ts'
import { LoopTurn } from '../../../lib/core/loop-turn.ts'

function rig() {
  const time = { now: 1000, cpu: 50 }
  const one = new LoopTurn(
    () => time.now,
    () => time.cpu,
  )
  /** Of this much of the clock's time the thread computed for so long. */
  const pass = (ms: number, cpuMs = ms): void => {
    time.now += ms
    time.cpu += cpuMs
  }
  return { one, pass }
}

test('a turn is over after its time, and the next one begins anew', async () => {
  const { one, pass } = rig()
  assert.equal(one.over, false)
  pass(LOOP_TURN_MS - 1)
  assert.equal(one.over, false)
  pass(1)
  assert.equal(one.over, true)
  await turn()
  // It begins when somebody asks, not when the last one ended.
  pass(100)
  assert.equal(one.over, false)
  pass(LOOP_TURN_MS)
  assert.equal(one.over, true)
})

test('what others computed meanwhile does not count', () => {
  const { one, pass } = rig()
  assert.equal(one.over, false)
  pass(1000, LOOP_TURN_MS - 1)
  assert.equal(one.over, false)
  pass(1)
  assert.equal(one.over, true)
})

test('steps go on in the order in which they came, as many in a turn as find time', async () => {
  const { one, pass } = rig()
  const done: string[] = []
  let turns = 0
  let counting = true
  const count = (): void => {
    turns++
    if (counting) setImmediate(count)
  }
  setImmediate(count)
  const step = (name: string, ms: number): (() => void) => {
    return () => {
      // As who works does: it asks, then it computes.
      void one.over
      done.push(`${name} in ${turns}`)
      pass(ms)
    }
  }
  one.later(() => {
    step('a', 1)()
    one.later(step('a again', 1))
  })
  one.later(step('b', LOOP_TURN_MS))
  one.later(step('c', LOOP_TURN_MS))
  one.later(step('d', 1))
  while (done.length < 5) await turn()
  counting = false
  assert.deepEqual(done, ['a in 1', 'b in 1', 'c in 2', 'd in 3', 'a again in 3'])
})

test('those who await go on as many in a turn as find time, too', async () => {
  const { one, pass } = rig()
  const done: string[] = []
  let turns = 0
  const work = async (name: string): Promise<void> => {
    await one.next()
    void one.over
    done.push(`${name} in ${turns}`)
    pass(LOOP_TURN_MS / 2)
  }
  const all = Promise.all(['a', 'b', 'c', 'd', 'e'].map(work))
  let ended = false
  void all.then(() => {
    ended = true
  })
  while (!ended) {
    turns++
    await turn()
  }
  assert.deepEqual(done, ['a in 1', 'b in 1', 'c in 2', 'd in 2', 'e in 3'])
})

test('a step that throws costs no other one', async (context) => {
  const { one } = rig()
  const caught = Promise.withResolvers<unknown>()
  const listeners = process.listeners('uncaughtException')
  process.removeAllListeners('uncaughtException')
  process.once('uncaughtException', (error) => caught.resolve(error))
  context.after(() => {
    for (const listener of listeners) process.on('uncaughtException', listener)
  })
  const done: string[] = []
  one.later(() => {
    throw new Error('no')
  })
  one.later(() => void done.push('on'))
  assert.match(String(await caught.promise), /no/)
  while (done.length === 0) await turn()
})
