/**
 * Two guests at once between the same two hosts, one in each direction: both arrive whole, no connection belongs to
 * both, and each one's bytes stand in its own account.
 */
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { wireKey } from '../../server/migration/record.ts'
import {
  assertDone,
  assertNear,
  direct,
  entry,
  logs,
  MIB,
  QUIET,
  resume,
  SMALL,
  startBoth,
  swamLab,
  wire,
} from '../e2e/swam-lab.ts'
import type { HostName } from '../lab/state.ts'
import type { TinyGuest } from '../lab/tiny.ts'

test('two guests at once, one in each direction', { timeout: 300_000 }, async () => {
  await using lab = await swamLab('two')
  await startBoth(lab)
  const write = { ...QUIET, areaBytes: 4 << 20 }
  const moves: readonly { guest: TinyGuest; from: HostName; to: HostName; randomMiB: number }[] = [
    { name: 'large', from: 'hosta', to: 'hostb', randomMiB: 96 } as const,
    { name: 'little', from: 'hostb', to: 'hosta', randomMiB: 16 } as const,
  ].map(({ name, from, to, randomMiB }) => ({
    guest: lab.tinyGuest({ ...SMALL, name, randomMiB, write }),
    from,
    to,
    randomMiB,
  }))
  await Promise.all(
    moves.map(async ({ guest, from }) => {
      await guest.create(from)
      await guest.waitBoot()
      await guest.waitProgress(2)
    }),
  )
  await lab.wan.reset()
  const since = Date.now()
  const done = await Promise.all(
    moves.map(({ guest, from, to }) => lab.migrate(guest, from, to, { args: ['--suspend'] })),
  )
  for (const each of done) assert.ok(each.ok, `${each.stderr}\n${logs(lab)}`)
  const [x, y] = done
  assert.ok(
    x && y && Math.max(x.startedAt, y.startedAt) < Math.min(x.endedAt, y.endedAt),
    'both at the same time',
  )

  const keys: string[] = []
  const reports = await Promise.all(
    moves.map(async ({ guest, from, to }) => ({
      out: await entry(lab, from, guest, since),
      into: await entry(lab, to, guest, since),
    })),
  )
  const link = await lab.wan.stats()
  for (const [at, { guest, from, to, randomMiB }] of moves.entries()) {
    const { out, into } = reports[at]!
    await lab.compareImages(guest.imagePath('hosta'), guest.imagePath('hostb'))
    const check = await guest.check(guest.imagePath(to))
    assert.ok(check.ok, check.faults.join('\n'))
    assert.equal(out.id, into.id)
    // A record is the same in both guests when they have come to its number: it may be found in the other one's image.
    const least = randomMiB * MIB - guest.plan.areaBytes
    for (const report of [out, into]) {
      assertDone(report)
      assert.equal(report.uuid, guest.uuid)
      const literal = report.disks[0]!.bySource.literal
      assert.ok(
        literal >= least && literal <= (randomMiB + 8) * MIB,
        `${guest.name}: ${randomMiB} MiB of random data, ${literal} bytes of literals`,
      )
    }
    for (const [report, host] of [
      [out, from],
      [into, to],
    ] as const) {
      const { disk, ram, linkDisk, linkRam } = wire(report, host, link)
      assertNear(disk, linkDisk, `${guest.name} at ${host}: disk bytes on the wire`)
      assertNear(ram, linkRam, `${guest.name} at ${host}: RAM bytes on the wire`)
      assert.ok(linkDisk > least && linkDisk < 1.2 * (randomMiB + 8) * MIB, `${guest.name}: ${linkDisk}`)
    }
    // The side that listens for SSH has port 22 in all of them: the other end's port tells them apart.
    for (const each of out.connections) keys.push(wireKey(each))
  }
  assert.equal(keys.length, 4)
  assert.equal(new Set(keys).size, keys.length, `no connection is shared: ${keys.join(' ')}`)
  assert.deepEqual(direct(link), [])
  for (const { guest, to } of moves) await resume(lab, guest, to)
})
