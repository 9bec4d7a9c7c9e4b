/**
 * A migration whose disk is read back, and `swam verify` afterwards: both hosts have one root; the old image at the source and the new
 * one at the destination are what was proved; a guest that stands there paused is not judged; a bit that flips is found.
 */
import assert from 'node:assert/strict'
import { open } from 'node:fs/promises'
import { test } from 'node:test'
import { MIB, moveThrough, QUIET, SMALL, startBoth, swamLab } from './swam-lab.ts'
import { verified } from './swam-proof.ts'

const LEAF_BYTES = 65_536

async function flip(path: string, at: number): Promise<void> {
  const file = await open(path, 'r+')
  try {
    const byte = Buffer.alloc(1)
    await file.read(byte, 0, 1, at)
    byte[0]! ^= 1
    await file.write(byte, 0, 1, at)
    await file.datasync()
  } finally {
    await file.close()
  }
}

test('a disk that is read back, and verified at both hosts', { timeout: 600_000 }, async (t) => {
  await using lab = await swamLab('proof', { mbit: 200, swamConfig: { verify: 'read' } })
  await startBoth(lab)
  const guest = lab.tinyGuest({ ...SMALL, write: QUIET })
  await guest.create('hosta')
  await guest.waitBoot()
  await guest.waitProgress(2)
  let root = ''

  await t.test('both histories have the same root, and say how far it goes', async () => {
    const moved = await moveThrough(lab, guest, 'hosta', 'hostb')
    for (const report of [moved.out, moved.in]) {
      const text = JSON.stringify(report)
      assert.equal(report.verified, true, text)
      const [vda] = report.disks
      assert.match(vda?.root ?? '', /^[0-9a-f]{64}$/, text)
      assert.equal(vda?.proof?.leaves, guest.diskBytes / LEAF_BYTES, text)
      // A mirror copies whole pieces.
      assert.equal(vda?.proof?.provedLeaves, vda?.proof?.leaves, text)
      // A guest with so little memory may go on before all was read, at half of the disk's time.
      const written = (vda?.bySource.literal ?? 0) / LEAF_BYTES
      assert.ok((vda?.proof?.unreadLeaves ?? written) < written / 2, text)
    }
    root = moved.out.disks[0]!.root!
    assert.equal(moved.in.disks[0]?.root, root)
    const unread = moved.out.disks[0]!.proof!.unreadLeaves
    for (const host of ['hosta', 'hostb'] as const) {
      const { stdout } = await lab.host(host).swam('history', guest.name)
      const how = unread === 0 ? 'read back' : `${unread} of them not read back`
      assert.match(stdout, new RegExp(`vda {2}root ${root} .* pieces, ${how}`), stdout)
    }
  })

  await t.test('a guest that is paused is not judged; the image that it left is', async () => {
    const there = await verified(lab, 'hostb', guest)
    assert.equal(there.code, 7, there.stderr)
    assert.match(there.stderr, /is paused at this host/)
    const here = await verified(lab, 'hosta', guest)
    assert.equal(here.code, 0, here.stderr)
    assert.equal(here.report?.disks[0]?.root, root)
    assert.equal(here.report?.disks[0]?.direction, 'out')
  })

  await t.test('switched off before it ran, its disk is what was proved, until a bit flips', async () => {
    await lab.host('hostb').virsh('destroy', guest.name)
    const sound = await verified(lab, 'hostb', guest)
    assert.equal(sound.code, 0, sound.stderr)
    const [vda] = sound.report!.disks
    assert.equal(vda?.equalLeaves, guest.diskBytes / LEAF_BYTES)
    assert.equal(vda?.unknownLeaves, 0)
    await flip(guest.imagePath('hostb'), 40 * MIB + 77)
    const broken = await verified(lab, 'hostb', guest)
    assert.equal(broken.code, 8, broken.stderr)
    assert.deepEqual(broken.report?.disks[0]?.differences, [40 * MIB])
  })
})
