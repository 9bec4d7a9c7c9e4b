/**
 * Two machines, Debian 12 and 13, with the package and each other as peers: an upgrade in the middle of a migration waits
 * for it, the two versions migrate to each other both ways, a removal that is told not to wait says what it ends, and
 * afterwards migrations go as if SWAM had never been there.
 */
import assert from 'node:assert/strict'
import { rmSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { release as version } from '../../server/release.ts'
import type { MigrationReport } from '../../server/report.ts'
import { type RunResult, until } from '../lab/run.ts'
import {
  apt,
  build,
  entry,
  type Host,
  history,
  imageOf,
  isUp,
  NEWER,
  Pair,
  peersUp,
  runs,
  startGuest,
  status,
} from './package-machines.ts'

const MIB = 1 << 20
const DISK_MIB = 64
/** Of what QEMU writes, by --bandwidth: a copy of the disk takes a quarter of a minute. */
const SLOW_MIB = 4
before(() => build(undefined, NEWER))
after(() => rmSync(`out/swam_${NEWER}_amd64.deb`, { force: true }))

async function migrate(from: Host, to: Host, ...more: readonly string[]): Promise<RunResult> {
  const words = [
    '-q',
    'migrate',
    '--live',
    '--copy-storage-all',
    ...more,
    'g2',
    `qemu+ssh://${to.name}/system`,
  ]
  return await from.machine.exec(['virsh', ...words], { check: false, timeoutMs: 300_000 })
}

async function copying(host: Host): Promise<MigrationReport> {
  return await until(
    'a migration half way',
    60_000,
    async () => {
      const [one] = (await status(host.machine)).migrations
      return one?.phase === 'copying' && (one.disks[0]?.askedBytes ?? 0) > 4 * MIB ? one : undefined
    },
    200,
  )
}

test('an upgrade in the middle of a migration, both versions, a removal, and nothing left', {
  timeout: 1_200_000,
}, async (t) => {
  await using pair = await Pair.boot(['bookworm', 'host-a'], ['trixie', 'host-b'], [version(), NEWER])
  const { a, b } = pair
  const [first, second] = [a.machine, b.machine]
  for (const machine of [first, second]) await apt(machine, `install /mnt/swam_${version()}.deb`)
  await first.shell('swam peer add host-b root@host-b')
  await peersUp(a, b)
  const digest = await startGuest(first, 'g2', DISK_MIB)

  await t.test('apt waits for it, says so, and the migration is accelerated', async () => {
    const moving = migrate(a, b, '--bandwidth', String(SLOW_MIB))
    await copying(a)
    const said = await apt(first, `install /mnt/swam_${NEWER}.deb`)
    const moved = await moving
    assert.equal(moved.code, 0, moved.stderr)
    assert.match(
      said,
      /swam: migrations run on this host:\n {2}"g2" to host-b \(copying\)\nswam: swamd is stopped when they are over/,
    )
    assert.doesNotMatch(said, /WARNING/)
    await isUp(first, NEWER)
    assert.equal(await runs(b), 'g2')
    assert.equal(await second.shell(`sha256sum <${imageOf('g2')}`), digest)
    // Written by the old daemon, read by the new one.
    for (const host of [a, b]) {
      const one = await entry(host, 1)
      assert.deepEqual([one.phase, one.accelerated, one.error], ['done', true, null], JSON.stringify(one))
      assert.ok((one.disks[0]?.bySource.literal ?? 0) >= (DISK_MIB - 1) * MIB, JSON.stringify(one))
    }
  })

  await t.test(
    'the old version to the new one, and the new one to the old: from what lies there',
    async () => {
      const from0 = performance.now()
      const passed = (what: string): void =>
        t.diagnostic(`${what}: ${((performance.now() - from0) / 1000).toFixed(1)} s`)
      await peersUp(a, b)
      passed('peers up after the upgrade')
      let count = 1
      for (const [from, to] of [
        [b, a],
        [a, b],
      ] as const) {
        const moved = await migrate(from, to)
        assert.equal(moved.code, 0, moved.stderr)
        passed(`moved to ${to.name}`)
        count++
        for (const host of [from, to]) {
          const one = await entry(host, count)
          assert.deepEqual([one.phase, one.accelerated, one.error], ['done', true, null], JSON.stringify(one))
          assert.ok((one.disks[0]?.bySource.inPlace ?? 0) >= (DISK_MIB - 1) * MIB, JSON.stringify(one))
        }
        passed('both histories have it')
        assert.equal(await to.machine.shell(`sha256sum <${imageOf('g2')}`), digest)
      }
      await isUp(first, NEWER)
      await isUp(second, version())
      assert.equal(await runs(b), 'g2')
    },
  )

  await t.test('a removal that may not wait says what it ends, and the guest runs on', async () => {
    const moving = migrate(b, a, '--bandwidth', String(SLOW_MIB))
    await copying(b)
    const said = await apt(second, 'purge swam', 'SWAM_DRAIN_SECONDS=0')
    assert.match(said, /swam: WARNING: stopping swamd now ends these migrations; [^\n]*\n {2}"g2" to host-a/)
    const moved = await moving
    assert.notEqual(moved.code, 0)
    assert.equal(await runs(b), 'g2')
    assert.equal(await runs(a), '')
    assert.equal(await second.shell(`sha256sum <${imageOf('g2')}`), digest)
    assert.equal(
      await second.shell(
        'set +e; nft list tables; ls -d /etc/swam /var/lib/swam /run/swam 2>/dev/null; true',
      ),
      '',
    )
    const end = await until('the far side to be done', 60_000, async () => (await history(first)).at(3), 300)
    assert.equal(end.phase, 'failed', JSON.stringify(end))
  })

  await t.test('without it migrations go as ever', async () => {
    const moved = await migrate(b, a)
    assert.equal(moved.code, 0, moved.stderr)
    assert.equal(await runs(a), 'g2')
    await apt(first, 'purge swam')
    assert.equal(await first.shell('nft list tables'), '')
    assert.equal(await runs(a), 'g2')
    assert.equal(await first.shell(`sha256sum <${imageOf('g2')}`), digest)
  })
})
