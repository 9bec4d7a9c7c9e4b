/** Turns: in order, so many at once; one that fails stops nobody. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Turns } from '../../../lib/core/turns.ts'

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test('so many at once, in order, and on after one that fails', async () => {
  const errors: unknown[] = []
  const turns = new Turns(2, (error) => errors.push(error))
  const begun: number[] = []
  const gates = Array.from({ length: 3000 }, () => Promise.withResolvers<void>())
  for (const [index, gate] of gates.entries()) {
    turns.add(async () => {
      begun.push(index)
      await gate.promise
    })
  }
  assert.deepEqual(begun, [0, 1])
  gates[1]!.reject(new Error('no'))
  await turn()
  assert.deepEqual(begun, [0, 1, 2])
  assert.equal(String(errors), 'Error: no')
  for (const { resolve } of gates) resolve()
  for (let i = 0; i < 3000 && begun.length < gates.length; i++) await turn()
  assert.deepEqual(
    begun,
    gates.map((_, index) => index),
  )
})

test('what has not begun when all is cleared never does', async () => {
  const turns = new Turns(1, () => assert.fail())
  const gate = Promise.withResolvers<void>()
  let begun = 0
  for (let i = 0; i < 3; i++) {
    turns.add(async () => {
      begun++
      await gate.promise
    })
  }
  turns.clear()
  gate.resolve()
  await turn()
  assert.equal(begun, 1)
  turns.add(async () => void begun++)
  assert.equal(begun, 2)
})
