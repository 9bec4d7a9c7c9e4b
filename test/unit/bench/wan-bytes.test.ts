/**
 * The table of the bench of bytes: a figure that could not be had must not look like one.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { table } from '../../bench/wan-bytes.ts'

test('figures in MB; what could not be had is none', () => {
  const figures = { ideal: 80e6, casync: 90e6, borg: 100e6, borg4k: 95.5e6, restic: null }
  const pair = { kind: 'clone', dataBytes: 500e6, ...figures, samples: {} }
  const pairs = [
    { ...pair, name: 'web | base', swam: 82e6 },
    { ...pair, name: 'web | nothing', swam: null },
  ]
  assert.deepEqual(
    table({ commit: 'abc', startedAt: '2026-11-26', pairs })
      .split('\n')
      .map((line) => line.split(/ {2,}/)),
    [
      ['wan-bytes, 2026-11-26, commit abc'],
      ['MB', 'data', 'swam', 'ideal', 'casync', 'borg', 'borg4k', 'restic', 'swam/ideal'],
      ['web | base', '500.00', '82.00', '80.00', '90.00', '100.00', '95.50', 'none', '1.025'],
      ['web | nothing', '500.00', 'none', '80.00', '90.00', '100.00', '95.50', 'none', '-'],
    ],
  )
})
