/** ByteBudget: the sum is never exceeded, nobody starves, a share that ends gives back what it held. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { ByteBudget, type ByteShare } from '../../../lib/core/byte-budget.ts'

/** Takes and says when it was granted. */
function taking(share: ByteShare, bytes: number): { done: boolean } {
  const state = { done: false }
  void share.take(bytes).then(() => {
    state.done = true
  })
  return state
}

const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve))

test('what does not fit waits, in order, until enough is released', async () => {
  const budget = new ByteBudget({ bytesMax: 100 })
  const share = budget.share({ bytesMax: 100 })
  await share.take(60)
  const large = taking(share, 50)
  const small = taking(share, 10)
  await turn()
  assert.deepEqual([large.done, small.done, budget.used], [false, false, 60], 'small does not overtake')
  share.release(60)
  await turn()
  assert.deepEqual([large.done, small.done, budget.used], [true, true, 60])
  share.release(60)
  assert.equal(budget.used, 0)
})

test('a share at its cap does not hold up another', async () => {
  const budget = new ByteBudget({ bytesMax: 100 })
  const stuck = budget.share({ bytesMax: 40 })
  const other = budget.share({ bytesMax: 40 })
  await stuck.take(40)
  const waits = taking(stuck, 10)
  const runs = taking(other, 40)
  await turn()
  assert.deepEqual([waits.done, runs.done], [false, true])
})

test('shares take turns when the budget is short', async () => {
  const budget = new ByteBudget({ bytesMax: 10 })
  const [one, two] = [budget.share({ bytesMax: 10 }), budget.share({ bytesMax: 10 })]
  await one.take(10)
  const order: string[] = []
  for (const name of ['a', 'b', 'c']) void one.take(10).then(() => order.push(`one ${name}`))
  void two.take(10).then(() => order.push('two'))
  one.release(10)
  await turn()
  one.release(10)
  await turn()
  assert.deepEqual(order, ['one a', 'two'])
})

test('what is larger than all gets it alone', async () => {
  const budget = new ByteBudget({ bytesMax: 10 })
  const share = budget.share({ bytesMax: 5 })
  await share.take(3)
  const large = taking(share, 1000)
  await turn()
  assert.equal(large.done, false)
  share.release(3)
  await turn()
  assert.equal(large.done, true)
  const next = taking(share, 1)
  await turn()
  assert.equal(next.done, false)
})

test('a closed share gives back what it held; its waiters go on and hold nothing', async () => {
  const budget = new ByteBudget({ bytesMax: 10 })
  const [one, two] = [budget.share({ bytesMax: 10 }), budget.share({ bytesMax: 10 })]
  await one.take(10)
  const waits = taking(one, 5)
  const runs = taking(two, 10)
  one.close()
  one.close()
  await turn()
  assert.deepEqual([waits.done, runs.done, budget.used], [true, true, 10])
  one.release(5)
  await one.take(7)
  assert.equal(budget.used, 10)
})

test('to release what is not held is a fault', async () => {
  const share = new ByteBudget({ bytesMax: 10 }).share({ bytesMax: 10 })
  await share.take(4)
  assert.throws(() => share.release(5), /5 bytes released, 4 are held/)
})

test('who does not want to wait gets what is free, but overtakes nobody and takes nothing when it is closed', async () => {
  const budget = new ByteBudget({ bytesMax: 100 })
  const share = budget.share({ bytesMax: 100 })
  assert.equal(share.tryTake(60), true)
  assert.equal(share.tryTake(60), false)
  const waits = taking(share, 50)
  assert.equal(share.tryTake(10), false, 'another one waits')
  share.release(60)
  await turn()
  assert.deepEqual([waits.done, budget.used], [true, 50])
  assert.equal(share.tryTake(50), true)
  share.close()
  assert.equal(share.tryTake(1), false)
  assert.equal(budget.used, 0)
})
