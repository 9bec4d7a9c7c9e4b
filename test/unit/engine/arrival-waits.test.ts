/** Waiting for what another session has asked for: how long, for whom, and what is held meanwhile. Sessions without a disk. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { sha256 } from '../../../lib/chunk/digest.ts'
import { ManualClock } from '../../../lib/core/clock.ts'
import { ARRIVAL_KEPT_BYTES_MAX, ARRIVAL_SILENCE_MS, ARRIVAL_WAIT_MS } from '../../../lib/core/limits.ts'
import { KIB, MIB } from '../../../lib/core/units.ts'
import { type ArrivalSession, Arrivals } from '../../../lib/engine/arrivals.ts'
import type { DeliveredChunks } from '../../../lib/engine/delivered.ts'
import { newTask, type Task } from '../../../lib/engine/task.ts'

const NOTHING: DeliveredChunks = { name: 'session', has: () => false, find: async () => undefined }

const turns = async (count: number): Promise<void> => {
  for (let i = 0; i < count; i++) await new Promise((resolve) => setImmediate(resolve))
}

/** Sessions without a disk, and chunks of one content. */
function sessions(count: number) {
  const clock = new ManualClock()
  const arrivals = new Arrivals(clock)
  const digest = sha256(Buffer.from('a chunk'))
  let seq = 0
  const all = Array.from({ length: count }, () => {
    const state = { room: true, task: newTask(seq++, 0, 7, digest, undefined) }
    const session = arrivals.join(NOTHING, () => state.room)
    return { ...state, session, state }
  })
  return { clock, arrivals, all }
}

/** What a wait came to: undefined while it lasts. */
function watch(session: ArrivalSession, task: Task): { came?: Buffer | 'nothing' | 'gone' } {
  const state: { came?: Buffer | 'nothing' | 'gone' } = {}
  const wait = session.wait(task)
  assert.ok(wait !== undefined, 'it is waited for')
  void wait.then((arrived) => {
    state.came = arrived === undefined ? 'nothing' : (arrived() ?? 'gone')
  })
  return state
}

test('a wait lasts while something comes there, and not longer than ARRIVAL_WAIT_MS', async () => {
  const { clock, all } = sessions(2)
  const [one, two] = [all[0]!, all[1]!]
  one.session.asked(one.task)
  const wait = watch(two.session, two.task)
  const step = ARRIVAL_SILENCE_MS - 500
  for (let at = step; at < ARRIVAL_WAIT_MS; at += step) {
    clock.advance(step)
    await turns(1)
    assert.equal(wait.came, undefined, `after ${at} ms`)
    const other = newTask(at, 0, 1, sha256(Buffer.from(String(at))), undefined)
    one.session.asked(other)
    one.session.arrived(other, Buffer.from('another'))
  }
  clock.advance(ARRIVAL_WAIT_MS - clock.nowMs() - 1)
  await turns(1)
  assert.equal(wait.came, undefined)
  clock.advance(1)
  await turns(1)
  assert.equal(wait.came, 'nothing')
  assert.equal(two.session.wait(two.task), undefined, 'nor does it begin again')
})

test('of many that wait one asks when the asker ends, the others wait for that one', async () => {
  const { arrivals, all } = sessions(4)
  const [one, two, three, four] = [all[0]!, all[1]!, all[2]!, all[3]!]
  one.session.asked(one.task)
  const waits = [two, three, four].map(({ session, task }) => watch(session, task))
  one.session.end()
  await turns(1)
  assert.deepEqual(
    waits.map(({ came }) => came),
    ['nothing', 'nothing', 'nothing'],
  )
  assert.equal(two.session.wait(two.task), undefined)
  two.session.asked(two.task)
  const [third, fourth] = [watch(three.session, three.task), watch(four.session, four.task)]
  const bytes = Buffer.from('a chunk')
  two.session.arrived(two.task, bytes)
  await turns(1)
  assert.equal(third.came, bytes)
  assert.equal(fourth.came, bytes)
  two.session.applied(two.task)
  assert.equal(arrivals.size, 0)
})

