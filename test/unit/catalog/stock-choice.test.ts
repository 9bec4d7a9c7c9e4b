/** Which images are in the indexes: by what is asked for, within both budgets, and without taking turns. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { type Candidate, choose, ranked } from '../../../lib/catalog/stock-choice.ts'

interface Image extends Candidate {
  readonly name: string
}

function image(name: string, more: Partial<Candidate> & { readonly size?: number } = {}): Image {
  const { size = 10, ...rest } = more
  return { name, map: { chunks: size, blocks: 16 * size }, loaded: undefined, score: 0, ...rest }
}

const whole = { chunks: 10, blocks: 160, withBlocks: true }
const names = (images: readonly Image[]): string[] => images.map(({ name }) => name)

test('what is asked for most comes first, then what is loaded, then what is small', () => {
  const images = [image('large', { size: 20 }), image('small'), image('loaded', { loaded: whole, size: 30 })]
  assert.deepEqual(names(ranked(images)), ['loaded', 'small', 'large'])
  assert.deepEqual(names(ranked([...images, image('asked', { score: 1, size: 40 })])), [
    'asked',
    'loaded',
    'small',
    'large',
  ])
})

test('what is loaded gives way only to what is asked for more than twice as often', () => {
  const there = image('there', { loaded: whole, score: 10 })
  assert.deepEqual(names(ranked([image('other', { score: 20 }), there])), ['there', 'other'])
  assert.deepEqual(names(ranked([there, image('other', { score: 21 })])), ['other', 'there'])
  const chunksOnly = image('there', { loaded: { ...whole, withBlocks: false }, score: 10 })
  assert.deepEqual(names(ranked([chunksOnly, image('other', { score: 11 })])), ['other', 'there'])
})

test('blocks give way before chunks, and a large image leaves room for smaller ones', () => {
  const images = [image('a'), image('large', { size: 100 }), image('b'), image('c')]
  const { wanted, crowded } = choose(images, 30, 330)
  assert.deepEqual(
    [...wanted].map(([{ name }, withBlocks]) => [name, withBlocks]),
    [
      ['a', true],
      ['b', true],
      ['c', false],
    ],
  )
  assert.equal(crowded, true)
  assert.equal(choose(images, 1000, 10_000).crowded, false)
})

test('what is loaded counts as what it takes, and an image without a map stays as it is', () => {
  const twin = image('twin', { loaded: { chunks: 0, blocks: 0, withBlocks: true } })
  const bare = image('bare', { map: undefined, loaded: whole })
  const { wanted, crowded } = choose([bare, twin, image('a'), image('b')], 20, 320)
  assert.deepEqual([names([...wanted.keys()]), crowded], [['twin', 'a'], true])
})
