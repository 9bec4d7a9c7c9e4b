/**
 * Two machines, Debian 12 and 13, with the package and each other as peers: an upgrade in the middle of a migration waits
 * for it, the two versions migrate to each other both ways, a removal that is told not to wait says what it ends, and
 * afterwards migrations go as if SWAM had never been there. The peers are set up by hand, as docs/cli.md has it.
 */
import assert from 'node:assert/strict'
import { rmSync, writeFileSync } from 'node:fs'
import { after, before, test } from 'node:test'
import { release as version } from '../../server/release.ts'
import type { MigrationReport } from '../../server/report.ts'
import { Machine } from '../lab/machine.ts'
import { type RunResult, run, until } from '../lab/run.ts'
import { apt, buildBoth, history, isUp, NEWER, share, status } from './package-machines.ts'

const MIB = 1 << 20
const DISK_MIB = 64
/** Of what QEMU writes, by --bandwidth: a copy of the disk takes a quarter of a minute. */
const SLOW_MIB = 4
const IMAGE = '/var/lib/libvirt/images/g2.raw'
/** Nothing boots from its disk; the disk is what is moved. */
const GUEST = `<domain type='qemu'><name>g2</name><uuid>a3b1c2d4-0000-4000-8000-000000000002</uuid><memory unit='MiB'>64</memory>
<os><type arch='x86_64' machine='pc-i440fx-7.2'>hvm</type></os><devices>
<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='${IMAGE}'/><target dev='vda' bus='virtio'/></disk>
<controller type='usb' model='none'/><memballoon model='none'/></devices></domain>`

before(buildBoth)
after(() => rmSync(`out/swam_${NEWER}_amd64.deb`, { force: true }))

interface Host {
  readonly machine: Machine
  readonly name: string
  readonly address: string
}

/** A cable between them, names, and root's SSH as `virsh migrate qemu+ssh://` needs it. */
async function join(a: Host, b: Host): Promise<void> {
  const [left, right] = [String(a.machine.leader), String(b.machine.leader)]
  await run('ip', [
    'link',
    'add',
    'cable0',
    'netns',
    left,
    'type',
    'veth',
    'peer',
    'name',
    'cable0',
    'netns',
    right,
  ])
  for (const { machine, address } of [a, b]) {
    await machine.shell(`ip address add ${address}/24 dev cable0; ip link set cable0 up
printf '127.0.0.1 localhost\\n${a.address} ${a.name}\\n${b.address} ${b.name}\\n' >/etc/hosts
mkdir -p -m 700 /root/.ssh; ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519`)
  }
  for (const [from, to] of [
    [a, b],
    [b, a],
  ] as const) {
    const key = await from.machine.shell('cat /root/.ssh/id_ed25519.pub')
    await to.machine.shell(`echo '${key}' >>/root/.ssh/authorized_keys`)
    await from.machine.shell(`echo '${to.name} ${await hostKey(to)}' >/root/.ssh/known_hosts`)
    await until('ssh', 20_000, async () =>
      (await from.machine.exec(['ssh', to.name, 'true'], { check: false })).code === 0 ? true : undefined,
    )
  }
}

async function hostKey(host: Host): Promise<string> {
  return await host.machine.shell("cut -d ' ' -f 1,2 /etc/ssh/ssh_host_ed25519_key.pub")
}

/** What `from` needs to reach `to`. */
async function addPeer(from: Host, to: Host): Promise<void> {
  await from.machine.shell(`[ -e /etc/swam/id_ed25519 ] || ssh-keygen -q -t ed25519 -N '' -C swam -f /etc/swam/id_ed25519
chown swam:swam /etc/swam/id_ed25519
cat >>/etc/swam/swam.toml <<TEXT

[[peers]]
name = "${to.name}"
addresses = ["${to.address}"]
site = "${to.name}"
ssh = { hostKey = "${await hostKey(to)}" }
TEXT`)
  const command = `swam-peer --peer ${from.name} --socket /run/swam/peer.sock`
  const line = `restrict,command="${command}" ${await from.machine.shell('cat /etc/swam/id_ed25519.pub')}`
  await to.machine.shell(`umask 077; echo '${line}' >>/var/lib/swam/.ssh/authorized_keys
chown swam:swam /var/lib/swam/.ssh/authorized_keys`)
}

async function peersUp(...hosts: readonly Host[]): Promise<void> {
  await until('the peers to be up', 60_000, async () => {
    const all = await Promise.all(hosts.map(({ machine }) => status(machine)))
    return all.every(({ peers }) => peers.length === 1 && peers[0]?.up) ? true : undefined
  })
}

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

/** Both daemons write it some seconds after the end. */
async function entry(host: Host, count: number): Promise<MigrationReport> {
  return await until(
    `entry ${count} in the history of ${host.name}`,
    60_000,
    async () => {
      const all = await history(host.machine)
      return all.length >= count ? all[count - 1] : undefined
    },
    300,
  )
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

async function runs(host: Host): Promise<string> {
  return await host.machine.shell('virsh -q list --name --state-running')
}

test('an upgrade in the middle of a migration, both versions, a removal, and nothing left', {
  timeout: 1_200_000,
}, async (t) => {
  await using first = await Machine.boot('bookworm', 'host-a')
  await using second = await Machine.boot('trixie', 'host-b')
  const a: Host = { machine: first, name: 'host-a', address: '10.9.0.1' }
  const b: Host = { machine: second, name: 'host-b', address: '10.9.0.2' }
  await join(a, b)
  for (const { machine } of [a, b]) {
    share(machine)
    await apt(machine, `install /mnt/swam_${version()}.deb`)
  }
  await addPeer(a, b)
  await addPeer(b, a)
  for (const { machine } of [a, b]) await machine.shell('swam config check; systemctl restart swamd')
  await peersUp(a, b)
  writeFileSync(`${first.shared}/g2.xml`, GUEST)
  await first.shell(`head -c ${DISK_MIB}M /dev/urandom >${IMAGE}; virsh -q create /mnt/g2.xml`)
  const digest = await first.shell(`sha256sum <${IMAGE}`)

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
    assert.equal(await second.shell(`sha256sum <${IMAGE}`), digest)
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
        assert.equal(await to.machine.shell(`sha256sum <${IMAGE}`), digest)
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
    assert.equal(await second.shell(`sha256sum <${IMAGE}`), digest)
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
    assert.equal(await first.shell(`sha256sum <${IMAGE}`), digest)
  })
})
