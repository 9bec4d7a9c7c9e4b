/**
 * Nothing is proved where one end does not want it, and nothing is lost by that. What is no raw file is verified too: a qcow2, and
 * a volume that was a file before.
 */
import assert from 'node:assert/strict'
import { open } from 'node:fs/promises'
import { test } from 'node:test'
import { MIB, moveThrough, QUIET, resume, SMALL, startBoth, swamLab } from '../e2e/swam-lab.ts'
import { verified } from '../e2e/swam-proof.ts'
import { Traveller, targetXml } from '../e2e/variants.ts'
import { run } from '../lab/run.ts'

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

test('swam verify of a qcow2 and of a volume, before and after they are changed', {
  timeout: 600_000,
}, async () => {
  await using lab = await swamLab('proof-kinds')
  await startBoth(lab)
  const one = new Traveller(lab, {
    name: 'kinds',
    volumes: ['hostb'],
    more: [{ diskMiB: 96, randomMiB: 16, format: 'qcow2' }],
  })
  const { guest } = one
  const hostb = lab.host('hostb')
  await using volume = await guest.disk().makeVolume(hostb)
  assert.ok(volume)
  await one.start()
  const moved = await moveThrough(lab, guest, 'hosta', 'hostb', { args: ['--xml', await targetXml(one)] })
  await hostb.virsh('destroy', guest.name)
  const [vda, vdb] = ['vda', 'vdb'].map((target) => moved.out.disks.find((disk) => disk.target === target)!)
  for (const host of ['hosta', 'hostb'] as const) {
    const sound = await verified(lab, host, guest)
    assert.equal(sound.code, 0, `${host}: ${sound.stderr}`)
    for (const disk of [vda!, vdb!]) {
      const judged = sound.report!.disks.find(({ target }) => target === disk.target)
      const text = `${host}: ${JSON.stringify(sound.report)}`
      assert.equal(judged?.root, disk.root, text)
      assert.equal(judged?.equalLeaves, disk.size / 65_536, text)
      assert.equal(judged?.unknownLeaves, 0, text)
    }
  }
  const device = await open(guest.imagePath('hostb'), 'r+')
  await device.write(Buffer.from('changed'), 0, 7, 17 * MIB)
  await device.sync()
  await device.close()
  await run('qemu-io', ['-f', 'qcow2', '-c', 'write -q -P 99 9M 512', guest.imagePath('hostb', 'vdb')])
  const changed = await verified(lab, 'hostb', guest)
  assert.equal(changed.code, 8, changed.stderr)
  assert.deepEqual(
    changed.report!.disks.map(({ target, differences }) => [target, differences]),
    [
      ['vda', [17 * MIB]],
      ['vdb', [9 * MIB]],
    ],
  )
})
