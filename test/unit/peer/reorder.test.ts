/** Frames of several channels are put in order again, within bounds. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import fc from 'fast-check'
import { ProtocolError } from '../../../lib/core/errors.ts'
import { SendQueue } from '../../../lib/peer/queue.ts'
import { Reorder } from '../../../lib/peer/reorder.ts'
import type { Frame, FrameClass } from '../../../lib/wire/frame.ts'

const frame = (sequence: number, bytes = 4): Frame => ({
  type: 16,
  cls: 0,
  sequence,
  payload: Buffer.alloc(bytes),
})

test('frames of several channels, mixed in any way, leave in order', () => {
  fc.assert(
    fc.property(
      fc.array(fc.integer({ min: 0, max: 7 }), { maxLength: 60 }),
      fc.infiniteStream(fc.nat()),
      (owners, picks) => {
        const channels: number[][] = Array.from({ length: 8 }, () => [])
        for (const [sequence, owner] of owners.entries()) channels[owner]!.push(sequence)
        const reorder = new Reorder({ bytesMax: 10_000, framesMax: 100 })
        const left: number[] = []
        for (;;) {
          const waiting = channels.filter((channel) => channel.length > 0)
          if (waiting.length === 0) break
          reorder.push(frame(waiting[(picks.next().value as number) % waiting.length]!.shift()!))
          for (let next = reorder.take(); next !== undefined; next = reorder.take()) left.push(next.sequence)
        }
        assert.deepEqual(left, [...owners.keys()])
        assert.equal(reorder.heldBytes, 0)
        assert.equal(reorder.heldFrames, 0)
      },
    ),
  )
})

test('a peer that breaks the order or the bounds is told apart', () => {
  const refuses = (run: (reorder: Reorder) => void, message: RegExp): void => {
    const reorder = new Reorder({ bytesMax: 100, framesMax: 5 })
    assert.throws(
      () => run(reorder),
      (error) => error instanceof ProtocolError && message.test(error.message),
    )
  }
  refuses((reorder) => {
    reorder.push(frame(1))
    reorder.push(frame(1))
  }, /frame 1 came twice/)
  refuses((reorder) => {
    reorder.push(frame(0))
    reorder.take()
    reorder.push(frame(0))
  }, /frame 0 came twice/)
  refuses((reorder) => reorder.push(frame(5)), /at most 5 may be in flight/)
  refuses((reorder) => {
    reorder.push(frame(1, 50))
    reorder.push(frame(2, 50))
  }, /124 bytes are in flight, at most 100/)
})

test('the queue gives the lowest class first, and first in first out within it', () => {
  fc.assert(
    fc.property(fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 2000 }), (classes) => {
      const queue = new SendQueue()
      const nothing = (): void => undefined
      for (const [index, cls] of classes.entries()) {
        const payload = [Buffer.from([index >> 8, index & 255])]
        queue.push({ type: 16, cls: cls as FrameClass, payload, bytes: 14, sent: nothing, failed: nothing })
      }
      assert.equal(queue.bytes, 14 * classes.length)
      const expected = classes
        .map((cls, index) => ({ cls, index }))
        .sort((a, b) => a.cls - b.cls || a.index - b.index)
      const got = queue
        .drain()
        .map(({ cls, payload }) => ({ cls, index: (payload[0]![0]! << 8) | payload[0]![1]! }))
      assert.deepEqual(got, expected)
      assert.equal(queue.bytes, 0)
      assert.equal(queue.count, 0)
    }),
    { numRuns: 20 },
  )
})
