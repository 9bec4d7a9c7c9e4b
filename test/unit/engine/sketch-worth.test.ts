/** Sketches are made where they pay: on trust at first, by what was told of them then. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { KIB } from '../../../lib/core/units.ts'
import { SketchWorth } from '../../../lib/engine/sketch-worth.ts'

const CHUNK = 64 * KIB

/** How many of so many chunks are sketched. */
function sketched(worth: SketchWorth, chunks: number): number {
  let count = 0
  for (let at = 0; at < chunks; at++) {
    if (!worth.pays) continue
    count++
    worth.asked(CHUNK)
  }
  return count
}

test('before anything is told only the first 8 MiB are', () => {
  assert.equal(sketched(new SketchWorth(), 128 + 320), 128 + 10)
})

test('where the first mebibyte spared nothing, one in 32 is, however many came before it was told', () => {
  const worth = new SketchWorth()
  assert.equal(sketched(worth, 17), 17)
  for (let at = 0; at < 15; at++) worth.told(0, CHUNK)
  assert.equal(sketched(worth, 17), 17, 'not known yet')
  worth.told(0, CHUNK)
  assert.equal(sketched(worth, 320), 10)
})

test('where they spare something all are, until they do no more; then again', () => {
  const worth = new SketchWorth()
  for (let at = 0; at < 100; at++) {
    assert.equal(sketched(worth, 10), 10, `turn ${at}`)
    for (let told = 0; told < 10; told++) worth.told(CHUNK / 2, CHUNK)
  }
  for (let told = 0; told < 64; told++) worth.told(0, CHUNK)
  assert.equal(sketched(worth, 320), 10)
  for (let told = 0; told < 4; told++) worth.told(CHUNK, CHUNK)
  assert.equal(sketched(worth, 320), 320)
})
