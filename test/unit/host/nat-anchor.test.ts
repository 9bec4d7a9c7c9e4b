/** The nft that owns the anchor, when it is none: what it says without end is a short problem, told once. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { NAT_ANCHOR_STDERR_CHARACTERS_MAX } from '../../../lib/core/limits.ts'
import { NatAnchor } from '../../../lib/host/nat-anchor.ts'
import { until } from '../../lab/run.ts'

test('what nft says without end is one short problem', async () => {
  const problems: string[] = []
  const flood = ['sh', '-c', "head -c 1000000 /dev/zero | tr '\\0' x >&2; exec sleep 60"]
  const anchor = new NatAnchor({
    table: 'swam_test',
    nft: flood,
    onProblem: (text) => void problems.push(text),
  })
  anchor.keep()
  try {
    await until('a problem', 5000, () => (problems.length > 0 ? true : undefined))
    assert.match(problems[0]!, /^x+$/)
    assert.ok(problems[0]!.length <= NAT_ANCHOR_STDERR_CHARACTERS_MAX, `${problems[0]!.length} characters`)
  } finally {
    await anchor.close()
  }
  assert.equal(problems.length, 1)
})