test('two that asked for the same: the end of one does not end a wait, whose bytes come from the other', async () => {
  const { all } = sessions(3)
  const [one, two, three] = [all[0]!, all[1]!, all[2]!]
  one.session.asked(one.task)
  two.session.asked(two.task)
  const wait = watch(three.session, three.task)
  one.session.end()
  await turns(1)
  assert.equal(wait.came, undefined)
  const bytes = Buffer.from('a chunk')
  two.session.arrived(two.task, bytes)
  await turns(1)
  assert.equal(wait.came, bytes)
})

test('nobody waits for himself; who has no room at once holds no bytes that the other has let go', async () => {
  const { all } = sessions(3)
  const [one, two, three] = [all[0]!, all[1]!, all[2]!]
  one.session.asked(one.task)
  assert.equal(one.session.wait(one.task), undefined)
  two.state.room = false
  const waits = [two, three].map(({ session, task }) => session.wait(task)!)
  const bytes = Buffer.from('a chunk')
  one.session.arrived(one.task, bytes)
  const [without, withRoom] = await Promise.all(waits)
  assert.equal(without?.(), bytes, 'the other has it still')
  one.session.applied(one.task)
  assert.equal(without?.(), undefined)
  assert.equal(withRoom?.(), bytes)
})

test('a session that has ended is asked for nothing and keeps nothing', async () => {
  const { arrivals, all } = sessions(2)
  const [one, two] = [all[0]!, all[1]!]
  one.session.end()
  one.session.asked(one.task)
  one.session.arrived(one.task, Buffer.from('a chunk'))
  assert.equal(two.session.wait(two.task), undefined)
  assert.equal(arrivals.size, 0)
})

test('bytes that no place in memory stands for are kept up to a bound, and only while there is somebody else', async () => {
  const arrivals = new Arrivals(new ManualClock())
  const one = arrivals.join(NOTHING, () => true)
  const chunk = (seq: number): Task => newTask(seq, 0, 1, sha256(Buffer.from(`chunk ${seq}`)), undefined)
  const written = (task: Task, bytes: Buffer): void => {
    one.arrived(task, bytes)
    one.taken(task)
  }
  const alone = chunk(0)
  written(alone, Buffer.alloc(1))
  const two = arrivals.join(NOTHING, () => true)
  assert.equal(two.wait(chunk(0)), undefined)
  one.applied(alone)
  const tasks = Array.from({ length: 20 }, (_, seq) => chunk(1 + seq))
  for (const task of tasks) written(task, Buffer.alloc(MIB))
  const kept = tasks.filter(({ seq }) => two.wait(chunk(seq)) !== undefined)
  assert.deepEqual(kept, tasks.slice(20 - ARRIVAL_KEPT_BYTES_MAX / MIB))
  for (const task of tasks.slice(10)) one.applied(task)
  for (const task of tasks.slice(0, 10)) written(task, Buffer.alloc(MIB))
  assert.ok(tasks.slice(0, 10).every(({ seq }) => two.wait(chunk(seq)) !== undefined))
  for (const task of tasks.slice(0, 10)) one.applied(task)
  // 100 KiB of a MiB of literals each: they do not keep the rest of it in memory, and do not count for it.
  const parts = Array.from({ length: 150 }, (_, seq) => chunk(100 + seq))
  const literals = Buffer.alloc(MIB, 7)
  for (const task of parts) written(task, literals.subarray(0, 100 * KIB))
  for (const { seq } of parts) {
    const bytes = (await two.wait(chunk(seq)))?.()
    assert.ok(bytes?.equals(literals.subarray(0, 100 * KIB)), `chunk ${seq}`)
    assert.notEqual(bytes?.buffer, literals.buffer)
  }
  one.end()
  assert.equal(arrivals.size, 0)
})
