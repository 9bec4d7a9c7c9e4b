/** Nothing is proved where one end does not want it, and nothing is lost by that. */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { moveThrough, QUIET, resume, SMALL, startBoth, swamLab } from '../e2e/swam-lab.ts'
import { verified } from '../e2e/swam-proof.ts'

test('a peer with verify = "off" migrates as ever, and both histories say that nothing is proved', {
  timeout: 600_000,
}, async () => {
  await using lab = await swamLab('proof-off')
  await lab.host('hostb').configureSwam({ verify: 'off' })
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, write: QUIET })
  await guest.create('hosta')
  await guest.waitBoot()
  const moved = await moveThrough(lab, guest, 'hosta', 'hostb')
  assert.equal(moved.out.verified, null)
  assert.match(moved.out.unverified ?? '', /vda: the far side proves nothing/)
  assert.match(moved.in.unverified ?? '', /vda: verify is "off" here/)
  const none = await verified(lab, 'hostb', guest)
  assert.equal(none.code, 5, none.stderr)
  await resume(lab, guest, 'hostb')
})
